//! Everything that a node needs to know, as one value: rules, upstreams with their clients, principals with their keys.

mod read;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::template::RepositorySettings;
use entrepot_domain::{Action, Hops, PrefixMap, Priority, RepositoryName, Rule, Template, Upstream};
use entrepot_proto::node::v1 as pb;
use entrepot_records::{Origin, Provenance};
use entrepot_runtime::Metrics;
use entrepot_trust::access_key::AccessKeyHash;
use entrepot_upstream::{Limits, RequestMetrics};
use uuid::Uuid;

use crate::budget::{BudgetAccount, Budgets};

pub(crate) use read::SnapshotError;

/// Everything that a node needs to know to serve. It is immutable, and replaced as a whole.
pub(crate) struct Snapshot {
    pub(crate) version: Version,
    pub(crate) registry_id: Uuid,
    pub(crate) build_time: Option<DateTime<Utc>>,
    /// How long nodes may rely on records that they have read. It is zero if the control plane does not say, since such
    /// a control plane would not tell nodes what to forget.
    pub(crate) hold_time: Duration,
    rules: PrefixMap<Item<Rule>>,
    templates: PrefixMap<Item<Template>>,
    upstreams: HashMap<Uuid, Source>,
    principals: HashMap<Uuid, Principal>,
    access_keys: HashMap<String, AccessKey>,
    /// The items that are not understood here.
    pub(crate) left_out: Vec<LeftOut>,
}

/// An item of a snapshot, which is understood here or not.
#[derive(Clone)]
pub(crate) enum Item<T> {
    Understood(Arc<T>),
    LeftOut(LeftOut),
}

/// An item that this release does not understand, or that is malformed. It grants nothing and creates nothing, and
/// nothing else takes its place: names that it covers are not covered by a shorter prefix instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// The item's name, such as `rules/hub`.
    pub(crate) item: Arc<str>,
    /// Why it is not understood.
    pub(crate) reason: Arc<str>,
}

impl LeftOut {
    /// The kind of the item, such as `rules`.
    pub(crate) fn kind(&self) -> &str {
        self.item.split('/').next().unwrap_or_default()
    }
}

/// The version of a snapshot; a later epoch is newer, whatever the revisions.
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

/// An upstream with its client.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) client: entrepot_upstream::Client,
    /// Its budget.
    pub(crate) account: Arc<BudgetAccount>,
}

/// Everything needed to make clients of upstreams.
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

/// Somebody who may log in.
pub(crate) struct Principal {
    pub(crate) id: Box<str>,
    pub(crate) actions: Arc<[Action]>,
}

/// An active key.
#[derive(Clone)]
pub(crate) struct AccessKey {
    pub(crate) principal_uid: Uuid,
    pub(crate) hash: AccessKeyHash,
}

/// What a client's spelling of a name refers to.
#[derive(Clone)]
pub(crate) struct Location {
    /// The repository's name, in the one spelling under which it is kept.
    pub(crate) repository: RepositoryName,
    /// What fills it; `None` if no rule covers the name, or one that is not understood here.
    pub(crate) fill: Option<FillFrom>,
    /// The rule or upstream that is not understood here. Cached content is still served.
    pub(crate) left_out: Option<LeftOut>,
}

/// What fills a repository.
#[derive(Clone)]
pub(crate) struct FillFrom {
    pub(crate) rule: Arc<Rule>,
    pub(crate) origin: Uuid,
    pub(crate) source: Source,
    /// The name of the filled repository, in the one spelling under which it is kept.
    pub(crate) name: RepositoryName,
    /// The repository's name at the upstream.
    pub(crate) repository: RepositoryName,
    /// The template for the repository, if it does not exist yet.
    template: Option<Item<Template>>,
    /// The priority with which the upstream is asked.
    pub(crate) priority: Priority,
    /// The registries that the request has come through.
    hops: Hops,
}

impl FillFrom {
    /// The provenance that is recorded with the content.
    pub(crate) fn provenance(&self) -> Provenance {
        let url = self.source.upstream.endpoint.url();
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Provenance { rule_uid: self.rule.uid, origin: Origin::new(host, self.repository.to_string()) }
    }

    /// The upstream's client for requests with this priority. Blobs are fetched by [`Self::pull_client`], since pulls
    /// may join a fetch that somebody else has begun.
    pub(crate) fn client(&self) -> entrepot_upstream::Client {
        self.pull_client().at(self.priority)
    }

    pub(crate) fn pull_client(&self) -> entrepot_upstream::Client {
        self.source.client.behind(&self.hops)
    }

    /// The settings with which the repository is created, if it does not exist.
    ///
    /// # Errors
    /// If its template is not understood here. The repository must then not be created here.
    pub(crate) fn settings(&self) -> Result<RepositorySettings, LeftOut> {
        match &self.template {
            Some(Item::Understood(template)) => Ok(template.settings()),
            Some(Item::LeftOut(left_out)) => Err(left_out.clone()),
            None => Ok(RepositorySettings::default()),
        }
    }
}

impl Location {
    /// The same, with another priority.
    pub(crate) fn with(self, priority: Priority) -> Self {
        Self { fill: self.fill.map(|fill| FillFrom { priority, ..fill }), ..self }
    }

    /// The same, for a request that has come through these registries.
    pub(crate) fn behind(self, hops: Hops) -> Self {
        Self { fill: self.fill.map(|fill| FillFrom { hops, ..fill }), ..self }
    }
}

impl Snapshot {
    /// All upstreams, in no particular order.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        self.upstreams.values()
    }

    /// Finds the repository for a client's spelling, and what fills it.
    pub(crate) fn locate(&self, name: &RepositoryName) -> Location {
        let unfilled = |left_out| Location { repository: name.clone(), fill: None, left_out };
        let rule = match self.rules.covering(name).map(|item| &**item) {
            Some(Item::Understood(rule)) => rule,
            Some(Item::LeftOut(left_out)) => return unfilled(Some(left_out.clone())),
            None => return unfilled(None),
        };
        let Some(source) = self.upstreams.get(&rule.upstream_uid) else { return unfilled(None) };
        // If the name at the upstream would be too long, nothing fills it.
        let Ok(mapped) = rule.map(name, source.upstream.kind) else { return unfilled(None) };
        let fill = FillFrom {
            rule: rule.clone(),
            origin: rule.origin(),
            source: source.clone(),
            name: mapped.repository.clone(),
            template: self.templates.covering(&mapped.repository).map(|item| Item::clone(item)),
            repository: mapped.upstream_repository,
            priority: Priority::Pull,
            hops: Hops::default(),
        };
        Location { repository: mapped.repository, fill: Some(fill), left_out: None }
    }

    /// The principal with this uid, if it exists.
    pub(crate) fn principal(&self, principal_uid: Uuid) -> Option<&Principal> {
        self.principals.get(&principal_uid)
    }

    /// The key with this id, if it is active.
    pub(crate) fn access_key(&self, key_id: &str) -> Option<&AccessKey> {
        self.access_keys.get(key_id)
    }
}
