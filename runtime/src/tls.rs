//! TLS from certificate files, which may be replaced while the process runs.

#[cfg(test)]
mod tests;

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::{Tasks, chain};

/// How often the files are checked. File events would miss changes of symbolic links as Kubernetes makes them.
const POLL: Duration = Duration::from_secs(30);

/// The versions of HTTP that a listener offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// Only HTTP/1.1.
    Http1,
    /// HTTP/2 for clients that know it, else HTTP/1.1.
    Http1And2,
    /// Only HTTP/2, as gRPC needs it.
    Http2,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        let names: &[&str] = match self {
            Self::Http1 => &["http/1.1"],
            Self::Http1And2 => &["h2", "http/1.1"],
            Self::Http2 => &["h2"],
        };
        names.iter().map(|name| name.as_bytes().to_vec()).collect()
    }
}

/// Why these files cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{} cannot be read", .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The certificate file has no certificates, or a broken one.
    #[error("{} does not hold certificates in PEM format, the server's own first", .path.display())]
    Certificates { path: PathBuf },
    /// The key file has no key.
    #[error("{} does not hold a private key in PEM format, without a passphrase", .path.display())]
    Key { path: PathBuf },
    /// Certificate and key do not match, or cannot be used.
    #[error("{} and {} cannot be used together", .certificate_file.display(), .key_file.display())]
    Pair { certificate_file: PathBuf, key_file: PathBuf, source: rustls::Error },
}

/// What a listener offers to its clients: a certificate with its key, and the versions of HTTP.
pub struct Tls {
    certificate_file: PathBuf,
    key_file: PathBuf,
    alpn: Alpn,
    current: ArcSwap<ServerConfig>,
    /// A fingerprint of the files as last read, whether they were good or not.
    seen: AtomicU64,
}

/// The result of reading the files again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reload {
    Unchanged,
    Done,
}

impl Tls {
    /// Reads a certificate file, with the server's own certificate first, and the file with its key.
    ///
    /// # Errors
    /// If the files cannot be read, or do not match.
    pub fn load(
        certificate_file: impl Into<PathBuf>,
        key_file: impl Into<PathBuf>,
        alpn: Alpn,
    ) -> Result<Arc<Self>, TlsError> {
        let (certificate_file, key_file) = (certificate_file.into(), key_file.into());
        let files = Files::read(&certificate_file, &key_file)?;
        let config = files.parse(&certificate_file, &key_file, alpn)?;
        warn_if_exposed(&key_file);
        let seen = AtomicU64::new(files.fingerprint());
        Ok(Arc::new(Self { certificate_file, key_file, alpn, current: ArcSwap::from_pointee(config), seen }))
    }

    /// The configuration for the next connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Keeps checking the files, every 30 s and at each SIGHUP, and uses new ones. While new files cannot be used, the
    /// old ones stay in use.
    pub fn keep_current(self: Arc<Self>, tasks: &Tasks) {
        let hangup = signal(SignalKind::hangup());
        let hangup = hangup.inspect_err(|error| warn!("no handler for SIGHUP can be installed: {error}")).ok();
        let stopping = tasks.stopping();
        tasks.spawn("tls.reload", async move {
            stopping.run_until_cancelled(self.watch(hangup)).await;
        });
    }

    async fn watch(&self, mut hangup: Option<Signal>) {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = poll.tick() => {}
                () = next(&mut hangup) => {}
            }
            match self.reload() {
                Ok(Reload::Unchanged) => {}
                Ok(Reload::Done) => info!("now using the new certificate in `{}`", self.certificate_file.display()),
                Err(error) => warn!(
                    error = %chain(&error),
                    "the new certificate in `{}` cannot be used, the one before stays in use",
                    self.certificate_file.display()
                ),
            }
        }
    }

    /// Uses the files if their content has changed. The same broken files are an error only once.
    fn reload(&self) -> Result<Reload, TlsError> {
        let files = Files::read(&self.certificate_file, &self.key_file);
        let fingerprint = files.as_ref().map_or(0, Files::fingerprint);
        if self.seen.swap(fingerprint, Ordering::Relaxed) == fingerprint {
            return Ok(Reload::Unchanged);
        }
        let config = files?.parse(&self.certificate_file, &self.key_file, self.alpn)?;
        warn_if_exposed(&self.key_file);
        self.current.store(Arc::new(config));
        Ok(Reload::Done)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("certificate_file", &self.certificate_file).finish_non_exhaustive()
    }
}

async fn next(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

/// The content of the two files.
struct Files {
    certificates: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    fn read(certificate_file: &Path, key_file: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path| std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source });
        Ok(Self { certificates: read(certificate_file)?, key: read(key_file)? })
    }

    /// A fingerprint of the content; never 0.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.certificates, &self.key).hash(&mut hasher);
        hasher.finish() | 1
    }

    fn parse(&self, certificate_file: &Path, key_file: &Path, alpn: Alpn) -> Result<ServerConfig, TlsError> {
        let certificates = CertificateDer::pem_slice_iter(&self.certificates)
            .collect::<Result<Vec<_>, _>>()
            .ok()
            .filter(|certificates| !certificates.is_empty())
            .ok_or_else(|| TlsError::Certificates { path: certificate_file.to_owned() })?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| TlsError::Key { path: key_file.to_owned() })?;
        let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
            .map_err(|source| TlsError::Pair {
                certificate_file: certificate_file.to_owned(),
                key_file: key_file.to_owned(),
                source,
            })?;
        config.alpn_protocols = alpn.protocols();
        Ok(config)
    }
}

/// Other tools write key files that a group may read, so such files are not refused.
fn warn_if_exposed(key_file: &Path) {
    let mode = std::fs::metadata(key_file).map_or(0, |metadata| metadata.permissions().mode() & 0o7777);
    if mode & 0o007 != 0 {
        let path = key_file.display();
        warn!("the key file `{path}` can be read by everybody (mode {mode:04o}): run `chmod 640 {path}`");
    }
}

/// Makes aws-lc the TLS library of the process. The first line of each `main`.
pub fn install_provider() {
    // An error means that a library is installed already, which is fine.
    let _ = aws_lc_rs::default_provider().install_default();
}
