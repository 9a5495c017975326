//! What an upstream lets us ask for: as whom it is asked decides that, so all nodes draw from one account.

use std::time::Duration;

use entrepot_domain::Priority;
use entrepot_domain::budget::Told;
use futures_util::future::{BoxFuture, FutureExt as _, ready};

/// Keeps account of requests that the upstream counts.
pub trait Account: Send + Sync {
    /// Whether a request may go out now for the sake of `priority`, which counts it. A client that waits always may.
    ///
    /// The error is how long to wait.
    fn admit(&self, priority: Priority) -> BoxFuture<'_, Result<(), Duration>>;

    /// Takes in what the upstream says with an answer.
    fn told(&self, told: Told);
}

/// Keeps no account.
pub(crate) struct Unmetered;

impl Account for Unmetered {
    fn admit(&self, _: Priority) -> BoxFuture<'_, Result<(), Duration>> {
        ready(Ok(())).boxed()
    }

    fn told(&self, _: Told) {}
}
