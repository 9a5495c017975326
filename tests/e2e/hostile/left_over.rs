//! What pulls leave over for a moment and not for longer: tasks, memory, files and unfinished work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::MEMORY;
use crate::registry::Registry;

/// How long to wait before counting again what is left.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The time between two samples of what is there during the pulls.
const SAMPLE: Duration = Duration::from_millis(5);

pub(super) fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

pub(super) fn memory_kib() -> usize {
    MEMORY.current_usage() >> 10
}

/// The state before any pull.
#[derive(Clone, Copy)]
pub(super) struct Before {
    pub(super) tasks: usize,
    pub(super) memory_kib: usize,
}

/// Counts what should be gone when everything is quiet.
pub(super) struct Left<'a> {
    pub(super) registry: &'a Registry,
    pub(super) before: Before,
}

pub(super) const COUNTED: [&str; 6] = ["spools", "unfinished objects", "fills", "pulls", "tasks", "KiB of memory"];
/// How much of each may stay. In memory, these are the records of what was pulled, and what is remembered of answers.
pub(super) const KEPT: [usize; COUNTED.len()] = [0, 0, 0, 0, 0, 8 * 1024];

impl Left<'_> {
    pub(super) fn count(&self) -> [(&'static str, usize); COUNTED.len()] {
        let gauge = |name: &str| self.registry.metric(name) as usize;
        let counts = [
            self.registry.spool_count(),
            self.registry.unfinished_count(),
            gauge("entrepot_fill_active"),
            gauge("entrepot_pull_active"),
            alive_tasks().saturating_sub(self.before.tasks),
            memory_kib().saturating_sub(self.before.memory_kib),
        ];
        std::array::from_fn(|at| (COUNTED[at], counts[at]))
    }

    /// Waits until nothing is left over. The caller limits the wait.
    pub(super) async fn none(&self) {
        while self.count().iter().zip(KEPT).any(|((_, count), kept)| *count > kept) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Samples what should be gone later, and remembers the highest count of each.
pub(super) struct Watch {
    ends: Arc<AtomicBool>,
    most: Arc<[AtomicUsize; COUNTED.len()]>,
    looking: tokio::task::JoinHandle<()>,
}

impl Watch {
    pub(super) fn start(registry: Arc<Registry>, before: Before) -> Self {
        let (ends, most) = (Arc::new(AtomicBool::new(false)), Arc::<[AtomicUsize; COUNTED.len()]>::default());
        let (end, seen) = (ends.clone(), most.clone());
        let looking = tokio::spawn(async move {
            let left = Left { registry: &registry, before };
            while !end.load(Ordering::SeqCst) {
                for ((_, count), most) in left.count().into_iter().zip(&*seen) {
                    most.fetch_max(count, Ordering::SeqCst);
                }
                tokio::time::sleep(SAMPLE).await;
            }
        });
        Self { ends, most, looking }
    }

    pub(super) async fn end(self) -> Vec<(&'static str, usize)> {
        self.ends.store(true, Ordering::SeqCst);
        self.looking.await.expect("looking does not fail");
        COUNTED.into_iter().zip(self.most.iter().map(|most| most.load(Ordering::SeqCst))).collect()
    }
}
