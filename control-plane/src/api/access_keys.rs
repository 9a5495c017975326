//! Access keys, with which principals authenticate.

use entrepot_domain::{AccessKeyId, ResourceId};
use entrepot_proto::convert::snapshot::access_key_purpose;
use entrepot_proto::convert::{Violations, names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::access_keys_server::AccessKeys;
use entrepot_trust::access_key::{generate_key_id, generate_secret, hash_generated, seal_secret};
use tonic::{Request, Response, Status};

use super::Api;
use super::caller::{Caller, Permission};
use super::page::Page;
use super::principals::last_administrator;
use super::request_id::RequestId;
use super::resource::{Once, begin_once, require};
use crate::db::access_keys::{self, AccessKey, State};
use crate::db::principals::{self, Principal};
use crate::error::ApiError;
use crate::plane::Plane;
use crate::snapshot::Version;

const KIND: &str = "entrepot.v1.AccessKey";

#[tonic::async_trait]
impl AccessKeys for Api {
    async fn create_access_key(
        &self,
        request: Request<pb::CreateAccessKeyRequest>,
    ) -> Result<Response<pb::CreateAccessKeyResponse>, Status> {
        let caller = self.caller(&request, Permission::Administer).await?;
        let (key, version) = create_key(&self.0, &caller, request.get_ref()).await?;
        Ok(self.settled(key, version).await)
    }

    async fn list_access_keys(
        &self,
        request: Request<pb::ListAccessKeysRequest>,
    ) -> Result<Response<pb::ListAccessKeysResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(list_keys(&self.0, request.get_ref()).await?))
    }

    async fn revoke_access_key(
        &self,
        request: Request<pb::RevokeAccessKeyRequest>,
    ) -> Result<Response<pb::AccessKey>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let (key, version) = revoke_key(&self.0, request.get_ref()).await?;
        Ok(self.settled(key, version).await)
    }
}

async fn create_key(
    plane: &Plane,
    caller: &Caller,
    request: &pb::CreateAccessKeyRequest,
) -> Result<(pb::CreateAccessKeyResponse, Version), ApiError> {
    let mut violations = Violations::default();
    let request_id = violations.merge(RequestId::read("CreateAccessKey", &request.request_id, request));
    let id = violations.take("parent", names::parse_principal(&request.parent));
    let complete = (|| Some((request_id?, id?)))();
    let (request_id, id) = violations.finish(complete)?;

    let change = plane.prepare_change().await?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("create_access_key").await?;
    let version = match begin_once(plane, &tx, &change, caller, &request_id).await? {
        Once::New(version) => version,
        Once::Repeated(answer, version) => return Ok((answer, version)),
    };
    let principal: Principal = require(&tx, &id).await?;
    if principal.permission_set.known().is_none() {
        return Err(grants_unknown(&principal));
    }
    let (key_id, secret) = (generate_key_id(), generate_secret());
    let key = AccessKey {
        principal_uid: Some(principal.uid),
        sealed_hash: plane.cluster_key.seal(&access_key_purpose(key_id.as_str()), &hash_generated(&secret).encode()),
        sealed_secret: Some(seal_secret(&plane.cluster_key, &key_id, &secret)),
        key_id: key_id.to_string(),
        state: State::Active,
        create_time: plane.clock.now(),
    };
    access_keys::put(&tx, &key).await?;
    tx.commit().await?;
    let access_key = Some(to_wire(&principal.id, &key));
    Ok((pb::CreateAccessKeyResponse { access_key, secret: secret.expose().clone() }, version))
}

async fn list_keys(plane: &Plane, request: &pb::ListAccessKeysRequest) -> Result<pb::ListAccessKeysResponse, ApiError> {
    let mut violations = Violations::default();
    let id = violations.take("parent", names::parse_principal(&request.parent));
    let page = violations.merge(Page::<String>::read(
        &plane.cluster_key,
        "ListAccessKeys",
        &[&request.parent],
        request.page_size,
        &request.page_token,
    ));
    let complete = (|| Some((id?, page?)))();
    let (id, page) = violations.finish(complete)?;

    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("list_access_keys").await?;
    let principal: Principal = require(&tx, &id).await?;
    let after = page.after.as_deref().unwrap_or_default();
    let mut rows = access_keys::list(&tx, principal.uid, after, page.fetch()).await?;
    let next_page_token = page.cut(&plane.cluster_key, &mut rows, |last| last.key_id.clone());
    let access_keys = rows.iter().map(|key| to_wire(&id, key)).collect();
    Ok(pb::ListAccessKeysResponse { access_keys, next_page_token })
}

async fn revoke_key(plane: &Plane, request: &pb::RevokeAccessKeyRequest) -> Result<(pb::AccessKey, Version), ApiError> {
    let (id, key_id) = names::parse_access_key(&request.name).map_err(|error| ApiError::field("name", error))?;
    let key_id: AccessKeyId = key_id.parse().map_err(|error| ApiError::field("name", error))?;
    let mut connection = plane.db.connect().await?;
    let (tx, registry) = plane.begin_change(&mut connection, "revoke_access_key").await?;
    let principal: Principal = require(&tx, &id).await?;
    let key = access_keys::get(&tx, key_id.as_str()).await?.filter(|key| key.principal_uid == Some(principal.uid));
    let mut key = key.ok_or_else(|| ApiError::not_found(KIND, &request.name))?;
    let is_last = principals::count_administrator_keys(&tx, None, Some(key_id.as_str())).await? == 0;
    if is_last && key.state == State::Active {
        return Err(last_administrator(&request.name));
    }
    key.state = State::Revoked;
    access_keys::put(&tx, &key).await?;
    tx.commit().await?;
    Ok((to_wire(&id, &key), registry.version))
}

/// Refuses to create a key for a principal whose permissions this release does not know.
fn grants_unknown(principal: &Principal) -> ApiError {
    let item = names::principal(&principal.id);
    let set = principal.permission_set.as_str();
    let what = format!("`{item}` is of another release, and not understood here: its permission set is `{set}`");
    ApiError::NotUnderstood { item, what }
}

fn to_wire(principal: &ResourceId, key: &AccessKey) -> pb::AccessKey {
    let state = match key.state {
        State::Active => pb::access_key::State::Active,
        State::Revoked => pb::access_key::State::Revoked,
    };
    pb::AccessKey {
        name: names::access_key(principal, &key.key_id),
        key_id: key.key_id.clone(),
        state: state.into(),
        create_time: Some(timestamp(key.create_time)),
    }
}
