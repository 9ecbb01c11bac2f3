//! Objects from files: YAML and JSON as people write them and as kubectl prints them.
//!
//! A file that cannot be read is an error; one broken object in it is a [`Warning`]. Watching
//! the files is `watch_files`' business.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::convert::{ConvertOptions, Converter};
use super::tally::Tally;
use super::{Warning, objects};
use crate::core::model::{Change, ObjectKey};

/// A manifest that could not be read. The caller should name it to the operator; what was
/// loaded before is untouched.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The file or directory cannot be read.
    #[error("cannot read manifests from {path}: {source}; check the path and its permissions")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not YAML or JSON.
    #[error("{path}:{line}: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1; 0 if it is not known.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Which object a change is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Id {
    Service(ObjectKey),
    EndpointSlice(ObjectKey),
    Node,
    ServiceCidr(String),
}

impl Id {
    /// What an object's change is about; `None` for changes that no object brings.
    fn of(change: &Change) -> Option<Self> {
        Some(match change {
            Change::Service(key, _) => Self::Service(key.clone()),
            Change::EndpointSlice(key, _) => Self::EndpointSlice(key.clone()),
            Change::Node(_) => Self::Node,
            Change::ServiceCidr(name, _) => Self::ServiceCidr(name.clone()),
            Change::InterfaceAddresses(_) => return None,
        })
    }

    fn gone(self) -> Change {
        match self {
            Self::Service(key) => Change::Service(key, None),
            Self::EndpointSlice(key) => Change::EndpointSlice(key, None),
            Self::Node => Change::Node(None),
            Self::ServiceCidr(name) => Change::ServiceCidr(name, None),
        }
    }
}

type Objects = BTreeMap<Id, Change>;

/// What tells an unchanged file from a changed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
}

#[derive(Debug)]
struct LoadedFile {
    stamp: Stamp,
    objects: Objects,
}

/// What a load brought.
#[derive(Debug, Default)]
pub struct Loaded {
    /// What became of the objects since the last load.
    pub changes: Vec<Change>,
    /// Parts that were left out.
    pub warnings: Vec<Warning>,
    /// Files that could not be read and count as they last were.
    pub broken: Vec<ManifestError>,
}

/// The objects of a file, a directory or standard input.
#[derive(Debug)]
pub struct Manifests {
    path: PathBuf,
    converter: Converter,
    files: BTreeMap<PathBuf, LoadedFile>,
    current: Objects,
}

/// The path that stands for standard input.
pub const STDIN: &str = "-";

impl Manifests {
    /// Manifests at a path, seen from the node with this name. Reads nothing yet.
    #[must_use]
    pub fn new(path: PathBuf, node_name: &str) -> Self {
        Self {
            path,
            converter: Converter::new(node_name),
            files: BTreeMap::new(),
            current: Objects::new(),
        }
    }

    /// The same, with what the operator has said.
    #[must_use]
    pub fn with_options(mut self, options: ConvertOptions) -> Self {
        self.converter = self.converter.with_options(options);
        self
    }

