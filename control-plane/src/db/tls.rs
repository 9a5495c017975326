//! TLS to Postgres.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_platform_verifier::Verifier;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Whom to believe that it is the database.
pub(super) enum Verification<'a> {
    /// Anybody: encrypted where the server offers it, as Postgres' own clients do where nobody says more. Who can
    /// only listen sees nothing; and where the password goes by SCRAM, it is bound to the server's certificate.
    None,
    /// Who is certified by what the machine trusts.
    AsTheMachine,
    /// Who is certified by one of these certificates, in PEM format.
    Against(&'a [u8]),
}

/// Why there is nobody to trust.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// No certificates.
    #[error("the file with the certificates to trust does not hold any in PEM format")]
    NoCertificates,
    /// Certificates that cannot be used.
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

/// Believes any certificate, but not that somebody has its key who does not.
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
