//! `entrepot repository`.

use clap::Subcommand;
use entrepot_proto::v1::{DeleteRepositoryRequest, GetRepositoryRequest, ListRepositoriesRequest, Repository};

use super::template;
use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, time};

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
        /// Which ones: terms joined by AND, each `prefix = \"demo/\"`, `rule = \"rules/demo\"` or `cached = true`.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Delete a repository with all its images; a later pull creates a new one.
    Delete {
        #[arg(value_name = "REPOSITORY")]
        repository: String,
    },
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
            Self::Delete { repository } => {
                let request = DeleteRepositoryRequest { name: names::full("repositories", &repository) };
                let deleted = repositories.delete_repository(request).await?.into_inner();
                output.deleted(&deleted, &deleted.name)?;
            }
        }
        Ok(())
    }
}

impl Shown for Repository {
    const MESSAGE: &'static str = "entrepot.v1.Repository";

    fn details(&self) -> Cells {
        let mut cells = self.row();
        cells.extend([
            ("TEMPLATE", names::short("templates", &self.template).to_owned()),
            ("TAGS", template::mutability(self.image_tag_mutability(), &self.image_tag_mutability_exclusion_filters)),
            ("RESOURCE TAGS", template::marks(&self.resource_tags)),
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
