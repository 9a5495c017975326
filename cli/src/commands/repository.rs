//! `entrepot repository`.

use clap::{Subcommand, ValueEnum};
use entrepot_proto::v1::{
    AutomaticSync, DeleteRepositoryRequest, GetRepositoryRequest, ListRepositoriesRequest, Repository,
    UpdateRepositoryRequest,
};
use prost_types::FieldMask;

use super::template;
use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, note_lagging, time};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show a repository.
    Get {
        /// Its name, such as `demo/team/app`.
        #[arg(value_name = "REPOSITORY")]
        repository: String,
    },
    /// List repositories by name.
    #[command(after_help = "\
Examples:
  entrepot repository list
  entrepot repository list --filter 'prefix = \"demo/\" AND cached = true'
  entrepot repository list --filter 'rule = \"rules/demo\"' --output json")]
    List {
        /// Select repositories: terms joined by AND, each `prefix = \"demo/\"`, `rule = \"rules/demo\"` or `cached =
        /// true`.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Change a repository's settings.
    #[command(after_help = "Example:\n  entrepot repository update demo/team/app --automatic-sync off")]
    Update {
        #[arg(value_name = "REPOSITORY")]
        repository: String,
        /// Whether its tags in use are revalidated before their window ends, even without a pull.
        #[arg(long)]
        automatic_sync: AutomaticSyncFlag,
        /// Only if it still has this etag, as shown by `get --output json`.
        #[arg(long, default_value = "")]
        etag: String,
    },
    /// Delete a repository with all its images; a later pull creates a new one.
    Delete {
        #[arg(value_name = "REPOSITORY")]
        repository: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AutomaticSyncFlag {
    /// Yes.
    On,
    /// No.
    Off,
    /// As its rule says.
    Rule,
}

impl Command {
    pub(super) async fn run(self, session: &Session) -> Result<(), Error> {
        let (mut repositories, output) = (session.repositories(), session.output);
        match self {
            Self::Get { repository } => {
                let request = GetRepositoryRequest { name: names::full("repositories", &repository) };
                output.one(&repositories.get_repository(request).await?.into_inner())?;
            }
            Self::List { filter } => {
                let filter = filter.unwrap_or_default();
                let page = async |page_token| {
                    let request = ListRepositoriesRequest { page_size: PAGE_SIZE, page_token, filter: filter.clone() };
                    let answer = repositories.list_repositories(request).await?.into_inner();
                    Ok((answer.repositories, answer.next_page_token))
                };
                output.list(&all_pages(page).await?)?;
            }
            Self::Update { repository, automatic_sync, etag } => {
                let automatic_sync = match automatic_sync {
                    AutomaticSyncFlag::On => AutomaticSync::On,
                    AutomaticSyncFlag::Off => AutomaticSync::Off,
                    AutomaticSyncFlag::Rule => AutomaticSync::Unspecified,
                };
                let (name, automatic_sync) = (names::full("repositories", &repository), automatic_sync.into());
                let request = UpdateRepositoryRequest {
                    repository: Some(Repository { name, automatic_sync, etag, ..Default::default() }),
                    update_mask: Some(FieldMask { paths: vec!["automatic_sync".to_owned()] }),
                };
                let updated = repositories.update_repository(request).await?.into_inner();
                output.one(&updated)?;
                note_lagging(updated.lagging_node_count);
            }
            Self::Delete { repository } => {
                let request =
                    DeleteRepositoryRequest { name: names::full("repositories", &repository), etag: String::new() };
                let deleted = repositories.delete_repository(request).await?.into_inner();
                output.deleted(&deleted, &deleted.name)?;
                note_lagging(deleted.lagging_node_count);
            }
        }
        Ok(())
    }
}

impl Shown for Repository {
    const MESSAGE: &'static str = "entrepot.v1.Repository";

    fn details(&self) -> Cells {
        let mut cells = self.row();
        let automatic_sync = match self.automatic_sync() {
            AutomaticSync::On => "on",
            AutomaticSync::Off => "off",
            AutomaticSync::Unspecified => "as its rule says",
        };
        cells.extend([
            ("TEMPLATE", names::short("templates", &self.template).to_owned()),
            ("TAGS", template::mutability(self.image_tag_mutability(), &self.image_tag_mutability_exclusion_filters)),
            ("RESOURCE TAGS", template::marks(&self.resource_tags)),
            ("AUTOMATIC SYNC", automatic_sync.to_owned()),
            ("RULE UID", self.rule_uid.clone()),
            ("UID", self.uid.clone()),
        ]);
        cells
    }
}

impl Listed for Repository {
    const ITEMS: &'static str = "repositories";

    fn row(&self) -> Cells {
        vec![
            ("REPOSITORY", names::short("repositories", &self.name).to_owned()),
            ("CACHED", if self.cached { "yes" } else { "no" }.to_owned()),
            ("RULE", names::short("rules", &self.rule).to_owned()),
            ("IMAGES", self.image_count.to_string()),
            ("CREATED", time(self.create_time.as_ref())),
            ("LAST PULL", time(self.last_pull_time.as_ref())),
        ]
    }
}
