//! Who calls, and may they?

use entrepot_domain::ResourceId;
use tonic::Request;
use tonic::metadata::MetadataMap;

use super::Api;
use crate::error::{ApiError, LoginFault};
use crate::plane::{Plane, Ready, Stage};
pub(super) use crate::session::{Caller, Permission, Session};

/// Whom a node's token must be made for.
const NODE_AUDIENCE: &str = "entrepot.node.v1";

impl Api {
    /// Who sends this request, if they may do what takes `permission`.
    pub(super) async fn caller<T>(&self, request: &Request<T>, permission: Permission) -> Result<Caller, ApiError> {
        Ok(self.session(request, permission).await?.caller)
    }

    /// The same, for a stream, which has to [`Api::confirm`] it from time to time.
    pub(super) async fn session<T>(&self, request: &Request<T>, permission: Permission) -> Result<Session, ApiError> {
        require_ready(&self.0)?;
        let (key_id, secret) = credentials(request.metadata())?;
        let key_id = key_id.parse().map_err(|_| ApiError::Unauthenticated(LoginFault::Wrong))?;
        let published = self.0.snapshots.published_version();
        let session = self.0.sessions.identify(published, &key_id, secret).await?;
        session.require(permission)?;
        Ok(session)
    }

    /// Looks whether a stream's caller may go on. While the database is away, nobody's right is withdrawn.
    pub(super) async fn confirm(&self, session: &mut Session, permission: Permission) -> Result<(), ApiError> {
        match self.0.sessions.confirm(self.0.snapshots.published_version(), session).await {
            Err(error @ ApiError::Unauthenticated(_)) => Err(error),
            Ok(()) | Err(_) => session.require(permission),
        }
    }

    /// Which node sends this request.
    pub(super) fn node<T>(&self, request: &Request<T>) -> Result<ResourceId, ApiError> {
        require_ready(&self.0)?;
        let token = bearer(request.metadata()).map_err(|_| ApiError::NotANode)?;
        let claims = self.0.tokens.verify_node(NODE_AUDIENCE, token, self.0.clock.now());
        let claims = claims.map_err(|_| ApiError::NotANode)?;
        claims.node_id.parse().map_err(|_| ApiError::NotANode)
    }
}

/// What is known since the start, if it is done.
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
