//! The addresses of the node's interfaces, and when they change.

use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR};

/// The addresses of all interfaces of this network namespace, loopback included.
///
/// # Errors
///
/// If the kernel does not list them.
pub fn interface_addresses() -> io::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    Ok(interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            address
                .as_sockaddr_in()
                .map(|v4| IpAddr::from(v4.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        })
        .collect())
}

/// Follows the addresses of this network namespace (`rtnetlink(7)`, groups `IPV4_IFADDR` and
/// `IPV6_IFADDR`) from a thread of its own, for as long as the process lives.
#[derive(Debug)]
pub struct AddressWatch;

/// The pause before a watch that has ended begins anew.
const PAUSE: Duration = Duration::from_secs(1);
/// More than the largest notice: `NLMSG_GOODSIZE` in the kernel.
const NOTICE: usize = 32 * 1024;

impl AddressWatch {
    /// Calls `changed` with all addresses, once now and after every change.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the socket.
    pub fn start(mut changed: impl FnMut(Vec<IpAddr>) + Send + 'static) -> io::Result<()> {
        let (ready, started) = std::sync::mpsc::channel();
        thread::Builder::new()
            .name("addresses".to_owned())
            .spawn(move || {
                // The socket stays in the thread that opens it.
                let mut socket = match open() {
                    Ok(socket) => socket,
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                let _ = ready.send(Ok(()));
                loop {
                    let error = follow(&socket, &mut changed);
                    tracing::warn!(%error, "the watch of the node's addresses has ended; it begins anew");
                    socket = loop {
                        thread::sleep(PAUSE);
                        match open() {
                            Ok(socket) => break socket,
                            Err(error) => {
                                tracing::warn!(%error, "cannot watch the node's addresses; trying again");
                            }
                        }
                    };
                }
            })?;
        started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
    }
}

/// Tells all addresses, now and after every notice, until the socket fails.
fn follow(socket: &mnl::Socket, changed: &mut impl FnMut(Vec<IpAddr>)) -> io::Error {
    let mut buffer = vec![0u8; NOTICE];
    loop {
        match interface_addresses() {
            Ok(addresses) => changed(addresses),
            Err(error) => tracing::warn!(%error, "cannot list the node's addresses"),
        }
        // What the notice says does not matter: all addresses are listed again. Nor does it matter
        // if some got lost (ENOBUFS).
        if let Err(error) = socket.recv_raw(&mut buffer)
            && ![Errno::ENOBUFS, Errno::EINTR]
                .map(|errno| Some(errno as i32))
                .contains(&error.raw_os_error())
        {
            return error;
        }
    }
}

fn open() -> io::Result<mnl::Socket> {
    let socket = mnl::Socket::open(mnl::Bus::Route)?;
    let groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
    socket.bind(groups.cast_unsigned(), 0)?;
    Ok(socket)
}
