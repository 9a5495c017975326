//! Decides when to ask a store that did not answer.

use std::time::Duration;

use entrepot_domain::Trouble;
use entrepot_domain::breaker::{self, BreakerSettings, Ending, Permit};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

/// How long the store may take to answer when something is held that can be answered instead.
pub(super) const SLOW: Duration = Duration::from_secs(2);
/// How long a store that did not answer is left alone then.
const REST: Duration = Duration::from_secs(1);

const SETTINGS: BreakerSettings = BreakerSettings { failures: 1, rest: REST, throttled: REST, most: REST };

/// Keeps all but one caller from waiting for a store that is away.
#[derive(Debug)]
pub(super) struct Breaker {
    breaker: Mutex<breaker::Breaker>,
    trouble: Trouble,
}

/// A request to the store. One that is dropped before its end says nothing of the store.
#[derive(Debug)]
pub(super) struct StoreRequest<'b> {
    breaker: &'b Breaker,
    permit: Permit,
    ending: Ending,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { breaker: Mutex::new(breaker::Breaker::new(SETTINGS)), trouble: Trouble::default() }
    }
}

impl Breaker {
    /// Begins a request, unless the store is left alone. Once it has rested, one caller asks it for all.
    pub(super) fn enter(&self) -> Option<StoreRequest<'_>> {
        let permit = self.breaker.lock().enter(Instant::now().into_std()).ok()?;
        Some(StoreRequest { breaker: self, permit, ending: Ending::Unknown })
    }

    /// Begins a request even while the store is left alone, since nothing else has the answer.
    pub(super) fn enter_anyway(&self) -> StoreRequest<'_> {
        StoreRequest { breaker: self, permit: Permit::Ordinary, ending: Ending::Unknown }
    }
}

impl StoreRequest<'_> {
    /// Ends the request with an answer.
    pub(super) fn answered(mut self) {
        self.ending = Ending::Answered;
        if self.breaker.trouble.end() {
            info!("the store answers again");
        }
    }

    /// Ends the request without one.
    pub(super) fn unanswered(mut self) {
        self.ending = Ending::Away;
        if self.breaker.trouble.begin() {
            warn!("the store does not answer; what is held here is served without it");
        }
    }
}

impl Drop for StoreRequest<'_> {
    fn drop(&mut self) {
        self.breaker.breaker.lock().finish(self.permit, self.ending, Instant::now().into_std());
    }
}