    /// Where they are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was read so far.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        self.converter.tally()
    }

    /// Reads what is new or changed since the last load.
    ///
    /// # Errors
    ///
    /// If the path itself cannot be read. A file below it that cannot be read counts as it
    /// last was and is reported in [`Loaded::broken`].
    pub fn load(&mut self) -> Result<Loaded, ManifestError> {
        let mut loaded = Loaded::default();
        if self.path == Path::new(STDIN) {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|source| self.unreadable(source))?;
            let stamp = Stamp {
                modified: None,
                length: text.len() as u64,
            };
            self.load_file(&self.path.clone(), stamp, &text, &mut loaded);
        } else {
            let paths = self.list()?;
            self.files.retain(|path, _| paths.contains_key(path));
            for (path, stamp) in paths {
                if self
                    .files
                    .get(&path)
                    .is_some_and(|file| file.stamp == stamp)
                {
                    continue;
                }
                match fs::read_to_string(&path) {
                    Ok(text) => self.load_file(&path, stamp, &text, &mut loaded),
                    Err(source) => loaded
                        .broken
                        .push(ManifestError::Unreadable { path, source }),
                }
            }
        }
        loaded.warnings.append(&mut self.converter.take_warnings());
        loaded.changes = self.changes(&mut loaded.warnings);
        Ok(loaded)
    }

    fn unreadable(&self, source: std::io::Error) -> ManifestError {
        ManifestError::Unreadable {
            path: self.path.clone(),
            source,
        }
    }

    fn list(&self) -> Result<BTreeMap<PathBuf, Stamp>, ManifestError> {
        let mut found = BTreeMap::new();
        let metadata = fs::metadata(&self.path).map_err(|source| self.unreadable(source))?;
        if metadata.is_dir() {
            walk(&self.path, &mut found).map_err(|source| self.unreadable(source))?;
        } else {
            found.insert(self.path.clone(), stamp(&metadata));
        }
        Ok(found)
    }

    fn load_file(&mut self, path: &Path, stamp: Stamp, text: &str, loaded: &mut Loaded) {
        let documents = match documents(path, text) {
            Ok(documents) => documents,
            Err(error) => {
                loaded.broken.push(error);
                // Not tried again until it changes.
                self.files
                    .entry(path.to_owned())
                    .and_modify(|file| file.stamp = stamp)
                    .or_insert_with(|| LoadedFile {
                        stamp,
                        objects: Objects::new(),
                    });
                return;
            }
        };
        let previous = self
            .files
            .remove(path)
            .map(|file| file.objects)
            .unwrap_or_default();
        let mut reader = ObjectReader {
            converter: &mut self.converter,
            previous,
            objects: Objects::new(),
            warnings: &mut loaded.warnings,
            path,
        };
        for document in &documents {
            reader.read(document);
        }
        let objects = reader.objects;
        self.files
            .insert(path.to_owned(), LoadedFile { stamp, objects });
    }

    /// What differs from the objects as last given out.
    fn changes(&mut self, warnings: &mut Vec<Warning>) -> Vec<Change> {
        let mut next = Objects::new();
        for (path, file) in &self.files {
            for (id, change) in &file.objects {
                if next.insert(id.clone(), change.clone()).is_some() {
                    warnings.push(Warning {
                        object: id.name(),
                        field: String::new(),
                        problem: format!("appears again in {}, which counts", path.display()),
                    });
                }
            }
        }
        let mut changes: Vec<Change> = self
            .current
            .keys()
            .filter(|id| !next.contains_key(id))
            .cloned()
            .map(Id::gone)
            .collect();
        changes.extend(next.values().cloned());
        self.current = next;
        changes
    }
}

fn stamp(metadata: &fs::Metadata) -> Stamp {
    Stamp {
        modified: metadata.modified().ok(),
        length: metadata.len(),
    }
}

fn walk(directory: &Path, found: &mut BTreeMap<PathBuf, Stamp>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // A ConfigMap volume keeps its older versions in directories that start with "..".
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // Follows links; one that leads nowhere is a file that is being replaced.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            if !hidden {
                walk(&path, found)?;
            }
            continue;
        }
        let manifest = path
            .extension()
            .is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
        if manifest && !hidden {
            found.insert(path, stamp(&metadata));
        }
    }
    Ok(())
}

fn documents(path: &Path, text: &str) -> Result<Vec<Value>, ManifestError> {
    let syntax = |line: usize, reason: String| ManifestError::Syntax {
        path: path.to_owned(),
        line,
        reason,
    };
    let is_json = path.extension().is_some_and(|ext| ext == "json")
        || text.trim_start().starts_with(['{', '[']);
    if is_json {
        return serde_json::Deserializer::from_str(text)
            .into_iter::<Value>()
            .collect::<Result<_, _>>()
            .map_err(|error| syntax(error.line(), error.to_string()));
    }
    // The budgets guard against hostile input; a manifest is the operator's own, and a large
    // cluster's is larger than any of them.
    let options = serde_saphyr::options! { budget: None, with_snippet: false };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let line = error
            .location()
            .and_then(|location| usize::try_from(location.line()).ok())
            .unwrap_or(0);
        let reason = error.to_string();
        syntax(line, reason.lines().next().unwrap_or_default().to_owned())
    })
}

