//! The choice of one endpoint among many, each as likely as it has places, or in turn.

use std::collections::BTreeSet;

use super::chain::{Chain, comment};
use super::chain_names;
use super::spelling;
use crate::core::ir::{Destination, Draw, Label};
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
    /// How: in turn where the list is short enough for one chain, by chance and weight otherwise.
    pub(super) draw: Draw,
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
        let mut all: Vec<(Endpoint, usize)> = list.iter().map(|endpoint| (*endpoint, 1)).collect();
        let in_turn = matches!(self.draw, Draw::Turn | Draw::WeightedTurn) && all.len() <= AT_ONCE;
        // A list keeps the places of those that stay, so that little of a long one changes. A short one is the
        // same for whoever computes it again.
        if self.draw.repeats() && !in_turn {
            all = counted(all);
        } else if all.len() <= AT_ONCE && self.draw != Draw::WeightedTurn {
            all.sort_unstable();
        }
        let protocol = self.destination.protocol;
        if let Some(seconds) = self.affinity {
            let mut known = BTreeSet::new();
            for (endpoint, _) in all.iter().filter(|(endpoint, _)| known.insert(*endpoint)) {
                let name = self.memory(endpoint);
                let to = dnat(*endpoint);
                rules.push(format!(
                    "-p {protocol} -m recent --update --seconds {seconds} --reap {name}{to}"
                ));
            }
        }
        let mut number = 0;
        let which = if in_turn { every } else { one_in };
        self.choose(chain, letter, &all, which, &mut number, rules);
    }

    fn choose(
        &mut self,
        chain: &str,
        letter: char,
        list: &[(Endpoint, usize)],
        which: fn(usize, usize) -> String,
        number: &mut usize,
        rules: &mut Vec<String>,
    ) {
        let protocol = self.destination.protocol;
        let places = |list: &[(Endpoint, usize)]| list.iter().map(|(_, places)| places).sum();
        let mut left: usize = places(list);
        if list.len() <= AT_ONCE {
            for (endpoint, places) in list {
                let mut rule = format!("-p {protocol} ");
                rule += &which(*places, left);
                if self.affinity.is_some() {
                    rule += &format!("-m recent --set {}", self.memory(endpoint));
                }
                rules.push(rule + &dnat(*endpoint));
                left -= places;
            }
            return;
        }
        for part in list.chunks(list.len().div_ceil(PARTS).max(AT_ONCE / 2)) {
            let name = chain_names::part(chain, letter, Some(*number));
            *number += 1;
            let mut inner = Vec::new();
            self.choose(chain, letter, part, which, number, &mut inner);
            rules.push(format!("{}-g {name}", which(places(part), left)));
            left -= places(part);
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

/// Endpoints that follow each other more than once, once with the number of their places.
fn counted(mut all: Vec<(Endpoint, usize)>) -> Vec<(Endpoint, usize)> {
    all.sort_unstable();
    let mut counted: Vec<(Endpoint, usize)> = Vec::new();
    for (endpoint, places) in all {
        match counted.last_mut() {
            Some((known, count)) if *known == endpoint => *count += places,
            _ => counted.push((endpoint, places)),
        }
    }
    counted
}

/// A match that the first of so many passes, and the first of the next so many.
fn every(_: usize, of: usize) -> String {
    if of <= 1 {
        return String::new();
    }
    format!("-m statistic --mode nth --every {of} --packet 0 ")
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
