//! Files of YAML and JSON in a directory, as they are and as they become. `====` on a line of its own
//! ends a file; the first byte of each says which file it is.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pointsman::core::model::{Node, State};
use pointsman::source::manifests::Manifests;

const NAMES: [&str; 3] = ["a.yaml", "b.json", "c.yml"];

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let name = format!("pointsman-fuzz-manifests-{}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    fs::create_dir_all(&directory).expect("a temporary directory");
    directory
});

fuzz_target!(|data: &[u8]| {
    for name in NAMES {
        let _ = fs::remove_file(DIRECTORY.join(name));
    }
    let mut manifests = Manifests::new(DIRECTORY.clone(), "node-1");
    let mut state = State::new(Node::named("node-1"));
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for part in text.split("\n====\n") {
        let Some(first) = part.chars().next() else {
            continue;
        };
        let path = DIRECTORY.join(NAMES[first as usize % NAMES.len()]);
        let text = &part[first.len_utf8()..];
        // Another file each time: a change is seen however soon it comes.
        let new = DIRECTORY.join("new");
        fs::write(&new, text).expect("a file");
        fs::rename(&new, &path).expect("a file");
        let loaded = manifests.load().expect("the directory is there");
        for change in loaded.changes {
            state.apply(change);
        }
        state.take_dirty();
        let again = manifests.load().expect("the directory is there");
        assert!(again.is_empty(), "nothing has changed: {again:?}");
    }
    for name in NAMES {
        let _ = fs::remove_file(DIRECTORY.join(name));
    }
    let loaded = manifests.load().expect("the directory is there");
    for change in loaded.changes {
        state.apply(change);
    }
    assert_eq!(state.service_count(), 0, "no file is left");
    assert_eq!(state.service_cidrs().count(), 0, "no file is left");
});
