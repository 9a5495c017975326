//! Upstreams: the registries that rules pull from.

use std::collections::BTreeSet;

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
use super::caller::{Permission, require_ready};
use super::health::{self, Survey};
use super::mask::Field;
use super::probe;
use super::resource::{self, Draft, New, Resource, etag};
use crate::db::upstreams::{self, Upstream};
use crate::db::{self, Tx, rules};
use crate::error::ApiError;
use crate::plane::Plane;

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
        let sent = request.get_ref();
        let new = New { request_id: &sent.request_id, id: &sent.upstream_id, resource: sent.upstream.as_ref() };
        self.create::<Upstream, _>(&request, new).await
    }

    async fn get_upstream(&self, request: Request<pb::GetUpstreamRequest>) -> Result<Response<pb::Upstream>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let upstream = resource::get::<Upstream>(&self.0, &request.get_ref().name).await?;
        let health = health::survey(&self.0).await.of(&upstream);
        Ok(Response::new(pb::Upstream { health, ..upstream.to_wire() }))
    }

    async fn list_upstreams(
        &self,
        request: Request<pb::ListUpstreamsRequest>,
    ) -> Result<Response<pb::ListUpstreamsResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let pb::ListUpstreamsRequest { page_size, page_token, .. } = request.get_ref();
        let (rows, next_page_token) = resource::list::<Upstream>(&self.0, *page_size, page_token).await?;
        let survey = if rows.is_empty() { Survey::default() } else { health::survey(&self.0).await };
        let with_health = |row: &Upstream| pb::Upstream { health: survey.of(row), ..row.to_wire() };
        let upstreams = rows.iter().map(with_health).collect();
        Ok(Response::new(pb::ListUpstreamsResponse { upstreams, next_page_token }))
    }

    async fn update_upstream(
        &self,
        request: Request<pb::UpdateUpstreamRequest>,
    ) -> Result<Response<pb::Upstream>, Status> {
        let sent = request.get_ref();
        self.update::<Upstream, _>(&request, sent.upstream.as_ref(), sent.update_mask.as_ref()).await
    }

    async fn delete_upstream(
        &self,
        request: Request<pb::DeleteUpstreamRequest>,
    ) -> Result<Response<pb::Upstream>, Status> {
        let sent = request.get_ref();
        self.delete::<Upstream, _>(&request, &sent.name, &sent.etag).await
    }

    async fn validate_upstream(
        &self,
        request: Request<pb::ValidateUpstreamRequest>,
    ) -> Result<Response<pb::ValidateUpstreamResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let upstream = resource::get::<Upstream>(&self.0, &request.get_ref().name).await?;
        let (valid, steps) = probe::steps(&self.0, &upstream, None).await?;
        Ok(Response::new(pb::ValidateUpstreamResponse { valid, steps }))
    }
}

impl Resource for Upstream {
    type Wire = pb::Upstream;
    type Settings = Settings;

    const KIND: &'static str = "entrepot.v1.Upstream";
    const FIELD: &'static str = "upstream";
    const FIELDS: &'static [Field<pb::Upstream>] = FIELDS;

    fn parse_name(name: &str) -> Result<ResourceId, names::Error> {
        names::parse_upstream(name)
    }

    fn name_and_etag(wire: &pb::Upstream) -> (&str, &str) {
        (&wire.name, &wire.etag)
    }

    fn name(id: &ResourceId) -> String {
        names::upstream(id)
    }

    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn read(_: &ResourceId, wire: &pb::Upstream, is_new: bool) -> Result<Settings, Violations> {
        // A new upstream has no stored password to keep.
        Settings::read(&pb::Upstream { has_password: wire.has_password && !is_new, ..wire.clone() })
    }

    fn to_wire(&self) -> pb::Upstream {
        let mut wire = pb::Upstream {
            name: names::upstream(&self.id),
            create_time: Some(timestamp(self.create_time)),
            update_time: Some(timestamp(self.update_time)),
            etag: etag(self.revision),
            ..Default::default()
        };
        self.settings.write(&mut wire);
        wire
    }

