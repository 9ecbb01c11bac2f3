//! From the command line to what is to be done, and from how that ended to an exit code.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use super::output::in_one_line;
use super::perform::perform;
use super::subcommands;
use crate::config::{Args, Config, ConfigError, LogFormat, NoPodCidrs};

/// Something was asked that makes no sense.
const USAGE: u8 = 2;
/// Something that was asked could not be done.
const FAILURE: u8 = 1;
/// Whose place this program has where it goes by this name: that of a DaemonSet of which nothing but the image is
/// another.
const REPLACED: &str = "kube-proxy";

/// The program: reads its flags, starts logging, and does what it was asked. Returns how it ended.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().map(with_dashes).collect();
    if let Some(code) = subcommands::run(&arguments) {
        return code;
    }
    let goes_by = arguments.first().map(Path::new).and_then(Path::file_name);
    let replaces = goes_by == Some(OsStr::new(REPLACED));
    let mut args = Args::parse_from(arguments);
    if replaces {
        args.takeover.get_or_insert(true);
    }
    let hostname = nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let config = match Config::from_args(&args, &hostname) {
        Ok(config) => config,
        Err(ConfigError::Usage(error)) => {
            eprintln!("pointsman: {error}\nSee pointsman --help.");
            return ExitCode::from(USAGE);
        }
        Err(error) => {
            eprintln!("pointsman: {error}");
            return ExitCode::from(FAILURE);
        }
    };
    start_logging(config.verbosity, config.log_format);
    match perform(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pointsman: {}", in_one_line(&error));
            ExitCode::from(if error.is::<NoPodCidrs>() {
                USAGE
            } else {
                FAILURE
            })
        }
    }
}

/// kube-proxy takes `--cluster_cidr` for `--cluster-cidr`.
fn with_dashes(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text.starts_with("--") => {
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            OsString::from(name.replace('_', "-") + value)
        }
        _ => argument,
    }
}

fn start_logging(verbosity: u32, format: LogFormat) {
    let level = match verbosity {
        0..=3 => LevelFilter::INFO,
        4..=5 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // What libraries log is about their inside; what matters of it, we say ourselves.
    let libraries = if level > LevelFilter::INFO {
        level
    } else {
        LevelFilter::OFF
    };
    let filter = Targets::new()
        .with_default(libraries)
        .with_target("pointsman", level);
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    match format {
        LogFormat::Text => registry.with(lines.with_filter(filter)).init(),
        LogFormat::Json => registry.with(lines.json().with_filter(filter)).init(),
    }
}
