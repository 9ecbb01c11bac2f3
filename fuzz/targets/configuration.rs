//! kube-proxy's configuration file, and flags. The first part, up to a line of `====`, is the file, if
//! there is anything in it; each line of the rest is a flag.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use pointsman::config::{Args, Config, write};
use pointsman::core::model::Node;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let name = format!("pointsman-fuzz-configuration-{}", std::process::id());
    std::env::temp_dir().join(name)
});

fn configured(flags: &[&str]) -> Option<Config> {
    let args = Args::try_parse_from(flags).ok()?;
    Config::from_args(&args, "host-1").ok()
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (file, flags) = text.split_once("====\n").unwrap_or((text, ""));
    let path = FILE.to_str().expect("text");
    let mut all = vec!["pointsman"];
    // What is read is this file and nothing else.
    all.extend(flags.lines().filter(|flag| {
        !(*flag == "--config" || flag.starts_with("--config=") || flag.contains("write-config"))
    }));
    if !file.is_empty() {
        fs::write(&*FILE, file).expect("a file");
        // The last one counts.
        all.extend(["--config", path]);
    }
    let Some(config) = configured(&all) else {
        return;
    };
    let _ = config.local_detector(&Node::named("node-1"));
    assert!(config.warnings.len() <= data.len() + 16);
    // What is written is read as what it was.
    write(&FILE, &config.effective).expect("a file");
    let written = fs::read_to_string(&*FILE).expect("a file");
    let again = configured(&["pointsman", "--config", path]).expect("what it was can be used");
    write(&FILE, &again.effective).expect("a file");
    assert_eq!(fs::read_to_string(&*FILE).expect("a file"), written);
});
