//! Tells nodes to forget records that were replaced, and waits until none of them believes what they said before.

use std::collections::HashSet;
use std::time::Duration;

use entrepot_proto::node::v1 as pb;
use entrepot_runtime::chain;
use entrepot_store::Key;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::live_nodes;
use crate::plane::Plane;

/// How many keys are told at once.
const KEYS: usize = 1000;
/// How many nodes are counted.
const NODES: usize = 10_000;
/// The longest that a node believes what it has read.
const LONGEST: Duration = Duration::from_secs(30);

impl Plane {
    /// Tells nodes to forget keys that were just written. Returns how many nodes did not say that they have.
    pub(crate) async fn tell_keys(&self, keys: &[Key]) -> i32 {
        let told = keys.chunks(KEYS).map(|keys| {
            let keys = keys.iter().map(|key| key.as_str().to_owned()).collect();
            self.tell(pb::ForgetRecords { keys, prefix: String::new() })
        });
        join_all(told).await.into_iter().max().unwrap_or_default()
    }

    /// Tells nodes to forget all below a prefix.
    pub(crate) async fn tell_below(&self, prefix: &str) -> i32 {
        self.tell(pb::ForgetRecords { keys: Vec::new(), prefix: prefix.to_owned() }).await
    }

    async fn tell(&self, forget: pb::ForgetRecords) -> i32 {
        let written = Instant::now();
        if let Some(told) = self.inquiries.tell(forget, self.snapshots.hold_time()).await {
            return told.lagging_count;
        }
        // Nobody could be told: what they hold ends by itself. No clock decides which of them live: all that have a record
        // count.
        let live = live_nodes::list(&*self.store, &self.cluster_key, None, None, NODES, &HashSet::new()).await;
        let (count, longest) = match live {
            Ok(live) => {
                let holders: Vec<u64> = live.iter().map(|node| node.record.hold_ms).filter(|hold| *hold > 0).collect();
                (holders.len(), Duration::from_millis(holders.into_iter().max().unwrap_or_default()))
            }
            Err(error) => {
                warn!(error = %chain(&error), "cannot see which nodes there are to tell");
                (1, LONGEST)
            }
        };
        sleep_until(written + longest.min(LONGEST)).await;
        i32::try_from(count).unwrap_or(i32::MAX)
    }
}
