//! The shared account of requests to an upstream. The upstream counts requests per login, so all nodes draw from one
//! account.

use std::time::Duration;

use entrepot_domain::Priority;
use entrepot_domain::budget::ReportedLimit;
use futures_util::future::{BoxFuture, FutureExt as _, ready};

/// Keeps account of the requests that the upstream counts.
pub trait Account: Send + Sync {
    /// Asks to send a request now, with this `priority`, and counts it. A client that waits is always admitted.
    ///
    /// The error is how long to wait.
    fn admit(&self, priority: Priority) -> BoxFuture<'_, Result<(), Duration>>;

    /// Notes the limit that the upstream reports in an answer.
    fn observe(&self, reported: ReportedLimit);
}

/// Admits everything and counts nothing.
pub(crate) struct Unmetered;

impl Account for Unmetered {
    fn admit(&self, _: Priority) -> BoxFuture<'_, Result<(), Duration>> {
        ready(Ok(())).boxed()
    }

    fn observe(&self, _: ReportedLimit) {}
}
