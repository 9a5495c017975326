//! The limit of concurrent answers with a blob.

use entrepot_domain::Network;
use entrepot_runtime::Metrics;
use opentelemetry::metrics::UpDownCounter;
use uuid::Uuid;

use crate::body::{self, Body};
use crate::config::limits;
use crate::error::PullError;
use crate::turns::{Turn, Turns};

/// Limits how many answers with a blob are sent at once, and shares them fairly among the pullers.
pub(crate) struct Readers {
    turns: Turns<Puller>,
    active: UpDownCounter<i64>,
}

/// The party whose answers are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Puller {
    Principal(Uuid),
    /// Anonymous callers from this network.
    Anonymous(Network),
}

/// The permit to send one answer with a blob. It is given back after the answer's last byte.
pub(crate) struct ReadPermit {
    _turn: Turn<Puller>,
    active: UpDownCounter<i64>,
}

impl Puller {
    /// A principal, if known, wherever it comes from.
    pub(crate) fn new(principal: Option<Uuid>, from: Network) -> Self {
        principal.map_or(Self::Anonymous(from), Self::Principal)
    }
}

impl Readers {
    pub(crate) fn new(at_once: usize, metrics: &Metrics) -> Self {
        let active = metrics
            .meter("entrepot.data_plane")
            .i64_up_down_counter("entrepot.reader.active")
            .with_description("Answers with a blob that are being made or sent.")
            .build();
        Self { turns: Turns::new(at_once), active }
    }

    /// Waits briefly for a permit: a client that is refused may find a less busy node.
    pub(crate) async fn acquire(&self, puller: Puller) -> Result<ReadPermit, PullError> {
        let turn = self.turns.take(puller, limits::READER_TURN).await.ok_or(PullError::Busy)?;
        self.active.add(1, &[]);
        Ok(ReadPermit { _turn: turn, active: self.active.clone() })
    }
}

impl ReadPermit {
    /// Gives the permit back at the end of `body`.
    pub(crate) fn hold_for(self, body: Body) -> Body {
        body::holding(body, self)
    }
}

impl Drop for ReadPermit {
    fn drop(&mut self) {
        self.active.add(-1, &[]);
    }
}
