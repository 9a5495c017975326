//! The nodes that watch, and the snapshot that each of them runs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::Version;

/// All nodes that watch. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Watchers {
    state: Arc<Mutex<State>>,
    /// Signals each change.
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    next: u64,
    nodes: HashMap<u64, Node>,
}

struct Node {
    id: String,
    running: Option<Version>,
    /// The latest snapshot that it refused, for which nobody waits.
    refused: Option<Version>,
    /// What it does not understand in its snapshot, as names such as `rules/hub`.
    left_out: Vec<String>,
}

/// The kinds of left-out items in metrics.
const KINDS: [&str; 5] = ["principals", "rules", "templates", "upstreams", "other"];

/// A node that watches. Dropped when it no longer does.
pub(crate) struct Watcher {
    number: u64,
    watchers: Watchers,
}

impl Watchers {
    pub(super) fn enter(&self, node_id: &str) -> Watcher {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.nodes.insert(number, Node::new(node_id));
        Watcher { number, watchers: self.clone() }
    }

    /// Waits until every node runs `version` or a later one, or has refused it.
    pub(super) async fn all_at(&self, version: Version) {
        let mut changes = self.changes.subscribe();
        while self.lock().nodes.values().any(|node| !node.runs(version) && node.refused < Some(version)) {
            // The sender lives as long as `self`.
            drop(changes.changed().await);
        }
    }

    /// The nodes that watch.
    pub(super) fn ids(&self) -> HashSet<String> {
        self.lock().nodes.values().map(|node| node.id.clone()).collect()
    }

    /// How many items nodes have left out, by kind.
    pub(super) fn left_out(&self) -> [(&'static str, u64); KINDS.len()] {
        let state = self.lock();
        let kind_of = |item: &String| {
            let kind = item.split('/').next().unwrap_or_default();
            KINDS.into_iter().find(|known| *known == kind).unwrap_or("other")
        };
        let kinds: Vec<&str> = state.nodes.values().flat_map(|node| &node.left_out).map(kind_of).collect();
        KINDS.map(|kind| (kind, kinds.iter().filter(|of| **of == kind).count() as u64))
    }

    /// The nodes that do not run `version` or a later one.
    pub(super) fn behind(&self, version: Version) -> Vec<String> {
        let state = self.lock();
        let behind: BTreeSet<&String> =
            state.nodes.values().filter(|node| !node.runs(version)).map(|node| &node.id).collect();
        behind.into_iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Node {
    fn new(id: &str) -> Self {
        Self { id: id.to_owned(), running: None, refused: None, left_out: Vec::new() }
    }

    fn runs(&self, version: Version) -> bool {
        self.running >= Some(version)
    }
}

impl Watcher {
    /// Notes what the node runs, and what it refused.
    pub(crate) fn reports(&self, running: Option<Version>, refused: Option<Version>) {
        if let Some(node) = self.watchers.lock().nodes.get_mut(&self.number) {
            node.running = node.running.max(running);
            node.refused = node.refused.max(refused);
        }
        self.watchers.changes.send_replace(());
    }
}

impl Watcher {
    /// Notes what the node leaves out of its snapshot. Returns whether this has changed.
    pub(crate) fn leaves_out(&self, items: Vec<String>) -> bool {
        let mut state = self.watchers.lock();
        let Some(node) = state.nodes.get_mut(&self.number) else { return false };
        let is_new = node.left_out != items;
        node.left_out = items;
        is_new
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watchers.lock().nodes.remove(&self.number);
        self.watchers.changes.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Duration, timeout};

    const fn at(revision: i64) -> Version {
        Version { epoch: 1, revision }
    }

    #[tokio::test(start_paused = true)]
    async fn all_nodes_are_waited_for_but_those_that_refuse_or_leave() {
        let watchers = Watchers::default();
        watchers.all_at(at(2)).await;
        let (a, b, c) = (watchers.enter("a"), watchers.enter("b"), watchers.enter("c"));
        a.reports(Some(at(3)), None);
        b.reports(Some(at(1)), Some(at(2)));
        assert_eq!(watchers.behind(at(2)), ["b", "c"]);
        assert!(timeout(Duration::from_secs(1), watchers.all_at(at(2))).await.is_err());
        drop(c);
        watchers.all_at(at(2)).await;
        assert_eq!(watchers.behind(at(2)), ["b"]);
    }

    #[tokio::test]
    async fn a_report_wakes_whoever_waits() {
        let watchers = Watchers::default();
        let node = watchers.enter("a");
        let waiting = watchers.clone();
        let waiter = async move { waiting.all_at(at(5)).await };
        let ((), ()) = tokio::join!(waiter, async { node.reports(Some(at(5)), None) });
        assert!(watchers.behind(at(5)).is_empty());
    }
}
