//! The one mapping from failed pulls to HTTP.
//!
//! Source: OCI distribution specification 1.1, "Error codes". The choice between 404, 429, 502 and 503 follows what
//! clients do with them: they remember 404, do not retry 500 elsewhere, and some of them answer 429 with a storm of
//! retries.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

use crate::auth::challenge::Challenge;
use crate::body::{self, Body};
use crate::error::{Asked, LoginFault, PullError, RouteError};

impl PullError {
    /// The only place where a failed pull becomes a status and an error code.
    pub(crate) fn status_and_code(&self, user_agent: &str) -> (StatusCode, &'static str) {
        match self {
            Self::Route(error) => route_status_and_code(error),
            Self::Unauthenticated(_) | Self::InsufficientScope => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::TooManyLogins { .. } => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::NoRule => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::NotFound { asked, .. } | Self::Damaged { asked } => (StatusCode::NOT_FOUND, unknown(*asked)),
            Self::Denied { .. } | Self::UpstreamDenied { .. } => (StatusCode::FORBIDDEN, "DENIED"),
            Self::UpstreamThrottled { .. } if honours_retry_after(user_agent) => {
                (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS")
            }
            Self::TooStale { cause, .. } => cause.status_and_code(user_agent),
            Self::UpstreamRefused { .. } | Self::BadContent { .. } => (StatusCode::BAD_GATEWAY, "UNKNOWN"),
            Self::Loop(_) | Self::UpstreamLoops { .. } => (StatusCode::LOOP_DETECTED, "UNKNOWN"),
            Self::UpstreamThrottled { .. }
            | Self::OverBudget { .. }
            | Self::UpstreamAway { .. }
            | Self::StoreAway
            | Self::BadRecord { .. }
            | Self::NoSnapshot
            | Self::LeftOut { .. }
            | Self::Busy
            | Self::GaveUp
            | Self::Internal => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        }
    }

    /// When the client should try again.
    fn retry_after(&self) -> Option<Duration> {
        let asked = match self {
            Self::TooManyLogins { retry_after } => Some(*retry_after),
            Self::UpstreamThrottled { retry_after, .. } => *retry_after,
            Self::OverBudget { retry_after, .. } => Some(*retry_after),
            Self::TooStale { cause, .. } => return cause.retry_after(),
            Self::UpstreamAway { .. }
            | Self::StoreAway
            | Self::BadRecord { .. }
            | Self::NoSnapshot
            | Self::LeftOut { .. }
            | Self::Busy
            | Self::GaveUp
            | Self::Internal => None,
            Self::Route(_)
            | Self::Unauthenticated(_)
            | Self::InsufficientScope
            | Self::Denied { .. }
            | Self::NoRule
            | Self::NotFound { .. }
            | Self::Damaged { .. }
            | Self::UpstreamDenied { .. }
            | Self::UpstreamRefused { .. }
            | Self::Loop(_)
            | Self::UpstreamLoops { .. }
            | Self::BadContent { .. } => return None,
        };
        // Clients respect at most about a minute.
        Some(asked.unwrap_or(Duration::from_secs(5)).clamp(Duration::from_secs(1), Duration::from_secs(60)))
    }
}

/// The answer to a failed pull. The server leaves out the body for a HEAD request.
pub(crate) fn response(error: &PullError, user_agent: &str, challenge: &Challenge<'_>) -> Response<Body> {
    let (status, code) = error.status_and_code(user_agent);
    let message = serde_json::json!({ "errors": [{ "code": code, "message": error.to_string() }] });
    let bytes = Bytes::from(message.to_string());
    let mut response = Response::new(body::full(bytes.clone()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, bytes.len().into());
    if let Some(after) = error.retry_after() {
        headers.insert(RETRY_AFTER, after.as_secs().into());
    }
    if let Some(problem) = problem(error) {
        for line in challenge.lines(problem.word()) {
            headers.append(WWW_AUTHENTICATE, line);
        }
    }
    response
}

/// The kind of problem with a login, as a challenge names it.
enum Problem {
    NoToken,
    InvalidToken,
    InsufficientScope,
}

impl Problem {
    fn word(&self) -> Option<&'static str> {
        match self {
            Self::NoToken => None,
            Self::InvalidToken => Some("invalid_token"),
            Self::InsufficientScope => Some("insufficient_scope"),
        }
    }
}

/// The problem with the login, if that is why the pull failed.
fn problem(error: &PullError) -> Option<Problem> {
    if let PullError::Unauthenticated(fault) = error {
        return Some(match fault {
            LoginFault::Missing => Problem::NoToken,
            LoginFault::Wrong | LoginFault::Expired => Problem::InvalidToken,
        });
    }
    matches!(error, PullError::InsufficientScope).then_some(Problem::InsufficientScope)
}

fn route_status_and_code(error: &RouteError) -> (StatusCode, &'static str) {
    match error {
        RouteError::NoSuchPath => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
        RouteError::EncodedSlash => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        RouteError::Method => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
        RouteError::Name(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
        // Such a tag cannot exist: 404, as the conformance tests require.
        RouteError::Tag(_) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
        RouteError::PageSize => (StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID"),
        RouteError::MalformedDigest => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        RouteError::UnknownAlgorithm(asked) => (StatusCode::NOT_FOUND, unknown(*asked)),
    }
}

fn unknown(asked: Asked) -> &'static str {
    match asked {
        Asked::Manifest => "MANIFEST_UNKNOWN",
        Asked::Blob => "BLOB_UNKNOWN",
        Asked::Repository => "NAME_UNKNOWN",
    }
}

/// Whether a client waits after a 429. containerd retries five times at once, and Docker gives up; these clients wait.
fn honours_retry_after(user_agent: &str) -> bool {
    let agent = user_agent.to_ascii_lowercase();
    ["containers/", "skopeo/", "buildah/", "podman/", "cri-o/", "regclient"]
        .iter()
        .any(|known| agent.starts_with(known))
}

#[cfg(test)]
mod tests {
    use entrepot_domain::Action;

    use super::*;

    #[test]
    fn r_fail_03_a_throttled_upstream_is_told_to_each_client_as_it_can_take_it() {
        let id = || "hub".parse().unwrap();
        let error = PullError::UpstreamThrottled { rule: id(), upstream: id(), retry_after: None };
        assert_eq!(error.status_and_code("containers/5.23.1").0, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(error.status_and_code("containerd/1.6").0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(error.status_and_code("").0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_may_pass_is_503_with_a_time_to_come_back_and_says_what_it_is() {
        let words = [PullError::Busy, PullError::GaveUp, PullError::Internal].map(|error| {
            assert_eq!(error.status_and_code("").0, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(error.retry_after(), Some(Duration::from_secs(5)));
            error.to_string()
        });
        assert_eq!(words.iter().filter(|word| word.contains("busy")).count(), 1, "{words:?}");
    }

    #[test]
    fn who_may_not_have_something_fetched_is_denied_and_told_so() {
        let error = PullError::Denied { action: Action::Fill };
        assert_eq!(error.status_and_code(""), (StatusCode::FORBIDDEN, "DENIED"));
        assert_eq!(error.retry_after(), None);
    }
}
