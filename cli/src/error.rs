//! Errors, each as one paragraph that says what to do next.

use std::fmt;
use std::io;
use std::process::ExitCode;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Error {
    /// The arguments cannot work.
    Usage(String),
    /// No access key was given.
    NoKey,
    /// The access key is malformed.
    MalformedKey,
    /// Nobody answers at the API's address.
    Unreachable { api: String, source: tonic::transport::Error },
    /// The API refused.
    Refused(Box<Status>),
    /// Any other failure; the text is complete.
    Failed(String),
    /// The result could not be shown.
    Output(io::Error),
}

impl Error {
    /// 2 if the command cannot work as written, otherwise 1.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::NoKey | Self::MalformedKey => ExitCode::from(2),
            Self::Unreachable { .. } | Self::Refused(_) | Self::Failed(_) | Self::Output(_) => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Failed(text) => f.write_str(text),
            Self::NoKey => f.write_str(
                "ENTREPOT_KEY is not set: set it to an access key, as `<key id>:<secret>`. `entrepot up` says \
                 which file holds the first key (or takes ENTREPOT_BOOTSTRAP_KEY); an administrator makes further ones \
                 with `entrepot access-key create PRINCIPAL`",
            ),
            Self::MalformedKey => f.write_str("ENTREPOT_KEY is not an access key: it must be `<key id>:<secret>`"),
            Self::Unreachable { api, source } => {
                let cause = root_cause(source);
                write!(f, "cannot reach the API at {api} ({cause}): ")?;
                f.write_str(if cause.contains("certificate") {
                    "if it is signed by an authority of your own, name that with ENTREPOT_CA or --ca; if it has \
                     another name than the address, say which with --tls-name"
                } else {
                    "is it running? If the API is elsewhere, set ENTREPOT_API or --api"
                })
            }
            Self::Refused(status) => refused(status, f),
            Self::Output(error) => write!(f, "cannot write the answer: {error}"),
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// The API's own message and all its details, then what to do.
fn refused(status: &Status, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let details = status.get_error_details();
    f.write_str(match status.message() {
        "" => status.code().description(),
        message => message.trim_end_matches('.'),
    })?;
    for violation in details.bad_request().iter().flat_map(|bad| &bad.field_violations) {
        write!(f, "\n  {}: {}", violation.field, violation.description)?;
    }
    for violation in details.precondition_failure().iter().flat_map(|failure| &failure.violations) {
        write!(f, "\n  {}: {}", violation.subject, violation.description)?;
    }
    if let Some(info) = details.error_info() {
        write!(f, " ({})", info.reason)?;
    }
    if let Some(advice) = advice(status.code()) {
        write!(f, "\n{advice}")?;
    }
    match details.retry_info().and_then(|info| info.retry_delay) {
        Some(delay) => write!(f, "\ntry again in {} s", delay.as_secs_f64().ceil()),
        None => Ok(()),
    }
}

/// Advice that usually helps against an error of this kind.
fn advice(code: Code) -> Option<&'static str> {
    match code {
        Code::Unauthenticated => Some("is ENTREPOT_KEY the key of this registry, and not revoked?"),
        Code::PermissionDenied => Some("this needs an administrator's key in ENTREPOT_KEY"),
        Code::Aborted => Some("it was changed meanwhile: look at it again (`get`), then repeat with its new etag"),
        Code::Unimplemented => Some("the registry is of another release than this command"),
        Code::DeadlineExceeded => Some("the registry did not answer in time: see its log and `entrepot health`"),
        Code::Unavailable => Some("the registry is up but cannot do this now: see its log and `entrepot health`"),
        Code::Internal | Code::Unknown | Code::DataLoss => Some("this is the registry's fault: its log says more"),
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange => None,
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tonic_types::{ErrorDetails, FieldViolation};

    #[test]
    fn a_refusal_lists_every_violation_its_reason_and_when_to_try_again() {
        let mut details = ErrorDetails::with_bad_request(vec![
            FieldViolation::new("rule.prefix", "must be lower case"),
            FieldViolation::new("rule.upstream", "is required"),
        ]);
        details.set_error_info("INVALID_FIELDS", "entrepot", std::collections::HashMap::new());
        details.set_retry_info(Some(Duration::from_millis(1500)));
        let status = Status::with_error_details(Code::InvalidArgument, "the rule has 2 bad fields.", details);
        assert_eq!(
            Error::from(status).to_string(),
            "the rule has 2 bad fields\n  rule.prefix: must be lower case\n  rule.upstream: is required \
             (INVALID_FIELDS)\ntry again in 2 s"
        );
    }

    #[test]
    fn a_stale_etag_leads_to_the_next_step() {
        let text = Error::from(Status::aborted("etag is stale")).to_string();
        assert!(text.starts_with("etag is stale\n") && text.contains("new etag"), "{text}");
    }

    #[test]
    fn what_cannot_work_as_written_exits_with_2() {
        assert_eq!(Error::NoKey.exit_code(), ExitCode::from(2));
        assert_eq!(Error::from(Status::not_found("x")).exit_code(), ExitCode::FAILURE);
    }
}
