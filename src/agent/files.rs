//! Objects from files: the first load, and what changes later.

use std::path::Path;

use anyhow::{Context, Result};

use super::convert_options;
use super::inbox::Events;
use crate::config::Config;
use crate::core::model::Change;
use crate::host::file_watch::FileWatch;
use crate::source::changes::Changes;
use crate::source::manifests::{Manifests, STDIN};
use crate::source::report;

/// Editors write in several steps; a load that comes between them is only wasted.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(20);

/// The manifests at a path. Reads nothing yet.
pub(crate) fn manifests(config: &Config, path: &Path) -> Manifests {
    Manifests::new(path.to_owned(), &config.node_name).with_options(convert_options(config))
}

/// Loads for the first time: there is nothing to fall back on, so a broken file is a failure.
pub(crate) fn load_strictly(manifests: &mut Manifests) -> Result<Vec<Change>> {
    let mut loaded = manifests.load()?;
    report(loaded.warnings.drain(..));
    match loaded.broken.pop() {
        Some(error) => Err(error.into()),
        None => Ok(loaded.changes),
    }
}

/// Follows the files for ever.
pub(crate) async fn follow(mut manifests: Manifests, events: Events) -> Result<()> {
    let mut files = if manifests.path() == Path::new(STDIN) {
        None
    } else {
        match FileWatch::start(manifests.path()) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(%error, "manifests are not followed");
                None
            }
        }
    };
    // What changed between the first load and the start of the watch.
    if files.is_some() {
        load_again(&mut manifests, &events).await?;
    }
    while let Some(watch) = &mut files {
        match watch.changed().await {
            Some(()) => {
                tokio::time::sleep(SETTLE).await;
                load_again(&mut manifests, &events).await?;
            }
            None => files = None,
        }
    }
    std::future::pending().await
}

async fn load_again(manifests: &mut Manifests, events: &Events) -> Result<()> {
    match manifests.load() {
        Ok(loaded) => {
            for error in &loaded.broken {
                tracing::warn!(%error, "the file counts as it last was");
            }
            let changes = Changes {
                changes: loaded.changes,
                warnings: loaded.warnings,
                triggers: Vec::new(),
            };
            events
                .send(changes)
                .await
                .context("the sync thread has ended")?;
        }
        Err(error) => tracing::warn!(%error, "everything stays as it was"),
    }
    Ok(())
}

/// Ends when the configuration file says something else than it did (docs/semantics.md, K10).
pub(crate) async fn until_changed(file: Option<&crate::config::ConfigFile>) -> Result<()> {
    let Some(file) = file else {
        return std::future::pending().await;
    };
    let mut watch = match FileWatch::start(&file.path) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(%error, "changes of the configuration file are not noticed");
            return std::future::pending().await;
        }
    };
    loop {
        // A file that cannot be read is between two versions.
        let text = std::fs::read_to_string(&file.path);
        if text.is_ok_and(|text| text != file.text) {
            anyhow::bail!(
                "{} has changed; ending, to be started with the new configuration",
                file.path.display()
            );
        }
        if watch.changed().await.is_none() {
            return std::future::pending().await;
        }
        tokio::time::sleep(SETTLE).await;
    }
}
