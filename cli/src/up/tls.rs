//! TLS for the registry and the API: from files, or with a certificate of an authority that is created here.
//!
//! ```text
//! tls/authority.key  signs certificates for clients, and lives as long as the folder     0600
//! tls/authority.crt  must be trusted by clients                                          0644
//! tls/server.key     the key of the server's certificate; created at each start          0600
//! tls/server.crt     that certificate                                                  0644
//! ```

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::Datelike as _;
use entrepot_runtime::tls::{Alpn, Tls};
use entrepot_runtime::{Clock, chain};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use crate::error::Error;

/// How many years certificates are valid. The authority's is never renewed; the server's is created at each start.
const YEARS: i32 = 10;

/// Where certificates come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Source {
    /// From this registry's own authority, which its clients must be told to trust.
    SelfSigned,
}

#[derive(Debug, clap::Args)]
#[group(id = "up_tls")]
pub(super) struct Args {
    /// Serve the registry and the API over TLS, with a certificate that this registry creates itself.
    #[arg(long = "tls", value_name = "HOW", value_enum, conflicts_with_all = ["tls_certificate_file", "tls_key_file"])]
    source: Option<Source>,

    /// Serve the registry and the API over TLS: a certificate with its chain, in PEM. New files are used within 30 s.
    #[arg(long, value_name = "FILE", requires = "tls_key_file")]
    tls_certificate_file: Option<PathBuf>,

    /// The key of that certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate_file")]
    tls_key_file: Option<PathBuf>,
}

/// The certificate files in use.
#[derive(Clone, Debug)]
pub(super) struct Files {
    certificate: PathBuf,
    key: PathBuf,
    /// The certificate authority that clients must trust, if it was created here.
    pub(super) authority: Option<PathBuf>,
}

impl Args {
    /// Whether clients should use TLS.
    pub(super) fn is_on(&self) -> bool {
        self.source.is_some() || self.tls_certificate_file.is_some()
    }

    /// The files, which are created in `folder` if needed; `names` are further names that clients may use for this
    /// machine.
    pub(super) fn files(&self, folder: &Path, names: &[String]) -> Result<Option<Files>, Error> {
        if let (Some(certificate), Some(key)) = (&self.tls_certificate_file, &self.tls_key_file) {
            return Ok(Some(Files { certificate: certificate.clone(), key: key.clone(), authority: None }));
        }
        let Some(Source::SelfSigned) = self.source else { return Ok(None) };
        let folder = folder.join("tls");
        make(&folder, names)
            .map(Some)
            .map_err(|why| Error::Failed(format!("no certificate can be made in `{}`: {why}", folder.display())))
    }
}

impl Files {
    /// The certificate and settings for a listener.
    pub(super) fn load(&self, alpn: Alpn) -> Result<Arc<Tls>, Error> {
        Tls::load(&self.certificate, &self.key, alpn)
            .map_err(|error| Error::Usage(format!("--tls-certificate-file: {}", chain(&error))))
    }
}

/// Why no certificate could be created.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Certificate(#[from] rcgen::Error),
}

fn make(folder: &Path, names: &[String]) -> Result<Files, MakeError> {
    fs::create_dir_all(folder)?;
    let path = |name: &str| folder.join(name);
    let year = Clock::system().now().year();
    let mut authority = CertificateParams::new([])?;
    (authority.not_before, authority.not_after) = (date_time_ymd(year - 1, 1, 1), date_time_ymd(year + YEARS, 1, 1));
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.distinguished_name.push(DnType::CommonName, "Entrepot's own authority");
    let key = match fs::read_to_string(path("authority.key")) {
        Ok(pem) => KeyPair::from_pem(&pem)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            replace(&path("authority.key"), 0o600, key.serialize_pem())?;
            key
        }
        Err(error) => return Err(error.into()),
    };
    if !path("authority.crt").exists() {
        replace(&path("authority.crt"), 0o644, authority.self_signed(&key)?.pem())?;
    }
    let mut server = CertificateParams::new(subjects(names))?;
    (server.not_before, server.not_after) = (authority.not_before, authority.not_after);
    server.distinguished_name.push(DnType::CommonName, "Entrepot");
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    let server_key = KeyPair::generate()?;
    let certificate = server.signed_by(&server_key, &Issuer::new(authority, key))?;
    replace(&path("server.key"), 0o600, server_key.serialize_pem())?;
    replace(&path("server.crt"), 0o644, certificate.pem())?;
    Ok(Files { certificate: path("server.crt"), key: path("server.key"), authority: Some(path("authority.crt")) })
}

/// The names in the certificate: this machine's names and loopback, and the names that clients use.
fn subjects(names: &[String]) -> Vec<String> {
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].map(|ip| ip.to_string());
    let all = loopback.into_iter().chain(["localhost".to_owned(), own]).chain(names.iter().cloned());
    let mut subjects: Vec<String> = all.filter(|name| !name.is_empty() && name.is_ascii()).collect();
    subjects.sort();
    subjects.dedup();
    subjects
}

/// Writes a file completely or not at all.
fn replace(path: &Path, mode: u32, text: impl fmt::Display) -> io::Result<()> {
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    write!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_authority_stays_and_its_key_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("tls");
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        make(&folder, &["registry.example".to_owned()]).unwrap();
        let (authority, server) = (read("authority.crt"), read("server.crt"));
        let files = make(&folder, &[]).unwrap();
        assert_eq!(read("authority.crt"), authority);
        assert_ne!(read("server.crt"), server);
        files.load(Alpn::Http2).unwrap();
        for name in ["authority.key", "server.key"] {
            assert_eq!(fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
    }
}
