//! Upstreams: the registries that rules pull from.

use entrepot_domain::upstream::Credential;
use entrepot_domain::{ResourceId, Secret, Upstream as DomainUpstream};
use entrepot_proto::convert::snapshot::password_purpose;
use entrepot_proto::convert::upstream::{Password, Settings};
use entrepot_proto::convert::{Violations, names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::upstreams_server::Upstreams;
use entrepot_upstream::{BuildError, Client, Limits};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Api;
use super::caller::{Caller, Permission};
use super::health::{self, Survey};
use super::mask::{self, Field};
use super::page::Page;
use super::request_id::{Earlier, RequestId};
use crate::db::upstreams::{self, Upstream};
use crate::db::{registry, rules};
use crate::error::ApiError;
use crate::plane::Plane;
use crate::snapshot::Version;

pub(super) const KIND: &str = "entrepot.v1.Upstream";
/// How many rules an error names.
const NAMED_RULES: i64 = 10;

const FIELDS: &[Field<pb::Upstream>] = &[
    Field::immutable("name", |u| !u.name.is_empty(), |sent, stored| sent.name == stored.name),
    Field::immutable("kind", |u| u.kind != 0, |sent, stored| sent.kind == stored.kind),
    Field::mutable("endpoint", |u| !u.endpoint.is_empty(), |sent, stored| stored.endpoint = sent.endpoint.clone()),
    Field::mutable(
        "allow_plain_http",
        |u| u.allow_plain_http,
        |sent, stored| stored.allow_plain_http = sent.allow_plain_http,
    ),
    Field::mutable(
        "allow_private_addresses",
        |u| u.allow_private_addresses,
        |sent, stored| stored.allow_private_addresses = sent.allow_private_addresses,
    ),
    Field::mutable(
        "allow_hosts",
        |u| !u.allow_hosts.is_empty(),
        |sent, stored| stored.allow_hosts = sent.allow_hosts.clone(),
    ),
    Field::mutable(
        "ca_certificates",
        |u| !u.ca_certificates.is_empty(),
        |sent, stored| stored.ca_certificates = sent.ca_certificates.clone(),
    ),
    Field::mutable("username", |u| !u.username.is_empty(), |sent, stored| stored.username = sent.username.clone()),
    Field::mutable(
        "password",
        |u| !u.password.is_empty(),
        |sent, stored| (stored.password, stored.has_password) = (sent.password.clone(), false),
    ),
    Field::mutable("budget", |u| u.budget.is_some(), |sent, stored| stored.budget = sent.budget),
    Field::mutable(
        "fallback_endpoints",
        |u| !u.fallback_endpoints.is_empty(),
        |sent, stored| stored.fallback_endpoints = sent.fallback_endpoints.clone(),
    ),
    Field::output_only("has_password"),
    Field::output_only("suggested_prefix"),
    Field::output_only("create_time"),
    Field::output_only("update_time"),
    Field::output_only("etag"),
    Field::output_only("health"),
];

#[tonic::async_trait]
impl Upstreams for Api {
    async fn create_upstream(
        &self,
        request: Request<pb::CreateUpstreamRequest>,
    ) -> Result<Response<pb::Upstream>, Status> {
        let caller = self.caller(&request, Permission::Administer).await?;
        let (upstream, version) = create(&self.0, &caller, request.into_inner()).await?;
        Ok(self.settled(upstream, version).await)
    }

    async fn get_upstream(&self, request: Request<pb::GetUpstreamRequest>) -> Result<Response<pb::Upstream>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(get(&self.0, request.get_ref()).await?))
    }

    async fn list_upstreams(
        &self,
        request: Request<pb::ListUpstreamsRequest>,
    ) -> Result<Response<pb::ListUpstreamsResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(list(&self.0, request.get_ref()).await?))
    }

    async fn update_upstream(
        &self,
        request: Request<pb::UpdateUpstreamRequest>,
    ) -> Result<Response<pb::Upstream>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let (upstream, version) = update(&self.0, request.get_ref()).await?;
        Ok(self.settled(upstream, version).await)
    }

    async fn delete_upstream(
        &self,
        request: Request<pb::DeleteUpstreamRequest>,
    ) -> Result<Response<pb::Upstream>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let (upstream, version) = delete(&self.0, request.get_ref()).await?;
        Ok(self.settled(upstream, version).await)
    }
}

