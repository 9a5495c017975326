//! Authenticates callers and checks their permissions.

use entrepot_domain::{AccessKeyId, Network, ResourceId};
use entrepot_runtime::forwarded;
use entrepot_trust::Login;
use tonic::Request;
use tonic::metadata::MetadataMap;

use super::Api;
use super::incoming::Client;
use crate::error::{ApiError, LoginFault};
use crate::plane::{Plane, Ready, Stage};
pub(super) use crate::session::{Caller, Permission, Session};

/// The audience of nodes' tokens.
const NODE_AUDIENCE: &str = "entrepot.node.v1";

impl Api {
    /// The caller of this request, if it has `permission`.
    pub(super) async fn caller<T>(&self, request: &Request<T>, permission: Permission) -> Result<Caller, ApiError> {
        Ok(self.session(request, permission).await?.caller)
    }

    /// Where a request comes from.
    fn network_of<T>(&self, request: &Request<T>) -> Network {
        let Some(Client { address, .. }) = request.extensions().get() else { return Network::LOOPBACK };
        Network::of(forwarded::client(request.metadata().as_ref(), *address, &self.0.trusted_proxies))
    }

    /// As [`Api::caller`], for a stream, which has to [`Api::confirm`] it from time to time.
    pub(super) async fn session<T>(&self, request: &Request<T>, permission: Permission) -> Result<Session, ApiError> {
        require_ready(&self.0)?;
        let (key_id, secret) = credentials(request.metadata())?;
        let key_id: AccessKeyId = key_id.parse().map_err(|_| ApiError::Unauthenticated(LoginFault::Wrong))?;
        let from = self.network_of(request);
        let published = self.0.snapshots.published_version();
        let session = self.0.sessions.identify(published, Login { key_id: &key_id, secret, from }).await?;
        session.require(permission)?;
        Ok(session)
    }

    /// Checks that the caller of a stream may continue. While the database is away, nobody loses a permission.
    pub(super) async fn confirm(&self, session: &mut Session, permission: Permission) -> Result<(), ApiError> {
        match self.0.sessions.confirm(self.0.snapshots.published_version(), session).await {
            Err(error @ ApiError::Unauthenticated(_)) => Err(error),
            Ok(()) | Err(_) => session.require(permission),
        }
    }

    /// The node that sends this request.
    pub(super) fn node<T>(&self, request: &Request<T>) -> Result<ResourceId, ApiError> {
        require_ready(&self.0)?;
        let token = bearer(request.metadata()).map_err(|_| ApiError::NotANode)?;
        let claims = self.0.tokens.verify_node(NODE_AUDIENCE, token, self.0.clock.now());
        let claims = claims.map_err(|_| ApiError::NotANode)?;
        claims.node_id.parse().map_err(|_| ApiError::NotANode)
    }
}

/// The facts that are known once the start is done; an error before that.
pub(super) fn require_ready(plane: &Plane) -> Result<Ready, ApiError> {
    match plane.stage() {
        Stage::Ready(ready) => Ok(ready),
        Stage::Starting { why } | Stage::Refused { why } => Err(ApiError::Starting { why }),
    }
}

fn credentials(metadata: &MetadataMap) -> Result<(&str, &str), ApiError> {
    let malformed = ApiError::Unauthenticated(LoginFault::Malformed);
    bearer(metadata).map_err(ApiError::Unauthenticated)?.split_once(':').ok_or(malformed)
}

fn bearer(metadata: &MetadataMap) -> Result<&str, LoginFault> {
    let header = metadata.get("authorization").ok_or(LoginFault::Missing)?;
    let (scheme, token) = header.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(LoginFault::Malformed)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(LoginFault::Malformed) }
}
