//! What the services of the configuration's resources have in common: create, get, list, update and delete, with request
//! ids, pages, masks, etags, one transaction for each change, and one revision that it begins.
//!
//! A resource says what it is made of and what it must not collide with, by [`Resource`].

use chrono::{DateTime, Utc};
use entrepot_domain::ResourceId;
use entrepot_proto::convert::{Violations, names};
use prost::Message;
use prost_types::FieldMask;
use tonic::{Request, Response, Status};

use super::Api;
use super::caller::{Caller, Permission};
use super::mask::{self, Field};
use super::page::Page;
use super::request_id::{Earlier, RequestId};
use crate::db::registry::{self, Registry};
use crate::db::{self, Tx};
use crate::error::ApiError;
use crate::plane::Plane;
use crate::snapshot::Version;

/// A resource as it is stored.
pub(super) trait Resource: Sized + Send + Sync + 'static {
    /// Its message.
    type Wire: Message + Default + 'static;
    /// What an operator decides about it.
    type Settings: Send;

    /// Its message's full name, such as `entrepot.v1.Rule`.
    const KIND: &'static str;
    /// The field that holds it in requests, such as `rule`.
    const FIELD: &'static str;
    /// What updates may do to its fields.
    const FIELDS: &'static [Field<Self::Wire>];

    /// The id in a name.
    fn parse_name(name: &str) -> Result<ResourceId, names::Error>;
    /// The name and the etag in a message.
    fn name_and_etag(wire: &Self::Wire) -> (&str, &str);
    /// The name of the one with this id.
    fn name(id: &ResourceId) -> String;
    /// Its own id.
    fn id(&self) -> &ResourceId;
    /// Reads the settings of one that is created or updated.
    fn read(id: &ResourceId, wire: &Self::Wire, is_new: bool) -> Result<Self::Settings, Violations>;
    /// Its message.
    fn to_wire(&self) -> Self::Wire;

    /// The one with this id.
    fn get(tx: &Tx<'_>, id: &ResourceId) -> impl Future<Output = Result<Option<Self>, db::Error>> + Send;
    /// At most `limit` by id, those behind `after`.
    fn list(tx: &Tx<'_>, after: &str, limit: i64) -> impl Future<Output = Result<Vec<Self>, db::Error>> + Send;
    /// What a draft comes to, if it collides with no other resource.
    fn make(plane: &Plane, tx: &Tx<'_>, draft: Draft<Self>) -> impl Future<Output = Result<Self, ApiError>> + Send;
    /// Writes it.
    fn put(&self, tx: &Tx<'_>) -> impl Future<Output = Result<(), db::Error>> + Send;
    /// Deletes it, if nothing needs it.
    fn delete(&self, tx: &Tx<'_>) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// What is to become a resource.
pub(super) struct Draft<R: Resource> {
    pub(super) id: ResourceId,
    pub(super) settings: R::Settings,
    /// What it is now; `None` if it is created.
    pub(super) before: Option<R>,
    /// The revision that the change begins.
    pub(super) revision: i64,
    pub(super) now: DateTime<Utc>,
}

/// The fields of a request that creates a resource.
pub(super) struct New<'r, W> {
    pub(super) request_id: &'r str,
    pub(super) id: &'r str,
    pub(super) resource: Option<&'r W>,
}

impl Api {
    /// Creates a resource for an administrator; a request that is repeated gets the answer that it had.
    pub(super) async fn create<R: Resource, M: Message>(
        &self,
        request: &Request<M>,
        new: New<'_, R::Wire>,
    ) -> Result<Response<R::Wire>, Status> {
        let caller = self.caller(request, Permission::Administer).await?;
        let (request_id, id, settings) = read_new::<R>(request.get_ref(), &new).map_err(ApiError::from)?;
        let (answer, version) = create::<R>(&self.0, &caller, &request_id, id, settings).await?;
        Ok(self.settled(answer, version).await)
    }

    /// Changes the fields of a resource that `mask` names to what was sent, for an administrator.
    pub(super) async fn update<R: Resource, M>(
        &self,
        request: &Request<M>,
        sent: Option<&R::Wire>,
        mask: Option<&FieldMask>,
    ) -> Result<Response<R::Wire>, Status> {
        self.caller(request, Permission::Administer).await?;
        let sent = sent.ok_or_else(|| ApiError::field(R::FIELD, "must be set"))?;
        let (wire, version) = update::<R>(&self.0, sent, mask).await?;
        Ok(self.settled(wire, version).await)
    }

    /// Deletes a resource for an administrator, and returns it as it was.
    pub(super) async fn delete<R: Resource, M>(
        &self,
        request: &Request<M>,
        name: &str,
        etag: &str,
    ) -> Result<Response<R::Wire>, Status> {
        self.caller(request, Permission::Administer).await?;
        let (wire, version) = delete::<R>(&self.0, name, etag).await?;
        Ok(self.settled(wire, version).await)
    }
}

/// The resource with this name.
pub(super) async fn get<R: Resource>(plane: &Plane, name: &str) -> Result<R, ApiError> {
    let id = parse_name::<R>("name", name)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("get_resource").await?;
    require(&tx, &id).await
}

/// A page of resources by id, and the token of the next one.
pub(super) async fn list<R: Resource>(
    plane: &Plane,
    page_size: i32,
    page_token: &str,
) -> Result<(Vec<R>, String), ApiError> {
    let page: Page<String> = Page::read(&plane.cluster_key, &method::<R>("List"), &[], page_size, page_token)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("list_resources").await?;
    let mut rows = R::list(&tx, page.after.as_deref().unwrap_or_default(), page.fetch()).await?;
    let next_page_token = page.cut(&plane.cluster_key, &mut rows, |last| last.id().to_string());
    Ok((rows, next_page_token))
}

async fn create<R: Resource>(
    plane: &Plane,
    caller: &Caller,
    request_id: &RequestId,
    id: ResourceId,
    settings: R::Settings,
) -> Result<(R::Wire, Version), ApiError> {
    let change = plane.prepare_change().await?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("create_resource").await?;
    match request_id.claim(plane, &tx, caller).await? {
        Earlier::None => {}
        Earlier::Answered(answer) => return Ok((answer, registry::get(&tx).await?.version)),
        Earlier::NotKept => return Err(ApiError::SecretNotKept),
    }
    let version = change.begin(&tx).await?.version;
    if R::get(&tx, &id).await?.is_some() {
        let remedy = format!("; update it, or choose another `{}_id`", R::FIELD);
        return Err(ApiError::Exists { kind: R::KIND, name: R::name(&id), remedy });
    }
    let draft = Draft { id, settings, before: None, revision: version.revision, now: plane.clock.now() };
    let resource = R::make(plane, &tx, draft).await?;
    resource.put(&tx).await?;
    let answer = resource.to_wire();
    request_id.answer(&tx, caller, &answer).await?;
    tx.commit().await?;
    Ok((answer, version))
}

async fn update<R: Resource>(
    plane: &Plane,
    sent: &R::Wire,
    mask: Option<&FieldMask>,
) -> Result<(R::Wire, Version), ApiError> {
    let (name, etag) = R::name_and_etag(sent);
    let id = parse_name::<R>(&format!("{}.name", R::FIELD), name)?;
    let mut connection = plane.db.connect().await?;
    let (tx, Registry { version, .. }) = plane.begin_change(&mut connection, "update_resource").await?;
    let before: R = require(&tx, &id).await?;
    let mut wire = before.to_wire();
    check_etag(name, etag, R::name_and_etag(&wire).1)?;
    mask::apply(R::FIELD, R::FIELDS, mask, sent, &mut wire)?;
    let settings = R::read(&id, &wire, false)?;
    let draft = Draft { id, settings, before: Some(before), revision: version.revision, now: plane.clock.now() };
    let resource = R::make(plane, &tx, draft).await?;
    resource.put(&tx).await?;
    tx.commit().await?;
    Ok((resource.to_wire(), version))
}

async fn delete<R: Resource>(plane: &Plane, name: &str, etag: &str) -> Result<(R::Wire, Version), ApiError> {
    let id = parse_name::<R>("name", name)?;
    let mut connection = plane.db.connect().await?;
    let (tx, Registry { version, .. }) = plane.begin_change(&mut connection, "delete_resource").await?;
    let resource: R = require(&tx, &id).await?;
    let wire = resource.to_wire();
    check_etag(name, etag, R::name_and_etag(&wire).1)?;
    resource.delete(&tx).await?;
    tx.commit().await?;
    Ok((wire, version))
}

/// The resource with this id.
pub(super) async fn require<R: Resource>(tx: &Tx<'_>, id: &ResourceId) -> Result<R, ApiError> {
    R::get(tx, id).await?.ok_or_else(|| ApiError::not_found(R::KIND, R::name(id)))
}

/// The id in a name that the request's field `field` holds.
pub(super) fn parse_name<R: Resource>(field: &str, name: &str) -> Result<ResourceId, ApiError> {
    R::parse_name(name).map_err(|error| ApiError::field(field, error))
}

/// Refuses a change of what was changed since the caller read it. An empty etag is always right.
pub(super) fn check_etag(name: &str, sent: &str, current: &str) -> Result<(), ApiError> {
    if sent.is_empty() || sent == current { Ok(()) } else { Err(ApiError::StaleEtag { name: name.to_owned() }) }
}

/// The etag of what was last changed by a revision of the configuration.
pub(super) fn etag(revision: i64) -> String {
    format!("\"{revision}\"")
}

/// Reads a request that creates a resource; all that is wrong with it is said.
fn read_new<R: Resource>(
    request: &impl Message,
    new: &New<'_, R::Wire>,
) -> Result<(RequestId, ResourceId, R::Settings), Violations> {
    let mut violations = Violations::default();
    let request_id = violations.merge(RequestId::read(&method::<R>("Create"), new.request_id, request));
    let id = violations.take(&format!("{}_id", R::FIELD), new.id.parse::<ResourceId>());
    let sent = violations.take(R::FIELD, new.resource.ok_or("must be set"));
    // Without an id, what else is wrong is still said: what defaults to the id need not.
    let stand_in = id.clone().unwrap_or_else(|| "id".parse().expect("a legal id"));
    let settings = sent.and_then(|sent| violations.merge(R::read(&stand_in, sent, true)));
    let complete = (|| Some((request_id?, id?, settings?)))();
    violations.finish(complete)
}

/// What a method is called that does this with the resource.
fn method<R: Resource>(verb: &str) -> String {
    let noun = R::KIND.rsplit('.').next().unwrap_or_default();
    format!("{verb}{noun}")
}
