//! The way to the API server.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use thiserror::Error;
use tower::timeout::TimeoutLayer;
use tower::{BoxError, ServiceBuilder};

/// For so long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// For so long an answer may take to begin; how long it goes on is another matter.
const ANSWER: Duration = Duration::from_secs(20);

/// After so long without a word the kernel asks whether the other end is still there, so often, this far
/// apart, and then the connection has failed (`tcp(7)`, `TCP_KEEPIDLE`, `TCP_USER_TIMEOUT`). A watch may be
/// silent for a minute; one whose server is gone would be for ever.
const SILENCE: Duration = Duration::from_secs(10);
const PROBES: Duration = Duration::from_secs(5);
const MOST_PROBES: u32 = 3;

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

/// Prepares a client. Nothing is sent yet. Returns besides where the server is.
///
/// # Errors
///
/// If what it needs is missing or broken.
pub async fn connect(
    kubeconfig: Option<PathBuf>,
    server: Option<&str>,
) -> Result<(kube::Client, http::Uri), ConnectError> {
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
) -> Result<(kube::Client, http::Uri), ConnectError> {
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
    config.headers.push((
        http::header::USER_AGENT,
        http::HeaderValue::from_static(concat!("pointsman/", env!("CARGO_PKG_VERSION"))),
    ));
    let address = config.cluster_url.clone();
    match client(config, answer) {
        Ok(client) => Ok((client, address)),
        Err(error) => Err(ConnectError::Client(Box::new(error))),
    }
}

/// What [`kube::Client::try_from`] makes, with a connection that notices when nobody is there any more.
fn client(mut config: kube::Config, answer: Duration) -> Result<kube::Client, kube::Error> {
    if config.proxy_url.is_some() {
        config.connect_timeout = Some(CONNECT);
        let builder = ClientBuilder::try_from(config)?;
        return Ok(builder.with_layer(&TimeoutLayer::new(answer)).build());
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(SILENCE));
    connector.set_keepalive_interval(Some(PROBES));
    connector.set_keepalive_retries(Some(MOST_PROBES));
    connector.set_tcp_user_timeout(Some(SILENCE + MOST_PROBES * PROBES));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(answer))
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(Client::builder(TokioExecutor::new()).build(connector));
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}