async fn create(
    plane: &Plane,
    caller: &Caller,
    request: pb::CreateUpstreamRequest,
) -> Result<(pb::Upstream, Version), ApiError> {
    let mut violations = Violations::default();
    let request_id = violations.merge(RequestId::read("CreateUpstream", &request.request_id, &request));
    let id = violations.take("upstream_id", request.upstream_id.parse::<ResourceId>());
    let sent = violations.take("upstream", request.upstream.ok_or("must be set"));
    let settings = sent.and_then(|mut sent| {
        sent.has_password = false;
        violations.merge(Settings::read(&sent))
    });
    let complete = (|| Some((request_id?, id?, settings?)))();
    let (request_id, id, settings) = violations.finish(complete)?;

    let now = plane.clock.now();
    let uid = Uuid::now_v7();
    let sealed_password = seal(plane, uid, &settings.password, None);
    let mut upstream = Upstream { uid, id, settings, sealed_password, revision: 0, create_time: now, update_time: now };
    client(plane, &upstream)?;

    let change = plane.prepare_change().await?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("create_upstream").await?;
    match request_id.claim(plane, &tx, caller).await? {
        Earlier::None => {}
        Earlier::Answered(answer) => return Ok((answer, registry::get(&tx).await?.version)),
        Earlier::NotKept => return Err(ApiError::SecretNotKept),
    }
    let registry = change.begin(&tx).await?;
    if upstreams::get(&tx, &upstream.id).await?.is_some() {
        let remedy = "; update it, or choose another `upstream_id`".to_owned();
        return Err(ApiError::Exists { kind: KIND, name: names::upstream(&upstream.id), remedy });
    }
    upstream.revision = registry.version.revision;
    upstreams::put(&tx, &upstream).await?;
    let answer = to_wire(&upstream);
    request_id.answer(&tx, caller, &answer).await?;
    tx.commit().await?;
    Ok((answer, registry.version))
}

async fn get(plane: &Plane, request: &pb::GetUpstreamRequest) -> Result<pb::Upstream, ApiError> {
    let id = parse_name("name", &request.name)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("get_upstream").await?;
    let upstream = upstreams::get(&tx, &id).await?;
    let upstream = upstream.ok_or_else(|| absent(&id))?;
    drop(tx);
    drop(connection);
    let health = health::survey(plane).await.of(&upstream);
    Ok(pb::Upstream { health, ..to_wire(&upstream) })
}

async fn list(plane: &Plane, request: &pb::ListUpstreamsRequest) -> Result<pb::ListUpstreamsResponse, ApiError> {
    let page: Page<String> =
        Page::read(&plane.cluster_key, "ListUpstreams", &[], request.page_size, &request.page_token)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("list_upstreams").await?;
    let mut rows = upstreams::list(&tx, page.after.as_deref().unwrap_or_default(), page.fetch()).await?;
    let next_page_token = page.cut(&plane.cluster_key, &mut rows, |last| last.id.to_string());
    drop(tx);
    drop(connection);
    let survey = if rows.is_empty() { Survey::default() } else { health::survey(plane).await };
    let with_health = |row: &Upstream| pb::Upstream { health: survey.of(row), ..to_wire(row) };
    Ok(pb::ListUpstreamsResponse { upstreams: rows.iter().map(with_health).collect(), next_page_token })
}

async fn update(plane: &Plane, request: &pb::UpdateUpstreamRequest) -> Result<(pb::Upstream, Version), ApiError> {
    let sent = request.upstream.as_ref().ok_or_else(|| ApiError::field("upstream", "must be set"))?;
    let id = parse_name("upstream.name", &sent.name)?;

    let mut connection = plane.db.connect().await?;
    let (tx, registry) = plane.begin_change(&mut connection, "update_upstream").await?;
    let mut upstream = upstreams::get(&tx, &id).await?.ok_or_else(|| absent(&id))?;
    let mut wire = to_wire(&upstream);
    check_etag(&wire.name, &sent.etag, &wire.etag)?;
    mask::apply("upstream", FIELDS, request.update_mask.as_ref(), sent, &mut wire)?;
    upstream.settings = Settings::read(&wire)?;
    upstream.sealed_password = seal(plane, upstream.uid, &upstream.settings.password, upstream.sealed_password.take());
    upstream.revision = registry.version.revision;
    upstream.update_time = plane.clock.now();
    client(plane, &upstream)?;
    upstreams::put(&tx, &upstream).await?;
    tx.commit().await?;
    Ok((to_wire(&upstream), registry.version))
}

