//! `entrepot damaged`.

use clap::Subcommand;
use entrepot_proto::v1::{DamagedObject, ListDamagedObjectsRequest};

use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, time};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the damaged objects, with what nodes have read in them.
    #[command(after_help = "\
Examples:
  entrepot damaged list
  entrepot damaged list --output json")]
    List,
}

impl Command {
    pub(super) async fn run(self, session: &Session) -> Result<(), Error> {
        let (mut objects, output) = (session.damaged_objects(), session.output);
        match self {
            Self::List => {
                let page = async |page_token| {
                    let request = ListDamagedObjectsRequest { page_size: PAGE_SIZE, page_token };
                    let answer = objects.list_damaged_objects(request).await?.into_inner();
                    Ok((answer.damaged_objects, answer.next_page_token))
                };
                output.list(&all_pages(page).await?)?;
            }
        }
        Ok(())
    }
}

impl Shown for DamagedObject {
    const MESSAGE: &'static str = "entrepot.v1.DamagedObject";

    fn details(&self) -> Cells {
        let nodes =
            |nodes: &[String]| nodes.iter().map(|node| names::short("nodes", node)).collect::<Vec<_>>().join(" ");
        vec![
            ("OBJECT", self.key.clone()),
            ("DIGEST", self.digest.clone()),
            ("FOUND", time(self.find_time.as_ref())),
            ("SET ASIDE", time(self.set_aside_time.as_ref())),
            ("DAMAGED FOR", nodes(&self.damaged_for_nodes)),
            ("RIGHT FOR", nodes(&self.right_for_nodes)),
        ]
    }
}

impl Listed for DamagedObject {
    const ITEMS: &'static str = "damaged_objects";
}
