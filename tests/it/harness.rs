//! A node and what is around it, as network namespaces.
//!
//! Every host is a namespace with a thread of its own that lives in it; code runs on a host by
//! [`Host::run`]. Nothing is named and nothing is left behind: a namespace goes with its
//! thread, and its links go with it. The machine's own namespace is never touched.
//!
//! ```text
//! client ─── 192.0.2.0/24, 2001:db8:2::/64 ───┐
//! peer (another node and its pods) ───────────┤ node
//! pods (servers of many addresses) ───────────┤
//! client pod ─────────────────────────────────┘
//! ```

#![allow(dead_code, reason = "not every test uses all of the harness")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

/// An ordinary user is root in a user namespace, from before the first thread on (`user_namespaces(7)`:
/// a process with threads cannot enter one). Where that is not allowed nothing happens, and
/// tests that need them are ignored (`build.rs`).
#[ctor::ctor(unsafe)]
fn enter_a_user_namespace() {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let apart = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if user.is_root() || unshare(apart).is_err() {
        return;
    }
    // A group may be mapped only by who cannot leave others any more.
    for (file, map) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {user} 1")),
        ("gid_map", format!("0 {group} 1")),
    ] {
        let _ = std::fs::write(format!("/proc/self/{file}"), map);
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A host: a network namespace, and a thread in it.
pub struct Host {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    thread_id: i32,
}

impl Host {
    /// A new host with nothing but a loopback interface.
    pub fn new() -> Self {
        let (jobs, inbox) = channel::<Job>();
        let (ready, started) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect(
                "a network namespace: it needs root, or a kernel that lets users have namespaces \
                 (kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
            );
            ready.send(nix::unistd::gettid().as_raw()).expect("a maker");
            for job in inbox {
                job();
            }
        });
        let thread_id = started.recv().expect("a namespace");
        let host = Self {
            jobs: Some(jobs),
            thread: Some(thread),
            thread_id,
        };
        host.sh("ip link set lo up");
        // Neighbours would otherwise take a second to trust each other, and refusals that come
        // in numbers would be held back.
        host.sh(
            "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
                 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 \
                 net.ipv4.icmp_ratemask=0 net.ipv6.icmp.ratemask= \
                 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                 net.ipv6.ip_nonlocal_bind=1",
        );
        host
    }

    /// Runs something on the host and returns what it returns.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (result, wait) = channel();
        let jobs = self.jobs.as_ref().expect("a living host");
        jobs.send(Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            let _ = result.send(outcome);
        }))
        .expect("a living host");
        match wait.recv().expect("an answer") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a thread on the host: threads inherit their maker's namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.run(move || std::thread::spawn(job))
    }

    /// Runs a shell command on the host; it has to succeed. Returns what it prints.
    pub fn sh(&self, command: &str) -> String {
        let (ok, text) = self.try_sh(command);
        assert!(ok, "{command}\n{text}");
        text
    }

    /// Runs a shell command on the host. Returns whether it succeeded, and what it printed.
    pub fn try_sh(&self, command: &str) -> (bool, String) {
        let command = command.to_owned();
        self.run(move || {
            let output = Command::new("sh")
                .args(["-c", &command])
                .stdin(Stdio::null())
                .output()
                .expect("a shell");
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            (output.status.success(), text)
        })
    }

    /// Runs a shell command on the host with something on its standard input.
    pub fn sh_with_input(&self, command: &str, input: &str) -> (bool, String) {
        let (command, input) = (command.to_owned(), input.to_owned());
        self.run(move || {
            let mut child = Command::new("sh")
                .args(["-c", &command])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("a shell");
            let mut stdin = child.stdin.take().expect("a pipe");
            let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
            let output = child.wait_with_output().expect("an end");
            let _ = writer.join();
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            (output.status.success(), text)
        })
    }

    /// Links this host with another: `here` and `there` are the interfaces' names.
    pub fn link(&self, here: &str, other: &Self, there: &str) {
        self.sh(&format!(
            "ip link add {here} type veth peer name {there} netns {} && ip link set {here} up",
            other.thread_id
        ));
        other.sh(&format!("ip link set {there} up"));
    }

    /// The ruleset, as nft lists it; and as the other tool does where that is used.
    pub fn ruleset(&self) -> String {
        let mut ruleset = self.sh("nft list ruleset");
        if let Some(by) = by() {
            let by6 = by.replace("iptables", "ip6tables");
            ruleset += &self.sh(&format!("{by}-save 2>/dev/null; {by6}-save 2>/dev/null"));
        }
        ruleset
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A node, pods on it, another node, and a client outside.
///
/// | host | IPv4 | IPv6 |
/// | --- | --- | --- |
/// | node, towards client | 192.0.2.1 | 2001:db8:2::1 |
/// | client | 192.0.2.2 | 2001:db8:2::2 |
/// | node, towards peer | 198.51.100.1 | 2001:db8:51::1 |
/// | peer, and pods behind it | 198.51.100.2, 10.244.2.0/24 | 2001:db8:51::2, fd00:244:0:2::/64 |
/// | server pods on the node | 10.244.1.0/25 | fd00:244:0:1::/80 |
/// | client pod on the node | 10.244.1.200 | fd00:244:0:1:1::c8 |
///
/// The client routes everything else through the node, the peer only the node's and the
/// cluster's ranges and those of load balancers: 203.0.113.0/24 and 2001:db8:113::/64. The node's
/// own default route leads to the peer. A connection masqueraded towards the pods has 192.0.2.1
/// or 2001:db8:2::1 as its source.
pub struct World {
    /// The node that pointsman runs on.
    pub node: Host,
    /// Server pods on the node: every address of their ranges answers.
    pub pods: Host,
    /// A pod on the node that is a client.
    pub pod: Host,
    /// Another node; pods behind it have addresses of its ranges.
    pub peer: Host,
    /// A client outside the cluster.
    pub client: Host,
}

/// The pods' ranges, for `--cluster-cidr`.
pub const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:244::/56";
/// The size of conntrack's table belongs to the whole machine, and no test may change it.
pub const LEAVE_CONNTRACK: [&str; 2] = ["--conntrack-max-per-core", "0"];
/// The node's name.
pub const NODE: &str = "node-1";

impl World {
    /// Makes all of it.
    pub fn new() -> Self {
        let world = Self {
            node: Host::new(),
            pods: Host::new(),
            pod: Host::new(),
            peer: Host::new(),
            client: Host::new(),
        };
        let Self {
            node,
            pods,
            pod,
            peer,
            client,
        } = &world;
        node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        node.link("client0", client, "eth0");
        node.link("peer0", peer, "eth0");
        node.link("pods0", pods, "eth0");
        node.link("pod0", pod, "eth0");
        node.sh("ip addr add 192.0.2.1/24 dev client0
                 ip addr add 198.51.100.1/24 dev peer0
                 ip addr add 169.254.1.1/32 dev pods0 scope link
                 ip addr add 169.254.1.1/32 dev pod0 scope link
                 ip route add 10.244.2.0/24 via 198.51.100.2
                 ip route add default via 198.51.100.2");
        client.sh("ip addr add 192.0.2.2/24 dev eth0
                   ip addr add 2001:db8:2::2/64 dev eth0 nodad
                   ip route add default via 192.0.2.1
                   ip route add default via 2001:db8:2::1");
        peer.sh("ip addr add 198.51.100.2/24 dev eth0
                 ip addr add 2001:db8:51::2/64 dev eth0 nodad
                 ip route add local 10.244.2.0/24 dev lo
                 ip -6 route add local fd00:244:0:2::/64 dev lo
                 ip route add 192.0.2.0/24 via 198.51.100.1
                 ip route add 10.96.0.0/16 via 198.51.100.1
                 ip route add 10.244.1.0/24 via 198.51.100.1
                 ip route add 203.0.113.0/24 via 198.51.100.1
                 ip route add 2001:db8:2::/64 via 2001:db8:51::1
                 ip route add fd00:96::/112 via 2001:db8:51::1
                 ip route add fd00:244:0:1::/64 via 2001:db8:51::1
                 ip route add 2001:db8:113::/64 via 2001:db8:51::1");
        world.attach(
            pods,
            "pods0",
            "10.244.1.0/25",
            "fd00:244:0:1::/80",
            "10.244.1.1",
            "fd00:244:0:1::1",
        );
        world.attach(
            pod,
            "pod0",
            "10.244.1.200/32",
            "fd00:244:0:1:1::c8/128",
            "10.244.1.200",
            "fd00:244:0:1:1::c8",
        );
        world.give_ipv6();
        world
    }

    /// Gives the node its IPv6 addresses and routes, which go when IPv6 is switched off.
    pub fn give_ipv6(&self) {
        let node = &self.node;
        node.sh("ip addr add 2001:db8:2::1/64 dev client0 nodad
                 ip addr add 2001:db8:51::1/64 dev peer0 nodad
                 ip addr add fe80::1/64 dev pods0 nodad
                 ip addr add fe80::1/64 dev pod0 nodad
                 ip route add fd00:244:0:2::/64 via 2001:db8:51::2
                 ip route add default via 2001:db8:51::2");
        let ranges = [
            (&self.pods, "pods0", "fd00:244:0:1::/80"),
            (&self.pod, "pod0", "fd00:244:0:1:1::c8/128"),
        ];
        for (pods, link, range) in ranges {
            let mac = hardware_address(pods, "eth0");
            node.sh(&format!(
                "ip neigh replace fe80::2 lladdr {mac} dev {link} nud permanent
                 ip -6 route add {range} via fe80::2 dev {link} onlink"
            ));
        }
    }

    /// Routes a range of pods' addresses to a namespace, as a CNI plugin would.
    fn attach(&self, pods: &Host, link: &str, v4: &str, v6: &str, source4: &str, source6: &str) {
        let node_mac = hardware_address(&self.node, link);
        let pods_mac = hardware_address(pods, "eth0");
        pods.sh(&format!(
            "ip route add local {v4} dev lo
             ip -6 route add local {v6} dev lo
             ip addr add {source4}/32 dev eth0
             ip addr add {source6}/128 dev eth0 nodad
             ip neigh add 169.254.1.1 lladdr {node_mac} dev eth0 nud permanent
             ip neigh add fe80::1 lladdr {node_mac} dev eth0 nud permanent
             ip route add default via 169.254.1.1 dev eth0 onlink src {source4}
             ip -6 route add default via fe80::1 dev eth0 src {source6}
             sysctl -qw net.ipv4.conf.eth0.arp_ignore=0 net.ipv6.conf.eth0.proxy_ndp=1"
        ));
        // A neighbour entry stands for all addresses behind it.
        self.node.sh(&format!(
            "ip neigh add 169.254.2.2 lladdr {pods_mac} dev {link} nud permanent
             ip route add {v4} via 169.254.2.2 dev {link} onlink"
        ));
    }
}

fn hardware_address(host: &Host, link: &str) -> String {
    host.sh(&format!("ip -br link show {link}"))
        .split_whitespace()
        .nth(2)
        .expect("a hardware address")
        .to_owned()
}

/// Somebody who owns a table of our name: while it lives, the kernel lets nobody else change it.
/// The table goes when its owner does.
pub struct Usurper(std::process::Child);

impl Usurper {
    /// Takes the tables of these of nft's families.
    pub fn seize(node: &Host, families: &[&str]) -> Self {
        let mut child = node.run(|| {
            Command::new("nft")
                .arg("-i")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("nft")
        });
        for family in families {
            let command = format!(
                "add table {family} pointsman; delete table {family} pointsman; \
                 add table {family} pointsman {{ flags owner; }}\n"
            );
            let stdin = child.stdin.as_mut().expect("a pipe");
            stdin.write_all(command.as_bytes()).expect("nft");
        }
        eventually("the tables have an owner", || {
            node.ruleset().matches("flags owner").count() == families.len()
        });
        Self(child)
    }

    /// Lets go of them.
    pub fn give_up(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("an end");
    }
}

impl Drop for Usurper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The family that every test's node is to be without, if that is asked for.
pub fn without() -> Option<&'static str> {
    static WITHOUT: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var("POINTSMAN_TEST_WITHOUT").ok());
    WITHOUT.as_deref()
}

/// What every test's rules are to be programmed by, if it is not nftables: `iptables-nft` or
/// `iptables-legacy`.
pub fn by() -> Option<&'static str> {
    static BY: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("POINTSMAN_TEST_BY").ok());
    BY.as_deref()
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// What a server saw of a connection: the address that it was reached at, and the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// The source address.
    pub source: IpAddr,
}

/// A failure of a connection, told apart as a user would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Refused: an answer said so.
    Refused,
    /// Nothing came back.
    TimedOut,
    /// Something else.
    Other(std::io::ErrorKind),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            // A host's own packet that its filter rejects or drops.
            ErrorKind::PermissionDenied => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            other => Self::Other(other),
        }
    }
}

