//! The way to the API server.

use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use thiserror::Error;
use tower::timeout::TimeoutLayer;

/// For so long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// For so long an answer may take to begin; how long it goes on is another matter.
const ANSWER: Duration = Duration::from_secs(20);

/// There is no way to the API server. Nothing has been programmed or changed.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("cannot use kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// There is no kubeconfig, and this is no pod.
    #[error(
        "no --kubeconfig, and this is no pod with a service account: {0}; give --kubeconfig, or --manifests to do without an API server"
    )]
    NotInCluster(#[source] Box<kube::config::InClusterError>),
    /// The server's address makes no sense.
    #[error("--master: {address:?} is no URL: {reason}")]
    Address {
        /// What was given.
        address: String,
        /// Why.
        reason: String,
    },
    /// The client cannot be made, mostly because of its certificates.
    #[error(
        "cannot make a client for the API server: {0}; check the certificates of the kubeconfig"
    )]
    Client(#[source] Box<kube::Error>),
}

/// Prepares a client. Nothing is sent yet.
///
/// # Errors
///
/// If what it needs is missing or broken.
pub async fn connect(
    kubeconfig: Option<PathBuf>,
    server: Option<&str>,
) -> Result<kube::Client, ConnectError> {
    connect_with_patience(kubeconfig, server, ANSWER).await
}

/// The same, with another time that an answer may take to begin.
///
/// # Errors
///
/// As [`connect`].
pub async fn connect_with_patience(
    kubeconfig: Option<PathBuf>,
    server: Option<&str>,
    answer: Duration,
) -> Result<kube::Client, ConnectError> {
    let address = server
        .map(|address| {
            address
                .parse::<http::Uri>()
                .map_err(|error| ConnectError::Address {
                    address: address.to_owned(),
                    reason: error.to_string(),
                })
        })
        .transpose()?;
    let mut config = match (kubeconfig, address) {
        (Some(path), address) => {
            let failed = |source| ConnectError::Kubeconfig {
                path: path.clone(),
                source: Box::new(source),
            };
            let kubeconfig = Kubeconfig::read_from(&path).map_err(failed)?;
            let options = KubeConfigOptions::default();
            let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(failed)?;
            if let Some(address) = address {
                config.cluster_url = address;
            }
            config
        }
        (None, Some(address)) => kube::Config::new(address),
        (None, None) => kube::Config::incluster()
            .map_err(|error| ConnectError::NotInCluster(Box::new(error)))?,
    };
    config.connect_timeout = Some(CONNECT);
    config.headers.push((
        http::header::USER_AGENT,
        http::HeaderValue::from_static(concat!("pointsman/", env!("CARGO_PKG_VERSION"))),
    ));
    let builder = kube::client::ClientBuilder::try_from(config)
        .map_err(|error| ConnectError::Client(Box::new(error)))?;
    Ok(builder.with_layer(&TimeoutLayer::new(answer)).build())
}
