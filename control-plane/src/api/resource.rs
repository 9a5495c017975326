//! What the services for configuration resources have in common: create, get, list, update and delete, with request
//! ids, pages, masks and etags. Each change is one transaction and begins one revision.
//!
//! Each kind of resource implements [`Resource`], which describes its parts and its conflicts.

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
use crate::plane::{Change, Plane};
use crate::snapshot::Version;

/// A stored resource.
pub(super) trait Resource: Sized + Send + Sync + 'static {
    type Wire: Message + Default + 'static;
    /// The part that operators decide.
    type Settings: Send;

    /// The full name of its message, such as `entrepot.v1.Rule`.
    const KIND: &'static str;
    /// The field that contains it in requests, such as `rule`.
    const FIELD: &'static str;
    /// How updates treat each field.
    const FIELDS: &'static [Field<Self::Wire>];

    fn parse_name(name: &str) -> Result<ResourceId, names::Error>;
    /// The name and the etag in a message.
    fn name_and_etag(wire: &Self::Wire) -> (&str, &str);
    fn name(id: &ResourceId) -> String;
    fn id(&self) -> &ResourceId;
    /// Reads the settings for a new or an updated resource.
    fn read(id: &ResourceId, wire: &Self::Wire, is_new: bool) -> Result<Self::Settings, Violations>;
    fn to_wire(&self) -> Self::Wire;

    fn get(tx: &Tx<'_>, id: &ResourceId) -> impl Future<Output = Result<Option<Self>, db::Error>> + Send;
    /// At most `limit` resources by id, only those after `after`.
    fn list(tx: &Tx<'_>, after: &str, limit: i64) -> impl Future<Output = Result<Vec<Self>, db::Error>> + Send;
    /// Makes the resource from a draft, unless it conflicts with another resource.
    fn make(plane: &Plane, tx: &Tx<'_>, draft: Draft<Self>) -> impl Future<Output = Result<Self, ApiError>> + Send;
    fn put(&self, tx: &Tx<'_>) -> impl Future<Output = Result<(), db::Error>> + Send;
    /// Deletes it, unless something still needs it.
    fn delete(&self, tx: &Tx<'_>) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// A resource before it is checked and written.
pub(super) struct Draft<R: Resource> {
    pub(super) id: ResourceId,
    pub(super) settings: R::Settings,
    /// The current resource; `None` for a new one.
    pub(super) before: Option<R>,
    /// The revision of this change.
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
    /// Creates a resource for an administrator. A repeated request gets the earlier answer.
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

    /// Changes the fields that `mask` names, for an administrator.
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

    /// Deletes a resource for an administrator, and returns it.
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
    let version = match begin_once(plane, &tx, &change, caller, request_id).await? {
        Once::New(version) => version,
        Once::Repeated(answer, version) => return Ok((answer, version)),
    };
    if R::get(&tx, &id).await?.is_some() {
        let update = if R::FIELDS.is_empty() { "" } else { "update it, or " };
        let remedy = format!("; {update}choose another `{}_id`", R::FIELD);
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

pub(super) async fn require<R: Resource>(tx: &Tx<'_>, id: &ResourceId) -> Result<R, ApiError> {
    R::get(tx, id).await?.ok_or_else(|| ApiError::not_found(R::KIND, R::name(id)))
}

/// The id in a name that is in the request's field `field`.
pub(super) fn parse_name<R: Resource>(field: &str, name: &str) -> Result<ResourceId, ApiError> {
    R::parse_name(name).map_err(|error| ApiError::field(field, error))
}

/// Refuses a change if the resource was changed after the caller read it. An empty etag always passes.
pub(super) fn check_etag(name: &str, sent: &str, current: &str) -> Result<(), ApiError> {
    if sent.is_empty() || sent == current { Ok(()) } else { Err(ApiError::StaleEtag { name: name.to_owned() }) }
}

/// The etag of a resource that was last changed by this revision of the configuration.
pub(super) fn etag(revision: i64) -> String {
    format!("\"{revision}\"")
}

/// How a request with an id is treated.
pub(super) enum Once<A> {
    /// It is new: the change begins, with this version.
    New(Version),
    /// It is a repetition, and gets this answer.
    Repeated(A, Version),
}

/// Begins a change in `tx`, unless an earlier request with this id has made it already.
pub(super) async fn begin_once<A: Message + Default>(
    plane: &Plane,
    tx: &Tx<'_>,
    change: &Change,
    caller: &Caller,
    request_id: &RequestId,
) -> Result<Once<A>, ApiError> {
    match request_id.claim(plane, tx, caller).await? {
        Earlier::None => Ok(Once::New(change.begin(tx).await?.version)),
        Earlier::Answered(answer) => Ok(Once::Repeated(answer, registry::get(tx).await?.version)),
        Earlier::NotKept => Err(ApiError::SecretNotKept),
    }
}

/// Reads a request that creates a resource, and collects all its mistakes.
fn read_new<R: Resource>(
    request: &impl Message,
    new: &New<'_, R::Wire>,
) -> Result<(RequestId, ResourceId, R::Settings), Violations> {
    let mut violations = Violations::default();
    let request_id = violations.merge(RequestId::read(&method::<R>("Create"), new.request_id, request));
    let id = violations.take(&format!("{}_id", R::FIELD), new.id.parse::<ResourceId>());
    let sent = violations.take(R::FIELD, new.resource.ok_or("must be set"));
    // Even without a valid id, all other mistakes are reported. This stands in for fields that default to the id.
    let stand_in = id.clone().unwrap_or_else(|| "id".parse().expect("a legal id"));
    let settings = sent.and_then(|sent| violations.merge(R::read(&stand_in, sent, true)));
    let complete = (|| Some((request_id?, id?, settings?)))();
    violations.finish(complete)
}

/// The full name of the method for `verb`.
fn method<R: Resource>(verb: &str) -> String {
    let noun = R::KIND.rsplit('.').next().unwrap_or_default();
    format!("{verb}{noun}")
}
