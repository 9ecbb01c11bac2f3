//! Who is who: pods, this host, and sources that a load balancer's address allows.

use ipnetwork::IpNetwork;

use super::chain::Chain;
use super::chain_names;
use super::spelling;
use crate::core::model::LocalDetector;

/// The longest name of an interface (`IFNAMSIZ` in `include/uapi/linux/if.h`, without its NUL): what begins so is
/// that.
const LONGEST: usize = 15;
/// The most networks in one chain.
const AT_ONCE: usize = 32;

/// The match of pods, or of everybody else; `None` if nobody counts as a pod.
pub(super) fn pods(detector: &LocalDetector, others: bool) -> Option<String> {
    let not = if others { "! " } else { "" };
    match detector {
        LocalDetector::None => None,
        // Everybody is one.
        LocalDetector::Network(network) if network.prefix() == 0 => (!others).then(String::new),
        LocalDetector::Network(network) => {
            Some(not.to_owned() + &spelling::network("-s", *network))
        }
        LocalDetector::Interface(name) => Some(format!("{not}-i {name} ")),
        LocalDetector::InterfacePrefix(prefix) if prefix.len() >= LONGEST => {
            Some(format!("{not}-i {prefix} "))
        }
        LocalDetector::InterfacePrefix(prefix) => Some(format!("{not}-i {prefix}+ ")),
    }
}

/// What this host sends.
pub(super) const HOST: &str = "-m addrtype --src-type LOCAL ";

/// Appends rules that send these networks on, past few others however many there are. Networks are sorted.
pub(super) fn allow(
    networks: &[IpNetwork],
    then: &str,
    chain: &str,
    chains: &mut Vec<Chain>,
    rules: &mut Vec<String>,
) {
    let mut number = 0;
    allow_in(networks, then, chain, &mut number, chains, rules);
}

fn allow_in(
    networks: &[IpNetwork],
    then: &str,
    chain: &str,
    number: &mut usize,
    chains: &mut Vec<Chain>,
    rules: &mut Vec<String>,
) {
    if networks.len() <= AT_ONCE {
        rules.extend(
            networks
                .iter()
                .map(|network| spelling::network("-s", *network) + then),
        );
        return;
    }
    for part in networks.chunks(networks.len().div_ceil(AT_ONCE / 2).max(AT_ONCE / 2)) {
        let name = chain_names::part(chain, 'S', Some(*number));
        *number += 1;
        let mut inner = Vec::new();
        allow_in(part, then, chain, number, chains, &mut inner);
        let all = part.first().zip(part.last());
        if let Some(around) = all.and_then(|(first, last)| around(*first, *last)) {
            rules.push(format!("{}-j {name}", spelling::network("-s", around)));
            chains.push(Chain { name, rules: inner });
        }
    }
}

/// The smallest network that has both.
fn around(first: IpNetwork, last: IpNetwork) -> Option<IpNetwork> {
    let prefix = |bits: u32| u8::try_from(bits).unwrap_or(0);
    match (first, last) {
        (IpNetwork::V4(first), IpNetwork::V4(last)) => {
            let differ = u32::from(first.network()) ^ u32::from(last.network());
            let same = prefix(differ.leading_zeros());
            let prefix = same.min(first.prefix()).min(last.prefix());
            let network = ipnetwork::Ipv4Network::new(first.network(), prefix).ok()?;
            ipnetwork::Ipv4Network::new(network.network(), prefix)
                .ok()
                .map(IpNetwork::V4)
        }
        (IpNetwork::V6(first), IpNetwork::V6(last)) => {
            let differ = u128::from(first.network()) ^ u128::from(last.network());
            let same = prefix(differ.leading_zeros());
            let prefix = same.min(first.prefix()).min(last.prefix());
            let network = ipnetwork::Ipv6Network::new(first.network(), prefix).ok()?;
            ipnetwork::Ipv6Network::new(network.network(), prefix)
                .ok()
                .map(IpNetwork::V6)
        }
        _ => None,
    }
}
