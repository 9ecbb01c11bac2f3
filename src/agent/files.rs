//! Objects from files: the first load, and what changes later.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::convert_options;
use super::inbox::Events;
use crate::config::{Config, ConfigFile, Origin};
use crate::host::file_watch::FileWatch;
use crate::source::changes::{Cause, Changes};
use crate::source::cluster::{connect, identity_files};
use crate::source::manifests::Manifests;
use crate::source::report;

/// Editors write in several steps; a load that comes between them is only wasted.
const SETTLE: Duration = Duration::from_millis(20);
/// How often files are looked at without a notice.
const LOOK: Duration = Duration::from_secs(5);

/// The manifests at a path. Reads nothing yet.
pub(crate) fn manifests(config: &Config, path: &Path) -> Manifests {
    Manifests::new(path.to_owned(), &config.node_name).with_options(convert_options(config))
}

/// Loads for the first time: there is nothing to fall back on, so a broken file is a failure.
pub(crate) fn load_strictly(manifests: &mut Manifests) -> Result<Changes> {
    let loaded = manifests.load()?;
    report(loaded.warnings.iter().cloned());
    for error in loaded.broken {
        if !error.is_harmless() {
            return Err(error.into());
        }
        tracing::warn!("{error}");
    }
    Ok(Changes {
        changes: loaded.changes,
        warnings: loaded.warnings,
        ..Changes::default()
    })
}

/// The same where others have to be heard meanwhile: signals, and whoever asks for health.
pub(crate) async fn load_strictly_aside(mut manifests: Manifests) -> Result<(Manifests, Changes)> {
    aside(move || {
        let changes = load_strictly(&mut manifests)?;
        Ok((manifests, changes))
    })
    .await?
}

async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.context("the thread that reads manifests has ended")
}

/// Follows the files for ever.
pub(crate) async fn follow(mut manifests: Manifests, events: Events) -> Result<()> {
    if manifests.is_stream() {
        return std::future::pending().await;
    }
    let mut watch = match FileWatch::start(manifests.path()) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "changes of manifests are noticed late");
            None
        }
    };
    // What changed between the first load and the start of the watch.
    manifests = load_again(manifests, &events).await?;
    loop {
        let moved = async {
            match &mut watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        match tokio::time::timeout(LOOK, moved).await {
            Ok(Some(())) => tokio::time::sleep(SETTLE).await,
            Ok(None) => watch = None,
            // A link above them may lead elsewhere now, of which nobody tells.
            Err(_) => {}
        }
        manifests = load_again(manifests, &events).await?;
    }
}

async fn load_again(mut manifests: Manifests, events: &Events) -> Result<Manifests> {
    let (manifests, loaded) = aside(move || {
        let loaded = manifests.load();
        (manifests, loaded)
    })
    .await?;
    match loaded {
        Ok(loaded) if loaded.is_empty() => {}
        Ok(loaded) => {
            for error in &loaded.broken {
                tracing::warn!(%error, "the file counts as it last was");
            }
            let changes = Changes {
                causes: loaded.changes.iter().filter_map(Cause::of).collect(),
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
    Ok(manifests)
}

/// What ends this process when it changes: the configuration file, the kubeconfig, and the client's certificate that it
/// names.
pub(crate) fn of_the_start(config: &Config) -> Vec<ConfigFile> {
    let mut files: Vec<ConfigFile> = config.file.iter().cloned().collect();
    if let Origin::Cluster {
        kubeconfig: Some(path),
        ..
    } = &config.origin
    {
        let paths = std::iter::once(path.clone()).chain(identity_files(path));
        // One that cannot be read is an error of its own.
        files.extend(paths.filter_map(|path| {
            let text = std::fs::read_to_string(&path).ok()?;
            Some(ConfigFile { path, text })
        }));
    }
    files
}

/// Waits until one of them has changed, which is an error. One that nobody could start with is none: who has it would
/// not come back.
pub(crate) async fn until_any_changed(config: &Config, files: &[ConfigFile]) -> Result<()> {
    let waiting = files
        .iter()
        .map(|file| Box::pin(until_changed(config, file)));
    let waiting: Vec<_> = waiting.collect();
    if waiting.is_empty() {
        return std::future::pending().await;
    }
    futures::future::select_all(waiting).await.0
}

async fn until_changed(config: &Config, file: &ConfigFile) -> Result<()> {
    let path = file.path.display();
    let mut watch = match FileWatch::start(&file.path) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(%error, %path, "changes of the file are not noticed");
            return std::future::pending().await;
        }
    };
    let mut said = String::new();
    loop {
        // A file that cannot be read is between two versions.
        let text = std::fs::read_to_string(&file.path);
        let has_changed = match &text {
            Ok(text) if *text != file.text => says_else(config, file).await,
            _ => Ok(false),
        };
        let is_bad = has_changed.is_err();
        match has_changed {
            Ok(true) => {
                anyhow::bail!(
                    "{path} has changed; ending, to be started with the new configuration"
                )
            }
            Ok(false) => said.clear(),
            Err(error) => {
                let error = format!("{error:#}");
                if error != said {
                    tracing::warn!(
                        error,
                        %path,
                        "the file has changed, and nobody could start with it: what was read at the start counts \
                         until it is mended",
                    );
                    said = error;
                }
            }
        }
        // What is missing may be in a file that it names.
        let again = async {
            match is_bad {
                true => tokio::time::sleep(LOOK).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = watch.changed() => {
                if changed.is_none() {
                    return std::future::pending().await;
                }
                tokio::time::sleep(SETTLE).await;
            }
            () = again => {}
        }
    }
}

/// Whether a process that starts now would be another one than this.
async fn says_else(config: &Config, file: &ConfigFile) -> Result<bool> {
    if config.file.as_ref() == Some(file) {
        return Ok(config.has_changed()?);
    }
    if let Origin::Cluster {
        kubeconfig, server, ..
    } = &config.origin
    {
        connect(kubeconfig.clone(), server.as_deref()).await?;
    }
    Ok(true)
}
