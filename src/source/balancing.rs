//! How a Service wants its connections spread: from annotations to the model (docs/balancing.md).
//!
//! Pure, as `convert`, whose part this is: what cannot be used counts for nothing, with a warning.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use super::objects::{
    ALGORITHM_ANNOTATION, EJECTION_ANNOTATION, Entries, WEIGHT_ANNOTATION, WEIGHTS_ANNOTATION,
};
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
    pub(super) fn algorithm(self, annotations: &Entries, report: &mut Reporter<'_>) -> Algorithm {
        let Some(text) = annotations.text(ALGORITHM_ANNOTATION) else {
            return self.algorithm;
        };
        let Some(wanted) = Algorithm::named(text.trim()) else {
            report.warn(
                ALGORITHM,
                format!(
                    "{} is none of {}; {} counts",
                    short(text),
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
    pub(super) fn ejects(self, annotations: &Entries, report: &mut Reporter<'_>) -> bool {
        let text = annotations.text(EJECTION_ANNOTATION);
        match text.map(str::trim) {
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
    pub(super) fn of(annotations: &Entries, report: &mut Reporter<'_>) -> Self {
        let all = annotations.text(WEIGHT_ANNOTATION).map(weight);
        let all = all.and_then(|read| {
            read.or_else(|(counts_as, problem)| {
                report.warn(SLICE_WEIGHT, problem);
                counts_as.ok_or(())
            })
            .ok()
        });
        let mut each = FxHashMap::default();
        let mut problems = Problems::default();
        let text = annotations.text(WEIGHTS_ANNOTATION);
        let parts = text.iter().flat_map(|text| text.split(','));
        for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
            let Some((address, number)) = part.split_once('=') else {
                problems.add(report, || format!("{} is not ADDRESS=WEIGHT", short(part)));
                continue;
            };
            let Some(address) = parse::address(address.trim()) else {
                problems.add(report, || {
                    format!("{} is not an IP address", short(address))
                });
                continue;
            };
            match weight(number) {
                Ok(weight) => {
                    each.insert(address, weight);
                }
                Err((counts_as, problem)) => {
                    problems.add(report, || format!("{problem}, of {address}"));
                    each.extend(counts_as.map(|weight| (address, weight)));
                }
            }
        }
        problems.end(report);
        Self {
            all: all.unwrap_or(1),
            each,
        }
    }

    pub(super) fn weight(&self, address: IpAddr) -> u32 {
        self.each.get(&address).copied().unwrap_or(self.all)
    }
}

/// A weight, or what is wrong with it and what it counts as, if anything.
fn weight(text: &str) -> Result<u32, (Option<u32>, String)> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        let problem = format!(
            "{} is not a number from 0 to {MOST_WEIGHT}; it counts for nothing",
            short(text)
        );
        return Err((None, problem));
    }
    match text.parse::<u32>() {
        Ok(number) if number <= MOST_WEIGHT => Ok(number),
        _ => {
            let problem = format!(
                "{} is more than {MOST_WEIGHT}, which is what it counts as",
                short(text)
            );
            Err((Some(MOST_WEIGHT), problem))
        }
    }
}

/// What somebody wrote, as much of it as says what it is.
fn short(text: &str) -> String {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// What is wrong with the parts of one annotation: the first few, and how many more.
#[derive(Default)]
struct Problems(usize);

impl Problems {
    const TOLD: usize = 3;

    fn add(&mut self, report: &mut Reporter<'_>, problem: impl FnOnce() -> String) {
        self.0 += 1;
        if self.0 <= Self::TOLD {
            report.warn(WEIGHTS, problem());
        }
    }

    fn end(self, report: &mut Reporter<'_>) {
        if let Some(more) = self.0.checked_sub(Self::TOLD).filter(|more| *more > 0) {
            report.warn(WEIGHTS, format!("{more} more parts cannot be used"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned<T>(read: impl FnOnce(&mut Reporter<'_>) -> T) -> (T, Vec<String>) {
        let mut warnings = Vec::new();
        let value = read(&mut Reporter {
            kind: "Service",
            key: &"shop/web",
            warnings: &mut warnings,
        });
        (value, warnings.iter().map(ToString::to_string).collect())
    }

    fn annotations(name: &str, value: &str) -> Entries {
        annotated(&serde_json::json!({name: value}))
    }

    fn annotated(annotations: &serde_json::Value) -> Entries {
        let json = serde_json::json!({"annotations": annotations});
        let metadata: super::super::objects::Metadata = serde_json::from_value(json).unwrap();
        metadata.annotations
    }

    #[test]
    fn p1_an_algorithm_that_is_not_to_be_had_is_said_and_the_default_counts() {
        let cases = [
            ("rr", false, Algorithm::RoundRobin, None),
            (" wlc ", false, Algorithm::LeastConnection, None),
            (
                "RR",
                false,
                Algorithm::Maglev,
                Some("\"RR\" is none of random, rr,"),
            ),
            ("", false, Algorithm::Maglev, Some("\"\" is none of")),
            ("wrr", true, Algorithm::RoundRobin, None),
            (
                "lc",
                true,
                Algorithm::Maglev,
                Some("lc is not to be had in iptables mode; maglev counts"),
            ),
        ];
        for (text, by_iptables, expected, problem) in cases {
            let balancing = Balancing {
                algorithm: Algorithm::Maglev,
                ejects: false,
                by_iptables,
            };
            let annotations = annotations("pointsman.io/algorithm", text);
            let (algorithm, warnings) = warned(|report| balancing.algorithm(&annotations, report));
            assert_eq!(algorithm, expected, "{text:?}");
            let prefix = "Service shop/web: metadata.annotations[pointsman.io/algorithm]: ";
            match problem {
                None => assert!(warnings.is_empty(), "{warnings:?}"),
                Some(problem) => {
                    assert!(
                        warnings[0].starts_with(&format!("{prefix}{problem}")),
                        "{warnings:?}"
                    );
                }
            }
        }
        let nothing = Entries::default();
        let (algorithm, _) = warned(|report| Balancing::default().algorithm(&nothing, report));
        assert_eq!(algorithm, Algorithm::Random);
    }

    #[test]
    fn p7_ejection_is_on_or_off_and_nothing_else() {
        for (text, default, expected, warns) in [
            ("true", false, true, 0),
            ("false", true, false, 0),
            ("yes", true, true, 1),
            ("1", false, false, 1),
        ] {
            let balancing = Balancing {
                ejects: default,
                ..Balancing::default()
            };
            let annotations = annotations("pointsman.io/ejection", text);
            let (ejects, warnings) = warned(|report| balancing.ejects(&annotations, report));
            assert_eq!(
                (ejects, warnings.len()),
                (expected, warns),
                "{text:?}: {warnings:?}"
            );
        }
    }

    #[test]
    fn p5_weights_that_are_none_count_for_nothing_and_the_rest_does() {
        let cases: [(&str, u32, usize); 8] = [
            ("5", 5, 0),
            ("0", 0, 0),
            ("-1", 1, 1),
            ("1e3", 1, 1),
            ("", 1, 1),
            ("1000000000", MOST_WEIGHT, 1),
            ("99999999999999999999", MOST_WEIGHT, 1),
            ("many", 1, 1),
        ];
        let address = |text: &str| text.parse().unwrap();
        for (text, expected, warns) in cases {
            let of_slice = annotations("service.cilium.io/weight", text);
            let (weights, warnings) = warned(|report| SliceWeights::of(&of_slice, report));
            assert_eq!(weights.weight(address("10.0.0.1")), expected, "{text:?}");
            assert_eq!(warnings.len(), warns, "{text:?}: {warnings:?}");
        }
        let text = "10.0.0.1=7,, 10.0.0.2 = 0,fd00::1=3, 10.0.0.300=4, 10.0.0.3, 10.0.0.4=x";
        let of_each = annotated(&serde_json::json!({
            "pointsman.io/weights": text, "service.cilium.io/weight": "2",
        }));
        let (weights, warnings) = warned(|report| SliceWeights::of(&of_each, report));
        let found = ["10.0.0.1", "10.0.0.2", "fd00::1", "10.0.0.4", "10.0.0.5"]
            .map(|text| weights.weight(address(text)));
        assert_eq!(found, [7, 0, 3, 2, 2]);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        let flood = annotations("pointsman.io/weights", &"x,".repeat(100_000));
        let (_, warnings) = warned(|report| SliceWeights::of(&flood, report));
        assert_eq!(warnings.len(), 4);
        assert!(warnings[3].contains("99997 more"), "{warnings:?}");
        let long = annotations("service.cilium.io/weight", &"9".repeat(100_000));
        let (_, warnings) = warned(|report| SliceWeights::of(&long, report));
        assert!(warnings[0].len() < 300, "{}", warnings[0].len());
    }
}
