//! Work that many wait for is done once, and for its own sake: it goes on when those who wait have gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use entrepot_runtime::Tasks;
use tokio::sync::watch;
use tracing::Instrument as _;

/// Runs work by key, at most once at a time for each.
pub(crate) struct Flights<K, V> {
    running: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    tasks: Tasks,
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self { running: Arc::default(), tasks }
    }

    /// The result of the work that runs under `key`, begun now if none does. `None` if the work was torn down.
    pub(crate) async fn join_or_start<F>(&self, key: K, work: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut result = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.entry(key.clone()) {
                Entry::Occupied(entry) => entry.get().clone(),
                Entry::Vacant(entry) => {
                    let (sender, receiver) = watch::channel(None);
                    entry.insert(receiver.clone());
                    self.spawn(key, work(), sender);
                    receiver
                }
            }
        };
        result.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Begins the work under `key`, unless it runs, and waits for nothing.
    pub(crate) fn start<F>(&self, key: K, work: impl FnOnce() -> F)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Vacant(entry) = running.entry(key.clone()) {
            let (sender, receiver) = watch::channel(None);
            entry.insert(receiver);
            self.spawn(key, work(), sender);
        }
    }

    fn spawn(&self, key: K, work: impl Future<Output = V> + Send + 'static, sender: watch::Sender<Option<V>>) {
        let landing = Landing { running: self.running.clone(), key };
        let work = async move {
            let value = work.await;
            // First out of the table: who comes from now on looks at what the work has left behind.
            drop(landing);
            sender.send_replace(Some(value));
        };
        // Part of the trace of whoever began it, although it may outlive it.
        self.tasks.spawn("flight", work.in_current_span());
    }
}

/// Takes a flight out of the table however it ends.
struct Landing<K: Eq + Hash, V> {
    running: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn work_is_done_once_and_goes_on_without_those_who_wait() {
        let flights = Arc::new(Flights::<u8, u32>::new(Tasks::new()));
        let (runs, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let start = || {
            let (flights, runs, go) = (flights.clone(), runs.clone(), go.clone());
            async move {
                let work = move || async move {
                    let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
                    go.notified().await;
                    run
                };
                flights.join_or_start(1, work).await
            }
        };
        let mut first = Box::pin(start());
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut second = Box::pin(start());
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        go.notify_one();
        assert_eq!(second.await, Some(1));
        go.notify_one();
        assert_eq!(start().await, Some(2));
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_done_once_too_and_can_be_joined() {
        let flights = Flights::<u8, u32>::new(Tasks::new());
        let go = Arc::new(Notify::new());
        let work = |value: u32| {
            let go = go.clone();
            async move {
                go.notified().await;
                value
            }
        };
        flights.start(1, || work(1));
        flights.start(1, || work(2));
        go.notify_one();
        assert_eq!(flights.join_or_start(1, || work(3)).await, Some(1));
    }
}
