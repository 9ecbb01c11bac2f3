//! The few things that all of our HTTP servers share: listening and answering.
//!
//! What is answered is the business of `health_checks` and `admin`.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket};

/// An answer that is complete.
pub type Answer = Response<Full<Bytes>>;

const BACKLOG: u32 = 1024;
/// For so long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause when there are no descriptors left: others need a moment to give some back.
const EXHAUSTED: Duration = Duration::from_millis(100);

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

/// Answers requests until the task is aborted.
pub async fn serve<A>(listener: TcpListener, answer: A)
where
    A: Fn(&Request<Incoming>) -> Answer + Clone + Send + Sync + 'static,
{
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            tokio::time::sleep(EXHAUSTED).await;
            continue;
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = |request: Request<Incoming>| {
                let response = answer(&request);
                async move { Ok::<_, Infallible>(response) }
            };
            // A client that goes away early is no error of ours.
            let _ = hyper::server::conn::http1::Builder::new()
                .title_case_headers(true)
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(connection), service_fn(service))
                .await;
        });
    }
}
