//! Work that many callers wait for is done once. It continues even if all callers have gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use entrepot_runtime::Tasks;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument as _;

/// Runs work by key, at most once at a time for each.
pub(crate) struct Flights<K, V> {
    running: Running<K, V>,
    tasks: Tasks,
}

/// What runs, and since when.
type Running<K, V> = Arc<Mutex<HashMap<K, (Instant, watch::Receiver<Option<V>>)>>>;

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self { running: Arc::default(), tasks }
    }

    /// The result of the running work for `key`, which is started now if none is running. `None` if it was torn down.
    pub(crate) async fn join_or_start<F>(&self, key: K, work: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        self.join_or_start_if(key, |_, _| true, work).await
    }

    /// The same, if `accepts` takes the result of work that was begun then. Other work is waited for, and then done anew.
    pub(crate) async fn join_or_start_if<F>(
        &self,
        key: K,
        accepts: impl Fn(&V, Instant) -> bool,
        work: impl FnOnce() -> F,
    ) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut own = loop {
            let (begun, mut others) = {
                let mut running = self.running.lock();
                match running.entry(key.clone()) {
                    Entry::Occupied(entry) => entry.get().clone(),
                    Entry::Vacant(entry) => {
                        let (sender, receiver) = watch::channel(None);
                        entry.insert((Instant::now(), receiver.clone()));
                        self.spawn(key, work(), sender);
                        break receiver;
                    }
                }
            };
            let value = others.wait_for(Option::is_some).await.ok()?.clone()?;
            if accepts(&value, begun) {
                return Some(value);
            }
        };
        own.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Starts the work for `key`, unless it is running, and does not wait for it.
    pub(crate) fn start<F>(&self, key: K, work: impl FnOnce() -> F)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock();
        if let Entry::Vacant(entry) = running.entry(key.clone()) {
            let (sender, receiver) = watch::channel(None);
            entry.insert((Instant::now(), receiver));
            self.spawn(key, work(), sender);
        }
    }

    fn spawn(&self, key: K, work: impl Future<Output = V> + Send + 'static, sender: watch::Sender<Option<V>>) {
        let landing = Landing { running: self.running.clone(), key };
        let work = async move {
            let value = work.await;
            // It is taken out of the table first: later callers use what the work has left behind.
            drop(landing);
            sender.send_replace(Some(value));
        };
        // It belongs to the trace of the caller that started it, although it may outlive that caller.
        self.tasks.spawn("flight", work.in_current_span());
    }
}

/// Takes the work out of the table, however it ends.
struct Landing<K: Eq + Hash, V> {
    running: Running<K, V>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.running.lock().remove(&self.key);
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
    async fn work_that_was_begun_too_early_is_waited_for_and_done_anew() {
        let flights = Flights::<u8, u32>::new(Tasks::new());
        let go = Arc::new(Notify::new());
        let early = go.clone();
        flights.start(1, || async move {
            early.notified().await;
            1
        });
        let asked = Instant::now();
        let mut late = Box::pin(flights.join_or_start_if(1, |_, begun| begun >= asked, || async { 2 }));
        assert!(futures_util::poll!(&mut late).is_pending(), "one at a time");
        go.notify_one();
        assert_eq!(late.await, Some(2));
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
