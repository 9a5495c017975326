//! Login tokens, with which registry clients log in.

use entrepot_proto::convert::timestamp;
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::login_tokens_server::LoginTokens;
use tonic::{Request, Response, Status};

use super::Api;
use super::caller::{Permission, require_ready};

#[tonic::async_trait]
impl LoginTokens for Api {
    async fn get_login_token(
        &self,
        request: Request<pb::GetLoginTokenRequest>,
    ) -> Result<Response<pb::GetLoginTokenResponse>, Status> {
        let caller = self.caller(&request, Permission::Read).await?;
        let registry_id = require_ready(&self.0)?.registry_id;
        let now = self.0.clock.now();
        let (token, until) = self.0.tokens.issue_login(registry_id, caller.principal_uid, &caller.key_id, now);
        let token = token.expose().clone();
        Ok(Response::new(pb::GetLoginTokenResponse { token, expire_time: Some(timestamp(until)) }))
    }
}
