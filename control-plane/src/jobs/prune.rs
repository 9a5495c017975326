//! Forgets what nobody asks for again: ids of events and answers to requests.

use std::time::Duration;

use super::{Job, Progress};
use crate::api::error::ApiError;
use crate::app::Plane;
use crate::db::{events, requests};

/// How many rows a batch deletes of each.
const BATCH: i64 = 5000;

pub(super) struct Prune;

impl Job for Prune {
    const NAME: &'static str = "prune";
    const EVERY: Duration = Duration::from_secs(60 * 60);

    async fn pass(&mut self, plane: &Plane) -> Result<Progress, ApiError> {
        let now = plane.clock.now();
        let mut connection = plane.db.connect().await?;
        let tx = connection.begin("prune").await?;
        let forgotten = events::prune(&tx, now, BATCH).await?.max(requests::prune(&tx, now, BATCH).await?);
        tx.commit().await?;
        Ok(if i64::try_from(forgotten).unwrap_or(BATCH) < BATCH { Progress::Done } else { Progress::More })
    }
}
