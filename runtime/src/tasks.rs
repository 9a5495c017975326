//! Background work that a shutdown can stop and wait for.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

/// All tasks of a process. Clones share the same tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
    running: Running,
}

/// How many tasks of each name are running.
type Running = Arc<Mutex<BTreeMap<&'static str, usize>>>;

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` in the background. It should end soon after [`Tasks::stopping`] is cancelled. A panic in it is
    /// logged and ends only this task.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let entry = Entry::new(name, &self.running);
        self.tracker.spawn(async move {
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                error!(task.name = name, "the task `{name}` panicked: {}", message(&*panic));
            }
            drop(entry);
        });
    }

    /// Is cancelled when the shutdown begins.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Tells all tasks to end and waits for them, for at most `limit`. Returns whether all have ended.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.stopping.cancel();
        self.tracker.close();
        let drained = tokio::time::timeout(limit, self.tracker.wait()).await.is_ok();
        if !drained {
            let left: Vec<_> = self.running.lock().keys().copied().collect();
            warn!("left tasks behind that did not end within {limit:?}: {}", left.join(", "));
        }
        drained
    }
}

/// Counts a task for as long as it lives, even if it is dropped halfway.
struct Entry {
    name: &'static str,
    running: Running,
}

impl Entry {
    fn new(name: &'static str, running: &Running) -> Self {
        *running.lock().entry(name).or_default() += 1;
        Self { name, running: Arc::clone(running) }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn draining_tells_tasks_to_end_and_waits_for_them() {
        let tasks = Tasks::new();
        let (done, mut ended) = oneshot::channel();
        let stopping = tasks.stopping();
        tasks.spawn("waiter", async move {
            stopping.cancelled().await;
            done.send(()).unwrap();
        });
        assert!(ended.try_recv().is_err());
        assert!(tasks.drain(Duration::from_secs(10)).await);
        assert!(ended.try_recv().is_ok());
        assert!(tasks.running.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn draining_gives_up_after_its_limit() {
        let tasks = Tasks::new();
        tasks.spawn("stubborn", std::future::pending());
        assert!(!tasks.drain(Duration::from_secs(5)).await);
        assert_eq!(tasks.running.lock().get("stubborn"), Some(&1));
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_own_task() {
        let tasks = Tasks::new();
        tasks.spawn("broken", async { panic!("on purpose") });
        assert!(tasks.drain(Duration::from_secs(10)).await);
        assert!(tasks.running.lock().is_empty());
    }
}
