//! The one place where a failed call becomes a gRPC status with its details.

use std::collections::HashMap;
use std::time::Duration;

use entrepot_proto::convert::Violation;
use entrepot_runtime::chain;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _};

use crate::error::{ApiError, LoginFault};

/// Whose words the reasons are.
const DOMAIN: &str = "entrepot.dev";
/// When to call again while something is away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl ApiError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Unauthenticated(_) | Self::NotANode => Code::Unauthenticated,
            Self::Denied { .. } => Code::PermissionDenied,
            Self::NotFound { .. } => Code::NotFound,
            Self::Exists { .. } | Self::SecretNotKept => Code::AlreadyExists,
            Self::Precondition { .. } | Self::Behind { .. } => Code::FailedPrecondition,
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
            Self::StaleEtag { .. } => "ETAG_STALE",
            Self::Contended(_) => "CONTENDED",
            Self::TooManyAttempts { .. } => "TOO_MANY_ATTEMPTS",
            Self::TooManyWatchers => "TOO_MANY_WATCHERS",
            Self::TooManyOperations { .. } => "TOO_MANY_OPERATIONS",
            Self::NodeSilent { .. } => "NODE_SILENT",
            Self::UnknownEvents { .. } => "EVENTS_UNKNOWN",
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
                details.set_bad_request(violations.iter().map(field_violation).collect::<Vec<_>>());
            }
            Self::NotFound { kind, name, field, .. } => {
                details.set_resource_info(*kind, name, "", self.to_string());
                metadata.insert("resource".to_owned(), name.clone());
                metadata.extend(field.map(|field| ("field".to_owned(), field.to_owned())));
            }
            Self::Exists { kind, name, .. } => {
                details.set_resource_info(*kind, name, "", self.to_string());
                metadata.insert("resource".to_owned(), name.clone());
            }
            Self::StaleEtag { name } => {
                metadata.insert("resource".to_owned(), name.clone());
            }
            Self::Precondition { kind, subject, description } => {
                details.set_precondition_failure(vec![PreconditionViolation::new(*kind, subject, description)]);
            }
            Self::Behind { .. } => {
                let violation = PreconditionViolation::new(self.reason(), "database", self.to_string());
                details.set_precondition_failure(vec![violation]);
            }
            Self::Denied { principal } => {
                metadata.insert("principal".to_owned(), principal.clone());
            }
            Self::TooManyAttempts { retry_after } => {
                details.set_retry_info(Some(*retry_after));
            }
            Self::NodeSilent { node, .. } => {
                metadata.insert("node".to_owned(), node.clone());
                details.set_retry_info(Some(RETRY_AFTER));
            }
            Self::TooManyWatchers | Self::TooManyOperations { .. } | Self::Starting { .. } | Self::Away { .. } => {
                details.set_retry_info(Some(RETRY_AFTER));
            }
            Self::Unauthenticated(_)
            | Self::NotANode
            | Self::UnknownEvents { .. }
            | Self::SecretNotKept
            | Self::Contended(_)
            | Self::Internal(_) => {}
        }
        details.set_error_info(self.reason(), DOMAIN, metadata);
        details
    }
}

fn field_violation(violation: &Violation) -> FieldViolation {
    FieldViolation::new(&violation.field, &violation.description)
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
            | ApiError::StaleEtag { .. }
            | ApiError::Contended(_)
            | ApiError::TooManyAttempts { .. }
            | ApiError::TooManyWatchers
            | ApiError::TooManyOperations { .. }
            | ApiError::NodeSilent { .. }
            | ApiError::UnknownEvents { .. }
            | ApiError::Starting { .. } => tracing::debug!(error = %chain(&error), "refused a call"),
        }
        Self::with_error_details(error.code(), error.to_string(), error.details())
    }
}