async fn delete(plane: &Plane, request: &pb::DeleteUpstreamRequest) -> Result<(pb::Upstream, Version), ApiError> {
    let id = parse_name("name", &request.name)?;
    let mut connection = plane.db.connect().await?;
    let (tx, registry) = plane.begin_change(&mut connection, "delete_upstream").await?;
    let upstream = upstreams::get(&tx, &id).await?.ok_or_else(|| absent(&id))?;
    let wire = to_wire(&upstream);
    check_etag(&wire.name, &request.etag, &wire.etag)?;
    let naming = rules::naming(&tx, upstream.uid, NAMED_RULES).await?;
    if !naming.is_empty() {
        let rules: Vec<String> = naming.iter().map(names::rule).collect();
        let description = format!(
            "`{}` is named by {}: delete these rules or point them elsewhere first",
            wire.name,
            rules.join(", ")
        );
        return Err(ApiError::Precondition { kind: "UPSTREAM_IN_USE", subject: wire.name, description });
    }
    upstreams::delete(&tx, upstream.uid).await?;
    tx.commit().await?;
    Ok((wire, registry.version))
}

/// The client that nodes would use for this upstream.
///
/// # Errors
/// If its certificates cannot be read.
pub(super) fn client(plane: &Plane, upstream: &Upstream) -> Result<Client, ApiError> {
    let settings = &upstream.settings;
    let password = match (&settings.password, &upstream.sealed_password) {
        (Password::New(password), _) => Some(password.clone()),
        (Password::None | Password::Keep, Some(sealed)) => {
            let plain = plane.cluster_key.unseal(&password_purpose(upstream.uid), sealed);
            let plain = plain.map_err(|error| ApiError::Internal(error.into()))?;
            let text = String::from_utf8(plain.expose().clone()).map_err(|error| ApiError::Internal(error.into()))?;
            Some(Secret::new(text))
        }
        (Password::None | Password::Keep, None) => None,
    };
    let upstream = DomainUpstream {
        uid: upstream.uid,
        id: upstream.id.clone(),
        kind: settings.kind,
        endpoint: settings.endpoint.clone(),
        allow_private_addresses: settings.allow_private_addresses,
        allow_hosts: settings.allow_hosts.clone(),
        ca_certificates: settings.ca_certificates.clone(),
        credential: password.map(|password| Credential { username: settings.username.clone(), password }),
        budget: settings.budget,
        fallback_endpoints: settings.fallback_endpoints.clone(),
        revision: upstream.revision,
    };
    Client::new(&upstream, Limits::default()).map_err(|error| match error {
        BuildError::CaCertificates => ApiError::field("upstream.ca_certificates", error),
        BuildError::Tls(_) => ApiError::Internal(error.into()),
    })
}

/// Refuses a change of what was changed since the caller read it. An empty etag is always right.
pub(super) fn check_etag(name: &str, sent: &str, current: &str) -> Result<(), ApiError> {
    if sent.is_empty() || sent == current { Ok(()) } else { Err(ApiError::StaleEtag { name: name.to_owned() }) }
}

/// The etag of what was last changed by a revision of the configuration.
pub(super) fn etag(revision: i64) -> String {
    format!("\"{revision}\"")
}

fn seal(plane: &Plane, uid: Uuid, password: &Password, stored: Option<Vec<u8>>) -> Option<Vec<u8>> {
    match password {
        Password::None => None,
        Password::Keep => stored,
        Password::New(password) => Some(plane.cluster_key.seal(&password_purpose(uid), password.expose().as_bytes())),
    }
}

fn to_wire(upstream: &Upstream) -> pb::Upstream {
    let mut wire = pb::Upstream {
        name: names::upstream(&upstream.id),
        create_time: Some(timestamp(upstream.create_time)),
        update_time: Some(timestamp(upstream.update_time)),
        etag: etag(upstream.revision),
        ..Default::default()
    };
    upstream.settings.write(&mut wire);
    wire
}

fn parse_name(field: &str, name: &str) -> Result<ResourceId, ApiError> {
    names::parse_upstream(name).map_err(|error| ApiError::field(field, error))
}

fn absent(id: &ResourceId) -> ApiError {
    ApiError::not_found(KIND, names::upstream(id))
}
