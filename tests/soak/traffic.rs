//! Traffic through Services that stay up, from everywhere, all the time.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::{Host, PATIENCE, World};

/// How long after the end of a tampering connections may fail: repairs begin at most a second after
/// another one, and a connection that is opened meanwhile asks again after one more.
pub const WINDOW: Duration = Duration::from_secs(3);
/// The pause between two short connections of a host.
const PACE: Duration = Duration::from_millis(20);
/// The pause between two messages of a connection or flow that stays.
const BEAT: Duration = Duration::from_millis(100);

/// How many datagrams a flow has before another one takes its place.
const FLOW: usize = 50;
/// A connection that takes longer has had to ask again.
const SLOW: Duration = Duration::from_millis(900);

/// What traffic has come to.
#[derive(Default)]
pub struct Tally {
    pub connections: AtomicUsize,
    pub slow: AtomicUsize,
    pub echoes: AtomicUsize,
    pub datagrams: AtomicUsize,
    pub excused: AtomicUsize,
    pub lost: Mutex<Vec<String>>,
    /// When somebody tampered with the rules, and until when that excuses a failure.
    tampered: Mutex<Vec<(Instant, Option<Instant>)>>,
}

impl Tally {
    /// Does something that excuses failures from now until [`WINDOW`] after it.
    pub fn excusing(&self, tamper: impl FnOnce()) {
        self.windows(|windows| windows.push((Instant::now(), None)));
        tamper();
        self.windows(|windows| {
            if let Some((_, end)) = windows.last_mut() {
                *end = Some(Instant::now() + WINDOW);
            }
        });
    }

    /// Whether anything between then and now is excused.
    pub fn is_excused(&self, since: Instant) -> bool {
        self.windows(|windows| {
            windows
                .iter()
                .any(|(_, end)| end.is_none_or(|end| since <= end))
        })
    }

    fn windows<T>(&self, look: impl FnOnce(&mut Vec<(Instant, Option<Instant>)>) -> T) -> T {
        look(&mut self.tampered.lock().expect("the windows"))
    }

    fn failed(&self, since: Instant, what: impl FnOnce() -> String) {
        if self.is_excused(since) {
            self.excused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let end = self.windows(|windows| windows.last().and_then(|(_, end)| *end));
        let after = end.map_or_else(
            || "without a tampering".to_owned(),
            |end| format!("begun {} ms after a window", (since - end).as_millis()),
        );
        let lost = format!("{}, {after}", what());
        self.lost.lock().expect("the losses").push(lost);
    }
}

/// What clients connect to, and who may answer.
pub struct Plan {
    pub short: Vec<SocketAddr>,
    pub long: Vec<SocketAddr>,
    pub udp: Vec<SocketAddr>,
    pub endpoints: BTreeSet<SocketAddr>,
}

/// All clients.
pub struct Traffic {
    pub tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    pub fn start(world: &World, plan: &Arc<Plan>) -> Self {
        let mut traffic = Self {
            tally: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let hosts = [
            ("pod", &world.pod),
            ("node", &world.node),
            ("client", &world.client),
        ];
        for (name, host) in hosts {
            let known = Arc::clone(plan);
            traffic.repeat(host, PACE, move |tally, turn| {
                short(tally, name, &known, turn);
            });
            for target in plan.long.iter().copied() {
                let mut open = None;
                traffic.repeat(host, BEAT, move |tally, _| {
                    long(tally, name, target, &mut open);
                });
            }
            for target in plan.udp.iter().copied() {
                let mut open = None;
                traffic.repeat(host, BEAT, move |tally, turn| {
                    datagrams(tally, name, target, turn, &mut open);
                });
            }
        }
        traffic
    }

    fn repeat(
        &mut self,
        host: &Host,
        pause: Duration,
        mut step: impl FnMut(&Tally, usize) + Send + 'static,
    ) {
        let (tally, stop) = (Arc::clone(&self.tally), Arc::clone(&self.stop));
        self.threads.push(host.spawn(move || {
            let mut turn = 0;
            while !stop.load(Ordering::Relaxed) {
                step(&tally, turn);
                turn += 1;
                std::thread::sleep(pause);
            }
        }));
    }

    pub fn stop(self) -> Arc<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client");
        }
        self.tally
    }
}

