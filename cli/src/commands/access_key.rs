//! `entrepot access-key`.

use clap::Subcommand;
use entrepot_proto::v1::{
    AccessKey, CreateAccessKeyRequest, CreateAccessKeyResponse, ListAccessKeysRequest, RevokeAccessKeyRequest,
};

use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{self, Cells, Listed, Output, Shown, time, word};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create an access key and print it as `<key id>:<secret>`; it is shown only now.
    #[command(after_help = "Example:\n  export ENTREPOT_KEY=$(entrepot access-key create ci)")]
    Create {
        /// The owner of the key.
        #[arg(value_name = "PRINCIPAL")]
        principal: String,
    },
    /// List a principal's access keys.
    List {
        #[arg(value_name = "PRINCIPAL")]
        principal: String,
    },
    /// Revoke an access key for good.
    #[command(after_help = "Example:\n  entrepot access-key revoke ci/KEY_ID")]
    Revoke {
        #[arg(value_name = "PRINCIPAL/KEY_ID")]
        access_key: String,
    },
}

impl Command {
    pub(super) async fn run(self, session: &Session) -> Result<(), Error> {
        let (mut access_keys, output) = (session.access_keys(), session.output);
        match self {
            Self::Create { principal } => {
                let parent = names::full("principals", &principal);
                let request = CreateAccessKeyRequest { parent, ..Default::default() };
                let answer = access_keys.create_access_key(request).await?.into_inner();
                output.show(&answer, |out| writeln!(out, "{}", pair(&answer)))?;
                if output == Output::Table {
                    output::note("this is the only time that the secret is shown: keep it now");
                }
            }
            Self::List { principal } => {
                let parent = names::full("principals", &principal);
                let page = async |page_token| {
                    let request = ListAccessKeysRequest { parent: parent.clone(), page_size: PAGE_SIZE, page_token };
                    let answer = access_keys.list_access_keys(request).await?.into_inner();
                    Ok((answer.access_keys, answer.next_page_token))
                };
                output.list(&all_pages(page).await?)?;
            }
            Self::Revoke { access_key } => {
                let request = RevokeAccessKeyRequest { name: names::access_key(&access_key)? };
                let revoked = access_keys.revoke_access_key(request).await?.into_inner();
                output.show(&revoked, |out| writeln!(out, "revoked {}", revoked.name))?;
            }
        }
        Ok(())
    }
}

/// The value for `ENTREPOT_KEY`.
fn pair(answer: &CreateAccessKeyResponse) -> String {
    format!("{}:{}", answer.access_key.as_ref().map(|key| key.key_id.as_str()).unwrap_or_default(), answer.secret)
}

impl Shown for CreateAccessKeyResponse {
    const MESSAGE: &'static str = "entrepot.v1.CreateAccessKeyResponse";

    fn details(&self) -> Cells {
        vec![("KEY", pair(self))]
    }
}

impl Shown for AccessKey {
    const MESSAGE: &'static str = "entrepot.v1.AccessKey";

    fn details(&self) -> Cells {
        vec![
            ("ACCESS KEY", names::short("principals", &self.name).replace("/accessKeys/", "/")),
            ("STATE", word(self, "state")),
            ("CREATED", time(self.create_time.as_ref())),
        ]
    }
}

impl Listed for AccessKey {
    const ITEMS: &'static str = "access_keys";
}
