//! Beside a program that writes nftables all the time, as some firewalls and CNI plugins do: every
//! listing of the kernel's is disturbed, and nothing waits for a quiet moment that never comes.

use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};
use serde_json::Value;

use crate::harness::{Host, Pointsman, eventually, pointsman};
use crate::objects::{Manifests, service, slice};

/// So many that each listing takes the kernel many pieces.
const SERVICES: usize = 3_000;

fn services() -> Vec<Value> {
    let address =
        |first: &str, index: usize| format!("{first}.{}.{}", index / 250, index % 250 + 1);
    (0..SERVICES)
        .flat_map(|index| {
            let name = format!("svc-{index}");
            [
                service(&name, &[&address("10.96", index)]).0,
                slice(&name, "TCP", &[&address("10.244", index)]),
            ]
        })
        .collect()
}

/// The other program: in a table of its own a chain comes and another one goes, thousands of times a
/// second.
struct Writer {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(host: &Host) -> Self {
        host.sh("nft add table ip firewall");
        let (stop, commits) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (told, counted) = (Arc::clone(&stop), Arc::clone(&commits));
        let thread = host.spawn(move || {
            let netlink = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::empty(),
                SockProtocol::NetlinkNetFilter,
            )
            .expect("a netlink socket");
            let comes = batch(NFT_MSG_NEWCHAIN, NLM_F_CREATE);
            let goes = batch(NFT_MSG_DELCHAIN, 0);
            while !told.load(Ordering::Relaxed) {
                for batch in [&comes, &goes] {
                    let kernel = NetlinkAddr::new(0, 0);
                    sendto(netlink.as_raw_fd(), batch, &kernel, MsgFlags::empty())
                        .expect("the kernel takes it");
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self {
            stop,
            commits,
            thread: Some(thread),
        }
    }

    fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// `include/uapi/linux/netfilter/nfnetlink.h`, `nf_tables.h`, `netlink.h`.
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_DELCHAIN: u16 = 5;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_CREATE: u16 = 0x400;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;

/// A transaction with one message about the chain.
fn batch(kind: u16, flags: u16) -> Vec<u8> {
    let mut attributes = Vec::new();
    for (kind, text) in [(NFTA_CHAIN_TABLE, "firewall"), (NFTA_CHAIN_NAME, "busy")] {
        let length = 4 + text.len() + 1;
        attributes.extend(u16::try_from(length).expect("short").to_ne_bytes());
        attributes.extend(kind.to_ne_bytes());
        attributes.extend(text.bytes());
        attributes.resize(
            attributes.len().next_multiple_of(4) + usize::from(text.len() % 4 == 0) * 4,
            0,
        );
    }
    let mut bytes = message(NFNL_MSG_BATCH_BEGIN, 0, 0, &[]);
    bytes.extend(message(
        NFNL_SUBSYS_NFTABLES << 8 | kind,
        flags,
        2,
        &attributes,
    ));
    bytes.extend(message(NFNL_MSG_BATCH_END, 0, 0, &[]));
    bytes
}

fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).expect("short");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(NFNL_SUBSYS_NFTABLES.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn another_program_that_writes_all_the_time_keeps_neither_a_start_nor_a_repair_from_ending() {
    let manifests = Manifests::new(services());
    let host = Host::new();
    let (code, _, log) = pointsman(&host, &["--manifests", manifests.path(), "--once"]);
    assert_eq!(code, Some(0), "{log}");
    let wanted = host.ruleset();

    let writer = Writer::start(&host);
    eventually("it writes", || writer.commits() > 1_000);
    let before = writer.commits();
    let process = Pointsman::start(&host, &["--manifests", manifests.path()]);
    process.wait_for("another program changed nftables while our tables were read");
    process.wait_for("synced");
    // What a start finds is what is there: there is nothing to send.
    assert!(process.log().contains("operations=0"), "{}", process.log());

    // It says so once it hears of every change.
    process.wait_for("another program has changed nftables meanwhile");
    host.sh("nft delete element ip pointsman endpoints '{ 10.96.0.1 . tcp . 80 . c000:0 }'");
    process.wait_for("somebody else has changed our tables");
    // nft would wait for a quiet moment, for ever.
    process.wait_for("transactions=1 ");
    println!("{} transactions meanwhile", writer.commits() - before);
    drop(writer);
    assert_eq!(process.terminate(), Some(0));
    host.sh("nft delete table ip firewall");
    assert_eq!(lines(&host.ruleset()), lines(&wanted));
}

/// Lines in an order of their own: elements come in the kernel's.
fn lines(ruleset: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = ruleset
        .lines()
        .map(|line| line.trim().trim_end_matches(','))
        .collect();
    lines.sort_unstable();
    lines
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn whoever_flushes_the_ruleset_while_it_starts_takes_nothing_away_for_good() {
    let manifests = Manifests::new(services());
    for round in 0..12_u64 {
        let node = Host::new();
        node.sh("ip addr add 192.0.2.1/24 dev lo");
        // The start takes some 150 ms: before, while and after it reads, programs and begins to watch.
        let arguments = ["--manifests", manifests.path()];
        // It finds something to read.
        if round % 2 == 0 {
            pointsman(&node, &[&arguments[..], &["--once"]].concat());
        }
        let flusher = node.spawn(move || {
            std::thread::sleep(Duration::from_millis(15 * round));
            let flushed = Command::new("nft").args(["flush", "ruleset"]).status();
            assert!(flushed.expect("nft").success());
        });
        let process = Pointsman::start(&node, &arguments);
        flusher.join().expect("a flush");
        eventually("the rules are there", || {
            node.ruleset().matches("svc-").count() == SERVICES
        });
        drop(process);
    }
}
