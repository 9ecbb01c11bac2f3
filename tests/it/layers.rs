//! The layers of `ARCHITECTURE.md`, checked on the imports: who may know whom, and what the
//! core may not do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A layer and those that it may use.
const LAYERS: [(&str, &[&str]); 22] = [
    ("model", &[]),
    ("netlink", &["model"]),
    ("networks", &["model"]),
    ("ir", &["model"]),
    ("select", &["model"]),
    ("compile", &["model", "networks", "ir", "select"]),
    ("incremental", &["model", "ir", "select", "compile"]),
    ("diff", &["model", "ir", "select", "compile"]),
    ("source", &["model", "networks"]),
    ("backend", &["model", "networks", "ir", "netlink"]),
    ("conntrack", &["model", "ir", "diff", "netlink"]),
    ("http", &[]),
    ("health", &["model"]),
    ("metrics", &["model"]),
    ("health_checks", &["model", "compile", "http"]),
    ("admin", &["http", "health", "metrics"]),
    ("events", &["model"]),
    ("sysctl", &[]),
    (
        "proxy",
        &["model", "ir", "compile", "incremental", "diff", "backend"],
    ),
    ("dry_run", &["model", "ir", "backend", "proxy"]),
    (
        "cli",
        &["model", "networks", "compile", "backend", "sysctl"],
    ),
    (
        "run",
        &[
            "model",
            "compile",
            "source",
            "backend",
            "conntrack",
            "health",
            "metrics",
            "health_checks",
            "admin",
            "events",
            "proxy",
            "dry_run",
            "cli",
        ],
    ),
];

/// Layers that do no I/O, read no clock and start nothing.
const PURE: [&str; 7] = [
    "model",
    "networks",
    "ir",
    "select",
    "compile",
    "incremental",
    "diff",
];

/// What a pure layer must not mention.
const IMPURE: [&str; 14] = [
    "std::fs",
    "std::io",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "std::thread",
    "std::time",
    "std::env",
    "tokio",
    "nix::",
    "mnl::",
    "nftnl",
    "tracing",
    "println!",
];

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The sources by layer, without tests.
fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    files(&root)
        .into_iter()
        .filter_map(|path| {
            let relative = path.strip_prefix(&root).expect("a source").to_owned();
            let name = relative.file_stem()?.to_str()?.to_owned();
            if name == "tests" || name.ends_with("_tests") || name == "lib" || name == "main" {
                return None;
            }
            let layer = relative.components().next()?.as_os_str().to_str()?;
            let layer = layer.trim_end_matches(".rs").to_owned();
            let text = std::fs::read_to_string(&path).expect("a source");
            let code = text.split("#[cfg(test)]").next()?.to_owned();
            Some((layer, relative, code))
        })
        .collect()
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

/// The layers that a source mentions as `crate::layer`.
fn used(text: &str) -> BTreeSet<String> {
    code_lines(text)
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect::<String>()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn layers_use_only_those_below_them() {
    for (layer, file, text) in sources() {
        let (_, allowed) = LAYERS
            .iter()
            .find(|(name, _)| *name == layer)
            .unwrap_or_else(|| panic!("{} is in no layer", file.display()));
        for other in used(&text) {
            assert!(
                other == layer || allowed.contains(&other.as_str()),
                "{} uses {other}, which {layer} may not",
                file.display()
            );
        }
    }
}

#[test]
fn layers_have_no_cycles() {
    for (index, (layer, uses)) in LAYERS.iter().enumerate() {
        for other in *uses {
            let below = LAYERS[..index].iter().any(|(name, _)| name == other);
            assert!(below, "{layer} uses {other}, which is not below it");
        }
    }
}

#[test]
fn the_core_does_no_io_and_reads_no_clock() {
    for (layer, file, text) in sources() {
        if !PURE.contains(&layer.as_str()) {
            continue;
        }
        for line in code_lines(&text) {
            for word in IMPURE {
                assert!(
                    !line.contains(word),
                    "{} mentions {word}: {line}",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn unsafe_code_is_in_rooms_of_its_own() {
    for (_, file, text) in sources() {
        let is_ffi = file.ends_with("ffi.rs");
        let mentions = code_lines(&text).any(|line| line.contains("unsafe "));
        assert!(is_ffi || !mentions, "{} has unsafe code", file.display());
    }
}

#[test]
fn kubernetes_objects_stop_at_the_source() {
    for (layer, file, text) in sources() {
        // Events are objects that we write.
        if layer == "source" || layer == "events" {
            continue;
        }
        for word in ["objects::", "k8s_openapi"] {
            let mentions = code_lines(&text)
                .any(|line| line.contains(word) && !file.starts_with("backend/nftables"));
            assert!(!mentions, "{} mentions {word}", file.display());
        }
    }
}
