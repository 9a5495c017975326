//! Notices that this process was suspended for a while. A change of the configuration waits for a node for two seconds at
//! most, and not at all for one that is taken for dead. So the node looks for a newer snapshot before it answers again.

use std::sync::Arc;

use entrepot_runtime::Clock;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::config::limits;
use crate::moment::Moment;

/// Whether this process was suspended. Clones share it.
#[derive(Clone)]
pub(crate) struct Suspension {
    clock: Clock,
    /// When the process was last known to run by the newest snapshot that it could find; `None` if nobody looks.
    awake: watch::Sender<Option<Moment>>,
    /// Wakes who looks.
    look: Arc<Notify>,
}

impl Suspension {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, awake: watch::Sender::new(None), look: Arc::default() }
    }

    /// If the process was suspended, waits until it has looked for a newer snapshot, but not for long: without the store
    /// it goes on with the one that it has.
    pub(crate) async fn ended(&self) {
        if !self.was_suspended() {
            return;
        }
        let mut awake = self.awake.subscribe();
        self.look.notify_one();
        // The sender lives as long as `self`.
        let _ = timeout(limits::AFTER_SUSPENSION, awake.wait_for(|awake| !self.is_long_ago(*awake))).await;
    }

    /// Notes again and again that the process runs, and lets it `look` for a newer snapshot when it did not.
    pub(super) async fn notice<F: Future<Output = ()>>(&self, look: impl Fn() -> F) {
        loop {
            if self.was_suspended() {
                let _ = timeout(limits::AFTER_SUSPENSION, look()).await;
            }
            self.awake.send_replace(Some(Moment::now(&self.clock)));
            tokio::select! {
                () = sleep(limits::AWAKE) => {}
                () = self.look.notified() => {}
            }
        }
    }

    fn was_suspended(&self) -> bool {
        self.is_long_ago(*self.awake.borrow())
    }

    fn is_long_ago(&self, awake: Option<Moment>) -> bool {
        awake.is_some_and(|awake| awake.age_at(Moment::now(&self.clock)) >= limits::SUSPENDED)
    }
}
