//! Tells the other nodes what to forget, over a kept connection to each.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_runtime::chain;
use entrepot_store::Key;
use entrepot_trust::NodeRecord;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::debug;
use url::Url;
use uuid::Uuid;

use super::Peers;
use super::client::PeerClient;
use super::paths::FORGET;
use crate::config::limits;

/// How long words are gathered for one message, and how many there are in one.
const GATHER: Duration = Duration::from_millis(20);
const KEYS: usize = 1000;
/// How many words wait for a node.
const QUEUE: usize = 4096;
/// How long a node lives for others after its record was seen to change.
const LIVE_FOR: Duration = Duration::from_secs(35);
/// How old the list of nodes may be by which answers are counted.
const LIST_FOR: Duration = Duration::from_secs(20);

/// What a node is to forget: keys, or all below a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forget {
    #[serde(default)]
    pub(crate) keys: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prefix: Option<String>,
}

impl Forget {
    pub(crate) fn key(key: &Key) -> Self {
        Self { keys: vec![key.as_str().to_owned()], prefix: None }
    }

    /// The keys that are any.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        self.keys.iter().filter_map(|key| key.parse().ok())
    }
}

/// What is known of the others for telling them.
#[derive(Default)]
pub(super) struct Tellers {
    lines: Mutex<HashMap<ResourceId, (Uuid, mpsc::Sender<Word>)>>,
    seen: Mutex<Seen>,
}

/// When records were seen to change, by this node's own clock.
#[derive(Default)]
struct Seen {
    records: HashMap<ResourceId, (NodeRecord, Instant)>,
    /// When the last list was begun that was read whole.
    listed: Option<Instant>,
}

/// A word on its way to one node.
struct Word {
    forget: Forget,
    told: oneshot::Sender<()>,
}

/// A word on its way to all nodes.
pub(crate) struct Telling {
    told: Vec<oneshot::Receiver<()>>,
    /// By then no node believes any more what it was told to forget.
    forgotten: Instant,
    is_list_old: bool,
}

impl Telling {
    /// Whether it goes to all nodes that there are, as far as their records were read of late.
    pub(crate) fn knows_all(&self) -> bool {
        !self.is_list_old
    }

    /// Waits until all have said that they have forgotten, or believe it no more in any case. Returns how many did not
    /// say so.
    pub(crate) async fn wait(self) -> usize {
        let Self { told, forgotten, is_list_old } = self;
        let told = join_all(told.into_iter().map(|told| timeout_at(forgotten, told))).await;
        let lagging = told.iter().filter(|told| !matches!(told, Ok(Ok(())))).count();
        if lagging > 0 || is_list_old {
            sleep_until(forgotten).await;
        }
        lagging
    }
}

impl Tellers {
    /// The records of the others were read; all of them, if `is_whole`.
    pub(super) fn listed(&self, begun: Instant, records: &[NodeRecord], is_whole: bool) {
        let mut seen = lock(&self.seen);
        for record in records {
            let is_known = seen.records.get(&record.node_id).is_some_and(|(known, _)| known == record);
            if !is_known {
                seen.records.insert(record.node_id.clone(), (record.clone(), Instant::now()));
            }
        }
        if is_whole {
            seen.listed = Some(begun);
            let is_there = |id: &ResourceId| records.iter().any(|record| record.node_id == *id);
            seen.records.retain(|id, (_, at)| is_there(id) || at.elapsed() < LIVE_FOR);
            lock(&self.lines).retain(|id, _| seen.records.contains_key(id));
        }
    }

    /// Those that may believe what they have read, and whether there may be others.
    fn holders(&self) -> (Vec<NodeRecord>, bool) {
        let seen = lock(&self.seen);
        let live = seen.records.values().filter(|(record, at)| record.hold_ms > 0 && at.elapsed() < LIVE_FOR);
        let is_old = seen.listed.is_none_or(|listed| listed.elapsed() > LIST_FOR);
        (live.map(|(record, _)| record.clone()).collect(), is_old)
    }

    fn line(&self, client: &PeerClient, node: &NodeRecord) -> Option<mpsc::Sender<Word>> {
        let address: Url = node.peer_address.as_ref()?.parse().ok()?;
        let mut lines = lock(&self.lines);
        if let Some((boot_id, line)) = lines.get(&node.node_id)
            && *boot_id == node.boot_id
        {
            return Some(line.clone());
        }
        let (line, words) = mpsc::channel(QUEUE);
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends when its line is dropped, with this node at the latest"
        )]
        tokio::spawn(keep_telling(client.clone(), address, words));
        lines.insert(node.node_id.clone(), (node.boot_id, line.clone()));
        Some(line)
    }
}

impl Peers {
    /// Tells all others to forget what was just written; returns what to wait for by whoever does.
    pub(crate) fn tell(&self, forget: &Forget) -> Telling {
        let (holders, is_list_old) = self.inner.tellers.holders();
        let others = holders.iter().map(|record| Duration::from_millis(record.hold_ms));
        let longest = others.chain([self.inner.memory.hold_to_announce()]).max().unwrap_or_default();
        let told = holders.iter().map(|node| {
            let (told, answered) = oneshot::channel();
            if let Some(line) = self.inner.tellers.line(&self.inner.client, node) {
                // Where there is no room, the answer never comes.
                drop(line.try_send(Word { forget: forget.clone(), told }));
            }
            answered
        });
        Telling { told: told.collect(), forgotten: Instant::now() + longest.min(limits::HOLD), is_list_old }
    }

    /// Forgets what another node has replaced, or the control plane.
    pub(crate) fn forget_here(&self, forget: &Forget) {
        forget.keys().for_each(|key| self.inner.memory.forget(&key));
        if let Some(prefix) = &forget.prefix {
            self.inner.memory.forget_below(prefix);
        }
    }
}

/// Tells one node, until nobody has anything to say to it any more.
async fn keep_telling(client: PeerClient, address: Url, mut words: mpsc::Receiver<Word>) {
    let (mut kept, mut next) = (None, None);
    loop {
        let Some(first) = (match next.take() {
            Some(word) => Some(word),
            None => words.recv().await,
        }) else {
            return;
        };
        sleep(GATHER).await;
        let (mut forget, mut told) = (first.forget, vec![first.told]);
        while forget.prefix.is_none() {
            let Ok(word) = words.try_recv() else { break };
            if word.forget.prefix.is_some() || forget.keys.len() + word.forget.keys.len() > KEYS {
                next = Some(word);
                break;
            }
            forget.keys.extend(word.forget.keys);
            told.push(word.told);
        }
        let Ok(body) = serde_json::to_vec(&forget) else { continue };
        match client.post(&mut kept, &address, FORGET, body.into()).await {
            // Who does not wait has left.
            Ok(()) => {
                for told in told {
                    let _ = told.send(());
                }
            }
            Err(error) => debug!("the node at {address} was not told what to forget: {}", chain(&error)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
