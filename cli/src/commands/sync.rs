//! `entrepot sync`.

use std::process::ExitCode;

use entrepot_proto::v1::SyncRepositoryRequest;

use super::operation;
use crate::client::Session;
use crate::error::Error;
use crate::names;

pub(super) const EXAMPLES: &str = "\
Examples:
  entrepot sync demo/team/app
  entrepot sync demo/team/app --tag latest --tag v2
  entrepot sync demo/team/app --detach

When it ends, pulls from all nodes get what the upstream had meanwhile. The exit code is 1 if a tag failed.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The repository, such as `demo/team/app`.
    #[arg(value_name = "REPOSITORY")]
    repository: String,
    /// Only this tag; one that is not cached is fetched. Can be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Do not wait for the end; `entrepot operation` shows the progress.
    #[arg(long)]
    detach: bool,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Result<ExitCode, Error> {
        let request = SyncRepositoryRequest {
            name: names::full("repositories", &self.repository),
            tags: self.tags,
            request_id: uuid::Uuid::now_v7().to_string(),
        };
        let begun = session.repositories().sync_repository(request).await?.into_inner();
        operation::follow(session, begun, self.detach).await
    }
}
