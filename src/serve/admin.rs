//! The ports that kubelet, load balancers and Prometheus ask: health on one, metrics on the
//! other (docs/semantics.md, I4, I5, L).

use std::fmt::Write;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Request, Response, StatusCode};
use prometheus::IntCounterVec;

use crate::serve::health::{Health, Report};
use crate::serve::http::{self, Answer, Places};
use crate::serve::registry::{Made, Metrics};

/// The pause before an address that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Has metrics say what is so now, before they are told.
pub type Refresh = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// What the servers answer from.
#[derive(Clone)]
#[allow(
    missing_debug_implementations,
    reason = "of what refreshes, there is nothing to print"
)]
pub struct Answers {
    refresh: Refresh,
    health: Arc<Health>,
    metrics: Metrics,
    configuration: Arc<str>,
    /// What is programmed, as kube-proxy calls it.
    mode: &'static str,
    /// Answers of `/healthz` and `/livez`, by their codes.
    healthz: IntCounterVec,
    livez: IntCounterVec,
}

impl Answers {
    /// Health, metrics, the effective configuration as JSON, for `/configz`, and what is programmed.
    ///
    /// # Errors
    ///
    /// If the answers are counted already.
    pub fn new(
        health: Arc<Health>,
        metrics: Metrics,
        configuration: Arc<str>,
        mode: &'static str,
        refresh: Refresh,
    ) -> Made<Self> {
        let answers = |name, help| {
            let counters = metrics.counters(name, help, &["code"])?;
            // What has not happened yet is 0, not absent.
            for code in ["200", "503"] {
                let _ = counters.with_label_values(&[code]);
            }
            Made::Ok(counters)
        };
        Ok(Self {
            refresh,
            healthz: answers(
                "kubeproxy_proxy_healthz_total",
                "Cumulative proxy healthz HTTP status",
            )?,
            livez: answers(
                "kubeproxy_proxy_livez_total",
                "Cumulative proxy livez HTTP status",
            )?,
            health,
            metrics,
            configuration,
            mode,
        })
    }

    /// The health port: `/healthz` and `/livez`, as kube-proxy has them, and `/readyz`.
    fn health(&self, request: &Request<Incoming>) -> Answer {
        match request.uri().path() {
            "/healthz" => {
                let report = self.health.healthz();
                self.healthz
                    .with_label_values(&[code(&report).as_str()])
                    .inc();
                health_answer(report)
            }
            "/livez" => {
                let report = self.health.livez();
                self.livez
                    .with_label_values(&[code(&report).as_str()])
                    .inc();
                health_answer(report)
            }
            "/readyz" => health_answer(self.health.readyz()),
            _ => not_found(),
        }
    }

    /// The metrics port.
    async fn metrics(self, path: String) -> Answer {
        if path == "/metrics" {
            (self.refresh)().await;
        }
        match path.as_str() {
            "/metrics" => match self.metrics.text() {
                Ok(text) => answer(
                    StatusCode::OK,
                    "text/plain; version=0.0.4; charset=utf-8",
                    text,
                ),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            "/healthz" | "/healthz/ping" => text(StatusCode::OK, "ok"),
            "/proxyMode" => text(StatusCode::OK, self.mode),
            "/configz" => answer(
                StatusCode::OK,
                "application/json",
                self.configuration.as_bytes().to_vec(),
            ),
            // Nothing is measured for service levels that /metrics does not have.
            "/metrics/slis" => answer(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                "",
            ),
            "/flagz" => text(StatusCode::OK, self.flags()),
            "/statusz" => text(StatusCode::OK, self.status()),
            _ => not_found(),
        }
    }

    /// The configuration, a line for each field, as it is in effect.
    fn flags(&self) -> String {
        let mut lines = String::from("pointsman flags\n\n");
        let configuration: serde_json::Value =
            serde_json::from_str(&self.configuration).unwrap_or_default();
        for (_, fields) in configuration.as_object().into_iter().flatten() {
            for (name, value) in fields.as_object().into_iter().flatten() {
                // Writing to a String cannot fail.
                let _ = writeln!(lines, "{name}={value}");
            }
        }
        lines
    }

    fn status(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        let report = self.health.healthz();
        format!(
            "pointsman statusz\n\nVersion: {version}\nHealth: {}\n",
            report.body
        )
    }
}

fn code(report: &Report) -> StatusCode {
    if report.ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

fn health_answer(report: Report) -> Answer {
    answer(code(&report), "application/json", report.body)
}

fn answer(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn text(code: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(code, "text/plain; charset=utf-8", body)
}

fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// An address that could not be had, and has to be.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve {what} on {address}: {source}; free it, choose another, or do without --bind-address-hard-fail"
)]
pub struct BindError {
    /// Health or metrics.
    pub what: &'static str,
    address: SocketAddr,
    source: std::io::Error,
}

/// Serves health.
///
/// # Errors
///
/// If the address cannot be had and `hard_fail` says that this is fatal. Otherwise it is tried
/// again every 5 s. Ends with `stop`.
pub async fn serve_health(
    sources: Answers,
    address: SocketAddr,
    hard_fail: bool,
    stop: impl Future<Output = ()>,
) -> Result<(), BindError> {
    let answer = move |request: &Request<Incoming>| std::future::ready(sources.health(request));
    serve("health", answer, address, hard_fail, stop).await
}

/// Serves metrics.
///
/// # Errors
///
/// As for [`serve_health`].
pub async fn serve_metrics(
    sources: Answers,
    address: SocketAddr,
    hard_fail: bool,
    stop: impl Future<Output = ()>,
) -> Result<(), BindError> {
    let answer = move |request: &Request<Incoming>| {
        let path = request.uri().path().to_owned();
        sources.clone().metrics(path)
    };
    serve("metrics", answer, address, hard_fail, stop).await
}

async fn serve<F>(
    what: &'static str,
    answer: impl Fn(&Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    address: SocketAddr,
    hard_fail: bool,
    stop: impl Future<Output = ()>,
) -> Result<(), BindError>
where
    F: Future<Output = Answer> + Send + 'static,
{
    let mut stop = pin!(stop);
    let listener = tokio::select! {
        listener = bind(what, address, hard_fail) => listener?,
        () = &mut stop => return Ok(()),
    };
    http::serve(listener, answer, Places::Own, stop).await;
    Ok(())
}

async fn bind(
    what: &'static str,
    address: SocketAddr,
    hard_fail: bool,
) -> Result<tokio::net::TcpListener, BindError> {
    loop {
        match http::listen_everywhere(address) {
            Ok(listener) => return Ok(listener),
            Err(source) if hard_fail => {
                return Err(BindError {
                    what,
                    address,
                    source,
                });
            }
            Err(error) => tracing::warn!(%address, %error, "cannot serve {what}; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}
