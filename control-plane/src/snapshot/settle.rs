//! Waits until nodes follow a change: nodes that watch here report it themselves, and all others are judged by their
//! records in the store, since they may watch another control plane.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_runtime::chain;
use entrepot_trust::NodeRecord;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::{PublishError, Published, Snapshots, Version, with_limit};
use crate::{at_once, live_nodes};

/// How long a change of configuration waits for the nodes to follow.
const LIMIT: Duration = Duration::from_secs(2);
/// How often the records of nodes that watch elsewhere are read meanwhile.
const POLL: Duration = Duration::from_millis(100);
/// How many nodes that watch elsewhere are considered.
const NODES: usize = 10_000;

impl Snapshots {
    /// Waits briefly until `version` is published and every live node runs it. Returns the names of those that do not.
    pub(crate) async fn settle(&self, version: Version) -> Vec<String> {
        self.wake.notify_one();
        let (until, here) = (Instant::now() + LIMIT, self.watchers.ids());
        let mut published = self.published.subscribe();
        let is_there = |published: &Option<Arc<Published>>| published.as_ref().is_some_and(|p| p.version >= version);
        let is_published = async { drop(published.wait_for(is_there).await) };
        // Who watches elsewhere is to be known in any case, also where publishing takes longer than nodes are waited for.
        let (listed, _) = tokio::join!(self.elsewhere(version, &here), timeout_at(until, is_published));
        let elsewhere = Mutex::new(listed);
        let settled = async { tokio::join!(self.watchers.all_at(version), self.all_elsewhere_at(version, &elsewhere)) };
        drop(timeout_at(until, settled).await);
        let elsewhere = elsewhere.into_inner().into_iter().chain(self.have_left(here, version).await);
        let behind: BTreeSet<String> =
            self.watchers.behind(version).into_iter().chain(elsewhere.map(|id| id.to_string())).collect();
        behind.into_iter().collect()
    }

    /// The live nodes that are not `here` and do not run `version` yet.
    async fn elsewhere(&self, version: Version, here: &HashSet<String>) -> Vec<ResourceId> {
        let now = self.clock.now();
        let live = with_limit(live_nodes::list(&*self.store, &self.cluster_key, now, None, NODES, here)).await;
        let live = live.unwrap_or_else(|error| {
            warn!(error = %chain(&error), "cannot see which nodes other control planes have");
            Vec::new()
        });
        live.into_iter().map(|node| node.record).filter(|node| !runs(node, version)).map(|node| node.node_id).collect()
    }

    /// Nodes that were `here`, do not watch here any more, and do not say in their records that they run `version`: they
    /// may have lost their connection before they received it.
    async fn have_left(&self, here: HashSet<String>, version: Version) -> Vec<ResourceId> {
        let watching = self.watchers.ids();
        let left: Vec<ResourceId> = here.difference(&watching).filter_map(|id| id.parse().ok()).collect();
        self.still_lagging(left.clone(), version).await.unwrap_or_else(|error| {
            warn!(error = %chain(&error), "cannot see whether nodes that have left follow");
            left
        })
    }

    /// Waits until none of `nodes` lags. Removes those that have caught up.
    async fn all_elsewhere_at(&self, version: Version, nodes: &Mutex<Vec<ResourceId>>) {
        loop {
            let lagging = nodes.lock().clone();
            if lagging.is_empty() {
                return;
            }
            match self.still_lagging(lagging, version).await {
                Ok(lagging) if lagging.is_empty() => return put(nodes, lagging),
                Ok(lagging) => put(nodes, lagging),
                Err(error) => warn!(error = %chain(&error), "cannot see whether nodes of other control planes follow"),
            }
            sleep(POLL).await;
        }
    }

    /// Those of `nodes` that have a record and do not run `version`.
    async fn still_lagging(&self, nodes: Vec<ResourceId>, version: Version) -> Result<Vec<ResourceId>, PublishError> {
        let read = |id: ResourceId| async move {
            let record = with_limit(live_nodes::read(&*self.store, &self.cluster_key, &id)).await?;
            let lags = record.is_some_and(|record| !runs(&record, version));
            Ok::<_, PublishError>(lags.then_some(id))
        };
        let read: Vec<_> = at_once::all(nodes.into_iter().map(read)).await?;
        Ok(read.into_iter().flatten().collect())
    }
}

/// Whether a node's record says that it runs `version` or a later one.
pub(crate) fn runs(node: &NodeRecord, version: Version) -> bool {
    node.running.is_some_and(|(epoch, revision)| Version { epoch, revision } >= version)
}

fn put(nodes: &Mutex<Vec<ResourceId>>, lagging: Vec<ResourceId>) {
    *nodes.lock() = lagging;
}
