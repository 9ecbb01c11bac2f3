//! Why there is no configuration, said so that its author knows what to change.

use thiserror::Error;

use super::file::FileError;

/// A flag or a field whose value makes no sense. Nothing has been done; exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name}: {problem}")]
pub struct UsageError {
    /// The flag with its dashes, or the field's path.
    pub name: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl UsageError {
    pub(super) fn flag(flag: &str, problem: impl Into<String>) -> Self {
        Self {
            name: format!("--{flag}"),
            problem: problem.into(),
        }
    }

    pub(super) fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            name: field.into(),
            problem: problem.into(),
        }
    }
}

/// A configuration that cannot be had. Nothing has been done.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// What was asked makes no sense.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The Node has no pod ranges, and they are needed to tell pods from others.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "--detect-local-mode: NodeCIDR needs spec.podCIDRs of Node {0:?}, and there are none; check the name with --hostname-override"
)]
pub struct NoPodCidrs(pub(super) String);
