//! HTTPS, for those who have neither mesh nor ingress in front: certificate and key from two PEM files, read
//! again when they change, as a Secret's files do when the certificate is renewed.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use axum_server::{
    accept::Accept,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use futures_util::future::BoxFuture;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
use tokio::net::TcpStream;
use tokio_util::either::Either;

use super::connections::{Answered, Connections, Metered, Tracked};
use crate::telemetry::causes;

/// `--tls-cert` and `--tls-key`.
#[derive(Clone, Debug)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What is wrong with the files; `Display` begins with the flag.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("--tls-cert {}", path.display())]
    UnreadableCert { path: PathBuf, source: io::Error },
    #[error("--tls-key {}", path.display())]
    UnreadableKey { path: PathBuf, source: io::Error },
    #[error("--tls-cert {}: it is not a PEM file with certificates", path.display())]
    Cert { path: PathBuf, source: Option<pem::Error> },
    #[error("--tls-key {}: it is not a PEM file with a private key", path.display())]
    Key { path: PathBuf, source: pem::Error },
    #[error("--tls-key {}: it can't be used with --tls-cert", path.display())]
    Pair { path: PathBuf, source: rustls::Error },
}

/// What a new connection goes through first: it is counted, and, if there is a certificate, shakes hands.
#[derive(Clone, Debug)]
pub struct Acceptor {
    connections: Connections,
    tls: Option<RustlsAcceptor>,
}

type TlsStream = <RustlsAcceptor as Accept<Metered<TcpStream>, ()>>::Stream;
type Transport = Either<Metered<TcpStream>, TlsStream>;

impl Acceptor {
    /// Offers the certificate, and each that takes its place.
    #[must_use]
    pub fn new(certificate: Option<&Certificate>, connections: Connections) -> Self {
        let tls = certificate.map(|certificate| RustlsAcceptor::new(certificate.offered.clone()));
        Self { connections, tls }
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Acceptor {
    type Stream = Answered<Transport>;
    type Service = Tracked<S>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let opened = stream.peer_addr().map(|peer| self.connections.open(peer.ip()));
        let tls = self.tls.clone();
        Box::pin(async move {
            let connection = opened?.ok_or(io::ErrorKind::ConnectionRefused)?;
            let service = Tracked::new(service, connection.clone());
            let metered = Metered::new(stream, connection.clone());
            let (stream, service) = match tls {
                None => (Either::Left(metered), service),
                Some(tls) => {
                    let (stream, service) = tls.accept(metered, service).await?;
                    (Either::Right(stream), service)
                }
            };
            Ok((Answered::new(stream, connection), service))
        })
    }
}

/// Both files' bytes.
type Contents = (Vec<u8>, Vec<u8>);

/// What the server offers, and what it was made from.
#[derive(Debug)]
pub struct Certificate {
    files: Files,
    made_from: Contents,
    offered: RustlsConfig,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub async fn load(files: Files) -> Result<Self, TlsError> {
        let made_from = files.read().await?;
        let offered = RustlsConfig::from_config(files.config(&made_from)?);
        Ok(Self { files, made_from, offered })
    }

    /// Looks every `period` whether the files have changed. What can't be used, such as a new certificate
    /// whose key is still to be written, is left alone until it can.
    pub async fn keep_current(mut self, period: Duration) {
        let mut known_bad: Option<Contents> = None;
        loop {
            tokio::time::sleep(period).await;
            let read = match self.files.read().await {
                Ok(read) if read == self.made_from || Some(&read) == known_bad.as_ref() => continue,
                Ok(read) => read,
                Err(error) => {
                    tracing::warn!(
                        error = %causes(&error),
                        "the certificate can't be read; the old one stays"
                    );
                    continue;
                }
            };
            match self.files.config(&read) {
                Ok(config) => {
                    self.offered.reload_from_config(config);
                    self.made_from = read;
                    tracing::info!("the certificate has changed");
                }
                Err(error) => {
                    tracing::warn!(
                        error = %causes(&error),
                        "the new certificate can't be used; the old one stays"
                    );
                    known_bad = Some(read);
                }
            }
        }
    }
}

impl Files {
    async fn read(&self) -> Result<Contents, TlsError> {
        let cert = tokio::fs::read(&self.cert).await;
        let key = tokio::fs::read(&self.key).await;
        let unreadable_cert = |source| TlsError::UnreadableCert { path: self.cert.clone(), source };
        let unreadable_key = |source| TlsError::UnreadableKey { path: self.key.clone(), source };
        Ok((cert.map_err(unreadable_cert)?, key.map_err(unreadable_key)?))
    }

    fn config(&self, (cert, key): &Contents) -> Result<Arc<ServerConfig>, TlsError> {
        let bad_cert = |source| TlsError::Cert { path: self.cert.clone(), source };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
        let chain = chain.map_err(|error| bad_cert(Some(error)))?;
        if chain.is_empty() {
            return Err(bad_cert(None));
        }
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|source| TlsError::Key { path: self.key.clone(), source })?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|source| TlsError::Pair { path: self.key.clone(), source })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
