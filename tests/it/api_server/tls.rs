//! A server's certificate, made for the occasion.

use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

pub(super) struct Identity(CertifiedKey<KeyPair>);

impl Identity {
    pub(super) fn new() -> Self {
        let names = vec!["127.0.0.1".to_owned()];
        Self(rcgen::generate_simple_self_signed(names).expect("a certificate"))
    }

    /// In PEM, for whoever should trust it.
    pub(super) fn certificate(&self) -> String {
        self.0.cert.pem()
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let key = PrivatePkcs8KeyDer::from(self.0.signing_key.serialize_der());
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let mut config = builder
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.0.cert.der().clone()], PrivateKeyDer::Pkcs8(key))
            .expect("a certificate and its key");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}
