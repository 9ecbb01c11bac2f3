//! A chain: its name, its rules, and a mark by which it is known again after a restart.

use sha2::{Digest, Sha256};

use super::chain_names;

/// A chain as it is to be. Rules are without `-A` and the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    pub(super) rules: Vec<String>,
}

/// What a chain's mark begins with.
const MARK: &str = "pointsman:";

impl Chain {
    /// What its rules come to, and how many they are with the mark itself.
    pub(super) fn mark(&self) -> Mark {
        let mut content = Content::default();
        self.rules.iter().for_each(|rule| content.rule(rule));
        Mark {
            digest: content.digest(),
            rules: self.rules.len() + 1,
        }
    }

    /// Appends it to what is restored: it is emptied first. The mark is the last rule, where hardly a packet
    /// comes by.
    pub(super) fn write(&self, mark: &Mark, out: &mut String) {
        for rule in &self.rules {
            line(out, &["-A ", &self.name, " ", rule]);
        }
        let comment = format!("-m comment --comment {MARK}{}", mark.digest);
        line(out, &["-A ", &self.name, " ", &comment]);
    }
}

/// What the rules of a chain come to. They are written as `iptables-save` prints them, so that both come to
/// the same.
#[derive(Debug, Default)]
pub(super) struct Content(Sha256);

impl Content {
    pub(super) fn rule(&mut self, rule: &str) {
        self.0.update(rule.as_bytes());
        self.0.update(b"\n");
    }

    pub(super) fn digest(self) -> String {
        chain_names::hexadecimal(&self.0.finalize(), 16)
    }
}

/// How a chain is known again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) digest: String,
    pub(super) rules: usize,
}

/// The digest in a rule, if it is a mark.
pub(super) fn digest_in(rule: &str) -> Option<&str> {
    let comment = rule.strip_prefix("-m comment --comment ")?;
    let digest = comment.trim_matches('"').strip_prefix(MARK)?;
    let is_digest = digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then_some(digest)
}

/// A comment, as an argument. Labels have no quotes and no spaces.
pub(super) fn comment(text: &str) -> String {
    format!("-m comment --comment \"{text}\"")
}

pub(super) fn line(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
    out.push('\n');
}
