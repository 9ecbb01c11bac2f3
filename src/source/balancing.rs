//! How a Service wants its connections spread: from annotations to the model (docs/balancing.md).
//!
//! Pure, as `convert`, whose part this is: what cannot be used counts for nothing, with a warning.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use super::objects::Annotations;
use super::parse;
use super::report::Reporter;
use crate::core::model::Algorithm;

/// The most that an endpoint weighs.
pub const MOST_WEIGHT: u32 = u16::MAX as u32;

/// What counts for Services that say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balancing {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Whether endpoints that do not answer are passed over.
    pub ejects: bool,
    /// Only what iptables can say is to be had: chance, turns and weights.
    pub by_iptables: bool,
}

const ALGORITHM: &str = "metadata.annotations[pointsman.io/algorithm]";
const EJECTION: &str = "metadata.annotations[pointsman.io/ejection]";
const WEIGHTS: &str = "metadata.annotations[pointsman.io/weights]";
const SLICE_WEIGHT: &str = "metadata.annotations[service.cilium.io/weight]";

impl Balancing {
    /// The algorithm of a Service.
    pub(super) fn algorithm(
        self,
        annotations: &Annotations,
        report: &mut Reporter<'_>,
    ) -> Algorithm {
        let Some(text) = &annotations.algorithm else {
            return self.algorithm;
        };
        let Some(wanted) = Algorithm::named(text.trim()) else {
            report.warn(
                ALGORITHM,
                format!(
                    "{text:?} is none of {}; {} counts",
                    Algorithm::names(),
                    self.algorithm.name()
                ),
            );
            return self.algorithm;
        };
        if self.by_iptables && !is_said_by_iptables(wanted) {
            report.warn(
                ALGORITHM,
                format!(
                    "{} is not to be had in iptables mode; {} counts",
                    wanted.name(),
                    self.algorithm.name()
                ),
            );
            return self.algorithm;
        }
        wanted
    }

    /// Whether a Service's endpoints that do not answer are passed over.
    pub(super) fn ejects(self, annotations: &Annotations, report: &mut Reporter<'_>) -> bool {
        match annotations.ejection.as_deref().map(str::trim) {
            None => self.ejects,
            Some("true") => true,
            Some("false") => false,
            Some(other) => {
                report.warn(
                    EJECTION,
                    format!(
                        "{other:?} is neither true nor false; {} counts",
                        self.ejects
                    ),
                );
                self.ejects
            }
        }
    }
}

/// Whether rules of iptables can do it.
#[must_use]
pub const fn is_said_by_iptables(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::Random | Algorithm::RoundRobin)
}

/// What the endpoints of a slice weigh.
#[derive(Debug)]
pub(super) struct SliceWeights {
    all: u32,
    each: FxHashMap<IpAddr, u32>,
}

impl SliceWeights {
    pub(super) fn of(annotations: &Annotations, report: &mut Reporter<'_>) -> Self {
        let all = annotations.weight.as_deref();
        let all = all.and_then(|text| weight(text, SLICE_WEIGHT, "", report));
        let mut each = FxHashMap::default();
        let parts = annotations.weights.iter().flat_map(|text| text.split(','));
        for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
            let Some((address, number)) = part.split_once('=') else {
                report.warn(
                    WEIGHTS,
                    format!("{part:?} is not ADDRESS=WEIGHT; it is left out"),
                );
                continue;
            };
            let Some(address) = parse::address(address.trim()) else {
                let problem = format!("{:?} is not an IP address; it is left out", address.trim());
                report.warn(WEIGHTS, problem);
                continue;
            };
            let of = format!(" of {address}");
            if let Some(weight) = weight(number, WEIGHTS, &of, report) {
                each.insert(address, weight);
            }
        }
        Self {
            all: all.unwrap_or(1),
            each,
        }
    }

    pub(super) fn weight(&self, address: IpAddr) -> u32 {
        self.each.get(&address).copied().unwrap_or(self.all)
    }
}

fn weight(text: &str, field: &str, of: &str, report: &mut Reporter<'_>) -> Option<u32> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        let problem =
            format!("{text:?}{of} is not a number from 0 to {MOST_WEIGHT}; it counts for nothing");
        report.warn(field, problem);
        return None;
    }
    let number = text
        .parse::<u32>()
        .ok()
        .filter(|number| *number <= MOST_WEIGHT);
    if number.is_none() {
        report.warn(
            field,
            format!("{text}{of} is more than {MOST_WEIGHT}, which is what it counts as"),
        );
    }
    Some(number.unwrap_or(MOST_WEIGHT))
}
