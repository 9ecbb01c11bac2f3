//! The few things that all of our HTTP servers share: listening, answering, and ending.
//!
//! What is answered is the business of `health_checks` and `admin`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// An answer that is complete.
pub type Answer = Response<Full<Bytes>>;

const BACKLOG: u32 = 1024;
/// For so long a client may take to send the head of its request. Bodies are not read.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause when there are no descriptors left: others need a moment to give some back.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// Connections of one server. One more, and the oldest is closed: an answer takes a millisecond, so
/// who has been there for long only holds a place.
const MOST_CONNECTIONS: usize = 256;
/// The same for the ports of health and metrics, which have places of their own.
const MOST_OWN_CONNECTIONS: usize = 64;
/// Descriptors that others need: those ports, the API server, the kernel, files.
const RESERVED: usize = 256;
/// The largest head of a request.
const MOST_HEAD: usize = 16 * 1024;
/// For so long a server that ends waits for answers that are under way.
const DRAIN: Duration = Duration::from_secs(1);

/// How many sockets servers may have.
#[derive(Debug, Clone)]
pub enum Places {
    /// A few that nobody else takes.
    Own,
    /// What servers of a kind share: one half is for listeners, the other for their connections.
    Shared {
        /// For who listens.
        listeners: Arc<Semaphore>,
        /// For who is connected.
        connections: Arc<Semaphore>,
    },
}

/// A place that is taken for as long as it is held.
#[derive(Debug)]
pub struct Place(
    #[expect(dead_code, reason = "it is given back when it is dropped")]
    Option<OwnedSemaphorePermit>,
);

impl Places {
    /// Those that are left of so many descriptors, for two kinds of servers that do not take each other's:
    /// health checks, and NodePorts on loopback.
    #[must_use]
    pub fn shared(descriptors: usize) -> [Self; 2] {
        let quarter = descriptors.saturating_sub(RESERVED) / 4;
        let quarter = || Arc::new(Semaphore::new(quarter.min(Semaphore::MAX_PERMITS)));
        let kind = || Self::Shared {
            listeners: quarter(),
            connections: quarter(),
        };
        [kind(), kind()]
    }

    /// One of them, for a listener.
    #[must_use]
    pub fn for_listener(&self) -> Option<Place> {
        match self {
            Self::Own => Some(Place(None)),
            Self::Shared { listeners, .. } => Self::take(listeners),
        }
    }

    /// One of them, for a connection.
    #[must_use]
    pub fn for_connection(&self) -> Option<Place> {
        match self {
            Self::Own => Some(Place(None)),
            Self::Shared { connections, .. } => Self::take(connections),
        }
    }

    fn take(places: &Arc<Semaphore>) -> Option<Place> {
        let place = Arc::clone(places).try_acquire_owned();
        place.ok().map(|place| Place(Some(place)))
    }

    const fn most(&self) -> usize {
        match self {
            Self::Own => MOST_OWN_CONNECTIONS,
            Self::Shared { .. } => MOST_CONNECTIONS,
        }
    }
}

/// Listens on exactly this address.
///
/// # Errors
///
/// If it cannot be had.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Listens on an address; an unspecified one means every address of both families, as in Go.
///
/// # Errors
///
/// If it cannot be had.
pub fn listen_everywhere(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return listen(address);
    }
    let both = || {
        let socket = TcpSocket::new_v6()?;
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &false)?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port())))?;
        socket.listen(BACKLOG)
    };
    // Without IPv6 there is only the one family.
    both().or_else(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => Err(error),
        _ => listen(address),
    })
}

/// Answers requests until `stop`. Then the listener is closed at once, connections that wait for a
/// request are closed, and answers that are under way are finished.
///
/// Where there is no place for one more connection the oldest gives up its own.
pub async fn serve<A, F>(
    listener: TcpListener,
    answer: A,
    places: Places,
    stop: impl Future<Output = ()>,
) where
    A: Fn(&Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let graceful = GracefulShutdown::new();
    let mut connections = Connections {
        tasks: JoinSet::new(),
        order: VecDeque::new(),
        places,
    };
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => connections.add(stream, answer.clone(), &graceful).await,
            Err(_) => tokio::time::sleep(EXHAUSTED).await,
        }
    }
    drop(listener);
    let _ = timeout(DRAIN, graceful.shutdown()).await;
    connections.tasks.shutdown().await;
}

/// The connections of a server, the oldest first.
struct Connections {
    tasks: JoinSet<()>,
    order: VecDeque<AbortHandle>,
    places: Places,
}

impl Connections {
    async fn add<A, F>(&mut self, stream: TcpStream, answer: A, graceful: &GracefulShutdown)
    where
        A: Fn(&Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        while self.tasks.try_join_next().is_some() {}
        if self.order.len() >= self.places.most() {
            self.order.retain(|connection| !connection.is_finished());
        }
        if self.order.len() >= self.places.most() {
            self.close_the_oldest().await;
        }
        let mut place = self.places.for_connection();
        if place.is_none() {
            self.close_the_oldest().await;
            place = self.places.for_connection();
        }
        // Other servers may have them all.
        let Some(place) = place else { return };
        let service = service_fn(move |request: Request<Incoming>| {
            let response = answer(&request);
            async move { Ok::<_, Infallible>(response.await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .title_case_headers(true)
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(MOST_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        let task = self.tasks.spawn(async move {
            // A client that goes away early is no error of ours.
            let _ = connection.await;
            drop(place);
        });
        self.order.push_back(task);
    }

    /// Waits until it has given up its place.
    async fn close_the_oldest(&mut self) {
        while let Some(oldest) = self.order.pop_front() {
            if oldest.is_finished() {
                continue;
            }
            oldest.abort();
            while !oldest.is_finished() && self.tasks.join_next().await.is_some() {}
            return;
        }
    }
}
