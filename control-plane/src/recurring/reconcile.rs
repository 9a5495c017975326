//! The recurring repair of the index. Only one control plane at a time makes a run.

use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;
use uuid::Uuid;

use super::{Job, Progress};
use crate::db::runs;
use crate::error::ApiError;
use crate::plane::Plane;
use crate::reconcile::{Books, Comparison, Reads, Reindexed};

/// How long the lease of a run is, and how often it is renewed.
const LEASE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(4));
/// How long after a complete run no other one begins, except on a control plane that has just started.
const PAUSE: Duration = Duration::from_secs(10 * 60);

/// The current run of this control plane, and a count of its earlier ones.
pub(super) struct Reconcile {
    holder: String,
    run: Option<(Uuid, Comparison)>,
    pause: Duration,
}

impl Default for Reconcile {
    fn default() -> Self {
        Self { holder: Uuid::now_v7().to_string(), run: None, pause: Duration::ZERO }
    }
}

impl Job for Reconcile {
    const NAME: &'static str = "reconcile";
    // How often it checks whether a run is due, or was left behind by a control plane that has stopped.
    const EVERY: Duration = Duration::from_secs(5);

    async fn pass(&mut self, plane: &Plane) -> Result<Progress, ApiError> {
        let Some((run, comparison)) = self.hold(plane).await? else { return Ok(Progress::Done) };
        let books = Books::new(&plane.db, &*plane.store, &plane.clock, Reads::Changed);
        let mut counts = Reindexed::default();
        // Both go on at once: each may wait for a connection that the other has.
        let goes_on = tokio::select! {
            done = books.step(comparison, &mut counts) => done?,
            failed = keep(plane, run) => return Err(failed),
        };
        if goes_on {
            return Ok(Progress::More);
        }
        (self.run, self.pause) = (None, PAUSE);
        let mut connection = plane.db.connect().await?;
        let tx = connection.begin("complete_run").await?;
        if !runs::complete(&tx, run).await? {
            debug!("a comparison of store and index took longer than its lease, and does not count as complete");
        }
        tx.commit().await?;
        Ok(Progress::Done)
    }
}

impl Reconcile {
    /// The current run, or a new one; `None` while another control plane makes one, or has made one recently.
    async fn hold(&mut self, plane: &Plane) -> Result<Option<(Uuid, &mut Comparison)>, ApiError> {
        let mut connection = plane.db.connect().await?;
        let tx = connection.begin("hold_run").await?;
        let is_kept = match &self.run {
            Some((run, _)) => runs::renew(&tx, *run, LEASE.0).await?,
            None => false,
        };
        if !is_kept {
            self.run = None;
            let begun = runs::begin(&tx, &self.holder, LEASE.0, self.pause).await?;
            self.run = begun.map(|run| (run, Comparison::default()));
        }
        tx.commit().await?;
        Ok(self.run.as_mut().map(|(run, comparison)| (*run, comparison)))
    }
}

/// Keeps the lease of a run while one of its steps goes on, and returns why it no longer can. If the lease is lost anyway,
/// the run will not count as complete.
async fn keep(plane: &Plane, run: Uuid) -> ApiError {
    loop {
        sleep(LEASE.1).await;
        if let Err(error) = renew(plane, run).await {
            return error;
        }
    }
}

async fn renew(plane: &Plane, run: Uuid) -> Result<(), ApiError> {
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("renew_run").await?;
    runs::renew(&tx, run, LEASE.0).await?;
    Ok(tx.commit().await?)
}
