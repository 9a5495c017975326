//! What this node has seen of the store that is not what it should be.

use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::Digest;
use entrepot_runtime::Metrics;
use entrepot_store::{Error, Key};
use opentelemetry::metrics::Counter;
use tokio::sync::mpsc;
use tracing::error;

use super::aside::DamagedObject;
use crate::config::limits;

/// Of how many damaged objects it is remembered.
const REMEMBERED: u64 = 100_000;
/// How long. Then an object is read once more: a store may have been mended.
const LIFETIME: Duration = Duration::from_secs(3600);

/// The objects that did not hash to their digests when they were read, twice.
#[derive(Clone)]
pub(crate) struct Damaged {
    known: moka::sync::Cache<Key, ()>,
    /// The last one of each digest.
    of_digests: moka::sync::Cache<Digest, Key>,
    count: Arc<Counter<u64>>,
    tell: mpsc::Sender<DamagedObject>,
}

impl Damaged {
    /// None yet; each is told once.
    pub(crate) fn new(metrics: &Metrics) -> (Self, mpsc::Receiver<DamagedObject>) {
        let count = metrics
            .meter("entrepot.data_plane")
            .u64_counter("entrepot.content.damaged")
            .with_description("Objects of the store that did not hash to their digests, each once an hour and node.")
            .build();
        let known = moka::sync::Cache::builder().max_capacity(REMEMBERED).time_to_live(LIFETIME).build();
        let of_digests = moka::sync::Cache::builder().max_capacity(REMEMBERED).time_to_live(LIFETIME).build();
        let (tell, told) = mpsc::channel(limits::DAMAGES_TOLD);
        (Self { known, of_digests, count: Arc::new(count), tell }, told)
    }

    /// Takes note of one. It is said once.
    pub(crate) fn note(&self, object: &Key, digest: &Digest) {
        if self.known.entry(object.clone()).or_insert(()).is_fresh() {
            error!(content.digest = %digest, "the object `{object}` is damaged: it does not hold `{digest}`");
            self.count.add(1, &[]);
            self.of_digests.insert(digest.clone(), object.clone());
            // What is not written down now is when it is found again.
            let _ = self.tell.try_send((object.clone(), digest.clone()));
        }
    }

    /// Takes note of what an error of the store says to be one.
    pub(crate) fn note_if(&self, error: &Error) {
        if let Error::Damaged { key, digest } = error {
            self.note(key, digest);
        }
    }

    /// An object that was to have this content, and had not.
    pub(crate) fn of_digest(&self, digest: &Digest) -> Option<Key> {
        self.of_digests.get(digest)
    }

    pub(crate) fn is_known(&self, object: &Key) -> bool {
        self.known.contains_key(object)
    }
}
