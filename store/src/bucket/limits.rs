//! How long a request to a bucket may take, and how often it is repeated.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::failure::Failure;

/// One attempt of a call that moves few bytes.
const SMALL: Duration = Duration::from_secs(5);
/// All attempts of such a call together.
const SMALL_IN_ALL: Duration = Duration::from_secs(10);
/// One attempt to send a part of an upload, or an object of that size.
const PART: Duration = Duration::from_secs(60);
/// One attempt to complete an upload. Some services copy its parts together first.
const COMPLETE: Duration = Duration::from_secs(30);
/// How often a call is attempted.
const TRIES: u32 = 3;
/// The first pause between attempts. Each next one doubles, and all vary by up to the same amount.
const PAUSE: Duration = Duration::from_millis(100);
/// How often the pause doubles at most.
const DOUBLINGS: u32 = 4;

/// How long a body may be silent before another request continues where it stopped.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a reader of a body waits for its next bytes in total.
const SILENCE_IN_ALL: Duration = Duration::from_secs(30);

/// The remaining attempts of one call.
#[derive(Debug)]
pub(super) struct Tries {
    each: Duration,
    deadline: Instant,
    most: u32,
    done: u32,
}

impl Tries {
    /// For a call that moves few bytes.
    pub(super) fn small() -> Self {
        Self::new(SMALL, SMALL_IN_ALL)
    }

    /// For a call that sends up to a part's bytes.
    pub(super) fn part() -> Self {
        Self::new(PART, PART * TRIES)
    }

    /// For completing an upload.
    pub(super) fn complete() -> Self {
        Self::new(COMPLETE, COMPLETE * TRIES)
    }

    /// For cleaning up. If it fails, somebody else does it later.
    pub(super) fn single() -> Self {
        Self { most: 1, ..Self::small() }
    }

    /// For continuing a body that broke off, while its reader waits.
    pub(super) fn resume() -> Self {
        Self { most: u32::MAX, ..Self::new(SILENCE, SILENCE_IN_ALL) }
    }

    fn new(each: Duration, all: Duration) -> Self {
        Self { each, deadline: Instant::now() + all, most: TRIES, done: 0 }
    }

    /// How many attempts were made.
    pub(super) fn done(&self) -> u32 {
        self.done
    }

    pub(super) async fn once<T>(
        &mut self,
        call: impl Future<Output = Result<T, object_store::Error>>,
    ) -> Result<T, Failure> {
        self.done = self.done.saturating_add(1);
        self.within(call).await?.map_err(Failure::from)
    }

    /// Waits for something that is not an attempt, with the limits of one.
    pub(super) async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let limit = (Instant::now() + self.each).min(self.deadline);
        timeout_at(limit, work).await.map_err(|_| Failure::TimedOut(self.each))
    }

    /// Waits for the next attempt, if there is one left and `failure` may be temporary.
    pub(super) async fn again(&self, failure: &Failure) -> bool {
        failure.may_pass() && self.pause().await
    }

    /// Waits for the next attempt; `false` if none is left.
    pub(super) async fn pause(&self) -> bool {
        if self.done >= self.most {
            return false;
        }
        let pause = PAUSE * 2_u32.pow(self.done.saturating_sub(1).min(DOUBLINGS));
        let pause = pause + pause.mul_f64(f64::from(Uuid::new_v4().as_fields().0) / f64::from(u32::MAX));
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        sleep(pause).await;
        true
    }

    /// Attempts a call that may be repeated without harm.
    pub(super) async fn idempotent<T, F>(&mut self, mut call: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, object_store::Error>>,
    {
        loop {
            match self.once(call()).await {
                Err(failure) if self.again(&failure).await => {}
                result => return result,
            }
        }
    }
}
