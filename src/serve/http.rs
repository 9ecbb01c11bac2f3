//! The few things that all of our HTTP servers share: listening, answering, and ending.
//!
//! What is answered is the business of `health_checks` and `admin`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
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
/// The largest head of a request.
const MOST_HEAD: usize = 16 * 1024;
/// For so long a server that ends waits for answers that are under way.
const DRAIN: Duration = Duration::from_secs(1);

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
pub async fn serve<A>(listener: TcpListener, answer: A, stop: impl Future<Output = ()>)
where
    A: Fn(&Request<Incoming>) -> Answer + Clone + Send + Sync + 'static,
{
    let graceful = GracefulShutdown::new();
    let mut connections = Connections::default();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => connections.add(stream, answer.clone(), &graceful),
            Err(_) => tokio::time::sleep(EXHAUSTED).await,
        }
    }
    drop(listener);
    let _ = timeout(DRAIN, graceful.shutdown()).await;
    connections.tasks.shutdown().await;
}

/// The connections of a server, the oldest first.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    order: VecDeque<AbortHandle>,
}

impl Connections {
    fn add<A>(&mut self, stream: TcpStream, answer: A, graceful: &GracefulShutdown)
    where
        A: Fn(&Request<Incoming>) -> Answer + Clone + Send + Sync + 'static,
    {
        while self.tasks.try_join_next().is_some() {}
        if self.order.len() >= MOST_CONNECTIONS {
            self.order.retain(|connection| !connection.is_finished());
        }
        if self.order.len() >= MOST_CONNECTIONS
            && let Some(oldest) = self.order.pop_front()
        {
            oldest.abort();
        }
        let service = service_fn(move |request: Request<Incoming>| {
            let response = answer(&request);
            async move { Ok::<_, Infallible>(response) }
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
        });
        self.order.push_back(task);
    }
}
