//! Checks that a snapshot must pass before a node runs it. If anything is wrong with it, the last good one stays.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_proto::node::v1 as pb;
use entrepot_records::SnapshotHead;
use entrepot_runtime::health::Condition;
use entrepot_runtime::{Clock, Metrics, chain};
use entrepot_store::Key;
use entrepot_trust::snapshot::SnapshotError as TrustError;
use entrepot_trust::{ClusterKey, Signature, SnapshotTrust, Statement};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use parking_lot::Mutex;
use tracing::{info, warn};

use super::snapshot::LeftOut;
use super::snapshot::{Clients, SnapshotError, Version};
use super::suspension::Suspension;
use super::{Control, Snapshot};
use crate::config::limits;

/// How many left-out items are reported to the control plane.
const TOLD_ITEMS: usize = 100;

/// Lets good snapshots pass, and reports all others.
pub(crate) struct Gate {
    control: Control,
    trust: SnapshotTrust,
    cluster_key: ClusterKey,
    clients: Clients,
    readiness: Condition,
    refused: Counter<u64>,
    /// The snapshot that was refused last, so that it is reported once.
    reported: Mutex<Option<Reported>>,
    /// Only one at a time: the stream and the store bring the same snapshots.
    installing: tokio::sync::Mutex<()>,
}

/// A head, and the reason why it is refused.
type Reported = (Vec<u8>, &'static str);

/// A head that a trusted key has signed.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) version: Version,
    pub(super) key: Key,
    statement: Statement,
}

