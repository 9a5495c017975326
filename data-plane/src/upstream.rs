//! Requests to an upstream, and what their failures mean for the client.

use std::future::Future;

use entrepot_runtime::chain;
use entrepot_upstream::Error;
use tracing::{Instrument as _, field, info_span, warn};

use crate::control::FillFrom;
use crate::error::{Asked, PullError};

/// Sends one request to the upstream, as a span in the trace of the pull. It ends with the head of the answer; the rest
/// belongs to the fill.
pub(crate) async fn request<T>(
    fill: &FillFrom,
    method: &'static str,
    question: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let span = info_span!(
        "upstream.request", otel.kind = "client", http.request.method = method, rule.name = %fill.rule.id,
        upstream.id = %fill.source.upstream.id, upstream.repository = %fill.repository, upstream.priority = ?fill.priority,
        error.message = field::Empty
    );
    // Boxed, because these futures are large and would be part of every waiting future.
    let answer = Box::pin(question).instrument(span.clone()).await;
    if let Err(error) = &answer {
        span.record("error.message", field::display(chain(error)));
    }
    answer
}

/// The error of a pull whose upstream failed. It is logged here, where it is handled.
pub(crate) fn failure(fill: &FillFrom, asked: Asked, error: &Error) -> PullError {
    let (rule, upstream) = (fill.rule.id.clone(), fill.source.upstream.id.clone());
    let failure = match error {
        Error::NotFound => return PullError::NotFound { asked, rule: Some(rule) },
        Error::Denied { status, login, .. } => {
            PullError::UpstreamDenied { rule, upstream, status: *status, login: *login }
        }
        Error::Throttled { retry_after } => PullError::UpstreamThrottled { rule, upstream, retry_after: *retry_after },
        Error::OverBudget { retry_after } => PullError::OverBudget { rule, upstream, retry_after: *retry_after },
        Error::Away { .. } => PullError::UpstreamAway { rule, upstream, status: error.status() },
        Error::Loop => PullError::UpstreamLoops { rule, upstream },
        Error::AddressRefused { .. } | Error::RealmRefused { .. } => {
            PullError::UpstreamRefused { rule, upstream, what: error.to_string() }
        }
        Error::WrongDigest | Error::TooLarge { .. } | Error::BadAnswer { .. } => {
            PullError::BadContent { rule, upstream, what: error.to_string() }
        }
    };
    warn!(
        rule.name = %fill.rule.id, upstream.id = %fill.source.upstream.id, upstream.repository = %fill.repository,
        error = %chain(error), "upstream `{}` failed", fill.source.upstream.id
    );
    failure
}
