//! Where a program listens, and with which certificate.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use entrepot_runtime::config::{Reported, Section};
use entrepot_runtime::tls::{Alpn, Tls};
use entrepot_runtime::{Listener, Tasks, chain};
use tracing::warn;

/// An address to listen on, with TLS if clients should use it.
#[derive(Clone, Debug)]
pub struct ListenerSettings {
    /// The address.
    pub listen: SocketAddr,
    /// The certificate for clients; its files have been read.
    pub tls: Option<Arc<Tls>>,
    /// The key that the address comes from, for messages.
    what: String,
}

impl ListenerSettings {
    /// Reads `listen`, `tls_certificate_file` and `tls_key_file` of a section.
    ///
    /// # Errors
    /// If one of the files is missing or broken; the reader keeps the mistake.
    pub fn read(section: &mut Section<'_>, default: &str, alpn: Alpn) -> Result<Self, Reported> {
        let listen = section.get::<SocketAddr>("listen", default);
        let tls = tls(section, alpn);
        Ok(Self { listen: listen?, tls: tls?, what: format!("{}.listen", section.name()) })
    }

    /// Whether other machines can reach it without TLS.
    pub fn is_open_clear_text(&self) -> bool {
        self.tls.is_none() && !self.listen.ip().is_loopback()
    }

    /// Logs a warning about that, where it was allowed.
    pub fn warn_of_clear_text(&self) {
        if self.is_open_clear_text() {
            warn!(
                "{} = {} is clear text: the traffic can be read and changed on the network, unless something in front adds TLS",
                self.what, self.listen
            );
        }
    }

    /// Listens, and follows changes of the certificate for as long as `tasks` run.
    ///
    /// # Errors
    /// If the address cannot be used; the text says what to do.
    pub fn bind(&self, tasks: &Tasks) -> io::Result<Listener> {
        let listener = Listener::bind(self.listen, &self.what, self.tls.clone())?;
        if let Some(tls) = &self.tls {
            Arc::clone(tls).keep_current(tasks);
        }
        Ok(listener)
    }
}

fn tls(section: &mut Section<'_>, alpn: Alpn) -> Result<Option<Arc<Tls>>, Reported> {
    const CERTIFICATE: &str = "tls_certificate_file";
    const KEY: &str = "tls_key_file";
    let certificate = section.optional::<PathBuf>(CERTIFICATE);
    let key = section.optional::<PathBuf>(KEY);
    match (certificate?, key?) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(section.problem(KEY, format!("must be set, since {CERTIFICATE} is; or remove both"))),
        (None, Some(_)) => Err(section.problem(CERTIFICATE, format!("must be set, since {KEY} is; or remove both"))),
        (Some(certificate), Some(key)) => Tls::load(certificate, key, alpn)
            .map(Some)
            .map_err(|error| section.problem(CERTIFICATE, format!("cannot be served with: {}", chain(&error)))),
    }
}