/// Servers on a host: they tell each client what they saw.
pub struct Servers {
    stop: Arc<AtomicBool>,
    addresses: Vec<SocketAddr>,
    host_threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// TCP servers on every address of a host, for each port.
    pub fn tcp(host: &Host, ports: &[u16]) -> Self {
        let mut servers = Self {
            stop: Arc::default(),
            addresses: Vec::new(),
            host_threads: Vec::new(),
        };
        for port in ports {
            for any in ["0.0.0.0", "::"] {
                let address = SocketAddr::new(any.parse().expect("an address"), *port);
                let stop = Arc::clone(&servers.stop);
                let (ready, started) = channel();
                servers.host_threads.push(host.spawn(move || {
                    // `::` takes IPv6 alone, so that both can listen.
                    let listener = listen(address);
                    listener.set_nonblocking(false).expect("a socket");
                    ready.send(()).expect("a maker");
                    for connection in listener.incoming() {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        if let Ok(connection) = connection {
                            tell(connection);
                        }
                    }
                }));
                started.recv().expect("a server");
                servers.addresses.push(address);
            }
        }
        servers
    }

    /// UDP servers on these addresses of a host.
    pub fn udp(host: &Host, addresses: &[SocketAddr]) -> Self {
        let stop: Arc<AtomicBool> = Arc::default();
        let mut host_threads = Vec::new();
        for address in addresses.iter().copied() {
            let stop = Arc::clone(&stop);
            let (ready, started) = channel();
            host_threads.push(host.spawn(move || {
                let socket = UdpSocket::bind(address).expect("an address");
                socket
                    .set_read_timeout(Some(Duration::from_millis(100)))
                    .expect("a timeout");
                ready.send(()).expect("a maker");
                let mut buffer = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((_, client)) = socket.recv_from(&mut buffer) {
                        let text = format!("{address} {}", client.ip());
                        let _ = socket.send_to(text.as_bytes(), client);
                    }
                }
            }));
            started.recv().expect("a server");
        }
        Self {
            stop,
            addresses: Vec::new(),
            host_threads,
        }
    }

    /// Stops them. TCP servers wait for one more connection, which is made here.
    pub fn stop(self, host: &Host) {
        self.stop.store(true, Ordering::Relaxed);
        for address in self.addresses {
            let ip: IpAddr = if address.is_ipv4() {
                "127.0.0.1".parse().expect("an address")
            } else {
                "::1".parse().expect("an address")
            };
            let target = SocketAddr::new(ip, address.port());
            host.run(move || {
                let _ = TcpStream::connect_timeout(&target, Duration::from_secs(1));
            });
        }
        for thread in self.host_threads {
            let _ = thread.join();
        }
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt,
        socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    setsockopt(&fd, sockopt::ReuseAddr, &true).expect("an option");
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true).expect("an option");
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).expect("a free port");
    listen(&fd, Backlog::new(1024).expect("a backlog")).expect("a listener");
    TcpListener::from(fd)
}

