//! How the command checks the identity of the registry that it calls.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::ConfigVerifierExt as _;
use tonic::transport::{Certificate, ClientTlsConfig};

use crate::error::Error;

/// How https:// addresses are checked.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TlsArgs {
    /// A PEM file with the certificate authorities to trust at https:// addresses, instead of the system's.
    #[arg(long, global = true, env = "ENTREPOT_CA", value_name = "FILE")]
    ca: Option<PathBuf>,

    /// The name that the certificate must have, if it is not the host in the address.
    #[arg(long, global = true, env = "ENTREPOT_TLS_NAME", value_name = "NAME")]
    tls_name: Option<String>,
}

impl TlsArgs {
    /// For gRPC.
    pub(crate) fn tonic(&self) -> Result<ClientTlsConfig, Error> {
        let mut config = ClientTlsConfig::new();
        config = match &self.ca {
            Some(path) => {
                authorities(path)?;
                config.ca_certificate(Certificate::from_pem(read(path)?))
            }
            None => config.with_enabled_roots(),
        };
        if let Some(name) = &self.tls_name {
            server_name(name)?;
            config = config.domain_name(name);
        }
        Ok(config)
    }

    /// For anything else; `host` is the one in the address.
    pub(crate) fn rustls(&self, host: &str) -> Result<(Arc<ClientConfig>, ServerName<'static>), Error> {
        let config = match &self.ca {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in authorities(path)? {
                    roots.add(certificate).map_err(|error| unusable(path, &error))?;
                }
                ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
            }
            None => ClientConfig::with_platform_verifier()
                .map_err(|error| Error::Failed(format!("the system's certificates cannot be used: {error}")))?,
        };
        Ok((Arc::new(config), server_name(self.tls_name.as_deref().unwrap_or(host))?))
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(name.trim_matches(['[', ']']).to_owned())
        .map_err(|_| Error::Usage(format!("--tls-name: `{name}` is neither a host's name nor an IP address")))
}

fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| unusable(path, &error))?;
    if certificates.is_empty() {
        return Err(unusable(path, &"it holds no certificate in PEM format"));
    }
    Ok(certificates)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Usage(format!("--ca: `{}` cannot be used: {why}", path.display()))
}
