//! Principals: the people and programs that may use the registry.

use entrepot_domain::ResourceId;
use entrepot_proto::convert::access::PermissionSet;
use entrepot_proto::convert::{Violations, names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::principals_server::Principals;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Api;
use super::caller::Permission;
use super::mask::Field;
use super::resource::{self, Draft, New, Resource};
use crate::db::principals::{self, Principal};
use crate::db::{self, Tx, access_keys};
use crate::error::ApiError;
use crate::plane::Plane;

#[tonic::async_trait]
impl Principals for Api {
    async fn create_principal(
        &self,
        request: Request<pb::CreatePrincipalRequest>,
    ) -> Result<Response<pb::Principal>, Status> {
        let sent = request.get_ref();
        let new = New { request_id: &sent.request_id, id: &sent.principal_id, resource: sent.principal.as_ref() };
        self.create::<Principal, _>(&request, new).await
    }

    async fn get_principal(
        &self,
        request: Request<pb::GetPrincipalRequest>,
    ) -> Result<Response<pb::Principal>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(resource::get::<Principal>(&self.0, &request.get_ref().name).await?.to_wire()))
    }

    async fn list_principals(
        &self,
        request: Request<pb::ListPrincipalsRequest>,
    ) -> Result<Response<pb::ListPrincipalsResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let pb::ListPrincipalsRequest { page_size, page_token, .. } = request.get_ref();
        let (rows, next_page_token) = resource::list::<Principal>(&self.0, *page_size, page_token).await?;
        let principals = rows.iter().map(Principal::to_wire).collect();
        Ok(Response::new(pb::ListPrincipalsResponse { principals, next_page_token }))
    }

    async fn delete_principal(
        &self,
        request: Request<pb::DeletePrincipalRequest>,
    ) -> Result<Response<pb::Principal>, Status> {
        self.delete::<Principal, _>(&request, &request.get_ref().name, "").await
    }
}

impl Resource for Principal {
    type Wire = pb::Principal;
    type Settings = PermissionSet;

    const KIND: &'static str = "entrepot.v1.Principal";
    const FIELD: &'static str = "principal";
    /// Principals cannot be updated.
    const FIELDS: &'static [Field<pb::Principal>] = &[];

    fn parse_name(name: &str) -> Result<ResourceId, names::Error> {
        names::parse_principal(name)
    }

    fn name_and_etag(wire: &pb::Principal) -> (&str, &str) {
        (&wire.name, "")
    }

    fn name(id: &ResourceId) -> String {
        names::principal(id)
    }

    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn read(_: &ResourceId, wire: &pb::Principal, _: bool) -> Result<PermissionSet, Violations> {
        let mut violations = Violations::default();
        let set = violations.take("principal.permission_set", PermissionSet::read(wire.permission_set));
        violations.finish(set)
    }

    fn to_wire(&self) -> pb::Principal {
        pb::Principal {
            name: names::principal(&self.id),
            // A set that this release does not know is sent as unspecified.
            permission_set: self.permission_set.known().map(PermissionSet::to_wire).unwrap_or_default().into(),
            create_time: Some(timestamp(self.create_time)),
        }
    }

    async fn get(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Self>, db::Error> {
        principals::get(tx, id).await
    }

    async fn list(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<Self>, db::Error> {
        principals::list(tx, after, limit).await
    }

    async fn make(_: &Plane, _: &Tx<'_>, draft: Draft<Self>) -> Result<Self, ApiError> {
        let (uid, create_time) = (Uuid::now_v7(), draft.now);
        Ok(Self { uid, id: draft.id, permission_set: draft.settings.into(), minimum_reader: 0, create_time })
    }

    async fn put(&self, tx: &Tx<'_>) -> Result<(), db::Error> {
        principals::put(tx, self).await
    }

    /// Deletes the principal and revokes its keys, unless no administrator would be left.
    async fn delete(&self, tx: &Tx<'_>) -> Result<(), ApiError> {
        if principals::count_administrator_keys(tx, Some(self.uid), None).await? == 0 {
            return Err(last_administrator(&names::principal(&self.id)));
        }
        access_keys::revoke_all(tx, self.uid).await?;
        Ok(principals::delete(tx, self.uid).await?)
    }
}

/// Refuses a change that would leave no administrator.
pub(super) fn last_administrator(subject: &str) -> ApiError {
    ApiError::Precondition {
        kind: "LAST_ADMINISTRATOR",
        subject: subject.to_owned(),
        description: format!("`{subject}` is the last administrator: create a key for another administrator first"),
    }
}
