//! `entrepot node`.

use clap::Subcommand;
use entrepot_proto::v1::{ListNodesRequest, Node};

use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, time};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the live nodes, with the revision of the configuration that each of them runs.
    #[command(after_help = "\
Examples:
  entrepot node list
  entrepot node list --output json")]
    List,
}

impl Command {
    pub(super) async fn run(self, session: &Session) -> Result<(), Error> {
        let (mut nodes, output) = (session.nodes(), session.output);
        match self {
            Self::List => {
                let page = async |page_token| {
                    let request = ListNodesRequest { page_size: PAGE_SIZE, page_token };
                    let answer = nodes.list_nodes(request).await?.into_inner();
                    Ok((answer.nodes, answer.next_page_token))
                };
                output.list(&all_pages(page).await?)?;
            }
        }
        Ok(())
    }
}

impl Shown for Node {
    const MESSAGE: &'static str = "entrepot.v1.Node";

    fn details(&self) -> Cells {
        let running = self.running.map(|running| format!("{} (epoch {})", running.revision, running.epoch));
        vec![
            ("NODE", names::short("nodes", &self.name).to_owned()),
            ("RELEASE", self.release.clone()),
            ("REVISION", running.unwrap_or_default()),
            ("CURRENT", if self.current { "yes" } else { "no" }.to_owned()),
            ("PEER ADDRESS", self.peer_address.clone()),
            ("STARTED", time(self.start_time.as_ref())),
            ("REPORTED", time(self.report_time.as_ref())),
        ]
    }
}

impl Listed for Node {
    const ITEMS: &'static str = "nodes";
}