/// Tells a client what its connection is, and ends it.
pub fn tell(mut connection: TcpStream) {
    if let (Ok(local), Ok(peer)) = (connection.local_addr(), connection.peer_addr()) {
        let _ = connection.write_all(format!("{local} {}", peer.ip()).as_bytes());
    }
}

fn parse_seen(text: &str) -> Option<Seen> {
    let (endpoint, source) = text.split_once(' ')?;
    Some(Seen {
        endpoint: endpoint.parse().ok()?,
        source: source.parse().ok()?,
    })
}

/// How long a client waits for an answer: more than a second, since an ICMPv6 refusal reaches a
/// TCP client only on its second SYN.
pub const PATIENCE: Duration = Duration::from_millis(2500);

/// Connects by TCP from the current namespace, optionally from a given address.
pub fn connect(source: Option<IpAddr>, target: SocketAddr) -> Result<Seen, Failure> {
    connect_within(source, target, PATIENCE)
}

/// The same, with a limit.
pub fn connect_within(
    source: Option<IpAddr>,
    target: SocketAddr,
    patience: Duration,
) -> Result<Seen, Failure> {
    let mut stream = match source {
        None => TcpStream::connect_timeout(&target, patience)?,
        Some(source) => connect_from(source, target, patience)?,
    };
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    parse_seen(&text).ok_or(Failure::Other(std::io::ErrorKind::InvalidData))
}

