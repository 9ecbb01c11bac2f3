//! The HTTP servers behind `spec.healthCheckNodePort`: they tell load balancers whether this
//! node has endpoints of a Service (docs/semantics.md, I6 to I8).
//!
//! What the answers are is decided by `compile` and the sync loop; listening and answering live
//! here. Any path and any method get the same answer, byte for byte that of kube-proxy.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Request, Response, StatusCode};
use nix::errno::Errno;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::core::compile::HealthCheck;
use crate::core::model::{Family, ObjectKey, PerFamily};
use crate::serve::http::{self, Place, Places};

/// What is to be served, as of the last sync.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The checks, and whose they are.
    pub checks: Vec<(ObjectKey, HealthCheck)>,
    /// Where to listen in each family: on these addresses, or everywhere.
    pub addresses: PerFamily<Addresses>,
}

/// Where to listen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Addresses {
    /// On every address, by one wildcard socket.
    #[default]
    All,
    /// On these.
    Some(Vec<IpAddr>),
}

/// Whether the proxy does its work; a node whose proxy does not gets no traffic.
pub type Healthy = Arc<dyn Fn() -> bool + Send + Sync>;

/// Hears of a Service whose health checks cannot be served, and why.
pub type Failed = Box<dyn Fn(&ObjectKey, &str) + Send + Sync>;

/// The pause before a port that was taken is tried again.
const RETRY: Duration = Duration::from_secs(5);

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// A running server.
struct Server {
    service: ObjectKey,
    local_endpoints: Arc<AtomicUsize>,
    /// Dropped to end it.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// The servers, and the addresses that could not be had.
struct Servers {
    running: BTreeMap<SocketAddr, Server>,
    /// Whose health checks cannot be served, as was told.
    without: BTreeMap<SocketAddr, ObjectKey>,
    places: Places,
    healthy: Healthy,
    failed: Failed,
}

/// Serves what the table says, until its sender is gone. A listener that cannot be had is tried
/// again every 5 s.
///
/// Listeners and connections take places.
pub async fn serve(
    mut tables: watch::Receiver<Table>,
    places: Places,
    healthy: Healthy,
    failed: Failed,
) {
    let mut servers = Servers {
        running: BTreeMap::new(),
        without: BTreeMap::new(),
        places,
        healthy,
        failed,
    };
    loop {
        let wanted = wanted(&tables.borrow_and_update());
        servers.follow(wanted).await;
        let changed = if servers.without.is_empty() {
            tables.changed().await
        } else {
            // If the time has passed, the same table is looked at again.
            timeout(RETRY, tables.changed()).await.unwrap_or(Ok(()))
        };
        if changed.is_err() {
            break;
        }
    }
    servers.follow(BTreeMap::new()).await;
}

impl Servers {
    async fn follow(&mut self, wanted: BTreeMap<SocketAddr, (ObjectKey, usize)>) {
        let is_wanted = |address: &SocketAddr, service: &ObjectKey| {
            wanted
                .get(address)
                .is_some_and(|(owner, _)| owner == service)
        };
        let gone = self
            .running
            .extract_if(.., |address, server| !is_wanted(address, &server.service));
        let gone: Vec<Server> = gone.map(|(_, server)| server).collect();
        self.without
            .retain(|address, service| is_wanted(address, service));
        // All at once, and before anybody else takes their addresses.
        let tasks: Vec<JoinHandle<()>> = gone
            .into_iter()
            .map(|Server { stop, task, .. }| {
                drop(stop);
                task
            })
            .collect();
        for task in tasks {
            let _ = task.await;
        }
        for (address, (service, count)) in wanted {
            if let Some(server) = self.running.get(&address) {
                server.local_endpoints.store(count, Ordering::Relaxed);
                continue;
            }
            let place = self.places.for_listener();
            let listener = place
                .ok_or_else(|| io::Error::other("too few open files are allowed (RLIMIT_NOFILE)"));
            let listener = listener.and_then(|place| Ok((place, http::listen(address)?)));
            match listener {
                Ok(listener) => {
                    self.without.remove(&address);
                    self.running
                        .insert(address, self.start(listener, service, count));
                }
                // A family that this machine does not speak has nobody who would ask.
                Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {}
                Err(error) => self.cannot(address, service, &error),
            }
        }
    }

    fn start(
        &self,
        (place, listener): (Place, TcpListener),
        service: ObjectKey,
        count: usize,
    ) -> Server {
        let local_endpoints = Arc::new(AtomicUsize::new(count));
        let answers = Answers {
            service: service.clone(),
            local_endpoints: Arc::clone(&local_endpoints),
            healthy: Arc::clone(&self.healthy),
        };
        let answer = move |_: &Request<Incoming>| std::future::ready(answers.response());
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            // Never sent: it ends when its sender is gone.
            let _: Result<(), _> = stopped.await;
        };
        Server {
            service,
            local_endpoints,
            stop,
            task: tokio::spawn({
                let places = self.places.clone();
                async move {
                    http::serve(listener, answer, places, stopped).await;
                    drop(place);
                }
            }),
        }
    }

