//! Principals: who may call.

use entrepot_domain::ResourceId;
use entrepot_proto::convert::access::PermissionSet;
use entrepot_proto::convert::{Violations, names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::principals_server::Principals;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Api;
use super::caller::{Caller, Permission};
use super::page::Page;
use super::request_id::{Earlier, RequestId};
use crate::db::principals::{self, Principal};
use crate::db::{Tx, access_keys, registry};
use crate::error::ApiError;
use crate::plane::Plane;
use crate::snapshot::Version;

const KIND: &str = "entrepot.v1.Principal";

#[tonic::async_trait]
impl Principals for Api {
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

/// The principal with this id.
///
/// # Errors
/// If there is none.
pub(super) async fn require(tx: &Tx<'_>, id: &ResourceId) -> Result<Principal, ApiError> {
    principals::get(tx, id).await?.ok_or_else(|| ApiError::not_found(KIND, names::principal(id)))
}

/// Refuses what would leave nobody who can administer.
pub(super) fn last_administrator(subject: &str) -> ApiError {
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

fn parse_name(field: &str, name: &str) -> Result<ResourceId, ApiError> {
    names::parse_principal(name).map_err(|error| ApiError::field(field, error))
}
