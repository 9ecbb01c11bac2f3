//! The command line: what the operator typed (`args`), and what that means (`config`).

mod args;
mod config;

pub use args::Args;
pub use config::{Action, Config, LogFormat, Output, UsageError};
