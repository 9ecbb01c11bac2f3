//! How the node is: what the loop knows, how the watches fare, what was found on the machine; and from that,
//! what is wrong, the worst first.

use serde::{Deserialize, Serialize};

use super::journal::Entry;
use super::preflight::Finding;
use super::watches::Watch;
use crate::host::facts::Facts;

/// So many repairs in ten minutes are no accident.
const OVER_AND_OVER: usize = 3;

/// What the sync loop knows of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Loop {
    /// Services that are served.
    pub(crate) services: usize,
    /// Families that are programmed.
    pub(crate) families: Vec<String>,
    /// Families that stay as they are because the kernel refuses their rules.
    pub(crate) resting: Vec<String>,
    /// Everything has been programmed once.
    pub(crate) programmed: bool,
    /// When everything that was wanted was programmed last, RFC 3339.
    pub(crate) settled: Option<String>,
    /// For how many seconds nothing can be programmed, and why.
    pub(crate) failing: Option<(i64, String)>,
    /// Services whose last change is not in effect.
    pub(crate) pending: usize,
    /// What others have done to our tables.
    pub(crate) repairs: Repaired,
    /// Services that the kernel refuses.
    pub(crate) refused: Vec<String>,
    /// Services of which destinations are left out, being too large.
    pub(crate) too_large: Vec<String>,
    /// Claims that another Service's claim keeps from being served.
    pub(crate) contested: usize,
    /// Service ports that a Local policy leaves without endpoints here.
    pub(crate) without_local: u32,
    /// What of the cluster's objects cannot be used.
    pub(crate) warnings: Vec<String>,
    /// So many more.
    pub(crate) more_warnings: usize,
    /// The last transaction.
    pub(crate) last: Option<Entry>,
    /// Elements, or rules, that are programmed.
    pub(crate) elements: usize,
}

/// What others have done to our tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Repaired {
    /// How often they were repaired in the last ten minutes.
    pub(crate) lately: usize,
    /// Who it was last.
    pub(crate) by: Option<String>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Problem {
    /// What.
    pub(crate) what: String,
    /// What to do.
    pub(crate) todo: String,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// The node.
    pub(crate) node: String,
    /// What is programmed: nftables or iptables.
    pub(crate) mode: String,
    /// This process serves its node.
    pub(crate) healthy: bool,
    /// What is wrong, the worst first.
    pub(crate) problems: Vec<Problem>,
    /// What may be wrong.
    pub(crate) suspicions: Vec<Problem>,
    /// Where the objects come from.
    pub(crate) source: String,
    /// The watches of the API server, if there is one.
    pub(crate) watches: Vec<Watch>,
    /// What the sync loop knows; nothing before it has begun.
    #[serde(rename = "sync")]
    pub(crate) inner: Option<Loop>,
    /// What the machine is set to.
    pub(crate) machine: Facts,
}

/// What was found out, to be judged.
pub(crate) struct Found {
    pub(crate) node: String,
    pub(crate) mode: &'static str,
    pub(crate) source: String,
    pub(crate) watches: Vec<Watch>,
    pub(crate) inner: Option<Loop>,
    /// The loop runs, and has not answered.
    pub(crate) is_silent: bool,
    pub(crate) machine: Facts,
    pub(crate) findings: Vec<Finding>,
}

impl Found {
    /// Judges.
    pub(crate) fn judge(self) -> Status {
        let (problems, suspicions) = self.problems();
        Status {
            healthy: problems.is_empty(),
            problems,
            suspicions,
            node: self.node,
            mode: self.mode.to_owned(),
            source: self.source,
            watches: self.watches,
            inner: self.inner,
            machine: self.machine,
        }
    }

