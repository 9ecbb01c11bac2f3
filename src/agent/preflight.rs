//! What on this node may keep connections from their endpoints, whatever is programmed.

use serde::{Deserialize, Serialize};

use crate::dataplane::{Dropping, Mode};
use crate::host::facts::Facts;

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    /// A name that stays, to filter by.
    pub(crate) id: String,
    /// Connections are lost for it, and not only perhaps.
    pub(crate) certain: bool,
    /// What is so.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) todo: String,
}

/// From this version on, conntrack's window is as the peers see it, and resets of answers that come late are
/// gone (`tcp_in_window` in `net/netfilter/nf_conntrack_proto_tcp.c`).
const LIBERAL_SINCE: (u32, u32) = (6, 1);
/// The oldest `nft` that lists our tables without aborting.
const OLDEST_NFT: (u32, u32, u32) = (1, 0, 6);

/// What there is to say about this machine.
#[must_use]
pub(crate) fn findings(facts: &Facts, dropping: &[Dropping], mode: Mode) -> Vec<Finding> {
    let mut all = Vec::new();
    let mut found = |id: &str, certain, what: String, todo: &str| {
        all.push(Finding {
            id: id.to_owned(),
            certain,
            what,
            todo: todo.to_owned(),
        });
    };
    if facts.ipv4_forwarding == Some(0) {
        found(
            "ip-forward-off",
            // A node of IPv6 alone does not need it.
            facts.ipv6_forwarding != Some(1),
            "IPv4 forwarding is off: connections from pods and from outside do not get to endpoints".to_owned(),
            "sysctl -w net.ipv4.ip_forward=1",
        );
    }
    if facts.ipv6_forwarding == Some(0) && facts.ipv6_disabled == Some(0) {
        found(
            "ipv6-forward-off",
            false,
            "IPv6 forwarding is off: IPv6 connections from pods and from outside do not get to endpoints".to_owned(),
            "sysctl -w net.ipv6.conf.all.forwarding=1, if the cluster has IPv6",
        );
    }
    for chain in dropping {
        let Dropping { table, chain, how } = chain;
        found(
            "forward-drop",
            false,
            format!(
                "chain {chain} of table {table} {how} what it forwards and no rule of it accepts: connections to \
                 endpoints are lost there unless one does"
            ),
            "have the firewall accept what goes to and comes from pods (firewalld: their ranges in zone trusted; ufw: \
             DEFAULT_FORWARD_POLICY; docker: iptables -P FORWARD ACCEPT)",
        );
    }
    if let (Some(count), Some(max)) = (facts.conntrack_count, facts.conntrack_max)
        && max > 0
        && count.saturating_mul(10) >= max.saturating_mul(9)
    {
        found(
            "conntrack-full",
            count >= max,
            format!(
                "conntrack has {count} flows of {max}: when it is full, new connections are dropped"
            ),
            "raise --conntrack-max-per-core, or find who opens so many (conntrack -L)",
        );
    }
    if facts.ipvs_services > 0 {
        found(
            "ipvs-leftovers",
            false,
            format!(
                "IPVS has {} virtual servers, which take connections before our rules do",
                facts.ipvs_services
            ),
            "kube-proxy --cleanup, or ipvsadm -C; --takeover says in which order",
        );
    }
    if !facts.legacy_tables.is_empty() && mode == Mode::Nftables {
        found(
            "iptables-legacy",
            false,
            format!(
                "iptables-legacy has tables here ({}): what is in them is met besides our rules, and nft does not show it",
                facts.legacy_tables.join(", ")
            ),
            "iptables-legacy-save shows them; KUBE-* chains are a kube-proxy's, and go with kube-proxy --cleanup",
        );
    }
    if facts.tcp_be_liberal == Some(0)
        && facts
            .kernel_version()
            .is_some_and(|version| version < LIBERAL_SINCE)
    {
        found(
            "tcp-be-liberal",
            false,
            format!(
                "kernel {} may take packets of masqueraded connections for invalid, and send them on untranslated: the \
                 connection is reset",
                facts.kernel
            ),
            "conntrack.tcpBeLiberal: true, or a kernel from 6.1 on",
        );
    }
    if facts.rp_filter == Some(1) {
        found(
            "rp-filter",
            false,
            "rp_filter is strict: answers that would take another interface than the packet came by are dropped, as with \
             load balancers that answer directly"
                .to_owned(),
            "sysctl -w net.ipv4.conf.all.rp_filter=2, if such connections are lost",
        );
    }
    if facts.has_bridge && facts.bridge_calls_iptables != Some(1) {
        found(
            "bridge-nf",
            false,
            "packets over a bridge do not meet our rules: a pod does not get answers from an endpoint on its own bridge"
                .to_owned(),
            "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1, if pods are on a bridge",
        );
    }
    if let Some(version) = facts.nft.as_deref()
        && mode == Mode::Nftables
        && parsed(version).is_some_and(|version| version < OLDEST_NFT)
    {
        found(
            "old-nft",
            false,
            format!("nft {version} of this node cannot list all that we program"),
            "list with nft 1.0.6 or newer",
        );
    }
    // What is certain first.
    all.sort_by_key(|finding| !finding.certain);
    all
}

