//! The programs that the host has for its tables: which variant, and how they are run.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use thiserror::Error;

use crate::core::model::Family;

/// Which part of the kernel holds the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `ip_tables`: each change costs the whole table.
    Legacy,
    /// nf_tables.
    Nft,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        }
    }
}

/// Why a program did not do what it was to do.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It is not there.
    #[error("{0} is not installed: iptables mode needs Debian's package iptables, or its equal")]
    Missing(String),
    /// It cannot be run.
    #[error("cannot run {program}: {error}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        error: std::io::Error,
    },
    /// Another program has held the lock for too long.
    #[error(
        "another program has held the lock of iptables for {seconds} s: {program}: {message}; `lslocks` shows who"
    )]
    Locked {
        /// Which.
        program: String,
        /// How long was waited.
        seconds: u32,
        /// What it said.
        message: String,
    },
    /// It cannot print a table.
    #[error(
        "iptables cannot read its table {table}: somebody has put rules into it with nft that iptables has no \
         words for; `nft list table {family} {table}` shows them, and they belong into a table of their own"
    )]
    Unreadable {
        /// Which.
        table: String,
        /// `ip` or `ip6`.
        family: &'static str,
    },
    /// It has refused.
    #[error("{program}: {message}")]
    Failed {
        /// Which.
        program: String,
        /// What it said, on one line.
        message: String,
        /// The line of the input that it complains about.
        line: Option<usize>,
    },
}

/// How long another program's change is waited for, in seconds.
const PATIENCE: u32 = 5;
/// How a program ends that did not get the lock (`RESOURCE_PROBLEM` in iptables' `xshared.h`).
const NO_LOCK: i32 = 4;

/// The programs for one family.
#[derive(Debug, Clone)]
pub(super) struct Tool {
    pub(super) family: Family,
    pub(super) variant: Variant,
    restore: PathBuf,
    save: PathBuf,
}

impl Tool {
    /// Finds the variant that the host uses: the one in which the kubelet, or else anybody, has rules; if
    /// nobody has, what `iptables` itself is.
    pub(super) fn find(family: Family) -> Result<Self, ToolError> {
        let [nft, legacy] = Self::variants(family);
        match (nft, legacy) {
            (Some(nft), Some(legacy)) => {
                if let Some(used) = used(&nft, &legacy) {
                    return Ok(match used {
                        Variant::Nft => nft,
                        Variant::Legacy => legacy,
                    });
                }
                // An image has no opinion.
                let default = Self::default_of(family).map_or(Variant::Nft, |tool| tool.variant);
                Ok(match default {
                    Variant::Nft => nft,
                    Variant::Legacy => legacy,
                })
            }
            (Some(only), None) | (None, Some(only)) => Ok(only),
            (None, None) => Self::default_of(family),
        }
    }

    /// The programs that say of themselves which variant they are: nft, legacy.
    pub(super) fn variants(family: Family) -> [Option<Self>; 2] {
        let command = command(family);
        let of = |variant: Variant| {
            let program = |what| find_program(&format!("{command}-{}-{what}", variant.name()));
            Some(Self {
                family,
                variant,
                restore: program("restore")?,
                save: program("save")?,
            })
        };
        [Variant::Nft, Variant::Legacy].map(of)
    }

    /// Whether the kernel has tables of this variant at all. To look into them would make them.
    pub(super) fn is_used(&self) -> bool {
        let names = match (self.variant, self.family) {
            (Variant::Nft, _) => return true,
            (Variant::Legacy, Family::V4) => "/proc/net/ip_tables_names",
            (Variant::Legacy, Family::V6) => "/proc/net/ip6_tables_names",
        };
        std::fs::read_to_string(names).is_ok_and(|names| !names.trim().is_empty())
    }

    /// What `iptables-restore` is here.
    fn default_of(family: Family) -> Result<Self, ToolError> {
        let command = command(family);
        let program = |what: &str| {
            let name = format!("{command}-{what}");
            find_program(&name).ok_or(ToolError::Missing(name))
        };
        let (restore, save) = (program("restore")?, program("save")?);
        let said = run(&restore, &["--version"], None)?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let variant = if said.contains("nf_tables") {
            Variant::Nft
        } else {
            Variant::Legacy
        };
        Ok(Self {
            family,
            variant,
            restore,
            save,
        })
    }

    /// What a table holds.
    pub(super) fn save(&self, table: &str) -> Result<String, ToolError> {
        let output = run(&self.save, &["-t", table], None)?;
        self.checked(&self.save, &output)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // It says so in a comment, and that all is well.
        if text.contains("is incompatible, use 'nft' tool") && !text.contains("\nCOMMIT") {
            return Err(ToolError::Unreadable {
                table: table.to_owned(),
                family: match self.family {
                    Family::V4 => "ip",
                    Family::V6 => "ip6",
                },
            });
        }
        Ok(text)
    }