fn connect_from(
    source: IpAddr,
    target: SocketAddr,
    patience: Duration,
) -> std::io::Result<TcpStream> {
    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, socket,
        sockopt,
    };
    use std::os::fd::{AsFd, AsRawFd};
    let family = if target.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(source, 0)),
    )?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(patience).expect("a timeout");
    if poll(&mut fds, timeout)? == 0 {
        return Err(std::io::ErrorKind::TimedOut.into());
    }
    let error = getsockopt(&fd, sockopt::SocketError)?;
    if error != 0 {
        return Err(std::io::Error::from_raw_os_error(error));
    }
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Sends one datagram from the current namespace and waits for the answer.
pub fn datagram(source: Option<IpAddr>, target: SocketAddr) -> Result<Seen, Failure> {
    let any: IpAddr = if target.is_ipv4() {
        "0.0.0.0".parse().expect("an address")
    } else {
        "::".parse().expect("an address")
    };
    let socket = UdpSocket::bind(SocketAddr::new(source.unwrap_or(any), 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(target)?;
    socket.send(b"?")?;
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer)?;
    parse_seen(&String::from_utf8_lossy(&buffer[..length]))
        .ok_or(Failure::Other(std::io::ErrorKind::InvalidData))
}

impl Host {
    /// Connects by TCP from this host.
    pub fn connect(&self, target: &str) -> Result<Seen, Failure> {
        let target = target.parse().expect("an address and a port");
        self.run(move || connect(None, target))
    }

    /// Connects by TCP from one of this host's addresses.
    pub fn connect_from(&self, source: &str, target: &str) -> Result<Seen, Failure> {
        let target = target.parse().expect("an address and a port");
        let source = source.parse().expect("an address");
        self.run(move || connect(Some(source), target))
    }

    /// Sends a datagram from this host.
    pub fn datagram(&self, target: &str) -> Result<Seen, Failure> {
        let target = target.parse().expect("an address and a port");
        self.run(move || datagram(None, target))
    }

    /// Connects many times; returns how often each endpoint was reached. All must succeed.
    pub fn connect_many(&self, target: &str, times: usize) -> BTreeMap<SocketAddr, usize> {
        let target: SocketAddr = target.parse().expect("an address and a port");
        self.run(move || {
            let mut reached = BTreeMap::new();
            for _ in 0..times {
                let seen = connect(None, target).expect("a connection");
                *reached.entry(seen.endpoint).or_default() += 1;
            }
            reached
        })
    }
}

/// A `pointsman` process on a host.
pub struct Pointsman {
    child: std::process::Child,
    log: Arc<Mutex<String>>,
    /// Who keeps the program of a family from its host, if a test is to be without it.
    _usurper: Option<Usurper>,
    directory: tempfile::TempDir,
}

/// The program under test. Cargo names it to tests; the demo, an example, finds it one directory
/// above its own executable.
pub static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    // Something that stands before it, or in its place.
    if let Some(other) = std::env::var_os("POINTSMAN_UNDER_TEST") {
        return PathBuf::from(other);
    }
    option_env!("CARGO_BIN_EXE_pointsman").map_or_else(
        || {
            let example = std::env::current_exe().expect("the path of this executable");
            example
                .ancestors()
                .nth(2)
                .expect("a directory above it")
                .join("pointsman")
        },
        PathBuf::from,
    )
});

