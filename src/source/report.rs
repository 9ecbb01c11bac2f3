//! What is said about input that could not be used.

use std::fmt::{self, Write};

/// Something in the input that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The object: kind, namespace and name.
    pub object: String,
    /// The path of the field inside the object; empty if it is about the whole object.
    pub field: String,
    /// What is wrong and what happens instead.
    pub problem: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.problem)
        } else {
            write!(f, "{}: {}: {}", self.object, self.field, self.problem)
        }
    }
}

/// Logs what could not be used, and returns the names of the fields, without their indices.
pub fn report(warnings: impl IntoIterator<Item = Warning>) -> Vec<String> {
    warnings
        .into_iter()
        .map(|warning| {
            tracing::warn!(
                object = warning.object,
                field = warning.field,
                "{}",
                warning.problem
            );
            let mut name = String::new();
            for part in warning.field.split_inclusive('[') {
                // Writing to a String cannot fail.
                let _ = write!(
                    name,
                    "{}",
                    part.trim_start_matches(|c: char| c.is_ascii_digit())
                );
            }
            name
        })
        .collect()
}

/// Warnings about one object: somebody may write millions of wrong ports.
const MOST: usize = 32;

/// Collects the warnings about one object.
pub(super) struct Reporter<'a> {
    pub(super) kind: &'static str,
    pub(super) key: &'a dyn fmt::Display,
    pub(super) warnings: &'a mut Vec<Warning>,
}

impl Reporter<'_> {
    pub(super) fn warn(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        let object = format!("{} {}", self.kind, self.key);
        let last = self.warnings.iter().rev().take(MOST);
        let told = last.take_while(|last| last.object == object).count();
        let (field, problem) = match MOST - told {
            0 => return,
            1 => (String::new(), "has more that cannot be used".to_owned()),
            _ => (field.into(), problem.into()),
        };
        self.warnings.push(Warning {
            object,
            field,
            problem,
        });
    }
}
