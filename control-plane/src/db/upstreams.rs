//! Upstreams.

use std::num::NonZeroU32;
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::upstream::{Endpoint, PlainHttp};
use entrepot_domain::{Budget, ResourceId, UpstreamKind};
use entrepot_proto::convert::upstream::{Password, Settings};
use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{column, corrupt, id, named, page, parsed, parsed_all, readable};
use super::{Error, Tx};

/// A stored upstream. The password in its settings is `None` or `Keep`; the stored one is sealed.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    pub(crate) uid: Uuid,
    pub(crate) id: ResourceId,
    pub(crate) settings: Settings,
    pub(crate) sealed_password: Option<Vec<u8>>,
    pub(crate) revision: i64,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) update_time: DateTime<Utc>,
}

impl Upstream {
    fn from_row(row: &Row) -> Result<Self, Error> {
        named(Self::read(row), || format!("upstreams/{}", id(row, "upstream_id")))
    }

    fn read(row: &Row) -> Result<Self, Error> {
        readable(row)?;
        let allow_plain_http = column(row, "allow_plain_http")?;
        let plain_http = if allow_plain_http { PlainHttp::Allowed } else { PlainHttp::Refused };
        let kind: &str = column(row, "kind")?;
        let kind = UpstreamKind::from_name(kind).ok_or_else(|| corrupt("kind", format!("`{kind}` is unknown")))?;
        let endpoint = Endpoint::parse(column(row, "endpoint")?, plain_http);
        let sealed_password: Option<Vec<u8>> = column(row, "sealed_password")?;
        let settings = Settings {
            kind,
            endpoint: endpoint.map_err(|error| corrupt("endpoint", error))?,
            plain_http,
            allow_private_addresses: column(row, "allow_private_addresses")?,
            allow_hosts: parsed_all(row, "allow_hosts")?,
            ca_certificates: column(row, "ca_certificates")?,
            username: column(row, "username")?,
            password: if sealed_password.is_some() { Password::Keep } else { Password::None },
            budget: budget(row)?,
            fallback_endpoints: fallbacks(row, plain_http)?,
        };
        Ok(Self {
            uid: column(row, "uid")?,
            id: parsed(row, "upstream_id")?,
            settings,
            sealed_password,
            revision: column(row, "revision")?,
            create_time: column(row, "create_time")?,
            update_time: column(row, "update_time")?,
        })
    }
}

/// A stored upstream as plain text. Nodes of a later release may understand what this release does not.
pub(crate) struct Words {
    pub(crate) uid: Uuid,
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) endpoint: String,
    pub(crate) allow_plain_http: bool,
    pub(crate) allow_private_addresses: bool,
    pub(crate) allow_hosts: Vec<String>,
    pub(crate) ca_certificates: String,
    pub(crate) username: String,
    pub(crate) sealed_password: Option<Vec<u8>>,
    pub(crate) budget: Option<Budget>,
    pub(crate) fallback_endpoints: Vec<String>,
    pub(crate) minimum_reader: i32,
    pub(crate) revision: i64,
}

impl Words {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            uid: column(row, "uid")?,
            id: column(row, "upstream_id")?,
            kind: column(row, "kind")?,
            endpoint: column(row, "endpoint")?,
            allow_plain_http: column(row, "allow_plain_http")?,
            allow_private_addresses: column(row, "allow_private_addresses")?,
            allow_hosts: column(row, "allow_hosts")?,
            ca_certificates: column(row, "ca_certificates")?,
            username: column(row, "username")?,
            sealed_password: column(row, "sealed_password")?,
            budget: budget(row)?,
            fallback_endpoints: column(row, "fallback_endpoints")?,
            minimum_reader: column(row, "minimum_reader")?,
            revision: column(row, "revision")?,
        })
    }
}

fn budget(row: &Row) -> Result<Option<Budget>, Error> {
    let requests: Option<i64> = column(row, "budget_requests")?;
    let seconds: Option<i64> = column(row, "budget_window_seconds")?;
    let Some((requests, seconds)) = requests.zip(seconds) else { return Ok(None) };
    let requests = u32::try_from(requests).map_err(|error| corrupt("budget_requests", error))?;
    let requests = NonZeroU32::new(requests).ok_or_else(|| corrupt("budget_requests", "zero"))?;
    let window = u64::try_from(seconds).map_err(|error| corrupt("budget_window_seconds", error))?;
    Ok(Some(Budget { requests, window: Duration::from_secs(window) }))
}

