//! Turns that many wait for, shared fairly by the rules in `entrepot_domain::shares`.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::shares::{Shares, Ticket};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A fixed number of turns for parties identified by a key. Clones share them.
#[derive(Debug)]
pub(crate) struct Turns<K: Clone + Eq + Hash>(Arc<Mutex<Table<K>>>);

#[derive(Debug)]
struct Table<K> {
    shares: Shares<K>,
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
}

/// A turn, or a place in the queue for one, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<K: Clone + Eq + Hash> {
    table: Arc<Mutex<Table<K>>>,
    key: K,
    ticket: Option<Ticket>,
}

impl<K: Clone + Eq + Hash> Turns<K> {
    pub(crate) fn new(at_once: usize) -> Self {
        Self(Arc::new(Mutex::new(Table { shares: Shares::new(at_once), waiting: HashMap::new() })))
    }

    /// A turn for `key`, if it comes within `limit`.
    pub(crate) async fn take(&self, key: K, limit: Duration) -> Option<Turn<K>> {
        let (turn, served) = self.ask(key);
        match served {
            None => Some(turn),
            Some(served) => timeout(limit, served).await.ok()?.is_ok().then_some(turn),
        }
    }

    /// A turn, or a place in the queue with a signal for when it becomes a turn.
    fn ask(&self, key: K) -> (Turn<K>, Option<oneshot::Receiver<()>>) {
        let mut table = self.0.lock();
        let ticket = table.shares.ask(key.clone());
        let served = ticket.map(|ticket| {
            let (serve, served) = oneshot::channel();
            table.waiting.insert(ticket, serve);
            served
        });
        (Turn { table: Arc::clone(&self.0), key, ticket }, served)
    }
}

impl<K: Clone + Eq + Hash> Drop for Turn<K> {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        // A served party is no longer in the table.
        if let Some(ticket) = self.ticket.filter(|ticket| table.waiting.remove(ticket).is_some()) {
            return table.shares.give_up(&self.key, ticket);
        }
        for ticket in table.shares.give_back(&self.key) {
            // If the receiver has gone meanwhile, the turn is given back when it is dropped.
            let _ = table.waiting.remove(&ticket).is_some_and(|serve| serve.send(()).is_ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(10);

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_when_a_turn_comes_back_and_who_gives_up_keeps_none() {
        let turns = Turns::new(4);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(turns.take("many", SOON).await.unwrap());
        }
        assert!(turns.take("many", SOON).await.is_none(), "the last one is kept for others");
        let other = turns.take("other", SOON).await.unwrap();
        let (waits, served) = turns.ask("third");
        // It leaves before it is served, and another one after it is served.
        let (gone, _) = turns.ask("fourth");
        drop(gone);
        drop(held.pop());
        served.unwrap().await.unwrap();
        drop((waits, other, held));
        let table = turns.0.lock();
        assert!(table.waiting.is_empty());
        assert_eq!(format!("{:?}", table.shares).matches("Party").count(), 0, "{:?}", table.shares);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_nobody_took_is_given_back() {
        let turns = Turns::new(1);
        let first = turns.take("one", SOON).await.unwrap();
        let (waits, served) = turns.ask("other");
        drop(served);
        drop(first);
        // It was served, but has not noticed yet.
        assert!(turns.take("third", SOON).await.is_none());
        drop(waits);
        assert!(turns.take("third", SOON).await.is_some());
    }
}
