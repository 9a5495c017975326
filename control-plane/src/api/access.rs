//! Access: principals, their keys, login tokens.

use entrepot_domain::ResourceId;
use entrepot_proto::convert::access::PermissionSet;
use entrepot_proto::convert::snapshot::access_key_purpose;
use entrepot_proto::convert::{Violations, names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::access_server::Access;
use entrepot_trust::access_key::{generate_key_id, generate_secret, hash_generated};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Api;
use super::caller::{Caller, Permission, require_ready};
use super::error::ApiError;
use super::page::Page;
use super::request_id::{Earlier, RequestId};
use crate::app::Plane;
use crate::db::access_keys::{self, AccessKey, State};
use crate::db::principals::{self, Principal};
use crate::db::{Tx, registry};
use crate::snapshot::Version;

const KIND: &str = "entrepot.v1.Principal";
const KEY_KIND: &str = "entrepot.v1.AccessKey";

#[tonic::async_trait]
impl Access for Api {
    async fn create_principal(
        &self,
        request: Request<pb::CreatePrincipalRequest>,
    ) -> Result<Response<pb::Principal>, Status> {
        let caller = self.caller(&request, Permission::Administer).await?;
        let (principal, version) = create_principal(&self.0, &caller, request.get_ref()).await?;
        Ok(self.settled(principal, version).await)
    }

    async fn get_principal(
        &self,
        request: Request<pb::GetPrincipalRequest>,
    ) -> Result<Response<pb::Principal>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(get_principal(&self.0, request.get_ref()).await?))
    }

    async fn list_principals(
        &self,
        request: Request<pb::ListPrincipalsRequest>,
    ) -> Result<Response<pb::ListPrincipalsResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(list_principals(&self.0, request.get_ref()).await?))
    }

    async fn delete_principal(
        &self,
        request: Request<pb::DeletePrincipalRequest>,
    ) -> Result<Response<pb::Principal>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let (principal, version) = delete_principal(&self.0, request.get_ref()).await?;
        Ok(self.settled(principal, version).await)
    }

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

async fn create_principal(
    plane: &Plane,
    caller: &Caller,
    request: &pb::CreatePrincipalRequest,
) -> Result<(pb::Principal, Version), ApiError> {
    let mut violations = Violations::default();
    let request_id = violations.merge(RequestId::read("CreatePrincipal", &request.request_id, request));
    let id = violations.take("principal_id", request.principal_id.parse::<ResourceId>());
    let sent = violations.take("principal", request.principal.as_ref().ok_or("must be set"));
    let set =
        sent.and_then(|sent| violations.take("principal.permission_set", PermissionSet::read(sent.permission_set)));
    let complete = (|| Some((request_id?, id?, set?)))();
    let (request_id, id, permission_set) = violations.finish(complete)?;

    let change = plane.prepare_change().await?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("create_principal").await?;
    match request_id.claim(plane, &tx, caller).await? {
        Earlier::None => {}
        Earlier::Answered(answer) => return Ok((answer, registry::get(&tx).await?.version)),
        Earlier::NotKept => return Err(ApiError::SecretNotKept),
    }
    let registry = change.begin(&tx).await?;
    if principals::get(&tx, &id).await?.is_some() {
        let remedy = "; choose another `principal_id`".to_owned();
        return Err(ApiError::Exists { kind: KIND, name: names::principal(&id), remedy });
    }
    let principal = Principal { uid: Uuid::now_v7(), id, permission_set, create_time: plane.clock.now() };
    principals::put(&tx, &principal).await?;
    let answer = to_wire(&principal);
    request_id.answer(&tx, caller, &answer).await?;
    tx.commit().await?;
    Ok((answer, registry.version))
}

async fn get_principal(plane: &Plane, request: &pb::GetPrincipalRequest) -> Result<pb::Principal, ApiError> {
    let id = parse_name("name", &request.name)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("get_principal").await?;
    Ok(to_wire(&require(&tx, &id).await?))
}

async fn list_principals(
    plane: &Plane,
    request: &pb::ListPrincipalsRequest,
) -> Result<pb::ListPrincipalsResponse, ApiError> {
    let page: Page<String> =
        Page::read(&plane.cluster_key, "ListPrincipals", &[], request.page_size, &request.page_token)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("list_principals").await?;
    let mut rows = principals::list(&tx, page.after.as_deref().unwrap_or_default(), page.fetch()).await?;
    let next_page_token = page.cut(&plane.cluster_key, &mut rows, |last| last.id.to_string());
    Ok(pb::ListPrincipalsResponse { principals: rows.iter().map(to_wire).collect(), next_page_token })
}