    /// Tells once that an address cannot be had.
    fn cannot(&mut self, address: SocketAddr, service: ObjectKey, error: &io::Error) {
        if self.without.contains_key(&address) {
            tracing::debug!(%service, %address, %error, "still cannot listen for health checks");
            return;
        }
        tracing::warn!(
            %service, %address, %error,
            "cannot listen for health checks; trying again every {} s", RETRY.as_secs(),
        );
        (self.failed)(&service, &format!("cannot listen on {address}: {error}"));
        self.without.insert(address, service);
    }
}

/// What listens where. Of two Services with one port the first by name has it.
fn wanted(table: &Table) -> BTreeMap<SocketAddr, (ObjectKey, usize)> {
    let mut wanted: BTreeMap<SocketAddr, (ObjectKey, usize)> = BTreeMap::new();
    let mut checks: Vec<_> = table.checks.iter().collect();
    checks.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (service, check) in checks {
        for family in Family::BOTH {
            let Some(count) = *check.local_endpoints.get(family) else {
                continue;
            };
            let addresses = match table.addresses.get(family) {
                Addresses::All => vec![match family {
                    Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                    Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
                }],
                Addresses::Some(list) => list
                    .iter()
                    .copied()
                    .filter(|address| Family::of(*address) == family)
                    .collect(),
            };
            for address in addresses {
                wanted
                    .entry(SocketAddr::new(address, check.port))
                    .or_insert_with(|| (service.clone(), count));
            }
        }
    }
    wanted
}

/// What one server answers with.
#[derive(Clone)]
struct Answers {
    service: ObjectKey,
    local_endpoints: Arc<AtomicUsize>,
    healthy: Healthy,
}

impl Answers {
    fn response(&self) -> Response<Full<Bytes>> {
        let count = self.local_endpoints.load(Ordering::Relaxed);
        let healthy = (self.healthy)();
        let mut response = Response::new(Full::from(body(&self.service, count, healthy)));
        *response.status_mut() = if count > 0 && healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(WEIGHT, HeaderValue::from(count));
        response
    }
}

/// What kube-proxy's server says, with its indentation.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: BodyService<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct BodyService<'a> {
    namespace: &'a str,
    name: &'a str,
}

fn body(service: &ObjectKey, local_endpoints: usize, healthy: bool) -> Vec<u8> {
    let body = Body {
        service: BodyService {
            namespace: &service.namespace,
            name: &service.name,
        },
        local_endpoints,
        service_proxy_healthy: healthy,
    };
    let mut text = Vec::new();
    let format = PrettyFormatter::with_indent(b"\t");
    // Writing to a Vec cannot fail, and neither can strings and numbers.
    let _ = body.serialize(&mut Serializer::with_formatter(&mut text, format));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(port: u16, v4: Option<usize>, v6: Option<usize>) -> HealthCheck {
        HealthCheck {
            port,
            local_endpoints: PerFamily { v4, v6 },
        }
    }

    #[test]
    fn i7_the_body_is_kube_proxys_to_the_byte() {
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"d\",\n\t\t\"name\": \"b\"\n\t},\n\t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(
            body(&ObjectKey::new("d", "b"), 1, true),
            expected.as_bytes()
        );
    }

    #[test]
    fn i6_servers_listen_in_the_families_and_on_the_addresses_that_are_theirs() {
        let key = |name: &str| ObjectKey::new("default", name);
        let table = Table {
            checks: vec![
                (key("b"), check(32000, Some(2), Some(3))),
                (key("a"), check(32001, Some(1), None)),
                (key("c"), check(32000, Some(9), None)),
            ],
            addresses: PerFamily {
                v4: Addresses::Some(vec!["192.0.2.1".parse().unwrap(), "::1".parse().unwrap()]),
                v6: Addresses::All,
            },
        };
        let found: Vec<(String, String, usize)> = wanted(&table)
            .into_iter()
            .map(|(address, (service, count))| (address.to_string(), service.to_string(), count))
            .collect();
        let expected = [
            ("192.0.2.1:32000", "default/b", 2),
            ("192.0.2.1:32001", "default/a", 1),
            ("[::]:32000", "default/b", 3),
        ]
        .map(|(address, service, count)| (address.to_owned(), service.to_owned(), count));
        assert_eq!(found, expected);
    }
}

#[cfg(test)]
#[path = "health_checks_tests.rs"]
mod server_tests;