    async fn get(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Self>, db::Error> {
        upstreams::get(tx, id).await
    }

    async fn list(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<Self>, db::Error> {
        upstreams::list(tx, after, limit).await
    }

    /// Makes the upstream, if nodes could use it.
    async fn make(plane: &Plane, _: &Tx<'_>, draft: Draft<Self>) -> Result<Self, ApiError> {
        let Draft { id, settings, before, revision, now } = draft;
        if let (Some(before), Password::Keep) = (&before, &settings.password) {
            require_password(&id, &moved(&before.settings, &settings))?;
        }
        let (uid, create_time, sealed) = match before {
            Some(before) => (before.uid, before.create_time, before.sealed_password),
            None => (Uuid::now_v7(), now, None),
        };
        let sealed_password = seal(plane, uid, &settings.password, sealed);
        let upstream = Self { uid, id, settings, sealed_password, revision, create_time, update_time: now };
        client(plane, &upstream)?;
        Ok(upstream)
    }

    async fn put(&self, tx: &Tx<'_>) -> Result<(), db::Error> {
        upstreams::put(tx, self).await
    }

    async fn delete(&self, tx: &Tx<'_>) -> Result<(), ApiError> {
        let naming = rules::naming(tx, self.uid, NAMED_RULES).await?;
        if !naming.is_empty() {
            let (name, rules) = (names::upstream(&self.id), naming.iter().map(names::rule).collect::<Vec<_>>());
            let description =
                format!("`{name}` is named by {}: delete these rules or point them elsewhere first", rules.join(", "));
            return Err(ApiError::Precondition { kind: "UPSTREAM_IN_USE", subject: name, description });
        }
        Ok(upstreams::delete(tx, self.uid).await?)
    }
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
    let registry_id = require_ready(plane)?.registry_id;
    Client::new(&upstream, registry_id, Limits::default()).map_err(|error| match error {
        BuildError::CaCertificates => ApiError::field("upstream.ca_certificates", error),
        BuildError::Tls(_) => ApiError::Internal(error.into()),
    })
}

/// The changed fields that decide where the password goes, and who could read it on the way.
fn moved(before: &Settings, after: &Settings) -> Vec<&'static str> {
    let differ = |before: &[String], after: &[String]| {
        let (before, after): (BTreeSet<_>, BTreeSet<_>) = (before.iter().collect(), after.iter().collect());
        before != after
    };
    let hosts = |settings: &Settings| settings.allow_hosts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let fallbacks =
        |settings: &Settings| settings.fallback_endpoints.iter().map(ToString::to_string).collect::<Vec<_>>();
    let fields = [
        ("upstream.endpoint", before.endpoint != after.endpoint),
        ("upstream.fallback_endpoints", differ(&fallbacks(before), &fallbacks(after))),
        ("upstream.allow_hosts", differ(&hosts(before), &hosts(after))),
        ("upstream.ca_certificates", before.ca_certificates != after.ca_certificates),
        ("upstream.allow_plain_http", before.plain_http != after.plain_http),
    ];
    fields.into_iter().filter_map(|(field, is_moved)| is_moved.then_some(field)).collect()
}

/// Requires the password for a change of where it goes: nobody can read it here, and nobody may have it sent to a place
/// of their choice either.
fn require_password(id: &ResourceId, moved: &[&str]) -> Result<(), ApiError> {
    if moved.is_empty() {
        return Ok(());
    }
    let (name, fields) = (names::upstream(id), moved.join("`, `"));
    let description = format!(
        "`{fields}` says where the password of `{name}` goes: send `upstream.password` in the same call, or clear \
         `upstream.username` to go on without one (the command: --username NAME --password-stdin, or --username '')"
    );
    Err(ApiError::Precondition { kind: "PASSWORD_NEEDED", subject: name, description })
}

fn seal(plane: &Plane, uid: Uuid, password: &Password, stored: Option<Vec<u8>>) -> Option<Vec<u8>> {
    match password {
        Password::None => None,
        Password::Keep => stored,
        Password::New(password) => Some(plane.cluster_key.seal(&password_purpose(uid), password.expose().as_bytes())),
    }
}
