//! How this node's proxy is.

use std::fmt::Write;

use anyhow::Result;
use tokio::runtime::Runtime;

use super::ask::ask;
use super::common_flags::{Agent, BAD, GOOD};
use super::output::microseconds;
use crate::agent::status::{Problem, Status};

pub(super) fn run(runtime: &Runtime, agent: &Agent) -> Result<u8> {
    let status: Status = runtime.block_on(ask(&agent.socket, "/v1/status", &[]))?;
    agent.output.print(&status, text)?;
    Ok(if status.healthy { GOOD } else { BAD })
}

/// All of it. Writing to a String cannot fail.
fn text(status: &Status) -> String {
    let mut out = String::new();
    let first = match (status.problems.first(), status.suspicions.first()) {
        (Some(problem), _) => problem.what.clone(),
        (None, Some(suspicion)) => format!("serving, but: {}", suspicion.what),
        (None, None) => "serving".to_owned(),
    };
    let _ = writeln!(out, "{first}");
    let problems = status.problems.iter().chain(&status.suspicions);
    for (number, Problem { what, todo }) in problems.enumerate() {
        // The first is said already.
        if number > 0 {
            let _ = writeln!(out, "  and: {what}");
        }
        let _ = writeln!(out, "  → {todo}");
    }
    out.push('\n');
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<14} {value}");
    };
    line("node", status.node.clone());
    line("mode", status.mode.clone());
    if let Some(inner) = &status.inner {
        line("families", inner.families.join(", "));
        line(
            "services",
            format!("{} ({} elements or rules)", inner.services, inner.elements),
        );
        line(
            "in effect",
            match &inner.settled {
                Some(at) if inner.pending == 0 => format!("everything, since {at}"),
                Some(at) => format!(
                    "all but {} Services; everything was last at {at}",
                    inner.pending
                ),
                None => "not everything yet".to_owned(),
            },
        );
        if let Some(last) = &inner.last {
            line(
                "last sync",
                format!(
                    "{} operations for {} after {}",
                    last.operations,
                    super::history::causes(last),
                    microseconds(last.took_us)
                ),
            );
        }
        line(
            "repairs",
            format!("{} in ten minutes", inner.repairs.lately),
        );
        line(
            "left out",
            format!(
                "{} Services refused by the kernel, {} too large, {} claims contested, {} warnings",
                inner.refused.len(),
                inner.too_large.len(),
                inner.contested,
                inner.warnings.len() + inner.more_warnings
            ),
        );
        for warning in inner.warnings.iter().take(10) {
            line("", warning.clone());
        }
    }
    line("objects", format!("from {}", status.source));
    for watch in &status.watches {
        let state = match (&watch.why, watch.complete) {
            (Some(why), _) => format!("failing for {} s: {why}", watch.failing_for),
            (None, true) => "complete".to_owned(),
            (None, false) => "not listed yet".to_owned(),
        };
        let heard = watch
            .last_heard
            .as_ref()
            .map_or_else(String::new, |at| format!(", last heard {at}"));
        line("", format!("{}: {state}{heard}", watch.kind));
    }
    let machine = &status.machine;
    let nft = machine
        .nft
        .as_ref()
        .map_or_else(String::new, |nft| format!(", nft {nft}"));
    line("machine", format!("kernel {}{nft}", machine.kernel));
    if let (Some(count), Some(max)) = (machine.conntrack_count, machine.conntrack_max) {
        line("conntrack", format!("{count} flows of {max}"));
    }
    out
}
