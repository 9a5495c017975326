//! TLS to Postgres.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_platform_verifier::Verifier;
use tokio_postgres_rustls::MakeRustlsConnect;

/// How to verify the database's certificate.
pub(super) enum Verification<'a> {
    /// Not at all: the connection is encrypted if the server offers it, which is the default of Postgres' own clients.
    /// A passive listener sees nothing, and if SCRAM is used for the password, it is bound to the server's certificate.
    None,
    /// By the certificates that the machine trusts.
    AsTheMachine,
    /// By one of these certificates, in PEM.
    Against(&'a [u8]),
}

/// Why certificates cannot be verified.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    #[error("the file with the certificates to trust does not hold any in PEM format")]
    NoCertificates,
    /// The certificates cannot be used.
    #[error("there is no way to verify the database's certificate")]
    Unusable(#[source] Error),
}

pub(super) fn connector(verification: Verification<'_>) -> Result<MakeRustlsConnect, TrustError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TrustError::Unusable)?;
    let config = match verification {
        Verification::Against(pem) => builder.with_root_certificates(roots(pem)?),
        Verification::AsTheMachine => {
            let verifier = Verifier::new(provider).map_err(TrustError::Unusable)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        Verification::None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody::new(&provider))),
    };
    Ok(MakeRustlsConnect::new(config.with_no_client_auth()))
}

fn roots(pem: &[u8]) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| TrustError::NoCertificates)?;
        roots.add(certificate).map_err(TrustError::Unusable)?;
    }
    if roots.is_empty() { Err(TrustError::NoCertificates) } else { Ok(roots) }
}

/// Accepts any certificate, but still checks that the server has its key.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl Anybody {
    fn new(provider: &CryptoProvider) -> Self {
        Self(provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
