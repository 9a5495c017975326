//! Repairs the index, as recurring work.

use std::time::Duration;

use super::{Job, Progress};
use crate::error::ApiError;
use crate::plane::Plane;
use crate::reconcile::{Books, Position, Reindexed};

#[derive(Default)]
pub(super) struct Reconcile {
    position: Position,
}

impl Job for Reconcile {
    const NAME: &'static str = "reconcile";
    const EVERY: Duration = Duration::from_secs(10 * 60);

    async fn pass(&mut self, plane: &Plane) -> Result<Progress, ApiError> {
        let mut books = Books::new(&plane.db, &*plane.store, &plane.clock);
        let mut counts = Reindexed::default();
        self.position = books.step(&self.position, &mut counts).await?;
        Ok(if self.position.is_begin() { Progress::Done } else { Progress::More })
    }
}
