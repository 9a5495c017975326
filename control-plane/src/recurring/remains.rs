//! Removes what the index still has of repositories that have gone, in parts.

use std::time::Duration;

use super::{Job, Progress};
use crate::db::remains;
use crate::error::ApiError;
use crate::plane::Plane;

/// How many rows a batch removes.
const BATCH: i64 = 2000;

pub(super) struct Remains;

impl Job for Remains {
    const NAME: &'static str = "remains";
    const EVERY: Duration = Duration::from_secs(60);

    async fn pass(&mut self, plane: &Plane) -> Result<Progress, ApiError> {
        let mut connection = plane.db.connect().await?;
        let tx = connection.begin("remains").await?;
        let has_removed = remains::remove(&tx, BATCH).await?;
        tx.commit().await?;
        Ok(if has_removed { Progress::More } else { Progress::Done })
    }
}
