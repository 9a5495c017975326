//! The only place where a failed call becomes a gRPC status with details.

use std::collections::HashMap;
use std::time::Duration;

use entrepot_proto::ERROR_DOMAIN;
use entrepot_proto::convert::{Violation, Violations};
use entrepot_runtime::chain;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _};

use crate::error::{ApiError, LoginFault};

/// How much of one text goes into an answer. Much of it may be the caller's own words, and errors travel in headers, of
/// which clients accept up to 8 KiB.
const TEXT_BYTES: usize = 512;
/// The same limit for the message, and for the descriptions of fields.
const MESSAGE_BYTES: usize = 1024;
/// See [`MESSAGE_BYTES`].
const VIOLATIONS_BYTES: usize = 2048;
/// When to call again if something is away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl ApiError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Unauthenticated(_) | Self::NotANode => Code::Unauthenticated,
            Self::Denied { .. } => Code::PermissionDenied,
            Self::NotFound { .. } => Code::NotFound,
            Self::Exists { .. } | Self::SecretNotKept => Code::AlreadyExists,
            Self::Precondition { .. }
            | Self::Behind { .. }
            | Self::NotUnderstood { .. }
            | Self::DamagedRecord { .. } => Code::FailedPrecondition,
            Self::StaleEtag { .. } | Self::Contended(_) => Code::Aborted,
            Self::TooManyAttempts { .. } | Self::TooManyWatchers | Self::TooManyOperations { .. } => {
                Code::ResourceExhausted
            }
            Self::Starting { .. } | Self::NodeSilent { .. } | Self::Away { .. } => Code::Unavailable,
            Self::UnknownEvents { .. } => Code::Unimplemented,
            Self::Internal(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_FIELDS",
            Self::Unauthenticated(LoginFault::Missing) => "CREDENTIALS_MISSING",
            Self::Unauthenticated(LoginFault::Malformed) => "CREDENTIALS_MALFORMED",
            Self::Unauthenticated(LoginFault::Wrong) => "CREDENTIALS_WRONG",
            Self::NotANode => "NODE_TOKEN_WRONG",
            Self::Denied { .. } => "PERMISSION_MISSING",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::Exists { .. } => "ALREADY_EXISTS",
            Self::SecretNotKept => "SECRET_NOT_KEPT",
            Self::Precondition { kind, .. } => kind,
            Self::Behind { .. } => "DATABASE_BEHIND_SNAPSHOT",
            Self::NotUnderstood { .. } => "OF_ANOTHER_RELEASE",
            Self::StaleEtag { .. } => "ETAG_STALE",
            Self::Contended(_) => "CONTENDED",
            Self::TooManyAttempts { .. } => "TOO_MANY_ATTEMPTS",
            Self::TooManyWatchers => "TOO_MANY_WATCHERS",
            Self::TooManyOperations { .. } => "TOO_MANY_OPERATIONS",
            Self::NodeSilent { .. } => "NODE_SILENT",
            Self::UnknownEvents { .. } => "EVENTS_UNKNOWN",
            Self::DamagedRecord { .. } => "RECORD_DAMAGED",
            Self::Starting { .. } => "STARTING",
            Self::Away { .. } => "AWAY",
            Self::Internal(_) => "INTERNAL",
        }
    }

    fn details(&self) -> ErrorDetails {
        let mut details = ErrorDetails::new();
        let mut metadata = HashMap::new();
        match self {
            Self::Invalid(violations) => {
                details.set_bad_request(field_violations(violations));
            }
            Self::NotFound { kind, name, field, .. } => {
                details.set_resource_info(*kind, cut(name), "", cut(&self.to_string()));
                metadata.insert("resource".to_owned(), cut(name));
                metadata.extend(field.map(|field| ("field".to_owned(), field.to_owned())));
            }
            Self::Exists { kind, name, .. } => {
                details.set_resource_info(*kind, cut(name), "", cut(&self.to_string()));
                metadata.insert("resource".to_owned(), cut(name));
            }
            Self::StaleEtag { name } => {
                metadata.insert("resource".to_owned(), cut(name));
            }
            Self::Precondition { kind, subject, description } => {
                details.set_precondition_failure(vec![PreconditionViolation::new(
                    *kind,
                    cut(subject),
                    cut(description),
                )]);
            }
            Self::Behind { .. } => {
                let violation = PreconditionViolation::new(self.reason(), "database", cut(&self.to_string()));
                details.set_precondition_failure(vec![violation]);
            }
            Self::NotUnderstood { item, .. } => {
                let violation = PreconditionViolation::new(self.reason(), cut(item), cut(&self.to_string()));
                details.set_precondition_failure(vec![violation]);
                metadata.insert("resource".to_owned(), cut(item));
            }
            Self::Denied { principal } => {
                metadata.insert("principal".to_owned(), cut(principal));
            }
            Self::TooManyAttempts { retry_after } => {
                details.set_retry_info(Some(*retry_after));
            }
            Self::NodeSilent { node, .. } => {
                metadata.insert("node".to_owned(), cut(node));
                details.set_retry_info(Some(RETRY_AFTER));
            }
            Self::TooManyWatchers | Self::TooManyOperations { .. } | Self::Starting { .. } | Self::Away { .. } => {
                details.set_retry_info(Some(RETRY_AFTER));
            }
            Self::Unauthenticated(_)
            | Self::NotANode
            | Self::UnknownEvents { .. }
            | Self::DamagedRecord { .. }
            | Self::SecretNotKept
            | Self::Contended(_)
            | Self::Internal(_) => {}
        }
        details.set_error_info(self.reason(), ERROR_DOMAIN, metadata);
        details
    }
}

/// All violations, as far as there is room.
fn field_violations(violations: &Violations) -> Vec<FieldViolation> {
    let mut room = VIOLATIONS_BYTES;
    let cut = |Violation { field, description }: &Violation| FieldViolation::new(cut(field), cut(description));
    let fits = |violation: &FieldViolation| {
        let bytes = violation.field.len() + violation.description.len();
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    };
    violations.iter().map(cut).take_while(fits).collect()
}

/// The beginning of a text.
fn cut(text: &str) -> String {
    cut_to(text, TEXT_BYTES)
}

fn cut_to(text: &str, bytes: usize) -> String {
    if text.len() <= bytes { text.to_owned() } else { format!("{}…", &text[..text.floor_char_boundary(bytes)]) }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        match &error {
            ApiError::Internal(_) => tracing::error!(error = %chain(&error), "a call failed"),
            ApiError::Away { .. } => tracing::warn!(error = %chain(&error), "a call failed"),
            ApiError::Invalid(_)
            | ApiError::Unauthenticated(_)
            | ApiError::NotANode
            | ApiError::Denied { .. }
            | ApiError::NotFound { .. }
            | ApiError::Exists { .. }
            | ApiError::SecretNotKept
            | ApiError::Precondition { .. }
            | ApiError::Behind { .. }
            | ApiError::NotUnderstood { .. }
            | ApiError::StaleEtag { .. }
            | ApiError::Contended(_)
            | ApiError::TooManyAttempts { .. }
            | ApiError::TooManyWatchers
            | ApiError::TooManyOperations { .. }
            | ApiError::NodeSilent { .. }
            | ApiError::UnknownEvents { .. }
            | ApiError::DamagedRecord { .. }
            | ApiError::Starting { .. } => tracing::debug!(error = %chain(&error), "refused a call"),
        }
        Self::with_error_details(error.code(), cut_to(&error.to_string(), MESSAGE_BYTES), error.details())
    }
}
