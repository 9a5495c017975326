//! The ways in which a request to an upstream can fail, whose fault that is, and whether trying again may help.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::upstream::HostAndPort;

use crate::egress::Refusal;

/// Why a request to an upstream failed.
///
/// No text in here contains a token, a password or the query of a URL, since queries are often signatures.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The upstream does not have it.
    #[error("the upstream does not have it")]
    NotFound,
    /// The upstream refuses this login. For an anonymous login this may also mean that the thing does not exist: many
    /// registries do not reveal which of the two it is.
    #[error("`{host}` refused {login} with status {status}")]
    Denied {
        /// The refusing host.
        host: String,
        status: u16,
        /// The login that was used.
        login: Login,
        by: Refuser,
    },
    /// The upstream asks for fewer requests.
    #[error("the upstream wants fewer requests (status 429)")]
    Throttled {
        /// How long to send none, if the upstream says so.
        retry_after: Option<Duration>,
    },
    /// The rest of the upstream's budget is reserved for clients that wait.
    #[error("the upstream's budget is kept for clients that wait; there is more of it in {} s", retry_after.as_secs() + 1)]
    OverBudget {
        /// When there will be more.
        retry_after: Duration,
    },
    /// The upstream does not answer, or answers that it cannot serve the request.
    #[error("{trouble}{}", status.map(|status| format!(" (status {status})")).unwrap_or_default())]
    Away {
        status: Option<u16>,
        /// What happened.
        trouble: Trouble,
        /// The underlying network error.
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// The upstream noticed that the request has come through it before, or through too many registries.
    #[error("the upstream leads back to this registry, or through too many others (status 508)")]
    Loop,
    /// A name or a URL led to an address that is not allowed for this upstream.
    #[error("`{host}` is at an address that {reason}")]
    AddressRefused { host: String, reason: Refusal },
    /// The upstream named a token server that must not get the credential, or that does not use TLS.
    #[error("the upstream wants its credential sent to `{host}`, which is not allowed: {reason}")]
    RealmRefused {
        /// The token server's host and port.
        host: HostAndPort,
        reason: RealmFault,
    },
    /// The content does not have its digest.
    #[error("the upstream's content does not have the digest that was asked for")]
    WrongDigest,
    /// The answer is larger than allowed.
    #[error("the upstream's answer is larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    /// The upstream does not behave like a registry.
    #[error("the upstream {what}")]
    BadAnswer {
        /// What it did, as the rest of the sentence.
        what: String,
    },
}

/// Why a token server must not get the credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RealmFault {
    /// Anybody on the network could read it.
    #[error("it is plain HTTP, while the upstream is not")]
    PlainHttp,
    /// The server may belong to anybody.
    #[error("it is not at the upstream's own host and port; if it is right, add it to the upstream's `allow_hosts`")]
    Elsewhere,
}

/// The kind of server that refused a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refuser {
    Registry,
    /// The server that issues the registry's tokens.
    TokenServer,
}

/// The login with which a host was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Login {
    /// Anonymous.
    Anonymous,
    /// With the upstream's credential.
    Credential,
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "an anonymous request",
            Self::Credential => "the upstream's credential",
        })
    }
}

/// How an upstream was unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Its name has no address.
    Name,
    /// No connection could be opened.
    Connection,
    /// The TLS handshake failed.
    Tls,
    /// It took too long.
    TimedOut,
    /// The connection broke before the answer was complete.
    BrokenOff,
    /// It answered that it cannot serve the request.
    Status,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "the upstream's name has no address",
            Self::Connection => "the upstream cannot be reached",
            Self::Tls => "no secure connection to the upstream can be made",
            Self::TimedOut => "the upstream took too long",
            Self::BrokenOff => "the upstream's answer broke off",
            Self::Status => "the upstream cannot answer now",
        })
    }
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller's: the thing does not exist, or is not for everybody.
    Client,
    Upstream,
    /// Of this registry's configuration: a credential or a permission is wrong.
    Us,
}

impl Error {
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotFound | Self::Denied { login: Login::Anonymous, .. } => Fault::Client,
            Self::Denied { login: Login::Credential, .. }
            | Self::Loop
            | Self::AddressRefused { .. }
            | Self::RealmRefused { .. } => Fault::Us,
            Self::Throttled { .. }
            | Self::OverBudget { .. }
            | Self::Away { .. }
            | Self::WrongDigest
            | Self::TooLarge { .. }
            | Self::BadAnswer { .. } => Fault::Upstream,
        }
    }

    /// Whether the same request may succeed later.
    pub fn may_retry(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Away { .. })
    }

    /// The status of the upstream's answer, if known.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::NotFound => Some(404),
            Self::Denied { status, .. } => Some(*status),
            Self::Throttled { .. } => Some(429),
            Self::Away { status, .. } => *status,
            Self::Loop => Some(508),
            Self::OverBudget { .. }
            | Self::AddressRefused { .. }
            | Self::RealmRefused { .. }
            | Self::WrongDigest
            | Self::TooLarge { .. }
            | Self::BadAnswer { .. } => None,
        }
    }

    /// Whether it is worth trying again at once. After a timeout it is not: the wait would only double.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Away { trouble, .. } => match trouble {
                Trouble::Connection | Trouble::BrokenOff | Trouble::Status => true,
                Trouble::Name | Trouble::Tls | Trouble::TimedOut => false,
            },
            Self::NotFound
            | Self::Denied { .. }
            | Self::Throttled { .. }
            | Self::OverBudget { .. }
            | Self::Loop
            | Self::AddressRefused { .. }
            | Self::RealmRefused { .. }
            | Self::WrongDigest
            | Self::TooLarge { .. }
            | Self::BadAnswer { .. } => false,
        }
    }

    pub(crate) fn timed_out() -> Self {
        Self::Away { status: None, trouble: Trouble::TimedOut, source: None }
    }

    pub(crate) fn bad(what: impl Into<String>) -> Self {
        Self::BadAnswer { what: what.into() }
    }
}

/// Why no client can be made for an upstream.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The upstream's own certificate authorities cannot be read.
    #[error(
        "`ca_certificates` must be PEM: one or more blocks from `-----BEGIN CERTIFICATE-----` to `-----END CERTIFICATE-----`"
    )]
    CaCertificates,
    #[error(
        "TLS to upstreams cannot be set up; if this machine has no certificate authorities, install the package `ca-certificates`"
    )]
    Tls(#[source] reqwest::Error),
}
