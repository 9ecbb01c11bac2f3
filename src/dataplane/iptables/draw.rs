//! The choice of one endpoint among many, each as likely as any other.

use super::chain::{Chain, comment};
use super::chain_names;
use super::spelling;
use crate::core::ir::{Destination, Label};
use crate::core::model::{Endpoint, Endpoints, Family};

/// The most rules that a packet passes in one chain; a longer list is chosen from in steps.
const AT_ONCE: usize = 32;
/// How many parts a longer list is divided into, at each step.
const PARTS: usize = 16;

/// Makes the chains in which a connection is given an endpoint.
pub(super) struct Choice<'a> {
    pub(super) destination: Destination,
    /// Whose it is: clients are remembered for all destinations of a Service's port together.
    pub(super) label: &'a Label,
    /// Seconds for which a client comes back to its endpoint.
    pub(super) affinity: Option<u32>,
    pub(super) chains: &'a mut Vec<Chain>,
}

impl Choice<'_> {
    /// Appends the rules of a list to a chain; `letter` tells this list from others of the destination.
    pub(super) fn rules(
        &mut self,
        chain: &str,
        letter: char,
        list: &Endpoints,
        rules: &mut Vec<String>,
    ) {
        let mut all: Vec<Endpoint> = list.iter().copied().collect();
        // A list keeps the places of those that stay, so that little of a long one changes. A short one is the
        // same for whoever computes it again.
        if all.len() <= AT_ONCE {
            all.sort_unstable();
        }
        let protocol = self.destination.protocol;
        if let Some(seconds) = self.affinity {
            for endpoint in &all {
                let name = self.memory(endpoint);
                let to = dnat(*endpoint);
                rules.push(format!(
                    "-p {protocol} -m recent --update --seconds {seconds} --reap {name}{to}"
                ));
            }
        }
        let mut number = 0;
        self.choose(chain, letter, &all, &mut number, rules);
    }

    fn choose(
        &mut self,
        chain: &str,
        letter: char,
        list: &[Endpoint],
        number: &mut usize,
        rules: &mut Vec<String>,
    ) {
        let protocol = self.destination.protocol;
        if list.len() <= AT_ONCE {
            for (left, endpoint) in (1..=list.len()).rev().zip(list) {
                let mut rule = format!("-p {protocol} ");
                rule += &one_in(1, left);
                if self.affinity.is_some() {
                    rule += &format!("-m recent --set {}", self.memory(endpoint));
                }
                rules.push(rule + &dnat(*endpoint));
            }
            return;
        }
        let mut left = list.len();
        for part in list.chunks(list.len().div_ceil(PARTS).max(AT_ONCE / 2)) {
            let name = chain_names::part(chain, letter, Some(*number));
            *number += 1;
            let mut inner = Vec::new();
            self.choose(chain, letter, part, number, &mut inner);
            rules.push(format!("{}-g {name}", one_in(part.len(), left)));
            left -= part.len();
            self.chains.push(Chain { name, rules: inner });
        }
    }

    /// Where the clients of an endpoint are remembered: a file of this name in `/proc/net/xt_recent`.
    fn memory(&self, endpoint: &Endpoint) -> String {
        let text = format!(
            "{} {} {endpoint}",
            self.label.as_str(),
            self.destination.protocol
        );
        let mask = match Family::of(endpoint.address) {
            Family::V4 => "255.255.255.255",
            Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        };
        let name = chain_names::digest(&text, 24);
        format!("--name PTM-{name} --mask {mask} --rsource ")
    }
}

/// A match that some in so many pass.
fn one_in(some: usize, of: usize) -> String {
    if some >= of {
        return String::new();
    }
    // The kernel's dice have 31 bits (`net/netfilter/xt_statistic.c`): it prints what they can say.
    const SIDES: f64 = 2_147_483_648.0;
    #[allow(clippy::cast_precision_loss, reason = "no list has 2^52 endpoints")]
    let probability = (SIDES * some as f64 / of as f64).round() / SIDES;
    format!("-m statistic --mode random --probability {probability:.11} ")
}

fn dnat(endpoint: Endpoint) -> String {
    let Endpoint { address, port } = endpoint;
    let family = Family::of(address);
    let address = spelling::address(address);
    match family {
        Family::V4 => format!("-j DNAT --to-destination {address}:{port}"),
        Family::V6 => format!("-j DNAT --to-destination [{address}]:{port}"),
    }
}

/// How a destination's rule in the tree ends: with its chain, and whose it is.
pub(super) fn goes_to(chain: &str, label: &str) -> String {
    format!("{} -j {chain}", comment(label))
}
