//! What a person can ask the program for: from the command line (`cli`) to doing it (`perform`), and what a
//! dry run prints (`dry_run`).

mod cli;
pub mod dry_run;
mod perform;

pub use cli::main;