    /// Whether a table has a rule, as it would be listed.
    pub(super) fn has(&self, table: &str, listed: &str) -> Result<bool, ToolError> {
        // `iptables` is what saves and restores, by another name.
        let name = self.restore.to_string_lossy();
        let program = PathBuf::from(name.strip_suffix("-restore").unwrap_or(&name));
        let patience = PATIENCE.to_string();
        let rule = words(listed);
        let mut arguments = vec!["-w", &patience, "-t", table, "-C"];
        arguments.extend(rule.iter().map(String::as_str));
        let output = run(&program, &arguments, None)?;
        if output.status.code() == Some(NO_LOCK) {
            self.checked(&program, &output)?;
        }
        Ok(output.status.success())
    }

    /// Changes tables: what belongs to one happens at once.
    pub(super) fn restore(&self, text: &str) -> Result<(), ToolError> {
        let patience = PATIENCE.to_string();
        let output = run(&self.restore, &["--noflush", "-w", &patience], Some(text))?;
        self.checked(&self.restore, &output)
    }

    fn checked(&self, program: &std::path::Path, output: &Output) -> Result<(), ToolError> {
        if output.status.success() {
            return Ok(());
        }
        let program = program.display().to_string();
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().map(str::trim).collect();
        let lines: Vec<&str> = lines.into_iter().filter(|line| !line.is_empty()).collect();
        let message = lines.iter().take(3).copied().collect::<Vec<_>>().join("; ");
        if output.status.code() == Some(NO_LOCK) && message.contains("lock") {
            return Err(ToolError::Locked {
                program,
                seconds: PATIENCE,
                message,
            });
        }
        let line = lines.iter().find_map(|line| line_in(line));
        Err(ToolError::Failed {
            program,
            message,
            line,
        })
    }
}

/// The number of the line that a complaint is about: `line 12 failed`, `Error occurred at line: 12`.
fn line_in(complaint: &str) -> Option<usize> {
    let (_, rest) = complaint.split_once("line")?;
    let digits = rest.trim_start_matches([':', ' ']);
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

/// A rule's arguments.
fn words(listed: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in listed.split('"').enumerate() {
        // Every other part is between quotes.
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

const fn command(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// The variant that has rules: the kubelet's, or more than the other.
fn used(nft: &Tool, legacy: &Tool) -> Option<Variant> {
    let saved = [nft, legacy].map(|tool| {
        if !tool.is_used() {
            return Some(String::new());
        }
        let output = run::<&str>(&tool.save, &[], None).ok()?;
        let works = output.status.success();
        works.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    if saved.first()?.is_none() {
        return Some(Variant::Legacy);
    }
    let saved = saved.map(Option::unwrap_or_default);
    let hinted = saved.each_ref().map(|text| {
        [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "]
            .iter()
            .any(|chain| text.contains(chain))
    });
    let rules = saved.each_ref().map(|text| {
        let ours = |line: &&str| line.starts_with("-A ");
        text.lines().filter(ours).count()
    });
    match (hinted, rules) {
        ([true, _], _) => Some(Variant::Nft),
        ([false, true], _) => Some(Variant::Legacy),
        (_, [nft, legacy]) if nft > legacy => Some(Variant::Nft),
        (_, [nft, legacy]) if nft < legacy => Some(Variant::Legacy),
        _ => None,
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Tools of the administrator are not on everybody's path.
    let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

fn run<A: AsRef<OsStr>>(
    program: &std::path::Path,
    arguments: &[A],
    input: Option<&str>,
) -> Result<Output, ToolError> {
    let cannot = |error| ToolError::Run {
        program: program.display().to_string(),
        error,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(cannot)?;
    let stdin = child.stdin.take();
    // What it says is read while it is written to: neither waits for the other for ever.
    std::thread::scope(|scope| {
        if let (Some(text), Some(mut stdin)) = (input, stdin) {
            // One that ends early says why by itself.
            scope.spawn(move || stdin.write_all(text.as_bytes()));
        }
        child.wait_with_output().map_err(cannot)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_a_tool_complains_about_is_found_in_what_both_variants_say() {
        let cases = [
            (
                "iptables-restore v1.8.9 (nf_tables): line 12: RULE_APPEND failed",
                Some(12),
            ),
            ("iptables-restore: line 7 failed", Some(7)),
            ("Error occurred at line: 31", Some(31)),
            ("iptables-legacy-restore: nothing of the kind", None),
        ];
        for (complaint, expected) in cases {
            assert_eq!(line_in(complaint), expected, "{complaint}");
        }
    }
}
