//! Decides whose secret is hashed next. Clients that have logged in from the same network before come first and have
//! one hash reserved for them; after them come those with the fewest failed attempts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::access_key::SLOW_HASHES;

/// How long a check waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many wait at most.
const WAITING: usize = 1000;
/// How many hashes are computed at once for clients that have not logged in before.
const FOR_STRANGERS: usize = SLOW_HASHES - 1;

/// The rank of a client that waits for a turn; lower ranks come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// It has logged in before.
    Known,
    /// It has not, and has failed this often lately.
    Stranger { failures: u32 },
}

impl Rank {
    fn is_stranger(self) -> bool {
        matches!(self, Self::Stranger { .. })
    }
}

/// Hands out turns. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    running: usize,
    /// How many of them belong to strangers.
    strangers: usize,
    /// By rank, and then in order of arrival.
    waiting: BTreeMap<(Rank, u64), oneshot::Sender<Turn>>,
    came: u64,
}

/// The right to compute a hash, until this is dropped.
pub(super) struct Turn {
    turns: Turns,
    is_stranger: bool,
}

impl Turns {
    /// Waits for a turn; `None` if that takes too long, or if too many of the same or a better rank wait.
    pub(super) async fn take(&self, rank: Rank) -> Option<Turn> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.0.lock();
            state.waiting.retain(|_, sender| !sender.is_closed());
            if state.waiting.len() >= WAITING {
                let last = state.waiting.last_entry().filter(|last| last.key().0 > rank)?;
                last.remove();
            }
            state.came += 1;
            let place = (rank, state.came);
            state.waiting.insert(place, sender);
        }
        self.hand_out();
        tokio::time::timeout(PATIENCE, receiver).await.ok()?.ok()
    }

    fn hand_out(&self) {
        loop {
            let Some((sender, is_stranger)) = self.0.lock().next() else { return };
            // If the receiver went away meanwhile, the turn is returned when it is dropped.
            drop(sender.send(Turn { turns: self.clone(), is_stranger }));
        }
    }
}

impl State {
    /// The next client, if there is a turn for it.
    fn next(&mut self) -> Option<(oneshot::Sender<Turn>, bool)> {
        self.waiting.retain(|_, sender| !sender.is_closed());
        let first = self.waiting.first_entry()?;
        let is_stranger = first.key().0.is_stranger();
        if self.running >= SLOW_HASHES || (is_stranger && self.strangers >= FOR_STRANGERS) {
            return None;
        }
        self.running += 1;
        self.strangers += usize::from(is_stranger);
        Some((first.remove(), is_stranger))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.turns.0.lock();
            state.running -= 1;
            state.strangers -= usize::from(self.is_stranger);
        }
        self.turns.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;

    const STRANGER: Rank = Rank::Stranger { failures: 0 };

    #[tokio::test(start_paused = true)]
    async fn one_turn_is_kept_for_those_that_have_logged_in_before() {
        let turns = Turns::default();
        let first = turns.take(STRANGER).await.unwrap();
        assert!(turns.take(STRANGER).await.is_none(), "it has waited for as long as it may");
        let known = turns.take(Rank::Known).await.unwrap();
        let (next, second) = tokio::join!(turns.take(STRANGER), async {
            drop(known);
            let second = turns.take(Rank::Known).await;
            drop(first);
            second
        });
        assert!(next.is_some() && second.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_guessed_least_comes_first_and_keeps_its_place_in_a_crowd() {
        let turns = Turns::default();
        let first = turns.take(STRANGER).await.unwrap();
        let order = Mutex::new(Vec::new());
        let wait = async |failures| {
            if let Some(_turn) = turns.take(Rank::Stranger { failures }).await {
                order.lock().push(failures);
            }
        };
        let crowd = (0..WAITING).map(|_| wait(7));
        tokio::join!(join_all(crowd), wait(3), wait(9), async { drop(first) });
        let order = order.into_inner();
        assert_eq!((order.len(), order[0]), (WAITING, 3), "one of the crowd had to go for it");
        assert!(!order.contains(&9));
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_leaves_no_turn_taken() {
        let turns = Turns::default();
        let first = turns.take(STRANGER).await.unwrap();
        let gone = tokio::time::timeout(Duration::from_secs(1), turns.take(STRANGER)).await;
        assert!(gone.is_err());
        drop(first);
        assert!(turns.take(STRANGER).await.is_some());
        let state = turns.0.lock();
        assert_eq!((state.running, state.strangers, state.waiting.len()), (0, 0, 0));
    }
}