/// Turns the documents of one file into changes.
struct ObjectReader<'a> {
    converter: &'a mut Converter,
    /// The file's objects as last read: one that has become unreadable stays as it was.
    previous: Objects,
    objects: Objects,
    warnings: &'a mut Vec<Warning>,
    path: &'a Path,
}

impl ObjectReader<'_> {
    fn read(&mut self, document: &Value) {
        if let Value::Array(items) = document {
            for item in items {
                self.read(item);
            }
            return;
        }
        let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").unwrap_or_default();
        if let Some(Value::Array(items)) = document.get("items")
            && kind.ends_with("List")
        {
            for item in items {
                self.read_item(item, kind.trim_end_matches("List"));
            }
            return;
        }
        self.read_item(document, kind);
    }

    fn read_item(&mut self, object: &Value, list_kind: &str) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").unwrap_or(list_kind).to_owned();
        let key = || {
            ObjectKey::new(
                text("/metadata/namespace").unwrap_or("default"),
                text("/metadata/name").unwrap_or_default(),
            )
        };
        match kind.as_str() {
            "Service" => {
                let read = parse(object).map(|mut service: objects::Service| {
                    default_namespace(&mut service.metadata);
                    self.converter.service(&service)
                });
                self.take("Service", read, Some(Id::Service(key())));
            }
            "EndpointSlice" => {
                let read = parse(object).map(|mut slice: objects::EndpointSlice| {
                    default_namespace(&mut slice.metadata);
                    self.converter.endpoint_slice(&slice)
                });
                self.take("EndpointSlice", read, Some(Id::EndpointSlice(key())));
            }
            "Node" => {
                let read = parse(object).map(|node: objects::Node| self.converter.node(&node));
                self.take("Node", read, None);
            }
            "ServiceCIDR" => {
                let name = text("/metadata/name").unwrap_or_default().to_owned();
                let read = parse(object)
                    .map(|cidr: objects::ServiceCidr| self.converter.service_cidr(&cidr));
                self.take("ServiceCIDR", read, Some(Id::ServiceCidr(name)));
            }
            _ => {}
        }
    }

    fn take(&mut self, kind: &str, read: Result<Option<Change>, WrongShape>, id: Option<Id>) {
        match read {
            Ok(Some(change)) => {
                let Some(id) = Id::of(&change) else { return };
                if self.objects.insert(id.clone(), change).is_some() {
                    self.warnings.push(Warning {
                        object: format!("{kind} {}", id.name()),
                        field: String::new(),
                        problem: format!(
                            "appears again in {}; the last one counts",
                            self.path.display()
                        ),
                    });
                }
            }
            Ok(None) => {}
            Err(WrongShape { field, problem }) => {
                let name = id.as_ref().map_or_else(String::new, Id::name);
                let previous = id.and_then(|id| Some((id.clone(), self.previous.remove(&id)?)));
                let kept = previous.is_some();
                self.objects.extend(previous);
                let outcome = if kept {
                    "the object stays as it was"
                } else {
                    "the object is left out"
                };
                self.warnings.push(Warning {
                    object: format!("{kind} {name}"),
                    field,
                    problem: format!("{problem}; {outcome}"),
                });
            }
        }
    }
}

impl Id {
    fn name(&self) -> String {
        match self {
            Self::Service(key) | Self::EndpointSlice(key) => key.to_string(),
            Self::Node => String::new(),
            Self::ServiceCidr(name) => name.clone(),
        }
    }
}

/// kubectl puts an object without a namespace into the current one, mostly `default`.
fn default_namespace(metadata: &mut objects::Metadata) {
    if metadata.namespace.is_empty() {
        "default".clone_into(&mut metadata.namespace);
    }
}

struct WrongShape {
    field: String,
    problem: String,
}

fn parse<T: DeserializeOwned>(object: &Value) -> Result<T, WrongShape> {
    serde_path_to_error::deserialize(object).map_err(|error| WrongShape {
        field: error.path().to_string(),
        problem: error.inner().to_string(),
    })
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
