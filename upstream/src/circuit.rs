//! An upstream that does not answer is left alone for a moment, and then tried by one request at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;

/// So many requests in a row, each with its retries, must have found the upstream away: one object that makes it fail
/// does not take away all others.
const FAILURES: u32 = 3;

/// What is known of an upstream's being there.
#[derive(Default)]
pub(crate) struct Circuit(Mutex<State>);

#[derive(Default)]
struct State {
    failures: u32,
    /// The last of them, and until when nobody tries again.
    away: Option<(Error, Instant)>,
    is_probed: bool,
}

/// The leave to ask.
pub(crate) struct Leave<'c> {
    circuit: &'c Circuit,
    is_probe: bool,
}

impl Circuit {
    /// Leave to ask the upstream now.
    ///
    /// # Errors
    /// What it was away with a moment ago, if it was.
    pub(crate) fn enter(&self) -> Result<Leave<'_>, Error> {
        let mut state = self.lock();
        let is_probe = match &state.away {
            Some((error, until)) if state.failures >= FAILURES => {
                if state.is_probed || Instant::now() < *until {
                    return Err(error.clone());
                }
                true
            }
            Some(_) | None => false,
        };
        state.is_probed |= is_probe;
        Ok(Leave { circuit: self, is_probe })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leave<'_> {
    /// Takes in how the request has ended; one that finds the upstream away has others wait for `pause`.
    pub(crate) fn ended<T>(self, answer: &Result<T, Error>, pause: Duration) {
        let mut state = self.circuit.lock();
        match answer {
            Err(error @ Error::Away { .. }) => {
                state.failures = state.failures.saturating_add(1);
                if state.failures == FAILURES {
                    tracing::warn!(error = %error, "an upstream is away, and tried once in {pause:?} from now on");
                }
                state.away = Some((error.clone(), Instant::now() + pause));
            }
            // It never came to a request.
            Err(Error::AddressRefused { .. } | Error::RealmRefused { .. }) => {}
            Ok(_)
            | Err(
                Error::NotFound
                | Error::Denied { .. }
                | Error::Throttled { .. }
                | Error::WrongDigest
                | Error::TooLarge { .. }
                | Error::BadAnswer { .. },
            ) => (state.failures, state.away) = (0, None),
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.circuit.lock().is_probed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(5);

    fn ask(circuit: &Circuit, answer: Result<(), Error>) -> Option<()> {
        let leave = circuit.enter().ok()?;
        leave.ended(&answer, PAUSE);
        Some(())
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_is_away_is_tried_by_one_at_a_time() {
        let circuit = Circuit::default();
        for _ in 0..FAILURES {
            assert!(ask(&circuit, Err(Error::timed_out())).is_some());
        }
        assert!(circuit.enter().is_err());
        tokio::time::advance(PAUSE).await;
        let probe = circuit.enter().unwrap();
        assert!(circuit.enter().is_err(), "one is enough");
        // A probe that is given up says nothing.
        drop(probe);
        assert!(ask(&circuit, Err(Error::timed_out())).is_some());
        assert!(circuit.enter().is_err());
        tokio::time::advance(PAUSE).await;
        assert!(ask(&circuit, Err(Error::NotFound)).is_some(), "which is an answer");
        let (one, two) = (circuit.enter().unwrap(), circuit.enter().unwrap());
        drop((one, two));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_between_answers_take_nothing_away() {
        let circuit = Circuit::default();
        for _ in 0..10 {
            assert!(ask(&circuit, Err(Error::timed_out())).is_some());
            assert!(ask(&circuit, Err(Error::timed_out())).is_some());
            assert!(ask(&circuit, Ok(())).is_some());
        }
    }
}
