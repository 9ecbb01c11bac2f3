//! Which files there are below a path, and whether they are what they were.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file that is larger is no manifest.
const MOST_BYTES: u64 = 512 << 20;

/// What tells an unchanged file from a changed one: which file it is, and when anything of it has
/// changed. The time of a change of content can be set back, and that of the inode cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    length: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            length: metadata.len(),
        }
    }
}

/// What there is below a path.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) files: BTreeMap<PathBuf, Stamp>,
    /// Paths with the name of a manifest that are no files.
    pub(super) irregular: BTreeSet<PathBuf>,
}

impl Tree {
    /// Lists a file, or what is in a directory.
    pub(super) fn list(path: &Path) -> io::Result<Self> {
        let mut tree = Self::default();
        let metadata = fs::metadata(path)?;
        if metadata.is_dir() {
            tree.walk(path, &metadata, &mut BTreeSet::new())?;
        } else {
            tree.files.insert(path.to_owned(), Stamp::of(&metadata));
        }
        Ok(tree)
    }

    fn walk(
        &mut self,
        directory: &Path,
        metadata: &Metadata,
        seen: &mut BTreeSet<(u64, u64)>,
    ) -> io::Result<()> {
        // A link may lead back up, or to where another one leads.
        if !seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            // A ConfigMap volume keeps its older versions in directories that start with "..".
            let hidden = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if hidden {
                continue;
            }
            // Follows links; one that leads nowhere is a file that is being replaced.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if metadata.is_dir() {
                self.walk(&path, &metadata, seen)?;
                continue;
            }
            let manifest = path
                .extension()
                .is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
            if !manifest {
                continue;
            }
            if metadata.is_file() {
                self.files.insert(path, Stamp::of(&metadata));
            } else {
                self.irregular.insert(path);
            }
        }
        Ok(())
    }
}

/// Whether a path is read once, like standard input, and cannot change.
pub(super) fn is_stream(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| {
        let kind = metadata.file_type();
        kind.is_fifo() || kind.is_char_device() || kind.is_socket()
    })
}

/// The text of a file, which is not waited for.
pub(super) fn read_file(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    read_text(file)
}

/// The text that comes from a path, however long that takes.
pub(super) fn read_stream(path: &Path) -> io::Result<String> {
    read_text(File::open(path)?)
}

/// A text, if it is not too long.
pub(super) fn read_text(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(io::Error::other("it has more than 512 MiB"));
    }
    Ok(text)
}
