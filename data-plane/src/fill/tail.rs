//! What a leader sends to a node that follows it: the bytes as they land, including those that its own readers may not
//! have yet, since the follower verifies them itself; and regular signs of life, whatever the leader itself waits for.

use std::sync::Arc;

use bytes::Bytes;
use entrepot_domain::ResourceId;
use entrepot_domain::fill::{Outcome, Phase};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument as _;

use super::landing::{End, Progress};
use super::view::{About, Followed, Reading};
use super::{Fills, Landing};
use crate::body::Cut;
use crate::config::limits;
use crate::peers::words::Word;

/// How many pieces may wait for the follower. Each is a message or a piece of content.
const PIECES: usize = 1;
/// How much is read from the spool for a follower at once. At any time three of these are on their way: one being read,
/// one waiting, and one in its connection.
const PIECE_BYTES: u64 = 128 * 1024;

impl Landing {
    /// The stream of this fill from the byte `at` on, for the node `follower`; `None` if this node has too many
    /// followers. It ends at once if this node does not lead.
    pub(crate) fn tail(
        &self,
        fills: &Fills,
        at: u64,
        follower: ResourceId,
    ) -> Option<ReceiverStream<Result<Bytes, Cut>>> {
        let turn = fills.inner.followers.clone().try_acquire_owned().ok()?;
        let (say, said) = mpsc::channel(PIECES);
        // In this order, since a follower that is counted is a reader, too.
        let (progress, reading) = (self.progress(), self.reading());
        let place = About::add_follower(self.about(), follower, at);
        let mut beat = interval(limits::BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let tail = Tail { progress, place, say, at, beat, told_size: None, _reading: reading, _turn: turn };
        // It ends with the fill, or when the follower has gone.
        fills.inner.tasks.spawn("fill.tail", tail.run().in_current_span());
        Some(ReceiverStream::new(said))
    }
}

struct Tail {
    progress: watch::Receiver<Progress>,
    place: Followed,
    say: mpsc::Sender<Result<Bytes, Cut>>,
    at: u64,
    beat: Interval,
    /// The size that was sent; `None` if nothing was sent yet.
    told_size: Option<Option<u64>>,
    _reading: Option<Arc<Reading>>,
    _turn: OwnedSemaphorePermit,
}

/// The follower has gone.
struct Gone;

impl Tail {
    async fn run(mut self) {
        let attempt = self.progress.borrow().attempt;
        let last = loop {
            let progress = self.progress.borrow_and_update().clone();
            if progress.attempt != attempt {
                break Word::Rejected;
            }
            // A follower that is far behind gets the rest faster from the store than from here.
            let is_far = progress.reach.landed_bytes() > self.at + limits::CLOSE_BYTES;
            if progress.phase == Phase::Finished(Outcome::Stored) && is_far {
                break Word::Ended;
            }
            let Ok(is_behind) = self.catch_up(&progress).await else { return };
            if is_behind {
                continue;
            }
            match progress.end {
                Some(End::Whole | End::Found) => break Word::Ended,
                Some(End::Failed(_) | End::PassedThrough(_)) => break Word::Left,
                None if progress.phase == Phase::Following => break Word::Left,
                None => {}
            }
            tokio::select! {
                // The fill was torn down: the node is stopping.
                changed = self.progress.changed() => if changed.is_err() { break Word::Left },
                _ = self.beat.tick() => if self.say(Word::Beat).await.is_err() { return },
            }
        };
        let _ = self.say(last).await;
    }

    /// Sends what has come since the last time, at most one chunk. Returns whether there may be more.
    async fn catch_up(&mut self, progress: &Progress) -> Result<bool, Gone> {
        let Some(head) = &progress.head else { return Ok(false) };
        if self.told_size != Some(head.size_bytes) {
            self.told_size = Some(head.size_bytes);
            self.say(Word::Open(head.size_bytes)).await?;
        }
        let landed = progress.reach.landed_bytes();
        if landed <= self.at {
            return Ok(false);
        }
        let len = (landed - self.at).min(PIECE_BYTES) as usize;
        let spool = head.spool.clone();
        let mut reading = std::pin::pin!(spool.read(self.at, len));
        let bytes = loop {
            tokio::select! {
                bytes = &mut reading => break bytes,
                // A slow disk must not look like the leader's death.
                _ = self.beat.tick() => self.say(Word::Beat).await?,
            }
        };
        // A follower should not depend on a node that cannot read its own disk.
        let Ok(bytes) = bytes else { return Err(Gone) };
        self.say(Word::Content(bytes)).await?;
        self.at += len as u64;
        self.place.is_at(self.at);
        Ok(true)
    }

    async fn say(&self, word: Word) -> Result<(), Gone> {
        self.say.send(Ok(word.head())).await.map_err(|_| Gone)?;
        match word {
            Word::Content(bytes) => self.say.send(Ok(bytes)).await.map_err(|_| Gone),
            Word::Beat | Word::Open(_) | Word::Ended | Word::Rejected | Word::Left => Ok(()),
        }
    }
}
