//! The `pointsman` binary: reads its flags, starts logging, and hands over to the library.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use pointsman::cli::{Args, Config, LogFormat, UsageError};
use tracing::level_filters::LevelFilter;

/// Something was asked that makes no sense.
const USAGE: u8 = 2;
/// Something that was asked could not be done.
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let args = Args::parse();
    let format = match args.log_format() {
        Ok(format) => format,
        Err(error) => return usage(&error),
    };
    start_logging(args.verbosity, format);
    let hostname = nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let config = match Config::from_args(&args, &hostname) {
        Ok(config) => config,
        Err(error) => return usage(&error),
    };
    match pointsman::run::run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(error) = error.downcast_ref::<UsageError>() {
                return usage(error);
            }
            eprintln!("pointsman: {error:#}");
            ExitCode::from(FAILURE)
        }
    }
}

fn usage(error: &UsageError) -> ExitCode {
    eprintln!("pointsman: {error}\nSee pointsman --help.");
    ExitCode::from(USAGE)
}

fn start_logging(verbosity: u8, format: LogFormat) {
    let level = match verbosity {
        0..=3 => LevelFilter::INFO,
        4..=5 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
