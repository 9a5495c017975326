//! Repairs the index, as recurring work: of several control planes, one at a time makes a run.

use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;
use uuid::Uuid;

use super::{Job, Progress};
use crate::db::runs;
use crate::error::ApiError;
use crate::plane::Plane;
use crate::reconcile::{Books, Position, Reindexed};

/// For how long a run is this control plane's, and how often that is renewed.
const LEASE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(4));
/// How long after a complete run nobody begins another one, but who has just started.
const PAUSE: Duration = Duration::from_secs(10 * 60);

/// The run that this control plane makes, and those that it has made.
pub(super) struct Reconcile {
    holder: String,
    run: Option<(Uuid, Position)>,
    pause: Duration,
}

impl Default for Reconcile {
    fn default() -> Self {
        Self { holder: Uuid::now_v7().to_string(), run: None, pause: Duration::ZERO }
    }
}

impl Job for Reconcile {
    const NAME: &'static str = "reconcile";
    // How often it is looked whether a run is due, or was left by who has stopped.
    const EVERY: Duration = Duration::from_secs(5);

    async fn pass(&mut self, plane: &Plane) -> Result<Progress, ApiError> {
        let Some((run, position)) = self.hold(plane).await? else { return Ok(Progress::Done) };
        let mut books = Books::new(&plane.db, &*plane.store, &plane.clock);
        let mut counts = Reindexed::default();
        let mut step = pin!(books.step(&position, &mut counts));
        let position = loop {
            tokio::select! {
                done = &mut step => break done?,
                () = sleep(LEASE.1) => renew(plane, run).await?,
            }
        };
        if !position.is_begin() {
            self.run = Some((run, position));
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
    /// The run that goes on, or a new one; none while another control plane makes one, or has just done so.
    async fn hold(&mut self, plane: &Plane) -> Result<Option<(Uuid, Position)>, ApiError> {
        let mut connection = plane.db.connect().await?;
        let tx = connection.begin("hold_run").await?;
        if let Some((run, position)) = &self.run
            && runs::renew(&tx, *run, LEASE.0).await?
        {
            tx.commit().await?;
            return Ok(Some((*run, position.clone())));
        }
        self.run = None;
        let begun = runs::begin(&tx, &self.holder, LEASE.0, self.pause).await?;
        tx.commit().await?;
        self.run = begun.map(|run| (run, Position::Begin));
        Ok(self.run.clone())
    }
}

/// Keeps a run while one of its steps goes on. One that was lost all the same does not count as complete in the end.
async fn renew(plane: &Plane, run: Uuid) -> Result<(), ApiError> {
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("renew_run").await?;
    runs::renew(&tx, run, LEASE.0).await?;
    Ok(tx.commit().await?)
}
