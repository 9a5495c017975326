//! The ways in which a request to a bucket can fail.

use std::error::Error as StdError;
use std::time::Duration;

use object_store::client::HttpError;

use super::Cause;
use super::transport::Refusal;
use crate::Error;

/// Why a request failed, classified by what to do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// There is no such object or upload.
    #[error("there is no such object")]
    Absent,
    /// The object exists, or is another one, so the condition of a write is not met.
    #[error("the condition does not hold")]
    Condition(#[source] Cause),
    /// Somebody else was writing the same object at that moment.
    #[error("another write was under way")]
    Raced(#[source] Cause),
    /// The range begins after the object's end.
    #[error("the range begins behind the end")]
    BehindEnd,
    /// There is no such bucket.
    #[error("there is no such bucket")]
    NoBucket(#[source] Cause),
    /// These credentials do not permit it.
    #[error("access is refused")]
    Denied(#[source] Cause),
    /// The service understood the request, and will refuse it every time.
    #[error("the bucket refused the request")]
    Refused(#[source] Cause),
    /// The answer is not one of an object store.
    #[error("the answer is not one of object storage")]
    Garbled(#[source] Cause),
    /// Anything that may be different next time.
    #[error("the request to the bucket failed")]
    Other(#[source] Cause),
    /// No answer in time.
    #[error("the bucket did not answer within {0:?}")]
    TimedOut(Duration),
    /// The object was replaced after reading it had begun.
    #[error("the object was changed while it was read")]
    Changed,
}

impl Failure {
    /// Whether the same request may succeed if it is repeated at once.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Raced(_) | Self::Garbled(_) | Self::Other(_) | Self::TimedOut(_) => true,
            Self::Absent
            | Self::Condition(_)
            | Self::BehindEnd
            | Self::NoBucket(_)
            | Self::Denied(_)
            | Self::Refused(_)
            | Self::Changed => false,
        }
    }

    /// For calls where a missing object is a valid answer.
    pub(super) fn absent_is_none<T>(result: Result<T, Self>) -> Result<Option<T>, Self> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Self::Absent) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// The error for a refused put-once.
    pub(super) fn of_put_once(self) -> Error {
        let error = Error::from(self);
        if matches!(error, Error::Conflict) { Error::AlreadyExists } else { error }
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        if let Some(refusal) = find::<Refusal>(&error) {
            return match refusal {
                Refusal::NoBucket => Self::NoBucket(said(&error)),
                Refusal::BehindEnd => Self::BehindEnd,
                Refusal::Status { status, .. } => match status.as_u16() {
                    401 | 403 => Self::Denied(said(&error)),
                    // These two mean "later".
                    408 | 429 => Self::Other(said(&error)),
                    // A redirect that gets here names another region; a request that is not implemented never will be.
                    300..=499 | 501 => Self::Refused(said(&error)),
                    _ => Self::Other(said(&error)),
                },
            };
        }
        #[expect(clippy::wildcard_enum_match_arm, reason = "the library's errors grow, and the rest is one to us")]
        match error {
            object_store::Error::NotFound { .. } => Self::Absent,
            object_store::Error::Precondition { .. } | object_store::Error::NotModified { .. } => {
                Self::Condition(said(&error))
            }
            // The library reports 412 and 409 in the same way; only 412 means that a condition was not met beforehand.
            object_store::Error::AlreadyExists { ref source, .. } => {
                let precondition = matches!(
                    source.downcast_ref(),
                    Some(object_store::Error::Precondition { .. } | object_store::Error::NotModified { .. })
                );
                if precondition { Self::Condition(said(&error)) } else { Self::Raced(said(&error)) }
            }
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::Denied(said(&error))
            }
            object_store::Error::Generic { .. } if find::<HttpError>(&error).is_none() => Self::Garbled(said(&error)),
            _ => Self::Other(said(&error)),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        if matches!(failure, Failure::Condition(_)) { Self::Conflict } else { Self::Away(Box::new(failure)) }
    }
}

/// The library's errors repeat the text of their sources.
fn said(error: &object_store::Error) -> Cause {
    error.to_string().into()
}

/// The first error of a certain type in a chain of causes.
fn find<'e, E: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
