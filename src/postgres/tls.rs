//! TLS for the connection to the database, by rustls. The modes are those of libpq.

use crate::config::database_url::{ClientCertificate, DatabaseUrl, TlsMode};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Returns the TLS connector for connections by `url`.
///
/// # Errors
/// The message, if the trusted certificates or the certificate of the client cannot be read, if there are none, or if
/// other users can read the key of the client.
pub fn connector(url: &DatabaseUrl) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().expect("ring has every cipher of the default versions");
    let builder = match url.tls {
        TlsMode::VerifyFull => builder.with_root_certificates(roots(url)?),
        TlsMode::VerifyCa => builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAnyName(
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots(url)?), provider)
                .build()
                .map_err(|error| format!("the trusted certificates cannot be used: {error}"))?,
        ))),
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider)))
        }
    };
    let config = match &url.client_certificate {
        Some(client) => {
            let (chain, key) = read_client(client)?;
            let unusable = |error| format!("sslcert {}: {error}", client.certificate.display());
            builder.with_client_auth_cert(chain, key).map_err(unusable)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(MakeRustlsConnect::new(config))
}

/// Reads the certificate of the client and its key. As in libpq, other users must not be able to read the key, except
/// the group of a key that belongs to root.
fn read_client(client: &ClientCertificate) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let path = client.key.display();
    let metadata = fs::metadata(&client.key).map_err(|error| format!("sslkey {path}: {error}"))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(format!("sslkey {path}: other users can read the private key; chmod 600"));
    }
    let key = PrivateKeyDer::from_pem_file(&client.key).map_err(|error| format!("sslkey {path}: {error}"))?;
    Ok((read_certificates("sslcert", &client.certificate)?, key))
}

/// Reads the certificates of a file, of which there is at least one. `option` is the option that names the file.
fn read_certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unusable = |why: String| format!("{option} {}: {why}", path.display());
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
    let certificates: Result<Vec<_>, _> = certificates.collect();
    let certificates = certificates.map_err(|error| unusable(error.to_string()))?;
    if certificates.is_empty() { Err(unusable("the file has no certificate".into())) } else { Ok(certificates) }
}

fn roots(url: &DatabaseUrl) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &url.root_certificates else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let hint = "the system has no trusted certificates; install ca-certificates, or set sslrootcert or \
            DB_SSL_ROOT_CERT to a file";
        return if roots.is_empty() { Err(hint.into()) } else { Ok(roots) };
    };
    for certificate in read_certificates("sslrootcert", path)? {
        roots.add(certificate).map_err(|error| format!("sslrootcert {}: {error}", path.display()))?;
    }
    Ok(roots)
}

/// The verifier for `verify-ca`: the certificate must be trusted, and may be for another host.
#[derive(Debug)]
struct AcceptAnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AcceptAnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.0.verify_server_cert(certificate, intermediates, name, ocsp_response, now) {
            // The name is compared last, when the certificate is known to be trusted.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The verifier for `prefer` and `require`: accepts every certificate, as libpq does. The signatures of the handshake
/// must still be valid.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
