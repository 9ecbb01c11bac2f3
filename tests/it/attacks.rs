//! Attacks by a Service's author: chains, rules, maps, transactions and garbage stay within the bounds
//! that ARCHITECTURE.md states, whatever objects say.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use pointsman::agent::reconciler::{Desired, Proxy, Synced};
use pointsman::core::compile::NodePortAddresses;
use pointsman::core::model::{Change, Family, Node};
use pointsman::dataplane::Options;
use pointsman::dataplane::nftables::Nftables;

use crate::harness::{Host, NODE};
use crate::hostile::{Attack, Tenant, attacks};

/// What the table of one family may hold, as ARCHITECTURE.md has it.
const CHAINS: usize = 512;
const RULES: usize = 1_200;
const MAPS: usize = 20;
/// Operations in one transaction, with the program's own parts.
const OPERATIONS: usize = (1 << 15) + 4_096;

type Kernel = Proxy<Nftables>;

fn start() -> Kernel {
    let backend = Nftables::connect(Options {
        families: vec![Family::V4],
        ..Options::default()
    });
    let desired = Desired::new(Node::named(NODE), NodePortAddresses::Primary);
    Proxy::start(desired, backend.expect("nftables")).expect("the kernel's state")
}

/// Chains, rules and maps of the table.
fn parts(host: &Host) -> (usize, usize, usize) {
    let listed = host.sh("nft -t list table ip pointsman");
    let mut parts = (0, 0, 0);
    let mut block = "";
    for line in listed.lines().map(str::trim) {
        match line.split(' ').next().unwrap_or_default() {
            kind @ ("chain" | "map" | "set") => {
                block = kind;
                if kind == "chain" {
                    parts.0 += 1;
                } else {
                    parts.2 += 1;
                }
            }
            "" | "}" | "type" => {}
            _ if block == "chain" => parts.1 += 1,
            _ => {}
        }
    }
    parts
}

/// What a number of syncs came to.
#[derive(Default)]
struct Sum {
    operations: usize,
    transactions: usize,
    longest: Duration,
    largest: usize,
    whole: Duration,
}

impl Sum {
    fn sync(&mut self, proxy: &mut Kernel, changes: Vec<Change>) -> Synced {
        proxy.take(changes);
        let started = Instant::now();
        let synced = proxy.sync().expect("a sync");
        self.whole += started.elapsed();
        assert_eq!(synced.left_out, 0, "nothing is refused");
        let applied = synced.applied;
        assert!(
            applied.largest <= OPERATIONS,
            "{} operations in one transaction",
            applied.largest
        );
        self.largest = self.largest.max(applied.largest);
        self.operations += applied.operations;
        self.transactions += applied.transactions;
        self.longest = self.longest.max(applied.longest);
        synced
    }
}

fn check(attack: Attack) {
    let name = attack.name;
    let host = Host::new();
    let mut proxy = host.run(|| {
        let mut proxy = start();
        proxy.sync().expect("a first sync");
        proxy
    });
    let empty = parts(&host);
    let within = |what: &str, (chains, rules, maps): (usize, usize, usize)| {
        assert!(
            chains <= CHAINS && rules <= RULES && maps == MAPS,
            "{name}, {what}: {chains} chains, {rules} rules, {maps} maps"
        );
    };
    let load = attack.load;
    let mut sum;
    (proxy, sum) = host.run(move || {
        let mut sum = Sum::default();
        sum.sync(&mut proxy, load);
        (proxy, sum)
    });
    let mut most = parts(&host);
    within("loaded", most);
    let last = attack.changes.len() - 1;
    for (round, changes) in attack.changes.into_iter().enumerate() {
        (proxy, sum) = host.run(move || {
            sum.sync(&mut proxy, changes);
            // The loop takes away what is unused each second, which is every other change.
            if round % 2 == 1 {
                proxy.tidy();
            }
            (proxy, sum)
        });
        if round % 10 == 0 && round < last {
            let now = parts(&host);
            within("changed", now);
            most = (most.0.max(now.0), most.1.max(now.1), now.2);
        }
    }
    host.run(move || {
        proxy.tidy();
        assert!(!proxy.has_garbage());
        // What is believed to be there is there.
        let operations = proxy.desired().engine().applied_entries().len();
        assert_eq!(operations, 0, "all is gone");
        assert!(start().desired().engine().applied_entries().is_empty());
    });
    assert_eq!(parts(&host), empty, "{name}: all that came is gone");
    let Sum {
        operations,
        transactions,
        longest,
        largest,
        whole,
    } = sum;
    println!(
        "{name}: at most {} chains, {} rules; {operations} operations in {transactions} transactions, at most {largest} in one, the longest {longest:?}, {whole:?} in all",
        most.0, most.1,
    );
}

/// A tenth of what the report measures in a release build.
#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn whatever_a_service_s_author_writes_leaves_bounded_chains_rules_and_transactions_and_no_garbage()
{
    for attack in attacks(10) {
        check(attack);
    }
}

#[test]
#[cfg_attr(no_root, ignore = "needs root")]
fn n_f3_clients_that_are_remembered_cost_nobody_s_changes_anything() {
    const CLIENTS: u32 = 200_000;
    let host = Host::new();
    let tenant = |index, endpoints| Tenant::new(index, endpoints);
    let load = [tenant(0, 3).affinity(3_600), tenant(1, 3).affinity(3_600)];
    let mut proxy = host.run(move || {
        let mut proxy = start();
        proxy.take(load.iter().flat_map(Tenant::objects));
        proxy.sync().expect("a sync");
        proxy
    });
    // The id under which clients of the first endpoint are remembered.
    let place = "nft get element ip pointsman affinity-ids '{ 10.96.0.1 . tcp . 1 . c000:0 }'";
    let listed = host.sh(place);
    let id = listed
        .split_once("c000:0 : ")
        .and_then(|(_, rest)| rest.split([' ', '}']).next())
        .expect("an id")
        .to_owned();
    let clients: Vec<String> = (0..CLIENTS)
        .map(|client| {
            let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + client);
            format!("{source} . 10.96.0.1 . tcp . 1 timeout 1h : {id}")
        })
        .collect();
    let text = format!(
        "add element ip pointsman affinity {{ {} }}",
        clients.join(", ")
    );
    let (ok, output) = host.sh_with_input("nft -f -", &text);
    assert!(ok, "{output}");
    for (what, changes, most) in [
        (
            "another Service loses an endpoint",
            tenant(1, 2).affinity(3_600).objects(),
            7,
        ),
        (
            "this Service loses an endpoint",
            tenant(0, 2).affinity(3_600).objects(),
            7,
        ),
        (
            "this Service gets another timeout",
            tenant(0, 2).affinity(60).objects(),
            16,
        ),
        (
            "this Service forgets its clients",
            tenant(0, 2).objects(),
            16,
        ),
        ("this Service goes", tenant(0, 2).gone(), 8),
    ] {
        let synced;
        (proxy, synced) = host.run(move || {
            proxy.take(changes);
            let synced = proxy.sync().expect("a sync");
            proxy.tidy();
            (proxy, synced)
        });
        let applied = synced.applied;
        println!(
            "{what}: {} operations, {:?}",
            applied.operations, applied.kernel
        );
        assert!(
            applied.operations <= most,
            "{what}: {} operations",
            applied.operations
        );
        assert_eq!(applied.transactions, 1, "{what}");
    }
}
