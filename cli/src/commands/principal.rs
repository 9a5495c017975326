//! `entrepot principal`.

use clap::{Subcommand, ValueEnum};
use entrepot_proto::v1::{
    CreatePrincipalRequest, DeletePrincipalRequest, GetPrincipalRequest, ListPrincipalsRequest, PermissionSet,
    Principal,
};

use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, time, word};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a principal; give it an access key afterwards.
    #[command(after_help = "\
Example:
  entrepot principal create ci --permission-set puller
  entrepot access-key create ci")]
    Create {
        /// The principal's id: 1 to 63 lower-case letters, digits and inner hyphens.
        #[arg(value_name = "PRINCIPAL")]
        principal: String,
        /// The principal's permissions.
        #[arg(long, value_enum)]
        permission_set: PermissionSetName,
    },
    /// Show a principal.
    Get {
        #[arg(value_name = "PRINCIPAL")]
        principal: String,
    },
    /// List all principals.
    List,
    /// Delete a principal with its access keys.
    Delete {
        #[arg(value_name = "PRINCIPAL")]
        principal: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PermissionSetName {
    /// Everything.
    Administrator,
    /// Pulling, including pulls that create and fill repositories, and reading what can be pulled.
    Puller,
}

impl From<PermissionSetName> for PermissionSet {
    fn from(name: PermissionSetName) -> Self {
        match name {
            PermissionSetName::Administrator => Self::Administrator,
            PermissionSetName::Puller => Self::Puller,
        }
    }
}

impl Command {
    pub(super) async fn run(self, session: &Session) -> Result<(), Error> {
        let (mut principals, output) = (session.principals(), session.output);
        match self {
            Self::Create { principal, permission_set } => {
                let principal_id = names::short("principals", &principal).to_owned();
                let permission_set = PermissionSet::from(permission_set).into();
                let principal = Some(Principal { permission_set, ..Default::default() });
                let request = CreatePrincipalRequest { principal_id, principal, ..Default::default() };
                output.one(&principals.create_principal(request).await?.into_inner())?;
            }
            Self::Get { principal } => {
                let request = GetPrincipalRequest { name: names::full("principals", &principal) };
                output.one(&principals.get_principal(request).await?.into_inner())?;
            }
            Self::List => {
                let page = async |page_token| {
                    let request = ListPrincipalsRequest { page_size: PAGE_SIZE, page_token };
                    let answer = principals.list_principals(request).await?.into_inner();
                    Ok((answer.principals, answer.next_page_token))
                };
                output.list(&all_pages(page).await?)?;
            }
            Self::Delete { principal } => {
                let request = DeletePrincipalRequest { name: names::full("principals", &principal) };
                let deleted = principals.delete_principal(request).await?.into_inner();
                output.deleted(&deleted, &deleted.name)?;
            }
        }
        Ok(())
    }
}

impl Shown for Principal {
    const MESSAGE: &'static str = "entrepot.v1.Principal";

    fn details(&self) -> Cells {
        vec![
            ("PRINCIPAL", names::short("principals", &self.name).to_owned()),
            ("PERMISSION SET", word(self, "permission_set")),
            ("CREATED", time(self.create_time.as_ref())),
        ]
    }
}

impl Listed for Principal {
    const ITEMS: &'static str = "principals";
}