impl Pointsman {
    /// Starts it on a host and waits until its first sync is committed.
    pub fn start(host: &Host, arguments: &[&str]) -> Self {
        Self::start_without_cidr(
            host,
            &[&["--cluster-cidr", CLUSTER_CIDR], arguments].concat(),
        )
    }

    /// The same, without telling it the pods' ranges.
    pub fn start_without_cidr(host: &Host, arguments: &[&str]) -> Self {
        let process = Self::launch(host, arguments);
        process.wait_for("synced");
        process
    }

    /// Starts it on a host and leaves it to itself.
    pub fn launch(host: &Host, arguments: &[&str]) -> Self {
        Self::launch_with(host, arguments, &[])
    }

    /// The same, with so many open files allowed and no more.
    pub fn launch_with_few_files(host: &Host, files: u32, arguments: &[&str]) -> Self {
        let script = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        Self::launch_by(&["sh", "-c", &script], host, arguments, &[])
    }

    /// Starts another version of the program instead, to which sockets are unknown.
    pub fn launch_version(binary: &str, host: &Host, arguments: &[&str]) -> Self {
        let script = r#"name=$1 value=$2; shift 4; exec "$OTHER" "$name" "$value" "$@""#;
        Self::launch_by(&["sh", "-c", script], host, arguments, &[("OTHER", binary)])
    }

