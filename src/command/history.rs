//! What has been programmed lately.

use std::fmt::Write;

use anyhow::Result;
use tokio::runtime::Runtime;

use super::ask::ask;
use super::common_flags::{Agent, GOOD};
use super::output::microseconds;
use crate::agent::journal::Entry;

pub(super) fn run(runtime: &Runtime, agent: &Agent, most: usize) -> Result<u8> {
    let most = most.to_string();
    let parameters = [("most", most.as_str())];
    let asked = ask(&agent.socket, "/v1/history", &parameters);
    let entries: Vec<Entry> = runtime.block_on(asked)?;
    agent.output.print(&entries, |entries| text(entries))?;
    Ok(GOOD)
}

/// The newest last, as in a log. Writing to a String cannot fail.
fn text(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "nothing has been programmed yet\n".to_owned();
    }
    let mut out = String::new();
    for entry in entries {
        let what = match &entry.refused {
            None => format!(
                "{} operations in {}",
                entry.operations,
                microseconds(entry.kernel_us)
            ),
            Some(why) => format!("failed: {why}"),
        };
        let _ = writeln!(
            out,
            "{:>5}  {}  {what}, {} after {}",
            entry.number,
            entry.at,
            microseconds(entry.took_us),
            causes(entry)
        );
    }
    out
}

/// What had changed.
pub(super) fn causes(entry: &Entry) -> String {
    match (entry.causes.is_empty(), entry.more_causes) {
        (true, _) => "no change".to_owned(),
        (false, 0) => entry.causes.join(", "),
        (false, more) => format!("{} and {more} more", entry.causes.join(", ")),
    }
}
