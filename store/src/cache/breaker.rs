//! When to ask a store that did not answer.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

/// How long the store may take to answer when something is held that can be answered instead.
pub const SLOW: Duration = Duration::from_secs(2);
/// How long a store that did not answer is left alone then.
pub(super) const REST: Duration = Duration::from_secs(1);

/// Keeps all but one caller from waiting for a store that is away.
#[derive(Debug, Default)]
pub struct Breaker {
    /// Until when the store is left alone; `None` while it answers.
    rests_until: Mutex<Option<Instant>>,
}

impl Breaker {
    /// Whether to ask the store now. Once it has rested, one caller does so for all.
    pub fn lets_ask(&self) -> bool {
        let mut rests_until = self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        match *rests_until {
            None => true,
            Some(until) if Instant::now() < until => false,
            Some(_) => {
                // By then this caller knows. It may also have given up.
                *rests_until = Some(Instant::now() + SLOW + REST);
                true
            }
        }
    }

    /// The store did not answer.
    pub fn trip(&self) {
        let mut rests_until = self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        if rests_until.replace(Instant::now() + REST).is_none() {
            warn!("the store does not answer; what is held here is served without it");
        }
    }

    /// The store did.
    pub fn reset(&self) {
        let mut rests_until = self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        if rests_until.take().is_some() {
            info!("the store answers again");
        }
    }
}
