//! Whether the kernel holds what is wanted.

use std::fmt::Write;
use std::time::Instant;

use anyhow::Result;
use tokio::runtime::Runtime;

use super::ask::ask;
use super::common_flags::{BAD, Common, GOOD};
use super::perform::{load, programmed_by};
use crate::agent;
use crate::agent::local_api::{self, Differs, Verified};
use crate::config::Config;
use crate::core::model::Owner;
use crate::dataplane::iptables::Iptables;
use crate::dataplane::nftables::Nftables;
use crate::dataplane::{Backend, Mode, Options};

pub(super) fn run(runtime: &Runtime, common: &Common) -> Result<u8> {
    let verified = match common.without_agent()? {
        Some(config) => compare(&config)?,
        None => runtime.block_on(ask(&common.agent.socket, "/v1/verify", &[]))?,
    };
    common.agent.output.print(&verified, text)?;
    Ok(if verified.differences.is_empty() {
        GOOD
    } else {
        BAD
    })
}

fn compare(config: &Config) -> Result<Verified> {
    let nftables = match config.mode {
        Mode::Nftables => true,
        Mode::Iptables => false,
        Mode::Either => Nftables::open(Options::default()).is_ok(),
    };
    if nftables {
        compare_by::<Nftables>(config)
    } else {
        compare_by::<Iptables>(config)
    }
}

fn compare_by<B: Backend>(config: &Config) -> Result<Verified> {
    let began = Instant::now();
    let config = &programmed_by(config, B::MODE);
    let desired = load(config)?;
    let mut options = agent::options(config, desired.state().node())?;
    options.families = B::open(Options::default())?.families();
    let whole = desired.engine().whole();
    let differences = local_api::verify::<B>(options, &whole)?;
    let name = |owner: Owner| Some(desired.state().name(owner.service()?)?.to_string());
    let names: Vec<Option<String>> = differences.iter().map(|one| name(one.owner)).collect();
    Ok(Verified::new(
        whole.add.len(),
        differences,
        names,
        false,
        began,
    ))
}

/// All of it. Writing to a String cannot fail.
fn text(verified: &Verified) -> String {
    let mut out = String::new();
    let all = verified.differences.len() + verified.more;
    let wanted = verified.wanted;
    let _ = match all {
        0 => writeln!(
            out,
            "the kernel holds what is wanted ({wanted} facts, {} ms)",
            verified.took_ms
        ),
        1 => writeln!(
            out,
            "the kernel differs from what is wanted ({wanted} facts) in one thing"
        ),
        _ => writeln!(
            out,
            "the kernel differs from what is wanted ({wanted} facts) in {all} things"
        ),
    };
    if verified.busy && all > 0 {
        let _ = writeln!(
            out,
            "  (something is being programmed all the time: some of it may be that)"
        );
    }
    for Differs {
        family,
        service,
        what,
    } in &verified.differences
    {
        let of = service
            .as_ref()
            .map_or_else(String::new, |service| format!("{service}: "));
        let _ = writeln!(out, "  {family} {of}{what}");
    }
    if verified.more > 0 {
        let _ = writeln!(out, "  and {} more", verified.more);
    }
    out
}