/// Why a snapshot is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("its head is malformed")]
    Head(#[from] serde_json::Error),
    #[error("its head is not to be trusted")]
    Untrusted(#[source] TrustError),
    #[error("the head names an object that is not there")]
    Missing,
    #[error("there is no head any more")]
    NoHead,
    #[error("it is larger than {} bytes", limits::SNAPSHOT_BYTES)]
    TooLarge,
    #[error("its bytes are not those that its head names: it was cut or changed")]
    Altered,
    #[error("it is {offered}, and {running} runs: it was rolled back")]
    RolledBack { offered: Version, running: Version },
    #[error("it is of another version than its head says")]
    Version,
    #[error("reading it has failed")]
    Panicked(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Content(#[from] SnapshotError),
}

impl Refusal {
    /// The name in metrics.
    fn reason(&self) -> &'static str {
        match self {
            Self::Head(_) => "malformed_head",
            Self::Untrusted(TrustError::UnknownKey { .. }) => "unknown_key",
            Self::Untrusted(TrustError::BadSignature) => "bad_signature",
            Self::Missing | Self::NoHead => "missing",
            Self::TooLarge => "too_large",
            Self::Altered => "altered",
            Self::RolledBack { .. } => "rolled_back",
            Self::Version => "other_version",
            Self::Panicked(_) => "panicked",
            Self::Content(SnapshotError::Decode(_)) => "undecodable",
            Self::Content(SnapshotError::TooNew { .. }) => "too_new",
            Self::Content(_) => "malformed",
        }
    }
}

impl Gate {
    pub(crate) fn new(
        control: Control,
        trust: SnapshotTrust,
        cluster_key: ClusterKey,
        readiness: Condition,
        clock: Clock,
        clients: Clients,
        metrics: &Metrics,
    ) -> Self {
        let meter = metrics.meter("entrepot.data_plane");
        let refused = meter
            .u64_counter("entrepot.snapshot.refused")
            .with_description("Snapshots that were offered and not run.")
            .build();
        observe(&control, clock, metrics);
        let (reported, installing) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { control, trust, cluster_key, clients, readiness, refused, reported, installing }
    }

    /// The version of the current snapshot.
    pub(super) fn version(&self) -> Option<Version> {
        self.control.version()
    }

    pub(super) fn suspension(&self) -> &Suspension {
        &self.control.suspension
    }

    /// Reads a head, and checks its signature.
    pub(super) fn head(&self, bytes: &[u8]) -> Result<Head, Refusal> {
        let head: SnapshotHead = serde_json::from_slice(bytes)?;
        let statement = Statement { epoch: head.epoch, revision: head.revision, sha256: head.sha256 };
        let signature = Signature { key_id: head.key_id, signature: head.signature };
        self.trust.check(&statement, &signature).map_err(Refusal::Untrusted)?;
        let version = Version { epoch: head.epoch, revision: head.revision };
        Ok(Head { version, key: head.key, statement })
    }

    /// Runs a snapshot from now on, if everything about it is right. The current snapshot passes, too.
    pub(super) async fn install(self: &Arc<Self>, head: &Head, bytes: Bytes) -> Result<(), Refusal> {
        let _one = self.installing.lock().await;
        let Head { version, .. } = head;
        if let Some(running) = self.version() {
            match version.cmp(&running) {
                Ordering::Less => return Err(Refusal::RolledBack { offered: *version, running }),
                Ordering::Equal => return Ok(()),
                Ordering::Greater => {}
            }
        }
        // Up to 256 MiB are hashed and decoded, which must not block a thread that serves.
        let (gate, of) = (Arc::clone(self), head.clone());
        let snapshot = tokio::task::spawn_blocking(move || gate.read(&of, &bytes)).await??;
        for left_out in &snapshot.left_out {
            let LeftOut { item, reason } = left_out;
            warn!(snapshot.item = %item, "left `{item}` out of snapshot {version}: {reason}");
        }
        info!(snapshot.epoch = version.epoch, snapshot.revision = version.revision, "runs snapshot {version}");
        self.control.run(snapshot);
        self.readiness.ready();
        Ok(())
    }

    /// Reads the snapshot that the head names. This takes time.
    fn read(&self, head: &Head, bytes: &[u8]) -> Result<Snapshot, Refusal> {
        let Head { version, statement, .. } = head;
        if Statement::of(version.epoch, version.revision, bytes) != *statement {
            return Err(Refusal::Altered);
        }
        let previous = self.control.current();
        let snapshot = Snapshot::decode(bytes, &self.cluster_key, previous.as_deref(), &self.clients)?;
        if snapshot.version == *version { Ok(snapshot) } else { Err(Refusal::Version) }
    }

    /// The items left out of the current snapshot, in the form for the control plane.
    pub(super) fn left_out(&self) -> Vec<pb::LeftOut> {
        let Some(running) = self.control.current() else { return Vec::new() };
        let told = running.left_out.iter().take(TOLD_ITEMS);
        told.map(|left_out| pb::LeftOut { item: left_out.item.to_string(), reason: left_out.reason.to_string() })
            .collect()
    }

    /// Reports a refused snapshot: once in the log, and each time in the metrics.
    pub(super) fn refuse(&self, head: &[u8], refusal: &Refusal) -> pb::RefusedSnapshot {
        let reason = refusal.reason();
        if self.version().is_some() {
            self.readiness
                .ready_but(format!("a newer snapshot is refused, the last good one stays: {}", chain(refusal)));
        }
        self.refused.add(1, &[KeyValue::new("reason", reason)]);
        let mut reported = self.reported.lock();
        let text = chain(refusal).to_string();
        if reported.as_ref().is_none_or(|(of, why)| of != head || *why != reason) {
            warn!(snapshot.refused = reason, error = %text, "refused a snapshot, the last good one stays: {text}");
            *reported = Some((head.to_vec(), reason));
        }
        let head: Option<SnapshotHead> = serde_json::from_slice(head).ok();
        let version = head.map(|head| pb::SnapshotVersion { epoch: head.epoch, revision: head.revision });
        pb::RefusedSnapshot { version, reason: text }
    }
}

/// Adds metrics of the current snapshot's version and age.
fn observe(control: &Control, clock: Clock, metrics: &Metrics) {
    let meter = metrics.meter("entrepot.data_plane");
    let running = control.clone();
    meter
        .i64_observable_gauge("entrepot.snapshot.epoch")
        .with_description("The epoch of the snapshot that runs.")
        .with_callback(move |gauge| running.version().iter().for_each(|version| gauge.observe(version.epoch, &[])))
        .build();
    let running = control.clone();
    meter
        .i64_observable_gauge("entrepot.snapshot.revision")
        .with_description("The revision of the snapshot that runs.")
        .with_callback(move |gauge| running.version().iter().for_each(|version| gauge.observe(version.revision, &[])))
        .build();
    let running = control.clone();
    meter
        .u64_observable_gauge("entrepot.snapshot.left_out")
        .with_description("Items of the snapshot that runs which this release does not understand.")
        .with_callback(move |gauge| {
            let mut counts =
                BTreeMap::from(["principals", "rules", "templates", "upstreams"].map(|kind| (kind, 0_u64)));
            for left_out in running.current().iter().flat_map(|running| &running.left_out) {
                counts.iter_mut().filter(|(kind, _)| **kind == left_out.kind()).for_each(|(_, count)| *count += 1);
            }
            counts.iter().for_each(|(kind, count)| gauge.observe(*count, &[KeyValue::new("kind", *kind)]));
        })
        .build();
    let running = control.clone();
    meter
        .f64_observable_gauge("entrepot.snapshot.age")
        .with_unit("s")
        .with_description("How long ago the snapshot that runs was built.")
        .with_callback(move |gauge| {
            if let Some(built) = running.current().and_then(|snapshot| snapshot.build_time) {
                gauge.observe((clock.now() - built).as_seconds_f64().max(0.0), &[]);
            }
        })
        .build();
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use entrepot_runtime::{Health, Tasks};
    use entrepot_trust::SnapshotSigner;
    use entrepot_upstream::Limits;
    use futures_util::poll;
    use prost::Message as _;
    use uuid::Uuid;

    use super::*;
    use crate::budget::Budgets;

    #[tokio::test]
    async fn a_snapshot_is_read_on_no_thread_that_serves() {
        let (metrics, clock, health) = (Metrics::new("test"), Clock::system(), Health::new());
        let clients = Clients::new(Limits::default(), Budgets::new(None, || 1, Tasks::new()), &metrics);
        let trust = SnapshotTrust::new(SnapshotSigner::generate().public_key(), None);
        let (control, key) = (Control::new(clock.clone()), ClusterKey::generate());
        let gate = Gate::new(control.clone(), trust, key, health.condition("snapshot"), clock, clients, &metrics);
        let principal = |number: u32| pb::SnapshotPrincipal {
            uid: Uuid::from_u128(number.into()).to_string(),
            principal_id: format!("principal-{number}"),
            permission_set: "PULLER".into(),
            ..pb::SnapshotPrincipal::default()
        };
        let snapshot = pb::Snapshot {
            version: Some(pb::SnapshotVersion { epoch: 1, revision: 1 }),
            registry_id: Uuid::nil().to_string(),
            principals: (0..10_000).map(principal).collect(),
            minimum_reader: 1,
            ..pb::Snapshot::default()
        };
        let (bytes, version) = (Bytes::from(snapshot.encode_to_vec()), Version { epoch: 1, revision: 1 });
        let statement = Statement::of(1, 1, &bytes);
        let head = Head { version, key: Key::parse("snapshot/1").expect("a legal key"), statement };

        let gate = Arc::new(gate);
        let mut installed = pin!(gate.install(&head, bytes));
        assert!(poll!(installed.as_mut()).is_pending(), "the thread was kept until the snapshot was read");
        installed.await.expect("a good snapshot");
        assert_eq!(control.version(), Some(version));
    }
}
