//! Who calls, and may they?

use entrepot_domain::{AccessKeyId, ResourceId};
use entrepot_proto::convert::access::PermissionSet;
use entrepot_proto::convert::snapshot::access_key_purpose;
use entrepot_trust::AccessKeyHash;
use tonic::Request;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use super::Api;
use crate::db::access_keys;
use crate::error::{ApiError, LoginFault};
use crate::plane::{Plane, Ready, Stage};

/// Whom a node's token must be made for.
const NODE_AUDIENCE: &str = "entrepot.node.v1";

/// A principal that has shown who it is.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) principal_uid: Uuid,
    pub(super) key_id: String,
}

/// What a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// To change, and to see what only administrators see.
    Administer,
    /// To see what can be pulled, and what is one's own.
    Read,
}

impl Permission {
    fn is_in(self, set: PermissionSet) -> bool {
        match (self, set) {
            (Self::Administer | Self::Read, PermissionSet::Administrator) | (Self::Read, PermissionSet::Puller) => true,
            (Self::Administer, PermissionSet::Puller) => false,
        }
    }
}

impl Api {
    /// Who sends this request, if they may do what takes `permission`.
    pub(super) async fn caller<T>(&self, request: &Request<T>, permission: Permission) -> Result<Caller, ApiError> {
        require_ready(&self.0)?;
        let (key_id, secret) = credentials(request.metadata())?;
        let wrong = ApiError::Unauthenticated(LoginFault::Wrong);
        let Ok(key_id) = key_id.parse::<AccessKeyId>() else { return Err(wrong) };
        let mut connection = self.0.db.connect().await?;
        let tx = connection.begin("find_caller").await?;
        let found = access_keys::usable(&tx, key_id.as_str()).await?;
        drop(tx);
        drop(connection);
        let Some((key, principal)) = found else { return Err(wrong) };

        let hash = self.0.cluster_key.unseal(&access_key_purpose(key_id.as_str()), &key.sealed_hash);
        let hash = hash.map_err(|error| ApiError::Internal(error.into()))?;
        let hash = AccessKeyHash::decode(hash.expose()).map_err(|error| ApiError::Internal(error.into()))?;
        match self.0.secrets.verify(key_id.as_str(), secret, &hash).await {
            Ok(true) => {}
            Ok(false) => return Err(wrong),
            Err(error) => return Err(ApiError::TooManyAttempts { retry_after: error.retry_after }),
        }
        if !permission.is_in(principal.permission_set) {
            return Err(ApiError::Denied { principal: format!("principals/{}", principal.id) });
        }
        Ok(Caller { principal_uid: principal.uid, key_id: key.key_id })
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
