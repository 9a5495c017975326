//! All that a node needs to know, as one value: rules, upstreams with their clients, principals with their keys.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use entrepot_domain::name::NamespacePrefix;
use entrepot_domain::{PrefixMap, Priority, RepositoryName, Rule, RuleSet, Secret, Template, Upstream};
use entrepot_proto::convert::{Violations, snapshot as convert};
use entrepot_proto::node::v1 as pb;
use entrepot_runtime::Metrics;
use entrepot_trust::ClusterKey;
use entrepot_trust::access_key::AccessKeyHash;
use entrepot_upstream::{Limits, RequestMetrics};
use prost::Message as _;
use uuid::Uuid;

use crate::budget::{AccountHandle, BudgetAccount, Budgets};

/// What a node needs to know to serve. Immutable; the next one takes its place as a whole.
pub(crate) struct Snapshot {
    pub(crate) version: Version,
    pub(crate) registry_id: Uuid,
    pub(crate) build_time: Option<DateTime<Utc>>,
    rules: RuleSet,
    templates: PrefixMap<Template>,
    upstreams: HashMap<Uuid, Source>,
    /// Ids by uid.
    principals: HashMap<Uuid, Box<str>>,
    access_keys: HashMap<String, AccessKey>,
}

/// Which snapshot; a later epoch beats any revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) epoch: i64,
    pub(crate) revision: i64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

impl From<Version> for pb::SnapshotVersion {
    fn from(version: Version) -> Self {
        Self { epoch: version.epoch, revision: version.revision }
    }
}

/// An upstream with the client that talks to it.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) client: entrepot_upstream::Client,
    /// What it lets us ask for.
    pub(crate) account: Arc<BudgetAccount>,
}

/// What clients of upstreams are made with.
pub(crate) struct Clients {
    pub(crate) limits: Limits,
    pub(crate) metrics: RequestMetrics,
    pub(crate) budgets: Budgets,
}

impl Clients {
    pub(crate) fn new(limits: Limits, budgets: Budgets, metrics: &Metrics) -> Self {
        Self { limits, metrics: RequestMetrics::new(&metrics.meter("entrepot.data_plane")), budgets }
    }
}

/// A key that can be used.
#[derive(Clone)]
pub(crate) struct AccessKey {
    pub(crate) principal_uid: Uuid,
    pub(crate) hash: AccessKeyHash,
}

/// Where a repository is and what fills it.
#[derive(Clone)]
pub(crate) struct Place {
    /// The repository's name, in the one spelling under which it is kept.
    pub(crate) repository: RepositoryName,
    /// What fills it; `None` if no rule covers the name.
    pub(crate) fill: Option<FillFrom>,
}

/// What fills a repository.
#[derive(Clone)]
pub(crate) struct FillFrom {
    pub(crate) rule: Arc<Rule>,
    pub(crate) origin: Uuid,
    pub(crate) source: Source,
    /// The repository's name at the upstream.
    pub(crate) repository: RepositoryName,
    /// What the repository is created by, if it does not exist.
    pub(crate) template: Option<Arc<Template>>,
    /// For whom the upstream is asked.
    pub(crate) priority: Priority,
}

impl FillFrom {
    /// The upstream's client for questions of this priority. Blobs come by [`Source::client`], as for a pull: whoever fetches
    /// one, pulls may join.
    pub(crate) fn client(&self) -> entrepot_upstream::Client {
        self.source.client.at(self.priority)
    }
}

impl Place {
    /// The same place, whose upstream is asked for somebody who can wait so long.
    pub(crate) fn with(self, priority: Priority) -> Self {
        Self { fill: self.fill.map(|fill| FillFrom { priority, ..fill }), ..self }
    }
}

/// Why a snapshot cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// Not the bytes of a snapshot.
    #[error("the snapshot cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    /// Something in it breaks a rule that the control plane should have kept.
    #[error("the snapshot is malformed")]
    Malformed(#[from] Violations),
    /// A uid in it is none.
    #[error("the snapshot's {field} `{value}` is no uid")]
    Uid {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: String,
    },
    /// A secret in it does not open with this node's cluster key.
    #[error("a secret of the snapshot does not open with this node's cluster key: {what}")]
    Sealed {
        /// Which secret.
        what: String,
    },
    /// A client cannot be made for one of its upstreams.
    #[error("no client can be made for upstream `{upstream}`")]
    Client {
        /// Which upstream.
        upstream: String,
        /// Why.
        source: entrepot_upstream::BuildError,
    },
}

