//! Follows another node's work, to get its bytes as they land, or just to know that the work continues, as long as that
//! node is alive and well connected.
//!
//! A leader that waits for its upstream says so, and is followed on; a silent one is lost. A slow connection is
//! distinguished from a slow upstream by a message that has begun and does not end.

use std::time::Duration;

use entrepot_domain::{Digest, RepositoryName, ResourceId};
use tokio::time::{Instant, timeout_at};
use tracing::debug;
use uuid::Uuid;

use super::client::Call;
use super::words::{Word, Words};
use super::{AskError, Peers};
use crate::config::limits;
use crate::lease::Holder;

/// The stream of a leader's fill.
pub(crate) struct Following {
    call: Call,
    words: Words,
    pace: Pace,
    /// Since when nothing has come.
    since: Instant,
}

/// Why a leader is no longer followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// It cannot be reached, or does not know the fill.
    #[error("it cannot be followed")]
    Call(#[from] AskError),
    /// The lease belongs to this node, which no longer uses it.
    #[error("it is this node itself, which does not fetch it any more")]
    Stale,
    /// The connection broke; another attempt may work.
    #[error("the way to it broke")]
    Broken,
    /// It is silent.
    #[error("it has been silent for {:?}", limits::LEADER_SILENCE)]
    Silent,
    /// The connection is slow.
    #[error("the way to it is slow")]
    Slow,
    /// It sends something that no node sends.
    #[error("it says what no node says")]
    Malformed,
}

impl Lost {
    /// The name in metrics.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Call(_) => "unreachable",
            Self::Stale => "stale",
            Self::Broken => "broken",
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::Malformed => "malformed",
        }
    }
}

impl Peers {
    /// Begins to follow another node's fill from the byte `at` on. Also returns whether that node knows from the
    /// upstream that `repository` has the content.
    pub(crate) async fn follow(
        &self,
        leader: &ResourceId,
        (origin, digest): (Uuid, &Digest),
        at: u64,
        repository: &RepositoryName,
    ) -> Result<(Following, bool), Lost> {
        let (call, is_confirmed) = self.call_fill(leader, (origin, digest), at, repository).await?;
        Ok((Following::new(call), is_confirmed))
    }

    /// Waits until another node has ended its work under a lease, or until `limit`. Returns whether it has.
    pub(crate) async fn wait_for(&self, holder: &Holder, limit: Instant) -> bool {
        let waiting = async {
            let mut following = Following::new(self.call_lease(holder).await?);
            while following.next().await? != Word::Ended {}
            Ok::<_, Lost>(())
        };
        match timeout_at(limit, waiting).await {
            Ok(Ok(())) => true,
            Ok(Err(lost)) => {
                debug!("no longer waits for the node that holds a lease: {}", entrepot_runtime::chain(&lost));
                false
            }
            Err(_) => false,
        }
    }
}

impl Following {
    fn new(call: Call) -> Self {
        Self { call, words: Words::default(), pace: Pace::default(), since: Instant::now() }
    }

    /// The leader's next message. This is cancellation safe.
    pub(crate) async fn next(&mut self) -> Result<Word, Lost> {
        loop {
            if let Some(word) = self.words.next().map_err(|_| Lost::Malformed)? {
                return Ok(word);
            }
            let is_midway = self.words.is_midway();
            let piece = timeout_at(self.since + limits::LEADER_SILENCE, self.call.next()).await;
            let piece = piece.map_err(|_| Lost::Silent)?.ok_or(Lost::Broken)?;
            let now = Instant::now();
            if is_midway && self.pace.is_too_slow(now - self.since, piece.len()) {
                return Err(Lost::Slow);
            }
            self.since = now;
            self.words.push(&piece);
        }
    }
}

/// How fast the connection to a leader is while something is being sent.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// The amount of waiting over which it is measured.
    const OVER: Duration = Duration::from_secs(5);
    /// The rate below which it is too slow: 64 KiB/s.
    const LEAST_PER_SECOND: u64 = 64 * 1024;

    /// Notes that this many bytes have come after such a wait, in the middle of a message. Returns whether that is too
    /// slow.
    fn is_too_slow(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < Self::OVER {
            return false;
        }
        let Self { waited, bytes } = std::mem::take(self);
        (bytes as f64) < Self::LEAST_PER_SECOND as f64 * waited.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_too_slow_if_bytes_are_long_on_it() {
        let second = Duration::from_secs(1);
        let seconds_until_slow = |bytes| {
            let mut pace = Pace::default();
            (1..=20).find(|_| pace.is_too_slow(second, bytes))
        };
        assert_eq!(seconds_until_slow(16 * 1024), Some(5));
        assert_eq!(seconds_until_slow(64 * 1024), None);
    }
}
