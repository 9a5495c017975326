//! Builds a snapshot from one state of the database.
//!
//! Things that only a later release understands are passed on to its nodes, but open nothing on others: an upstream is
//! sent as plain text, a principal without actions, and of a rule or template the names that it covers, for no reader.

use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::future;
use entrepot_proto::convert::access::PermissionSet;
use entrepot_proto::convert::snapshot::rule_to_wire;
use entrepot_proto::convert::upstream::budget_to_wire;
use entrepot_proto::convert::{READER, duration, template, timestamp};
use entrepot_proto::node::v1 as wire;

use super::Version;
use crate::db::rules::Cover;
use crate::db::{self, Db, access_keys, principals, registry, rules, templates, upstreams};

/// The reader number for what no node may use until a control plane that understands it publishes.
const NO_READER: i32 = i32::MAX;

/// The version of the configuration in the database.
pub(super) async fn version(db: &Db) -> Result<Version, db::Error> {
    let mut connection = db.connect().await?;
    let tx = connection.begin_snapshot("read_version").await?;
    Ok(registry::get(&tx).await?.version)
}

/// Everything that nodes need to know, as of one moment.
pub(super) async fn snapshot(db: &Db, hold_time: Duration, now: DateTime<Utc>) -> Result<wire::Snapshot, db::Error> {
    let mut connection = db.connect().await?;
    let tx = connection.begin_snapshot("build_snapshot").await?;
    let registry = registry::get(&tx).await?;
    let rules = rules::all(&tx).await?;
    let templates = templates::all(&tx).await?;
    let upstreams = upstreams::words(&tx).await?;
    let principals = principals::list(&tx, "", i64::MAX).await?;
    let access_keys = access_keys::all_usable(&tx).await?;
    drop(tx);

    let principal = |principal: principals::Principal| {
        let own = access_keys.iter().filter(|key| key.principal_uid == Some(principal.uid));
        wire::SnapshotPrincipal {
            uid: principal.uid.to_string(),
            principal_id: principal.id.to_string(),
            permission_set: principal.permission_set.as_str().to_owned(),
            actions: actions(&principal.permission_set),
            access_keys: own.map(access_key).collect(),
            minimum_reader: principal.minimum_reader,
        }
    };
    Ok(wire::Snapshot {
        version: Some(registry.version.into()),
        registry_id: registry.registry_id.to_string(),
        build_time: Some(timestamp(now)),
        rules: rules.into_iter().map(rule).collect(),
        templates: templates.into_iter().map(template).collect(),
        upstreams: upstreams.into_iter().map(upstream).collect(),
        principals: principals.into_iter().map(principal).collect(),
        minimum_reader: 0,
        hold_duration: Some(duration(hold_time)),
    })
}

fn rule(rule: Result<rules::Rule, Cover>) -> wire::SnapshotRule {
    match rule {
        Ok(rule) => rule_to_wire(&rule.rule),
        Err(Cover { uid, id, prefix }) => wire::SnapshotRule {
            uid: uid.to_string(),
            rule_id: id,
            prefix,
            minimum_reader: NO_READER,
            ..Default::default()
        },
    }
}

fn template(template: Result<templates::Template, Cover>) -> wire::SnapshotTemplate {
    match template {
        Ok(template) => template::to_snapshot(&template.template),
        Err(Cover { uid, id, prefix }) => wire::SnapshotTemplate {
            uid: uid.to_string(),
            template_id: id,
            prefix,
            minimum_reader: NO_READER,
            ..Default::default()
        },
    }
}

fn upstream(upstream: upstreams::Words) -> wire::SnapshotUpstream {
    wire::SnapshotUpstream {
        uid: upstream.uid.to_string(),
        upstream_id: upstream.id,
        kind: upstream.kind,
        endpoint: upstream.endpoint,
        allow_plain_http: upstream.allow_plain_http,
        allow_private_addresses: upstream.allow_private_addresses,
        allow_hosts: upstream.allow_hosts,
        ca_certificates: upstream.ca_certificates,
        username: upstream.username,
        sealed_password: upstream.sealed_password.unwrap_or_default(),
        revision: upstream.revision,
        budget: upstream.budget.map(budget_to_wire),
        fallback_endpoints: upstream.fallback_endpoints,
        // An upstream for later readers has columns that are not known here.
        minimum_reader: if upstream.minimum_reader > READER { NO_READER } else { upstream.minimum_reader },
    }
}

fn actions(set: &principals::StoredSet) -> Vec<String> {
    if let Some(actions) = future::actions(set.as_str()) {
        return actions.iter().map(|action| (*action).to_owned()).collect();
    }
    let known = set.known().map(PermissionSet::actions).unwrap_or_default();
    known.iter().map(|action| action.as_str().to_owned()).collect()
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