fn fallbacks(row: &Row, plain_http: PlainHttp) -> Result<Vec<Endpoint>, Error> {
    let texts: Vec<&str> = column(row, "fallback_endpoints")?;
    let read = |text| Endpoint::parse(text, plain_http).map_err(|error| corrupt("fallback_endpoints", error));
    texts.into_iter().map(read).collect()
}

/// Creates an upstream, or updates all of its changeable columns.
pub(crate) async fn put(tx: &Tx<'_>, upstream: &Upstream) -> Result<(), Error> {
    const SQL: &str = "-- upstreams.put
        INSERT INTO upstreams (uid, upstream_id, kind, endpoint, allow_plain_http, allow_private_addresses, allow_hosts,
                               ca_certificates, username, sealed_password, revision, create_time, update_time,
                               budget_requests, budget_window_seconds, fallback_endpoints)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
        ON CONFLICT (uid) DO UPDATE
           SET endpoint = excluded.endpoint, allow_plain_http = excluded.allow_plain_http,
               allow_private_addresses = excluded.allow_private_addresses, allow_hosts = excluded.allow_hosts,
               ca_certificates = excluded.ca_certificates, username = excluded.username,
               sealed_password = excluded.sealed_password, revision = excluded.revision,
               update_time = excluded.update_time, budget_requests = excluded.budget_requests,
               budget_window_seconds = excluded.budget_window_seconds,
               fallback_endpoints = excluded.fallback_endpoints";
    let settings = &upstream.settings;
    let hosts: Vec<String> = settings.allow_hosts.iter().map(ToString::to_string).collect();
    let fallbacks: Vec<String> = settings.fallback_endpoints.iter().map(ToString::to_string).collect();
    tx.execute(
        SQL,
        &[
            &upstream.uid,
            &upstream.id.as_str(),
            &settings.kind.as_str(),
            &settings.endpoint.to_string(),
            &(settings.plain_http == PlainHttp::Allowed),
            &settings.allow_private_addresses,
            &hosts,
            &settings.ca_certificates,
            &settings.username,
            &upstream.sealed_password,
            &upstream.revision,
            &upstream.create_time,
            &upstream.update_time,
            &settings.budget.map(|budget| i64::from(budget.requests.get())),
            &settings.budget.map(|budget| i64::try_from(budget.window.as_secs()).unwrap_or(i64::MAX)),
            &fallbacks,
        ],
    )
    .await?;
    Ok(())
}

/// The statement with this name that selects upstreams.
macro_rules! select {
    ($name:literal, $which:literal) => {
        concat!(
            "-- upstreams.",
            $name,
            "
        SELECT uid, upstream_id, kind, endpoint, allow_plain_http, allow_private_addresses, allow_hosts,
               ca_certificates, username, sealed_password, revision, create_time, update_time,
               budget_requests, budget_window_seconds, fallback_endpoints, minimum_reader
          FROM upstreams ",
            $which
        )
    };
}

pub(crate) async fn get(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Upstream>, Error> {
    const SQL: &str = select!("get", "WHERE upstream_id = $1");
    tx.query_opt(SQL, &[&id.as_str()]).await?.as_ref().map(Upstream::from_row).transpose()
}

/// The uid of the upstream with this id, whether it is understood here or not.
pub(crate) async fn uid(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Uuid>, Error> {
    const SQL: &str = "-- upstreams.uid
        SELECT uid FROM upstreams WHERE upstream_id = $1";
    tx.query_opt(SQL, &[&id.as_str()]).await?.map(|row| column(&row, "uid")).transpose()
}

/// At most `limit` upstreams by id, only those after `after`.
pub(crate) async fn list(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<Upstream>, Error> {
    const SQL: &str = select!("list", "WHERE upstream_id > $1 ORDER BY upstream_id LIMIT $2");
    page(tx, SQL, "upstream_id", after, limit, Upstream::from_row).await
}

/// All upstreams by id, as plain text.
pub(crate) async fn words(tx: &Tx<'_>) -> Result<Vec<Words>, Error> {
    const SQL: &str = select!("words", "ORDER BY upstream_id");
    tx.query(SQL, &[]).await?.iter().map(Words::from_row).collect()
}

/// Deletes an upstream that no rule refers to.
pub(crate) async fn delete(tx: &Tx<'_>, uid: Uuid) -> Result<(), Error> {
    const SQL: &str = "-- upstreams.delete
        DELETE FROM upstreams WHERE uid = $1";
    tx.execute(SQL, &[&uid]).await?;
    Ok(())
}
