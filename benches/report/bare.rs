//! What everything is compared with: the kernel alone, and `nft` with two layouts of rules.

use std::fmt::Write;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, setsockopt,
    socket, sockopt,
};

use crate::cluster::Shape;
use crate::harness::Host;

/// Sends transactions that were made before, and does nothing else: the kernel's own time.
pub fn send(host: &Host, transactions: Vec<Vec<u8>>) -> Duration {
    host.run(move || {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .expect("a netlink socket");
        let largest = transactions.iter().map(Vec::len).max().unwrap_or(0);
        setsockopt(&socket, sockopt::SndBufForce, &(largest * 2 + 65536)).expect("a send buffer");
        let kernel = NetlinkAddr::new(0, 0);
        let mut spent = Duration::ZERO;
        for transaction in &transactions {
            let started = Instant::now();
            sendto(socket.as_raw_fd(), transaction, &kernel, MsgFlags::empty())
                .expect("a transaction");
            spent += started.elapsed();
        }
        spent
    })
}

/// Loads a ruleset with `nft -f`.
pub fn nft(host: &Host, ruleset: &str) -> Duration {
    let started = Instant::now();
    let (loaded, why) = host.sh_with_input("nft -f -", ruleset);
    let spent = started.elapsed();
    let why: Vec<&str> = why.lines().take(3).collect();
    assert!(loaded, "nft refuses the ruleset: {why:#?}");
    spent
}

/// Restores a text with a tool of iptables.
pub fn restore(host: &Host, tool: &str, text: &str) {
    let (restored, why) = host.sh_with_input(tool, text);
    assert!(restored, "{tool} refuses the text: {why}");
}

/// The layout of a proxy that makes a chain for each Service.
pub fn chain_per_service(shape: Shape) -> String {
    let mut text = String::from(
        "table ip chains {\n map services { type ipv4_addr . inet_proto . inet_service : verdict; }\n",
    );
    for service in 0..shape.services {
        let endpoints: Vec<String> = (0..shape.endpoints)
            .map(|index| format!("{index} : {} . 8080", shape.endpoint(service, index)))
            .collect();
        let _ = writeln!(
            text,
            " chain svc-{service} {{ meta l4proto tcp dnat ip addr . port to numgen random mod {} map {{ {} }};\n }}",
            shape.endpoints,
            endpoints.join(", ")
        );
    }
    text += " chain services { type nat hook prerouting priority dstnat;\n \
             ip daddr . meta l4proto . th dport vmap @services\n }\n}\n";
    text += "add element ip chains services {\n";
    for service in 0..shape.services {
        let ip = Shape::cluster_ip(service);
        let _ = writeln!(text, " {ip} . tcp . 80 : goto svc-{service},");
    }
    text + "}\n"
}
