//! The address of Postgres, and the settings of a session.

use std::str::FromStr as _;
use std::time::Duration;

use entrepot_domain::Secret;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls::{self, Verification};

/// How long opening a connection may take.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// When the kernel gives up a connection whose other end does not acknowledge.
const TCP_LIMIT: Duration = Duration::from_secs(10);
/// Settings of each session: the timeouts that Postgres enforces; synchronous commit, since a node forgets an event
/// once it is told that the event is durable; and features that do not pay off for short statements.
const SESSION: &str = "-c statement_timeout=5s -c lock_timeout=1s -c idle_in_transaction_session_timeout=10s \
                       -c synchronous_commit=on -c jit=off -c timezone=UTC";

/// Why the address is invalid, or the certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    /// Neither a URL nor pairs.
    #[error(
        "must be a Postgres URL such as `postgres://user@host/database`, or pairs such as `host=/run/postgresql user=entrepot`"
    )]
    Unreadable(#[source] tokio_postgres::Error),
    /// Both certificates to trust and clear text.
    #[error("says `sslmode=disable`, and there is a file with certificates to trust: remove one of them")]
    Contradiction,
    /// The certificates cannot be used.
    #[error(transparent)]
    Trust(#[from] tls::TrustError),
}

/// Where Postgres is, with which login, and which certificates to trust.
#[derive(Clone)]
pub(crate) struct Address {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The `Debug` of the inner type hides the password.
        f.debug_struct("Address").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Address {
    /// Parses an address. `password` is used if the text has none; `ca` holds the certificates to trust, in PEM.
    ///
    /// `sslmode` has its usual meaning, except that a server which must be encrypted is also verified: without `ca` by
    /// the machine's certificates. With `ca`, encryption is required.
    pub(crate) fn parse(
        text: &str,
        password: Option<&Secret<String>>,
        ca: Option<&[u8]>,
    ) -> Result<Self, AddressError> {
        let mut config = tokio_postgres::Config::from_str(&with_known_modes(text)).map_err(AddressError::Unreadable)?;
        let verification = match (config.get_ssl_mode(), ca) {
            (SslMode::Disable, Some(_)) => return Err(AddressError::Contradiction),
            (_, Some(pem)) => {
                config.ssl_mode(SslMode::Require);
                Verification::Against(pem)
            }
            (SslMode::Require, None) => Verification::AsTheMachine,
            (_, None) => Verification::None,
        };
        let tls = tls::connector(verification)?;
        let own = config.get_options().map(|options| format!(" {options}")).unwrap_or_default();
        config.options(format!("{SESSION}{own}"));
        config.connect_timeout(CONNECT_LIMIT).tcp_user_timeout(TCP_LIMIT).keepalives_idle(TCP_LIMIT);
        if config.get_application_name().is_none() {
            config.application_name("entrepot");
        }
        if let Some(password) = password {
            config.password(password.expose());
        }
        Ok(Self { config, tls })
    }

    pub(super) fn config(&self) -> tokio_postgres::Config {
        self.config.clone()
    }

    pub(super) fn tls(&self) -> MakeRustlsConnect {
        self.tls.clone()
    }
}

/// The text with modes that the driver knows: modes that verify become `require`, which verifies here.
fn with_known_modes(text: &str) -> String {
    let mut known = text.to_owned();
    for (before, mode) in ["?", "&", " "].into_iter().flat_map(|b| ["verify-full", "verify-ca"].map(|mode| (b, mode))) {
        known = known.replace(&format!("{before}sslmode={mode}"), &format!("{before}sslmode=require"));
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(text: &str, ca: Option<&[u8]>) -> Result<SslMode, AddressError> {
        Ok(Address::parse(text, None, ca)?.config.get_ssl_mode())
    }

    #[test]
    fn modes_that_verify_are_known() {
        for text in [
            "postgres://u@h/d?sslmode=verify-full",
            "postgres://u@h/d?application_name=x&sslmode=verify-ca",
            "host=h user=u sslmode=verify-full",
            "host=h user=u sslmode=require",
        ] {
            assert_eq!(mode(text, None).unwrap(), SslMode::Require, "{text}");
        }
        assert_eq!(mode("postgres://u@h/d", None).unwrap(), SslMode::Prefer);
        assert!(mode("postgres://u@h/d?sslmode=sometimes", None).is_err());
    }

    #[test]
    fn certificates_to_trust_make_encryption_a_must() {
        let certificate = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
        let pem = certificate.cert.pem();
        assert_eq!(mode("postgres://u@h/d", Some(pem.as_bytes())).unwrap(), SslMode::Require);
        let error = mode("postgres://u@h/d?sslmode=disable", Some(pem.as_bytes())).unwrap_err();
        assert!(matches!(error, AddressError::Contradiction), "{error}");
        assert!(matches!(mode("postgres://u@h/d", Some(b"no PEM")), Err(AddressError::Trust(_))));
    }

    #[test]
    fn a_password_of_its_own_is_used_and_never_shown() {
        let password = Secret::new("hunter22".to_owned());
        let address = Address::parse("postgres://me@h/d", Some(&password), None).unwrap();
        assert_eq!(address.config.get_password(), Some(&b"hunter22"[..]));
        assert!(!format!("{address:?}").contains("hunter22"));
    }
}
