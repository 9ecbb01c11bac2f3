//! Printing: all of a text, for people or as JSON.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Prints all of a text; a reader that goes away early is no error of ours.
pub(super) fn print_whole(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    match out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(newline.as_bytes()))
        .and_then(|()| out.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people
    Text,
    /// For machines
    Json,
}

impl Format {
    /// Prints an answer.
    pub(super) fn print<T: Serialize>(
        self,
        answer: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        match self {
            Self::Text => print_whole(&printable(&text(answer))),
            Self::Json => print_whole(&serde_json::to_string_pretty(answer)?),
        }
    }
}

/// An error and its causes, each said once.
pub(super) fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !line.contains(&text) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&text);
        }
    }
    line
}

/// A time that people can read.
pub(super) fn microseconds(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..1_000_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        _ => format!("{}.{} s", micros / 1_000_000, micros % 1_000_000 / 100_000),
    }
}

/// A text that does nothing to a terminal: names in it are whoever's.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_nothing_to_a_terminal() {
        assert_eq!(
            printable("web\u{1b}[31m\u{7}\n→ µs"),
            "web\\u{1b}[31m\\u{7}\n→ µs"
        );
    }

    #[test]
    fn times_are_printed_as_people_read_them() {
        let cases = [(7, "7 µs"), (1500, "1.5 ms"), (2_340_000, "2.3 s")];
        for (micros, text) in cases {
            assert_eq!(microseconds(micros), text);
        }
    }
}