impl Snapshot {
    /// Reads a snapshot whose signature was checked. Clients of upstreams that have not changed are taken over from
    /// `previous`, with their connections and tokens.
    pub(crate) fn decode(
        bytes: &[u8],
        key: &ClusterKey,
        previous: Option<&Self>,
        clients: &Clients,
    ) -> Result<Self, SnapshotError> {
        let wire = pb::Snapshot::decode(bytes)?;
        let version = wire.version.unwrap_or_default();
        let version = Version { epoch: version.epoch, revision: version.revision };
        let mut upstreams = HashMap::new();
        for upstream in wire.upstreams {
            let source = source(&upstream, key, previous, clients)?;
            upstreams.insert(source.upstream.uid, source);
        }
        let (mut principals, mut access_keys) = (HashMap::new(), HashMap::new());
        for principal in wire.principals {
            let principal_uid = uid("principal.uid", &principal.uid)?;
            principals.insert(principal_uid, principal.principal_id.into());
            for access_key in principal.access_keys {
                let purpose = convert::access_key_purpose(&access_key.key_id);
                let hash = key.unseal(&purpose, &access_key.sealed_hash).ok();
                let hash = hash.and_then(|bytes| AccessKeyHash::decode(bytes.expose()).ok());
                let hash = hash.ok_or_else(|| SnapshotError::Sealed { what: purpose })?;
                access_keys.insert(access_key.key_id, AccessKey { principal_uid, hash });
            }
        }
        Ok(Self {
            version,
            registry_id: uid("registry_id", &wire.registry_id)?,
            build_time: wire
                .build_time
                .and_then(|time| DateTime::from_timestamp(time.seconds, time.nanos.try_into().ok()?)),
            templates: wire.templates.iter().map(template).collect::<Result<_, _>>()?,
            rules: wire.rules.iter().map(convert::rule).collect::<Result<_, _>>()?,
            upstreams,
            principals,
            access_keys,
        })
    }

    /// All upstreams, in no order.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        self.upstreams.values()
    }

    /// Where a repository of a client's spelling is, and what fills it.
    pub(crate) fn place(&self, name: &RepositoryName) -> Place {
        let unfilled = || Place { repository: name.clone(), fill: None };
        let Some(rule) = self.rules.covering(name) else { return unfilled() };
        let Some(source) = self.upstreams.get(&rule.upstream_uid) else { return unfilled() };
        // A name that the upstream cannot have, being too long, is one that nothing fills.
        let Ok(mapped) = rule.map(name, source.upstream.kind) else { return unfilled() };
        let fill = FillFrom {
            rule: rule.clone(),
            origin: rule.origin(),
            source: source.clone(),
            template: self.templates.covering(&mapped.repository).cloned(),
            repository: mapped.upstream_repository,
            priority: Priority::Pull,
        };
        Place { repository: mapped.repository, fill: Some(fill) }
    }

    /// What a principal is called, if it exists.
    pub(crate) fn principal_id(&self, principal_uid: Uuid) -> Option<&str> {
        self.principals.get(&principal_uid).map(|id| &**id)
    }

    /// The key with this id, if it can be used.
    pub(crate) fn access_key(&self, key_id: &str) -> Option<&AccessKey> {
        self.access_keys.get(key_id)
    }
}

fn template(wire: &pb::SnapshotTemplate) -> Result<(NamespacePrefix, Template), Violations> {
    let template = entrepot_proto::convert::template::from_snapshot(wire)?;
    Ok((template.prefix.clone(), template))
}

/// The upstream with its client: the one of `previous`, if nothing has changed.
fn source(
    wire: &pb::SnapshotUpstream,
    key: &ClusterKey,
    previous: Option<&Snapshot>,
    clients: &Clients,
) -> Result<Source, SnapshotError> {
    let uid = uid("upstream.uid", &wire.uid)?;
    let same = previous.and_then(|snapshot| snapshot.upstreams.get(&uid));
    if let Some(same) = same.filter(|source| source.upstream.revision == wire.revision) {
        return Ok(same.clone());
    }
    let password = if wire.username.is_empty() { None } else { Some(password(uid, wire, key)?) };
    let upstream = convert::upstream(wire, password)?;
    let account = clients.budgets.account(&upstream);
    let client = entrepot_upstream::Client::measured(
        &upstream,
        clients.limits,
        &clients.metrics,
        Arc::new(AccountHandle(account.clone())),
    )
    .map_err(|source| SnapshotError::Client { upstream: upstream.id.to_string(), source })?;
    Ok(Source { upstream: Arc::new(upstream), client, account })
}

fn password(uid: Uuid, wire: &pb::SnapshotUpstream, key: &ClusterKey) -> Result<Secret<String>, SnapshotError> {
    let what = convert::password_purpose(uid);
    let password = key.unseal(&what, &wire.sealed_password).ok();
    let password = password.and_then(|bytes| String::from_utf8(bytes.expose().clone()).ok());
    password.map(Secret::new).ok_or(SnapshotError::Sealed { what })
}

fn uid(field: &'static str, value: &str) -> Result<Uuid, SnapshotError> {
    value.parse().map_err(|_| SnapshotError::Uid { field, value: value.to_owned() })
}