    /// The same, with variables in its environment.
    pub fn launch_with(host: &Host, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::launch_by(&["env"], host, arguments, environment)
    }

    /// The same, by another program that executes it.
    pub fn launch_by(
        other: &[&str],
        host: &Host,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let other: Vec<String> = other.iter().map(ToString::to_string).collect();
        let environment: Vec<(String, String)> = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let usurper = match without() {
            Some("IPv6") => {
                host.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
                None
            }
            Some("IPv4") => Some(Usurper::seize(host, &["ip"])),
            _ => None,
        };
        let mode: &[&str] = match by() {
            None => &[],
            Some(_)
                if arguments
                    .iter()
                    .any(|given| given.starts_with("--nodeport-addresses")) =>
            {
                &[
                    "--proxy-mode",
                    "iptables",
                    "--iptables-localhost-nodeports=false",
                ]
            }
            // As in nftables mode.
            Some(_) => &[
                "--proxy-mode",
                "iptables",
                "--nodeport-addresses",
                "primary",
            ],
        };
        if by() == Some("iptables-legacy") {
            // As the kubelet says it.
            host.sh("iptables-legacy -w -t mangle -N KUBE-IPTABLES-HINT 2>/dev/null || true");
            host.sh("ip6tables-legacy -w -t mangle -N KUBE-IPTABLES-HINT 2>/dev/null || true");
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pointsman.sock");
        let mut child = host.run(move || {
            Command::new(&other[0])
                .args(&other[1..])
                .arg(BINARY.as_path())
                .args(["--hostname-override", NODE])
                .arg("--socket")
                .arg(path)
                .args(LEAVE_CONNTRACK)
                .args(mode)
                .args(&arguments)
                .envs(environment)
                .stdin(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("pointsman")
        });
        let log: Arc<Mutex<String>> = Arc::default();
        let mut stderr = child.stderr.take().expect("a pipe");
        let copy = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stderr.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]);
                copy.lock().expect("the log").push_str(&text);
            }
        });
        Self {
            child,
            log,
            directory,
            _usurper: usurper,
        }
    }

    /// Where it answers.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("pointsman.sock")
    }

    /// What it answers on its socket.
    pub fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> serde_json::Value {
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(parameters)
            .finish();
        let request =
            format!("GET {path}?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let mut stream =
            std::os::unix::net::UnixStream::connect(self.socket()).expect("the agent's socket");
        stream.write_all(request.as_bytes()).expect("a question");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// What a command says that asks it: how it ended, and what it printed.
    pub fn command(&self, command: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let socket = self.socket();
        let socket = socket.to_str().expect("a path");
        said(&[&[command, "--socket", socket], arguments].concat())
    }

    /// The first line that a command says.
    pub fn first_line(&self, command: &str, arguments: &[&str]) -> String {
        let (_, text) = self.command(command, arguments);
        text.lines().next().unwrap_or_default().to_owned()
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// Waits until its log contains a text.
    pub fn wait_for(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), || {
            self.log().contains(text)
        });
    }

    /// Waits until it has ended by itself. Returns its exit code.
    pub fn wait(mut self) -> Option<i32> {
        self.child.wait().expect("an end").code()
    }

    /// Asks it to end, and waits until it has. Returns its exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        let _ = Command::new("kill").arg(pid.to_string()).status();
        self.child.wait().expect("an end").code()
    }
}

