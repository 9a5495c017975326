//! Tells the other nodes what to forget, over a kept connection to each.

use std::collections::HashMap;
use std::time::Duration;

use entrepot_runtime::chain;
use entrepot_store::Key;
use entrepot_trust::NodeRecord;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::debug;
use url::Url;

use super::Peers;
use super::client::PeerClient;
use super::paths::FORGET;
use super::roll::{Life, Roll};
use crate::config::limits;

/// How long messages are gathered into one request, and how many go into one.
const GATHER: Duration = Duration::from_millis(20);
const KEYS: usize = 1000;
/// How many messages may wait for a node.
const QUEUE: usize = 4096;

/// What a node must forget: keys, or everything below a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forget {
    #[serde(default)]
    pub(crate) keys: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prefix: Option<String>,
}

impl Forget {
    pub(crate) fn key(key: &Key) -> Self {
        Self::keys_of(std::slice::from_ref(key))
    }

    pub(crate) fn keys_of(keys: &[Key]) -> Self {
        Self { keys: keys.iter().map(|key| key.as_str().to_owned()).collect(), prefix: None }
    }

    /// The valid keys among them.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        self.keys.iter().filter_map(|key| key.parse().ok())
    }
}

/// The queues to the other nodes, by run.
#[derive(Default)]
pub(super) struct Tellers {
    lines: Mutex<HashMap<Life, mpsc::Sender<Word>>>,
}

/// A message for one node.
struct Word {
    forget: Forget,
    told: oneshot::Sender<()>,
}

/// A message that is being sent to all nodes.
pub(crate) struct Telling {
    told: Vec<oneshot::Receiver<()>>,
    /// When no node relies any more on what it was told to forget.
    forgotten: Instant,
    is_list_old: bool,
}

impl Telling {
    /// Whether it goes to all nodes, as far as their records were read recently.
    pub(crate) fn knows_all(&self) -> bool {
        !self.is_list_old
    }

    /// Waits until all nodes have confirmed it, or until none of them relies on it any more anyway. Returns how many
    /// did not confirm it.
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
    /// Drops the connections to nodes that no longer exist.
    pub(super) fn keep(&self, roll: &Roll) {
        self.lines.lock().retain(|life, _| roll.has(life));
    }

    fn line(&self, client: &PeerClient, node: &NodeRecord) -> Option<mpsc::Sender<Word>> {
        let address: Url = node.peer_address.as_ref()?.parse().ok()?;
        let (mut lines, life) = (self.lines.lock(), (node.node_id.clone(), node.boot_id));
        if let Some(line) = lines.get(&life) {
            return Some(line.clone());
        }
        let (line, words) = mpsc::channel(QUEUE);
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends when its line is dropped, with this node at the latest"
        )]
        tokio::spawn(keep_telling(client.clone(), address, words));
        lines.insert(life, line.clone());
        Some(line)
    }
}

impl Peers {
    /// Tells all others to forget what was just written. Returns something to wait for, if the caller wants to.
    pub(crate) fn tell(&self, forget: &Forget) -> Telling {
        let (holders, is_list_old) = self.inner.roll.lock().holders(self.inner.memory.now());
        let others = holders.iter().map(|record| Duration::from_millis(record.hold_ms));
        let longest = others.chain([self.inner.memory.hold_to_announce()]).max().unwrap_or_default();
        let told = holders.iter().map(|node| {
            let (told, answered) = oneshot::channel();
            if let Some(line) = self.inner.tellers.line(&self.inner.client, node) {
                // If the queue is full, the confirmation never comes.
                drop(line.try_send(Word { forget: forget.clone(), told }));
            }
            answered
        });
        Telling { told: told.collect(), forgotten: Instant::now() + longest.min(limits::HOLD), is_list_old }
    }

    /// Forgets records that another node or the control plane has replaced.
    pub(crate) fn forget_here(&self, forget: &Forget) {
        forget.keys().for_each(|key| self.inner.memory.forget(&key));
        if let Some(prefix) = &forget.prefix {
            self.inner.memory.forget_below(prefix);
        }
    }
}

/// Sends messages to one node, until its queue is closed.
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
            // If nobody waits for it, the receiver is gone.
            Ok(()) => {
                for told in told {
                    let _ = told.send(());
                }
            }
            Err(error) => debug!("the node at {address} was not told what to forget: {}", chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests;