    fn problems(&self) -> (Vec<Problem>, Vec<Problem>) {
        let (mut certain, mut perhaps) = (Vec::new(), Vec::new());
        let problem = |what: String, todo: &str| Problem {
            what,
            todo: todo.to_owned(),
        };
        let failing: Vec<&Watch> = self
            .watches
            .iter()
            .filter(|watch| watch.why.is_some())
            .collect();
        let is_programmed =
            self.is_silent || self.inner.as_ref().is_some_and(|inner| inner.programmed);
        if self.is_silent {
            certain.push(problem(
                "the sync loop has not answered for ten seconds: it waits for the kernel, or for iptables".to_owned(),
                "what holds the lock of the rules: nft monitor, or ps for iptables",
            ));
        }
        if let Some(longest) = failing.iter().max_by_key(|watch| watch.failing_for) {
            let why = longest.why.as_deref().unwrap_or_default();
            let source = &self.source;
            let seconds = longest.failing_for;
            let what = if is_programmed {
                format!(
                    "the API server {source} has not been reached for {seconds} s ({why}): nothing new is programmed, and what is stays"
                )
            } else {
                format!(
                    "nothing is programmed yet: the API server {source} has not been reached for {seconds} s ({why})"
                )
            };
            certain.push(problem(
                what,
                "see that this node reaches it, and that its certificate and token are good",
            ));
        } else if !is_programmed {
            let missing: Vec<&str> = self
                .watches
                .iter()
                .filter(|watch| !watch.complete && watch.kind != "ServiceCIDR")
                .map(|watch| watch.kind.as_str())
                .collect();
            let what = if missing.is_empty() {
                "nothing is programmed yet".to_owned()
            } else {
                format!(
                    "nothing is programmed yet: the first lists of {} have not come",
                    missing.join(", ")
                )
            };
            certain.push(problem(what, "wait, or look at the log"));
        }
        if let Some(inner) = &self.inner {
            self.problems_of(inner, &mut certain, &mut perhaps);
        }
        for finding in &self.findings {
            let list = if finding.certain {
                &mut certain
            } else {
                &mut perhaps
            };
            list.push(problem(finding.what.clone(), &finding.todo));
        }
        (certain, perhaps)
    }

    fn problems_of(&self, inner: &Loop, certain: &mut Vec<Problem>, perhaps: &mut Vec<Problem>) {
        let problem = |what: String, todo: &str| Problem {
            what,
            todo: todo.to_owned(),
        };
        let first: Vec<String> = inner.refused.iter().take(3).cloned().collect();
        if let Some((seconds, why)) = &inner.failing {
            certain.push(problem(
                format!(
                    "nothing can be programmed for {seconds} s: {why}; what was programmed stays"
                ),
                "what the kernel says is the cause; the sync is tried again by itself",
            ));
        }
        if !inner.resting.is_empty() {
            certain.push(problem(
                format!(
                    "the kernel refuses the rules of {}: they stay as they are",
                    inner.resting.join(" and ")
                ),
                "the log has the kernel's words",
            ));
        }
        if inner.repairs.lately >= OVER_AND_OVER {
            let by = inner
                .repairs
                .by
                .as_deref()
                .unwrap_or("a process that is not named");
            certain.push(problem(
                format!(
                    "our tables were changed {} times within ten minutes, last by {by}: each time they are repaired",
                    inner.repairs.lately
                ),
                "stop what does it: a firewall that flushes all rules, or a second proxy; nft monitor shows it",
            ));
        }
        if !inner.refused.is_empty() {
            certain.push(problem(
                format!(
                    "the kernel refuses {} Services, which are left out: {}",
                    inner.refused.len(),
                    first.join(", ")
                ),
                "pointsman explain says more of each",
            ));
        }
        if !inner.too_large.is_empty() {
            let first: Vec<String> = inner.too_large.iter().take(3).cloned().collect();
            perhaps.push(problem(
                format!(
                    "{} Services are too large, and served in part: {}",
                    inner.too_large.len(),
                    first.join(", ")
                ),
                "fewer ports, addresses or endpoints",
            ));
        }
        if inner.contested > 0 {
            perhaps.push(problem(
                format!(
                    "{} claims are not served, because another Service has the address and port",
                    inner.contested
                ),
                "pointsman explain NAMESPACE/SERVICE says whose it is; the log names the Services",
            ));
        }
        if let Some(first) = inner.warnings.first() {
            let all = inner.warnings.len() + inner.more_warnings;
            perhaps.push(problem(
                format!("{all} parts of objects cannot be used, as {first}"),
                "correct the object; sync.warnings has all of them (--output json)",
            ));
        }
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
