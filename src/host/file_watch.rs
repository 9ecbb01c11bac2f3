//! Notices that manifests have changed on disk.
//!
//! Only says that something moved; reading is `manifests`' business.

use std::path::{Path, PathBuf};

use notify::{RecursiveMode, Watcher};
use thiserror::Error;
use tokio::sync::mpsc;

/// The files cannot be watched. They are still served as they were read.
#[derive(Debug, Error)]
#[error(
    "cannot watch {path} for changes: {source}; raise fs.inotify.max_user_watches if it is exhausted"
)]
pub struct WatchError {
    path: PathBuf,
    source: notify::Error,
}

/// Watches a path; dropping it ends the watch.
pub struct FileWatch {
    _watcher: notify::RecommendedWatcher,
    moved: mpsc::Receiver<()>,
}

impl FileWatch {
    /// Starts to watch a file or a directory tree.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the watch.
    pub fn start(path: &Path) -> Result<Self, WatchError> {
        // One pending notice is enough: a load looks at every file.
        let (notice, moved) = mpsc::channel(1);
        let failed = |source| WatchError {
            path: path.to_owned(),
            source,
        };
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let only_read = event.as_ref().is_ok_and(|event| event.kind.is_access());
                if !only_read {
                    // A full channel already has the notice; a closed one has nobody to tell.
                    let _ = notice.try_send(());
                }
            })
            .map_err(failed)?;
        // Editors replace a file by renaming another over it, so its directory is watched.
        let directory = if path.is_dir() {
            path
        } else {
            path.parent()
                .filter(|parent| !parent.as_os_str().is_empty())
                .unwrap_or_else(|| Path::new("."))
        };
        let mode = if path.is_dir() {
            RecursiveMode::Recursive
        } else {
            RecursiveMode::NonRecursive
        };
        watcher.watch(directory, mode).map_err(failed)?;
        Ok(Self {
            _watcher: watcher,
            moved,
        })
    }

    /// Waits until something has changed. `None` when the watch has ended.
    pub async fn changed(&mut self) -> Option<()> {
        self.moved.recv().await
    }
}