async fn delete_principal(
    plane: &Plane,
    request: &pb::DeletePrincipalRequest,
) -> Result<(pb::Principal, Version), ApiError> {
    let id = parse_name("name", &request.name)?;
    let mut connection = plane.db.connect().await?;
    let (tx, registry) = plane.begin_change(&mut connection, "delete_principal").await?;
    let principal = require(&tx, &id).await?;
    if principals::count_administrator_keys(&tx, Some(principal.uid), None).await? == 0 {
        return Err(last_administrator(&names::principal(&id)));
    }
    access_keys::revoke_all(&tx, principal.uid).await?;
    principals::delete(&tx, principal.uid).await?;
    tx.commit().await?;
    Ok((to_wire(&principal), registry.version))
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
    match request_id.claim::<pb::CreateAccessKeyResponse>(plane, &tx, caller).await? {
        Earlier::None => {}
        Earlier::Answered(_) | Earlier::NotKept => return Err(ApiError::SecretNotKept),
    }
    let registry = change.begin(&tx).await?;
    let principal = require(&tx, &id).await?;
    let (key_id, secret) = (generate_key_id(), generate_secret());
    let key = AccessKey {
        principal_uid: Some(principal.uid),
        sealed_hash: plane.cluster_key.seal(&access_key_purpose(&key_id), &hash_generated(&secret).encode()),
        key_id,
        state: State::Active,
        create_time: plane.clock.now(),
    };
    access_keys::put(&tx, &key).await?;
    tx.commit().await?;
    let access_key = Some(key_to_wire(&principal.id, &key));
    Ok((pb::CreateAccessKeyResponse { access_key, secret: secret.expose().clone() }, registry.version))
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
    let principal = require(&tx, &id).await?;
    let after = page.after.as_deref().unwrap_or_default();
    let mut rows = access_keys::list(&tx, principal.uid, after, page.fetch()).await?;
    let next_page_token = page.cut(&plane.cluster_key, &mut rows, |last| last.key_id.clone());
    let access_keys = rows.iter().map(|key| key_to_wire(&id, key)).collect();
    Ok(pb::ListAccessKeysResponse { access_keys, next_page_token })
}

async fn revoke_key(plane: &Plane, request: &pb::RevokeAccessKeyRequest) -> Result<(pb::AccessKey, Version), ApiError> {
    let (id, key_id) = names::parse_access_key(&request.name).map_err(|error| ApiError::field("name", error))?;
    let mut connection = plane.db.connect().await?;
    let (tx, registry) = plane.begin_change(&mut connection, "revoke_access_key").await?;
    let principal = require(&tx, &id).await?;
    let key = access_keys::get(&tx, &key_id).await?.filter(|key| key.principal_uid == Some(principal.uid));
    let mut key = key.ok_or_else(|| ApiError::not_found(KEY_KIND, &request.name))?;
    let is_last = principals::count_administrator_keys(&tx, None, Some(&key_id)).await? == 0;
    if is_last && key.state == State::Active {
        return Err(last_administrator(&request.name));
    }
    key.state = State::Revoked;
    access_keys::put(&tx, &key).await?;
    tx.commit().await?;
    Ok((key_to_wire(&id, &key), registry.version))
}

async fn require(tx: &Tx<'_>, id: &ResourceId) -> Result<Principal, ApiError> {
    principals::get(tx, id).await?.ok_or_else(|| ApiError::not_found(KIND, names::principal(id)))
}

fn last_administrator(subject: &str) -> ApiError {
    ApiError::Precondition {
        kind: "LAST_ADMINISTRATOR",
        subject: subject.to_owned(),
        description: format!(
            "without `{subject}` nobody could administer: create a key for another administrator first"
        ),
    }
}

fn to_wire(principal: &Principal) -> pb::Principal {
    pb::Principal {
        name: names::principal(&principal.id),
        permission_set: principal.permission_set.to_wire().into(),
        create_time: Some(timestamp(principal.create_time)),
    }
}

fn key_to_wire(principal: &ResourceId, key: &AccessKey) -> pb::AccessKey {
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

fn parse_name(field: &str, name: &str) -> Result<ResourceId, ApiError> {
    names::parse_principal(name).map_err(|error| ApiError::field(field, error))
}