fn short(tally: &Tally, name: &str, plan: &Plan, turn: usize) {
    let target = plan.short[turn % plan.short.len()];
    let opened = Instant::now();
    let outcome = open(target);
    tally.connections.fetch_add(1, Ordering::Relaxed);
    if opened.elapsed() > SLOW {
        tally.slow.fetch_add(1, Ordering::Relaxed);
    }
    match outcome {
        Ok((_, endpoint)) if plan.endpoints.contains(&endpoint) => {}
        Ok((_, who)) => tally.failed(opened, || format!("{name} to {target}: {who} answered")),
        Err(error) => tally.failed(opened, || format!("{name} to {target}: {error}")),
    }
}

/// Opens a connection, and hears who has answered. Who opens it closes it: a server that did would
/// keep the port of a client for a minute, and refuse another connection that draws it.
fn open(target: SocketAddr) -> std::io::Result<(TcpStream, SocketAddr)> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = [0; NAME];
    stream.read_exact(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let endpoint = text.trim().parse();
    Ok((
        stream,
        endpoint.map_err(|_| std::io::ErrorKind::InvalidData)?,
    ))
}

fn long(tally: &Tally, name: &str, target: SocketAddr, open: &mut Option<TcpStream>) {
    let sent = Instant::now();
    match echo(target, open) {
        Ok(()) => {
            tally.echoes.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => {
            let what = if open.take().is_some() {
                "an open connection"
            } else {
                "a new one"
            };
            // What is done to a connection between two messages shows with the next.
            let since = sent.checked_sub(2 * BEAT).unwrap_or(sent);
            tally.failed(since, || format!("{name} to {target}, {what}: {error}"));
        }
    }
}

fn echo(target: SocketAddr, connection: &mut Option<TcpStream>) -> std::io::Result<()> {
    if connection.is_none() {
        *connection = Some(open(target)?.0);
    }
    let stream = connection.as_mut().expect("an open connection");
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])
}

fn datagrams(
    tally: &Tally,
    name: &str,
    target: SocketAddr,
    turn: usize,
    open: &mut Option<UdpSocket>,
) {
    let sent = Instant::now();
    if turn.is_multiple_of(FLOW) {
        *open = None;
    }
    let socket = open.get_or_insert_with(|| {
        let any: IpAddr = if target.is_ipv4() {
            [0; 4].into()
        } else {
            [0; 16].into()
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).expect("a socket");
        socket.connect(target).expect("a target");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket
    });
    tally.datagrams.fetch_add(1, Ordering::Relaxed);
    let answer = socket.send(b"?").and_then(|_| socket.recv(&mut [0; 128]));
    if let Err(error) = answer {
        tally.failed(sent, || format!("{name} to {target} by UDP: {error}"));
    }
}

/// How long the name is that a server gives itself.
const NAME: usize = 48;

/// A port of a host that says which address was reached, and then sends back what it gets for as long
/// as a client likes.
pub fn serve(host: &Host, port: u16) {
    let listener = host.run(move || TcpListener::bind(("::", port)).expect("a port"));
    host.spawn(move || {
        for connection in listener.incoming().flatten() {
            // A client that went away needs no answer.
            std::thread::spawn(move || answer(connection));
        }
    });
}

fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    let local = connection.local_addr()?;
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    connection.write_all(format!("{local:NAME$}").as_bytes())?;
    let mut buffer = [0; 64];
    while let length @ 1.. = connection.read(&mut buffer)? {
        connection.write_all(&buffer[..length])?;
    }
    Ok(())
}