fn parsed(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    let mut next = || parts.next()?.ok();
    Some((next()?, next()?, next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Facts {
        Facts {
            kernel: "6.12.9-amd64".to_owned(),
            ipv4_forwarding: Some(1),
            ipv6_forwarding: Some(1),
            ipv6_disabled: Some(0),
            rp_filter: Some(2),
            tcp_be_liberal: Some(0),
            conntrack_count: Some(10),
            conntrack_max: Some(262_144),
            nft: Some("1.1.3".to_owned()),
            ..Facts::default()
        }
    }

    fn ids(facts: &Facts) -> Vec<String> {
        let findings = findings(facts, &[], Mode::Nftables);
        findings.into_iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn of_a_node_that_is_set_up_well_there_is_nothing_to_say() {
        assert_eq!(ids(&sound()), [""; 0]);
        assert_eq!(
            ids(&Facts::default()),
            [""; 0],
            "what cannot be read is not accused"
        );
    }

    #[test]
    fn each_thing_that_loses_connections_is_found_by_a_name() {
        type Break = fn(&mut Facts);
        let cases: [(&str, Break); 10] = [
            ("ip-forward-off", |facts| facts.ipv4_forwarding = Some(0)),
            ("ipv6-forward-off", |facts| facts.ipv6_forwarding = Some(0)),
            ("conntrack-full", |facts| {
                facts.conntrack_count = Some(250_000);
            }),
            ("ipvs-leftovers", |facts| facts.ipvs_services = 3),
            ("iptables-legacy", |facts| {
                facts.legacy_tables = vec!["nat".to_owned()];
            }),
            ("tcp-be-liberal", |facts| {
                facts.kernel = "5.15.0-91-generic".to_owned();
            }),
            ("rp-filter", |facts| facts.rp_filter = Some(1)),
            ("bridge-nf", |facts| facts.has_bridge = true),
            ("bridge-nf", |facts| {
                facts.has_bridge = true;
                facts.bridge_calls_iptables = Some(0);
            }),
            ("old-nft", |facts| facts.nft = Some("0.9.8".to_owned())),
        ];
        for (id, change) in cases {
            let mut facts = sound();
            change(&mut facts);
            assert_eq!(ids(&facts), [id]);
        }
        let fine: [Break; 4] = [
            |facts| facts.conntrack_count = Some(200_000),
            |facts| facts.ipv6_disabled = Some(1),
            |facts| facts.nft = Some("1.0.6".to_owned()),
            |facts| {
                facts.has_bridge = true;
                facts.bridge_calls_iptables = Some(1);
            },
        ];
        for change in fine {
            let mut facts = sound();
            change(&mut facts);
            assert_eq!(ids(&facts), [""; 0], "{facts:?}");
        }
    }

    #[test]
    fn what_is_certain_comes_first() {
        let mut facts = sound();
        (facts.rp_filter, facts.ipv4_forwarding) = (Some(1), Some(0));
        facts.ipv6_forwarding = None;
        assert_eq!(ids(&facts), ["ip-forward-off", "rp-filter"]);
    }

    #[test]
    fn a_chain_that_drops_what_is_forwarded_is_named() {
        let chain = Dropping {
            table: "inet firewalld".to_owned(),
            chain: "filter_FORWARD".to_owned(),
            how: "rejects",
        };
        let findings = findings(&sound(), &[chain], Mode::Nftables);
        assert!(
            findings[0]
                .what
                .starts_with("chain filter_FORWARD of table inet firewalld rejects")
        );
    }
}
