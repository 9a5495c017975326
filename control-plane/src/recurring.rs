//! Recurring work. Each pass reads the stored state and does a limited batch. It may run anywhere and twice, and the
//! next pass is the retry.

mod leftovers;
mod prune;
mod reconcile;
mod remains;
mod sync_due;

use std::sync::Arc;
use std::time::Duration;

use entrepot_runtime::chain;
use entrepot_runtime::retry::jittered;
use tokio::time::{Instant, sleep};
use tracing::{Instrument as _, debug, info_span, warn};

use crate::error::ApiError;
use crate::metrics::PassOutcome;
use crate::plane::Plane;

/// The pause between two batches of a pass that has more to do.
const BREATH: Duration = Duration::from_millis(50);

/// A kind of recurring work.
pub(crate) trait Job: Send + 'static {
    const NAME: &'static str;
    /// The time from the end of one run to the beginning of the next.
    const EVERY: Duration;

    /// Does a limited batch.
    fn pass(&mut self, plane: &Plane) -> impl Future<Output = Result<Progress, ApiError>> + Send;
}

/// Whether more is waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Done,
    More,
}

/// Starts all jobs. They end with the process.
pub(crate) fn spawn(plane: &Arc<Plane>) {
    spawn_one(plane, reconcile::Reconcile::default());
    spawn_one(plane, leftovers::Leftovers::default());
    spawn_one(plane, prune::Prune);
    spawn_one(plane, remains::Remains);
    spawn_one(plane, sync_due::SyncDue::default());
}

fn spawn_one<J: Job>(plane: &Arc<Plane>, mut job: J) {
    let plane = Arc::clone(plane);
    let stopping = plane.tasks.stopping();
    plane.clone().tasks.spawn(J::NAME, async move {
        let run = async {
            loop {
                let span = info_span!("pass", otel.name = J::NAME, job.name = J::NAME);
                let begun = Instant::now();
                let ended = job.pass(&plane).instrument(span).await;
                plane.instruments.pass(J::NAME, begun.elapsed(), outcome(&ended));
                let pause = match ended {
                    Ok(Progress::More) => BREATH,
                    Ok(Progress::Done) => jittered(J::EVERY),
                    Err(error) => {
                        warn!(error = %chain(&error), "a pass of the job `{}` failed, trying again later", J::NAME);
                        jittered(J::EVERY.min(Duration::from_secs(30)))
                    }
                };
                debug!(job.name = J::NAME, "next pass in {pause:?}");
                sleep(pause).await;
            }
        };
        stopping.run_until_cancelled(run).await;
    });
}

fn outcome(ended: &Result<Progress, ApiError>) -> PassOutcome {
    match ended {
        Ok(Progress::Done) => PassOutcome::Done,
        Ok(Progress::More) => PassOutcome::More,
        Err(_) => PassOutcome::Failed,
    }
}
