//! Only so many answers with a blob are sent at once.

use std::sync::Arc;

use entrepot_runtime::Metrics;
use opentelemetry::metrics::UpDownCounter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::body::{self, Body};
use crate::config::limits;
use crate::error::PullError;

/// The turns of those who are sent a blob.
pub(crate) struct Readers {
    turns: Arc<Semaphore>,
    active: UpDownCounter<i64>,
}

/// One turn. It ends with the answer's last byte.
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
    active: UpDownCounter<i64>,
}

impl Readers {
    pub(crate) fn new(at_once: usize, metrics: &Metrics) -> Self {
        let active = metrics
            .meter("entrepot.data_plane")
            .i64_up_down_counter("entrepot.reader.active")
            .with_description("Answers with a blob that are being made or sent.")
            .build();
        Self { turns: Arc::new(Semaphore::new(at_once)), active }
    }

    /// Waits for a turn, not for long: a client that is told to come back finds a node with less to do.
    pub(crate) async fn turn(&self) -> Result<Turn, PullError> {
        let permit = timeout(limits::READER_TURN, self.turns.clone().acquire_owned()).await;
        let permit = permit.ok().and_then(Result::ok).ok_or(PullError::Busy)?;
        self.active.add(1, &[]);
        Ok(Turn { _permit: permit, active: self.active.clone() })
    }
}

impl Turn {
    /// Lets the turn last as long as `body`.
    pub(crate) fn lasts(self, body: Body) -> Body {
        body::holding(body, self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.active.add(-1, &[]);
    }
}
