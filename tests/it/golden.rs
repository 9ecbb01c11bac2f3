//! Dry runs of named clusters, word for word. `UPDATE_GOLDEN=1` rewrites them, for a reader of
//! the change to judge.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{BINARY, CLUSTER_CIDR, Host, NODE};

fn clusters() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory)
        .expect("the golden files")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    found.sort();
    assert!(found.len() >= 4);
    found
}

fn dry_run(cluster: &Path) -> String {
    let output = Command::new(&*BINARY)
        .args([
            "--dry-run",
            "--hostname-override",
            NODE,
            "--cluster-cidr",
            CLUSTER_CIDR,
        ])
        .arg("--manifests")
        .arg(cluster)
        .stdin(Stdio::null())
        .output()
        .expect("pointsman");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn dry_runs_of_named_clusters_are_what_they_were() {
    for cluster in clusters() {
        let golden = cluster.with_extension("nft");
        let text = dry_run(&cluster);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &text).expect("a golden file");
            continue;
        }
        let expected = std::fs::read_to_string(&golden).expect("a golden file");
        assert!(
            text == expected,
            "{} has changed; see the difference with UPDATE_GOLDEN=1 and git diff",
            golden.display()
        );
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn nft_accepts_every_golden_file() {
    let host = Host::new();
    for cluster in clusters() {
        let (ok, text) = host.sh_with_input("nft -c -f -", &dry_run(&cluster));
        assert!(ok, "{}: {text}", cluster.display());
    }
}
