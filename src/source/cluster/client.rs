//! The way to the API server.

use std::path::PathBuf;
use std::time::Duration;

use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
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
/// After so long without a word on HTTP/2 the server itself is asked, and has failed if it does not answer within so
/// long, as in `client-go`: a balancer on the way may answer the kernel for a server that is gone.
const SILENCE_OF_SERVER: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes that may wait here of one watch, and of all: one that is not read must not stop the others.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;

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

/// What [`kube::Client::try_from`] makes, with one connection for all watches that notices when nobody is there
/// any more.
fn client(mut config: kube::Config, answer: Duration) -> Result<kube::Client, kube::Error> {
    if config.proxy_url.is_some() {
        config.connect_timeout = Some(CONNECT);
        let builder = ClientBuilder::try_from(config)?.with_layer(&TimeoutLayer::new(answer));
        return Ok(builder.build());
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(SILENCE));
    connector.set_keepalive_interval(Some(PROBES));
    connector.set_keepalive_retries(Some(MOST_PROBES));
    connector.set_tcp_user_timeout(Some(SILENCE + MOST_PROBES * PROBES));
    let mut builder = HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_or_http();
    if let Some(name) = config.tls_server_name.clone() {
        let name = name
            .try_into()
            .map_err(|error| kube::Error::Service(Box::new(error)))?;
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let connector = builder.enable_all_versions().wrap_connector(connector);
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(answer))
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(
            Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .http2_keep_alive_interval(SILENCE_OF_SERVER)
                .http2_keep_alive_timeout(PATIENCE)
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .build(connector),
        );
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}
