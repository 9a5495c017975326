//! What can go wrong with an upstream, whose fault it is, and whether trying again may help.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::egress::Refusal;

/// Why an upstream did not give what was asked for.
///
/// No text in here holds a token, a password or the query of a URL, since those are signatures as often as not.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The upstream does not have it.
    #[error("the upstream does not have it")]
    NotFound,
    /// The upstream does not let this login have it. For an anonymous one this may also mean that it does not exist:
    /// many registries hide which of the two it is.
    #[error("`{host}` refused {login} with status {status}")]
    Denied {
        /// Who refused.
        host: String,
        /// The status that it answered.
        status: u16,
        /// As whom it was asked.
        login: Login,
        /// What refused.
        by: Refuser,
    },
    /// The upstream wants fewer requests.
    #[error("the upstream wants fewer requests (status 429)")]
    Throttled {
        /// For how long it wants none, if it says so.
        retry_after: Option<Duration>,
    },
    /// What the upstream lets us ask for is kept for those who wait.
    #[error("the upstream's budget is kept for clients that wait; there is more of it in {} s", retry_after.as_secs() + 1)]
    OverBudget {
        /// When there is more.
        retry_after: Duration,
    },
    /// The upstream does not answer, or answers that it cannot.
    #[error("{trouble}{}", status.map(|status| format!(" (status {status})")).unwrap_or_default())]
    Away {
        /// The status, if there was an answer.
        status: Option<u16>,
        /// What happened.
        trouble: Trouble,
        /// What the network said.
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// A name or a URL led to an address that this upstream has no leave for.
    #[error("`{host}` is at an address that {reason}")]
    AddressRefused {
        /// Which host.
        host: String,
        /// Why its address was refused.
        reason: Refusal,
    },
    /// The upstream named a token server that must not learn the credential, or that is not reached by TLS.
    #[error("the upstream wants its credential sent to `{host}`, which is not allowed: {reason}")]
    RealmRefused {
        /// Where the token server is.
        host: String,
        /// Which rule refuses it, and the remedy.
        reason: &'static str,
    },
    /// The content is not what its digest says.
    #[error("the upstream's content does not have the digest that was asked for")]
    WrongDigest,
    /// The answer is larger than allowed.
    #[error("the upstream's answer is larger than {limit_bytes} bytes")]
    TooLarge {
        /// How large it may be.
        limit_bytes: usize,
    },
    /// The upstream does not speak as a registry should.
    #[error("the upstream {what}")]
    BadAnswer {
        /// What it did.
        what: String,
    },
}

/// What refused a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refuser {
    /// The registry.
    Registry,
    /// The server that it gets its tokens from.
    TokenServer,
}

/// As whom a host was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Login {
    /// As nobody in particular.
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

/// How an upstream was away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Its name leads to no address.
    Name,
    /// No connection could be opened.
    Connection,
    /// The TLS handshake failed.
    Tls,
    /// It took too long.
    TimedOut,
    /// The connection broke off before the answer was whole.
    BrokenOff,
    /// It answered that it cannot answer.
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
    /// Of who asked: there is no such thing, or not for everybody.
    Client,
    /// The upstream's.
    Upstream,
    /// Of this registry's configuration: a credential or a leave is wrong.
    Us,
}

impl Error {
    /// Whose fault this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotFound | Self::Denied { login: Login::Anonymous, .. } => Fault::Client,
            Self::Denied { login: Login::Credential, .. } | Self::AddressRefused { .. } | Self::RealmRefused { .. } => {
                Fault::Us
            }
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

    /// The status that the upstream answered, where it is known.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::NotFound => Some(404),
            Self::Denied { status, .. } => Some(*status),
            Self::Throttled { .. } => Some(429),
            Self::Away { status, .. } => *status,
            Self::OverBudget { .. }
            | Self::AddressRefused { .. }
            | Self::RealmRefused { .. }
            | Self::WrongDigest
            | Self::TooLarge { .. }
            | Self::BadAnswer { .. } => None,
        }
    }

    /// Whether it is worth trying again at once. A wait that ran out is not: it would only be doubled.
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

/// Why there can be no client for an upstream.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The upstream's own authorities cannot be read.
    #[error(
        "`ca_certificates` must be PEM: one or more blocks from `-----BEGIN CERTIFICATE-----` to `-----END CERTIFICATE-----`"
    )]
    CaCertificates,
    /// TLS cannot be set up.
    #[error(
        "TLS to upstreams cannot be set up; if this machine has no certificate authorities, install the package `ca-certificates`"
    )]
    Tls(#[source] reqwest::Error),
}