impl Drop for Pointsman {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so; what it waits for is named when it never is.
pub fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    eventually_within(Duration::from_secs(20), what, is_so);
}

/// The same, with more patience.
pub fn eventually_within(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How a command ended that was given here, and what it printed.
pub fn said(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(BINARY.as_path())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("pointsman");
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.code(), text)
}

/// Runs pointsman on a host until it ends. Returns its exit code and what it printed.
pub fn pointsman(host: &Host, arguments: &[&str]) -> (Option<i32>, String, String) {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    host.run(move || {
        let output = Command::new(BINARY.as_path())
            .args(["--hostname-override", NODE, "--cluster-cidr", CLUSTER_CIDR])
            .args(LEAVE_CONNTRACK)
            .args(&arguments)
            .stdin(Stdio::null())
            .output()
            .expect("pointsman");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    })
}

/// An answer over HTTP.
pub struct Reply {
    pub code: u16,
    pub head: String,
    pub body: String,
}

/// Asks a server on a host; `None` if nobody listens.
pub fn get(host: &Host, address: &str, path: &str) -> Option<Reply> {
    let address: SocketAddr = address.parse().expect("an address");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = host.run(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some(Reply {
        code: head.split(' ').nth(1)?.parse().ok()?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// Where a proxy serves its metrics.
pub const METRICS: &str = "127.0.0.1:10249";

/// The value of a metric by its name and labels, as `/metrics` prints them.
pub fn metric(host: &Host, name: &str) -> f64 {
    let text = get(host, METRICS, "/metrics").expect("metrics").body;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .parse()
        .expect("a number")
}
