//! Builds a snapshot from one state of the database.

use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::upstream::PlainHttp;
use entrepot_proto::convert::{duration, snapshot::rule_to_wire, template, timestamp, upstream::budget_to_wire};
use entrepot_proto::node::v1 as wire;

use super::Version;
use crate::db::{self, Db, access_keys, principals, registry, rules, templates, upstreams};

/// The version of the configuration in the database.
pub(super) async fn version(db: &Db) -> Result<Version, db::Error> {
    let mut connection = db.connect().await?;
    let tx = connection.begin_snapshot("read_version").await?;
    Ok(registry::get(&tx).await?.version)
}

/// All that nodes need to know, as of one moment.
pub(super) async fn snapshot(db: &Db, hold_time: Duration, now: DateTime<Utc>) -> Result<wire::Snapshot, db::Error> {
    let mut connection = db.connect().await?;
    let tx = connection.begin_snapshot("build_snapshot").await?;
    let registry = registry::get(&tx).await?;
    let rules = rules::list(&tx, "", i64::MAX).await?;
    let templates = templates::list(&tx, "", i64::MAX).await?;
    let upstreams = upstreams::list(&tx, "", i64::MAX).await?;
    let principals = principals::list(&tx, "", i64::MAX).await?;
    let access_keys = access_keys::all_usable(&tx).await?;
    drop(tx);

    let principal = |principal: principals::Principal| {
        let own = access_keys.iter().filter(|key| key.principal_uid == Some(principal.uid));
        wire::SnapshotPrincipal {
            uid: principal.uid.to_string(),
            principal_id: principal.id.to_string(),
            permission_set: principal.permission_set.as_str().to_owned(),
            actions: principal.permission_set.actions().iter().map(|action| action.as_str().to_owned()).collect(),
            access_keys: own.map(access_key).collect(),
            minimum_reader: 0,
        }
    };
    Ok(wire::Snapshot {
        version: Some(registry.version.into()),
        registry_id: registry.registry_id.to_string(),
        build_time: Some(timestamp(now)),
        rules: rules.iter().map(|rule| rule_to_wire(&rule.rule)).collect(),
        templates: templates.iter().map(|template| template::to_snapshot(&template.template)).collect(),
        upstreams: upstreams.into_iter().map(upstream).collect(),
        principals: principals.into_iter().map(principal).collect(),
        minimum_reader: 0,
        hold_duration: Some(duration(hold_time)),
    })
}

fn upstream(upstream: upstreams::Upstream) -> wire::SnapshotUpstream {
    let settings = upstream.settings;
    wire::SnapshotUpstream {
        uid: upstream.uid.to_string(),
        upstream_id: upstream.id.to_string(),
        kind: settings.kind.as_str().to_owned(),
        endpoint: settings.endpoint.to_string(),
        allow_plain_http: settings.plain_http == PlainHttp::Allowed,
        allow_private_addresses: settings.allow_private_addresses,
        allow_hosts: settings.allow_hosts.iter().map(ToString::to_string).collect(),
        ca_certificates: settings.ca_certificates,
        username: settings.username,
        sealed_password: upstream.sealed_password.unwrap_or_default(),
        revision: upstream.revision,
        budget: settings.budget.map(budget_to_wire),
        fallback_endpoints: settings.fallback_endpoints.iter().map(ToString::to_string).collect(),
        minimum_reader: 0,
    }
}

fn access_key(key: &access_keys::AccessKey) -> wire::SnapshotAccessKey {
    wire::SnapshotAccessKey { key_id: key.key_id.clone(), sealed_hash: key.sealed_hash.clone(), minimum_reader: 0 }
}

impl From<Version> for wire::SnapshotVersion {
    fn from(version: Version) -> Self {
        Self { epoch: version.epoch, revision: version.revision }
    }
}

impl From<wire::SnapshotVersion> for Version {
    fn from(wire: wire::SnapshotVersion) -> Self {
        Self { epoch: wire.epoch, revision: wire.revision }
    }
}
