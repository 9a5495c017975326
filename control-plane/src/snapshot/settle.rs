//! Waits until nodes follow a change: those that watch here by what they say, all others by their records in the
//! store, since they may watch another control plane.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_runtime::chain;
use entrepot_trust::NodeRecord;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{PublishError, Published, Snapshots, Version, bounded};
use crate::{at_once, live_nodes};

/// How long a change of configuration waits for the nodes to follow.
const LIMIT: Duration = Duration::from_secs(2);
/// How often the records of nodes that watch elsewhere are read meanwhile.
const POLL: Duration = Duration::from_millis(100);
/// How many nodes that watch elsewhere are waited for.
const NODES: usize = 10_000;

impl Snapshots {
    /// Waits until `version` is published and every live node runs it, but not for long; names those that do not.
    pub(crate) async fn settle(&self, version: Version) -> Vec<String> {
        self.wake.notify_one();
        let mut published = self.published.subscribe();
        let elsewhere = Mutex::new(Vec::new());
        let settled = async {
            let is_there =
                |published: &Option<Arc<Published>>| published.as_ref().is_some_and(|p| p.version >= version);
            let is_published = async { drop(published.wait_for(is_there).await) };
            let ((), listed) = tokio::join!(is_published, self.elsewhere(version));
            put(&elsewhere, listed);
            tokio::join!(self.watchers.all_at(version), self.all_elsewhere_at(version, &elsewhere));
        };
        drop(timeout(LIMIT, settled).await);
        let elsewhere = elsewhere.into_inner().unwrap_or_else(PoisonError::into_inner);
        let behind: BTreeSet<String> =
            self.watchers.behind(version).into_iter().chain(elsewhere.iter().map(ToString::to_string)).collect();
        behind.into_iter().collect()
    }

    /// The live nodes that do not watch here and do not run `version` yet.
    async fn elsewhere(&self, version: Version) -> Vec<ResourceId> {
        let here: HashSet<String> = self.watchers.ids();
        let now = self.clock.now();
        let live = bounded(live_nodes::list(&*self.store, &self.cluster_key, now, None, NODES, &here)).await;
        let live = live.unwrap_or_else(|error| {
            warn!(error = %chain(&error), "cannot see which nodes other control planes have");
            Vec::new()
        });
        live.into_iter().filter(|node| !runs(node, version)).map(|node| node.node_id).collect()
    }

    /// Waits until none of `nodes` lags, and takes out those that do not any more.
    async fn all_elsewhere_at(&self, version: Version, nodes: &Mutex<Vec<ResourceId>>) {
        loop {
            let lagging = nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
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

    /// Those of `nodes` that live and do not run `version`.
    async fn still_lagging(&self, nodes: Vec<ResourceId>, version: Version) -> Result<Vec<ResourceId>, PublishError> {
        let read = |id: ResourceId| async move {
            let record = bounded(live_nodes::read(&*self.store, &self.cluster_key, &id)).await?;
            let lags = record.is_some_and(|record| record.is_live(self.clock.now()) && !runs(&record, version));
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
    *nodes.lock().unwrap_or_else(PoisonError::into_inner) = lagging;
}
