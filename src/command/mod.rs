//! What a person can ask the program for: from the command line (`cli`) to doing it (`perform`), and what a
//! dry run prints (`dry_run`).

mod ask;
mod cli;
mod common_flags;
pub mod dry_run;
mod explain;
mod history;
mod output;
mod perform;
mod show_status;
mod subcommands;
mod top;
mod verify;

pub use cli::main;
