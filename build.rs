//! Asks whether this user can make network namespaces, and whether it is root outside of any, so that
//! tests which need the one or the other are ignored where that is not so (`cfg(no_namespaces)`,
//! `cfg(no_root)`). Nothing else depends on it.

use std::process::{Command, Stdio};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(no_namespaces, no_root)");
    println!("cargo::rerun-if-changed=build.rs");
    // What was found before counts until then: a setting of the kernel that changes is not noticed.
    println!("cargo::rerun-if-env-changed=USER");
    let can = |arguments: &[&str]| {
        let tried = Command::new("unshare")
            .args(arguments)
            .arg("true")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        tried.is_ok_and(|status| status.success())
    };
    if !can(&["--net"]) {
        println!("cargo::rustc-cfg=no_root");
    }
    if !can(&["--net"]) && !can(&["--user", "--map-root-user", "--net"]) {
        println!("cargo::rustc-cfg=no_namespaces");
    }
}
