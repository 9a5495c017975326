//! The part of a fill that comes from another node.

use std::time::Duration;

use entrepot_domain::fill::{Event, Fill};
use entrepot_runtime::chain;
use tracing::info;

use super::Driver;
use crate::error::Asked;
use crate::peers::words::Word;
use crate::peers::{Following, Lost};
use crate::upstream;

/// How long a follower waits at least and at most before it calls its leader again, if the last call brought nothing.
pub(super) const REST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

impl Driver<'_> {
    /// Follows the holder of the lease from the byte `from` on, if the upstream has confirmed our repository.
    pub(super) async fn follow(&mut self, from: u64) -> Option<Event> {
        let following = match self.call_leader(from).await {
            Ok((following, is_confirmed)) => {
                self.is_confirmed |= is_confirmed;
                following
            }
            Err(lost) => return Some(self.leader_lost(&lost)),
        };
        if !self.is_confirmed {
            let client = self.fill.pull_client();
            let seen = upstream::request(self.fill, "HEAD", client.head_blob(&self.fill.repository, self.digest)).await;
            if let Err(error) = seen {
                return Some(self.broken(upstream::failure(self.fill, Asked::Blob, &error)));
            }
            self.is_confirmed = true;
        }
        self.following = Some(following);
        self.open_spool().await
    }

    pub(super) async fn call_leader(&mut self, from: u64) -> Result<(Following, bool), Lost> {
        let peers = &self.fills.inner.peers;
        // A lease of this node belongs to an earlier run, or to a fill that has ended.
        let leader = self.leader.as_ref().filter(|node| *node != peers.id()).ok_or(Lost::Stale)?;
        peers.follow(leader, (self.fill.origin, self.digest), from, self.landing.begun_for()).await
    }

    pub(super) fn leader_lost(&mut self, lost: &Lost) -> Event {
        self.following = None;
        self.fills.inner.metrics.lost(lost.as_str());
        if let Some(leader) = &self.leader {
            info!(
                content.digest = %self.digest, node.id = %leader,
                "no longer follows node `{leader}`, which fetches `{}`: {}", self.digest, chain(lost)
            );
        }
        Event::LeaderLost
    }

    /// The leader's next message, or why it is lost.
    pub(super) async fn hear(&mut self, word: Result<Word, Lost>, state: &Fill) -> Event {
        match word {
            Ok(Word::Beat) => Event::Landed(0),
            Ok(Word::Open(size)) => self.open(size).unwrap_or_else(|| size.map_or(Event::Landed(0), Event::Sized)),
            // These are more bytes than the content has.
            Ok(Word::Content(bytes)) if bytes.len() as u64 > state.room_bytes() || !self.is_open => {
                self.leader_lost(&Lost::Malformed)
            }
            Ok(Word::Content(bytes)) => self.land_in_order(bytes, state.landed_bytes()).await,
            Ok(Word::Ended) => {
                self.following = None;
                Event::LeaderEnded
            }
            Ok(Word::Rejected) => Event::LeaderRejected,
            Ok(Word::Left) => {
                self.following = None;
                Event::LeaderLost
            }
            // If a working leader breaks off, this is an accident, and another attempt can reach it.
            Err(Lost::Broken) => {
                if self.called_at.replace(state.landed_bytes()) == Some(state.landed_bytes()) {
                    self.rest.wait().await;
                } else {
                    self.rest.reset();
                }
                match self.call_leader(state.landed_bytes()).await {
                    Ok((following, _)) => {
                        self.following = Some(following);
                        Event::Landed(0)
                    }
                    Err(lost) => self.leader_lost(&lost),
                }
            }
            Err(lost) => self.leader_lost(&lost),
        }
    }
}
