//! `entrepot login-password`.

use entrepot_proto::v1::{GetLoginTokenRequest, GetLoginTokenResponse};

use crate::client::Session;
use crate::error::Error;
use crate::output::{Cells, Shown, time};

pub(super) const EXAMPLE: &str = "\
Example:
  entrepot login-password | docker login --username AWS --password-stdin 127.0.0.1:5000";

pub(super) async fn run(session: &Session) -> Result<(), Error> {
    let answer = session.login_tokens().get_login_token(GetLoginTokenRequest {}).await?.into_inner();
    Ok(session.output.show(&answer, |out| writeln!(out, "{}", answer.token))?)
}

impl Shown for GetLoginTokenResponse {
    const MESSAGE: &'static str = "entrepot.v1.GetLoginTokenResponse";

    fn details(&self) -> Cells {
        vec![("PASSWORD", self.token.clone()), ("EXPIRES", time(self.expire_time.as_ref()))]
    }
}
