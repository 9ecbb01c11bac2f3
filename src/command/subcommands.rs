//! What a person asks a node: as typed, and who answers it.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use super::common_flags::{Agent, Common, TROUBLE};
use super::output::in_one_line;
use super::{explain, history, show_status, top, verify};

/// The names that begin such a command line.
const NAMES: [&str; 5] = ["explain", "status", "verify", "top", "history"];

/// Asks this node's proxy.
#[derive(Debug, Parser)]
#[command(name = "pointsman", version, max_term_width = 100)]
enum Subcommand {
    /// Say what will happen to a connection, and why
    ///
    /// The first line says it; then come all endpoints, used or not and why. Exit code: 0 if there is an answer, whatever
    /// it says, 2 if nobody could be asked.
    Explain {
        /// A connection.
        #[arg(
            value_name = "[FROM] DESTINATION",
            required = true,
            num_args = 1..=2,
            help = "Who connects (an address, or `host` for this node; left out: somebody), and whom to: \
                    NAMESPACE/SERVICE[:PORT], ADDRESS:PORT, or the number of a NodePort, each with /tcp, /udp or /sctp \
                    after it if there are several"
        )]
        connection: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Say how this node's proxy is
    ///
    /// The first line says what is wrong, or that nothing is. Exit code: 0 if it does its work, 1 if not, 2 if it
    /// cannot be asked.
    Status {
        #[command(flatten)]
        agent: Agent,
    },
    /// Compare the kernel with what is wanted, and change nothing
    ///
    /// Exit code: 0 if they are the same, 1 if not, 2 if that cannot be found out.
    Verify {
        #[command(flatten)]
        common: Common,
    },
    /// Show which Services have how many new connections
    ///
    /// Counting begins with the first question, unless --service-metrics has it count always, and ends a minute after
    /// the last.
    Top {
        /// Print one measurement and end
        #[arg(long)]
        once: bool,
        /// For how long to measure, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
        interval: f64,
        /// Show endpoints too
        #[arg(long)]
        endpoints: bool,
        #[command(flatten)]
        agent: Agent,
    },
    /// List the last transactions: what had changed, how much it was, how long it took
    History {
        /// How many
        #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 20)]
        most: usize,
        #[command(flatten)]
        agent: Agent,
    },
}

/// Does what a command line asks for, if it begins with one of those names.
pub(super) fn run(arguments: &[OsString]) -> Option<ExitCode> {
    let first = arguments.get(1)?.to_str()?;
    if !NAMES.contains(&first) {
        return None;
    }
    let code = match perform(Subcommand::parse_from(arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pointsman: {}", in_one_line(&error));
            TROUBLE
        }
    };
    Some(ExitCode::from(code))
}

fn perform(asked: Subcommand) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    match asked {
        Subcommand::Explain { connection, common } => {
            let (from, to) = match connection.as_slice() {
                [from, to, ..] => (Some(from.as_str()), to.as_str()),
                [to] => (None, to.as_str()),
                [] => (None, ""),
            };
            explain::run(&runtime, &common, from, to)
        }
        Subcommand::Status { agent } => show_status::run(&runtime, &agent),
        Subcommand::Verify { common } => verify::run(&runtime, &common),
        Subcommand::Top {
            once,
            interval,
            endpoints,
            agent,
        } => top::run(&runtime, &agent, once, interval, endpoints),
        Subcommand::History { most, agent } => history::run(&runtime, &agent, most),
    }
}
