//! What an upstream's failure means to the client.

use entrepot_runtime::chain;
use entrepot_upstream::Error;
use tracing::warn;

use crate::control::FillFrom;
use crate::error::PullError;
use crate::http::route::Asked;

/// The failure of a pull whose upstream failed. Logged here, where it is handled.
pub(crate) fn failure(fill: &FillFrom, asked: Asked, error: &Error) -> PullError {
    let (rule, upstream) = (fill.rule.id.clone(), fill.source.upstream.id.clone());
    let failure = match error {
        Error::NotFound => return PullError::NotFound { asked, rule: Some(rule) },
        Error::Denied { .. } => PullError::UpstreamDenied { rule, upstream },
        Error::Throttled { retry_after } => PullError::UpstreamThrottled { rule, upstream, retry_after: *retry_after },
        Error::Away { .. } => PullError::UpstreamAway { rule, upstream, status: error.status() },
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
