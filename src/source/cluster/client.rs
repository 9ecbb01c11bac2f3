//! The way to the API server.

use std::path::{Path, PathBuf};
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
    // What is around the fault may be a token.
    #[error("cannot use kubeconfig {path}: {}", .source.to_string().lines().next().unwrap_or_default())]
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
    /// There would be something between us and the server that this program cannot speak to.
    #[error(
        "kubeconfig {path}: proxy-url is not supported: give an address that is reached without a proxy"
    )]
    Proxy {
        /// The file.
        path: PathBuf,
    },
    /// What is in front of every request is none that HTTP can carry.
    #[error(
        "the token in {path} has a line's end, and would be refused: write it without (printf %s)"
    )]
    Token {
        /// The file.
        path: PathBuf,
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
            let in_use = InUse::of(&kubeconfig);
            if in_use.has_proxy {
                return Err(ConnectError::Proxy { path });
            }
            if let Some(path) = in_use.token.filter(|path| has_line_end(path)) {
                return Err(ConnectError::Token { path });
            }
            let options = KubeConfigOptions::default();
            let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(failed)?;
            // Read again, then, as in a pod: authorities change while we run.
            config.root_cert_file = in_use.authority;
            // A proxy of the environment's is for other connections than the node's to its API server.
            config.proxy_url = None;
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

/// What the context of a kubeconfig that is in use refers to.
#[derive(Debug, Default)]
struct InUse {
    authority: Option<PathBuf>,
    token: Option<PathBuf>,
    /// A client's certificate and its key.
    identity: Vec<PathBuf>,
    has_proxy: bool,
}

impl InUse {
    fn of(kubeconfig: &Kubeconfig) -> Self {
        let current = kubeconfig.current_context.as_deref();
        let mut contexts = kubeconfig.contexts.iter();
        let context = contexts.find(|named| Some(named.name.as_str()) == current);
        let Some(context) = context.and_then(|named| named.context.as_ref()) else {
            return Self::default();
        };
        let mut clusters = kubeconfig.clusters.iter();
        let cluster = clusters.find(|named| named.name == context.cluster);
        let cluster = cluster.and_then(|named| named.cluster.as_ref());
        let mut users = kubeconfig.auth_infos.iter();
        let user = users.find(|named| Some(&named.name) == context.user.as_ref());
        let user = user.and_then(|named| named.auth_info.as_ref());
        // What is in the kubeconfig itself counts before what it refers to.
        let file = |path: &Option<String>, has_data: bool| {
            path.as_ref()
                .filter(|path| !has_data && !path.is_empty())
                .map(PathBuf::from)
        };
        let mut identity = Vec::new();
        if let Some(user) = user {
            let certificate = user.client_certificate_data.is_some();
            identity.extend(file(&user.client_certificate, certificate));
            identity.extend(file(&user.client_key, user.client_key_data.is_some()));
        }
        Self {
            authority: cluster.and_then(|cluster| {
                let has_data = cluster.certificate_authority_data.is_some();
                file(&cluster.certificate_authority, has_data)
            }),
            token: user.and_then(|user| file(&user.token_file, user.token.is_some())),
            identity,
            has_proxy: cluster.is_some_and(|cluster| {
                let proxy = cluster.proxy_url.as_ref();
                proxy.is_some_and(|proxy| !proxy.is_empty())
            }),
        }
    }
}

/// The files of a client's certificate and key that a kubeconfig names: they are read once, at the start.
#[must_use]
pub fn identity_files(kubeconfig: &Path) -> Vec<PathBuf> {
    // One that cannot be read is an error of its own.
    let kubeconfig = Kubeconfig::read_from(kubeconfig);
    kubeconfig.map_or_else(|_| Vec::new(), |kubeconfig| InUse::of(&kubeconfig).identity)
}

fn has_line_end(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|token| token.contains(['\r', '\n']))
}

/// What [`kube::Client::try_from`] makes, with one connection for all watches that notices when nobody is there
/// any more.
fn client(config: kube::Config, answer: Duration) -> Result<kube::Client, kube::Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn in_use(cluster: &str, user: &str) -> InUse {
        let text = format!(
            r#"{{"current-context": "b", "contexts": [
                {{"name": "a", "context": {{"cluster": "a", "user": "a"}}}},
                {{"name": "b", "context": {{"cluster": "b", "user": "b"}}}}],
            "clusters": [
                {{"name": "a", "cluster": {{"server": "https://a", "certificate-authority": "/a"}}}},
                {{"name": "b", "cluster": {{"server": "https://b"{cluster}}}}}],
            "users": [
                {{"name": "a", "user": {{"client-certificate": "/a", "client-key": "/a"}}}},
                {{"name": "b", "user": {{{user}}}}}]}}"#
        );
        InUse::of(&Kubeconfig::from_yaml(&text).unwrap())
    }

    #[test]
    fn files_that_the_context_in_use_refers_to_are_known() {
        let files = in_use(
            r#", "certificate-authority": "/ca.crt""#,
            r#""client-certificate": "/c.crt", "client-key": "/c.key", "tokenFile": "/token""#,
        );
        assert_eq!(files.authority, Some("/ca.crt".into()));
        assert_eq!(files.token, Some("/token".into()));
        assert_eq!(files.identity, [PathBuf::from("/c.crt"), "/c.key".into()]);
        assert!(!files.has_proxy);
    }

    #[test]
    fn what_a_kubeconfig_says_itself_counts_before_files() {
        let files = in_use(
            r#", "certificate-authority": "/ca.crt", "certificate-authority-data": "eA==", "proxy-url": "http://p""#,
            r#""client-certificate": "/c.crt", "client-certificate-data": "eA==", "token": "t", "tokenFile": "/token""#,
        );
        assert_eq!(files.authority, None);
        assert_eq!(files.token, None);
        assert!(files.identity.is_empty());
        assert!(files.has_proxy);
    }

    #[test]
    fn a_token_with_a_line_s_end_is_named_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let (token, kubeconfig) = (
            directory.path().join("token"),
            directory.path().join("config"),
        );
        let text = r#"{"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {"tokenFile": "token"}}]}"#;
        std::fs::write(&kubeconfig, text).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        for (text, is_good) in [("abc", true), ("abc\n", false), ("abc ", true)] {
            std::fs::write(&token, text).unwrap();
            let connected = runtime.block_on(connect(Some(kubeconfig.clone()), None));
            match connected {
                Ok(_) => assert!(is_good, "{text:?}"),
                Err(error) => {
                    assert!(!is_good, "{text:?}: {error}");
                    assert!(error.to_string().contains("token"), "{error}");
                }
            }
        }
    }
}
