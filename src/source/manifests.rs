//! Objects from files: YAML and JSON as people write them and as kubectl prints them.
//!
//! A file that cannot be read, or that is empty, is an error and counts as it last was; one broken object
//! in it is a [`Warning`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use rustc_hash::FxBuildHasher;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::convert::{ConvertOptions, Converter};
use super::documents::{self, Broken};
use super::tally::Tally;
use super::tree::{self, Stamp, Tree};
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
    /// There is nothing in the file.
    #[error("{path} is empty; a List without items says that there is nothing")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A pipe or the like, in a directory.
    #[error("{path} is left out: it is no file")]
    Irregular {
        /// Its path.
        path: PathBuf,
    },
}

impl ManifestError {
    /// Whether nothing is known to be missing: that is no reason not to start.
    #[must_use]
    pub const fn is_harmless(&self) -> bool {
        matches!(self, Self::Empty { .. } | Self::Irregular { .. })
    }
}

/// Which object a change is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
            Change::InterfaceAddresses(_) | Change::Observed(..) => return None,
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

#[derive(Debug)]
struct LoadedFile {
    /// What it was when it was read; nothing to have it read again.
    stamp: Option<Stamp>,
    /// The objects in it.
    ids: BTreeSet<Id>,
}

/// What a load brought.
#[derive(Debug, Default)]
pub struct Loaded {
    /// What became of the objects since the last load: those in files that have changed.
    pub changes: Vec<Change>,
    /// Parts that were left out.
    pub warnings: Vec<Warning>,
    /// Files that could not be read and count as they last were.
    pub broken: Vec<ManifestError>,
}

impl Loaded {
    /// Whether there is nothing to tell.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.warnings.is_empty() && self.broken.is_empty()
    }
}

/// The objects of a file, a directory or standard input. They are not kept: only which there are.
#[derive(Debug)]
pub struct Manifests {
    path: PathBuf,
    converter: Converter,
    files: BTreeMap<PathBuf, LoadedFile>,
    /// In how many files each object is.
    copies: HashMap<Id, u32, FxBuildHasher>,
    /// Paths that are no files, which has been said.
    irregular: BTreeSet<PathBuf>,
}

/// The path that stands for standard input.
const STDIN: &str = "-";

impl Manifests {
    /// Manifests at a path, seen from the node with this name. Reads nothing yet.
    #[must_use]
    pub fn new(path: PathBuf, node_name: &str) -> Self {
        Self {
            path,
            converter: Converter::new(node_name),
            files: BTreeMap::new(),
            copies: HashMap::default(),
            irregular: BTreeSet::new(),
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

    /// Whether they are read once and cannot change: standard input, or a pipe.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.path == Path::new(STDIN) || tree::is_stream(&self.path)
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
        if self.is_stream() {
            let text = if self.path == Path::new(STDIN) {
                tree::read_text(std::io::stdin())
            } else {
                tree::read_stream(&self.path)
            };
            let text = text.map_err(|source| self.unreadable(source))?;
            self.load_file(&self.path.clone(), None, &text, &mut loaded);
        } else {
            self.load_tree(&mut loaded)?;
        }
        loaded.warnings.append(&mut self.converter.take_warnings());
        Ok(loaded)
    }

    fn load_tree(&mut self, loaded: &mut Loaded) -> Result<(), ManifestError> {
        let tree = Tree::list(&self.path).map_err(|source| self.unreadable(source))?;
        for path in tree.irregular.difference(&self.irregular) {
            loaded
                .broken
                .push(ManifestError::Irregular { path: path.clone() });
        }
        self.irregular = tree.irregular;
        let gone = self
            .files
            .extract_if(.., |path, _| !tree.files.contains_key(path));
        let gone: Vec<BTreeSet<Id>> = gone.map(|(_, file)| file.ids).collect();
        for ids in gone {
            self.withdraw(ids, &mut loaded.changes);
        }
        // A second time for those whose objects count again, as those that came later are gone.
        for _ in 0..2 {
            for (path, stamp) in &tree.files {
                let known = self.files.get(path);
                if known.is_some_and(|file| file.stamp == Some(*stamp)) {
                    continue;
                }
                match tree::read_file(path) {
                    Ok(text) => self.load_file(path, Some(*stamp), &text, loaded),
                    Err(source) => {
                        loaded.broken.push(ManifestError::Unreadable {
                            path: path.clone(),
                            source,
                        });
                        self.leave(path, Some(*stamp));
                    }
                }
            }
        }
        Ok(())
    }

    fn unreadable(&self, source: std::io::Error) -> ManifestError {
        ManifestError::Unreadable {
            path: self.path.clone(),
            source,
        }
    }

    /// Has a file count as it last was, until it changes.
    fn leave(&mut self, path: &Path, stamp: Option<Stamp>) {
        let file = self.files.entry(path.to_owned());
        let empty = || LoadedFile {
            stamp,
            ids: BTreeSet::new(),
        };
        file.or_insert_with(empty).stamp = stamp;
    }

    fn load_file(&mut self, path: &Path, stamp: Option<Stamp>, text: &str, loaded: &mut Loaded) {
        let no_ids = BTreeSet::new();
        let mut reader = ObjectReader {
            converter: &mut self.converter,
            previous: self.files.get(path).map_or(&no_ids, |file| &file.ids),
            changes: BTreeMap::new(),
            unchanged: BTreeSet::new(),
            warnings: Vec::new(),
            path,
        };
        let is_json = path.extension().is_some_and(|ext| ext == "json");
        let read = documents::read(text, is_json, &mut |object, kind| reader.read(object, kind));
        let broken = match read {
            Err(Broken { line, reason }) => Some(ManifestError::Syntax {
                path: path.to_owned(),
                line,
                reason,
            }),
            // One is written in two steps, and comes to nothing when the disk is full.
            Ok(false) => Some(ManifestError::Empty {
                path: path.to_owned(),
            }),
            Ok(true) => None,
        };
        let ObjectReader {
            changes,
            unchanged,
            mut warnings,
            ..
        } = reader;
        if let Some(error) = broken {
            loaded.broken.push(error);
            self.leave(path, stamp);
            return;
        }
        loaded.warnings.append(&mut warnings);
        let ids: BTreeSet<Id> = changes.keys().cloned().chain(unchanged).collect();
        let before = self.files.remove(path).map_or(no_ids, |file| file.ids);
        for id in ids.difference(&before) {
            *self.copies.entry(id.clone()).or_insert(0) += 1;
        }
        let gone = before.difference(&ids).cloned().collect();
        let file = LoadedFile { stamp, ids };
        self.files.insert(path.to_owned(), file);
        self.withdraw(gone, &mut loaded.changes);
        for (id, change) in changes {
            if self.copies.get(&id).is_some_and(|copies| *copies > 1) {
                let last = self.files.iter().rfind(|(_, file)| file.ids.contains(&id));
                let last = last.map_or(path, |(last, _)| last.as_path());
                loaded.warnings.push(Warning {
                    object: id.name(),
                    field: String::new(),
                    problem: format!("appears again in {}, which counts", last.display()),
                });
                if last != path {
                    continue;
                }
            }
            loaded.changes.push(change);
        }
    }

    /// Takes away what a file said. An object that another one has too counts again as it is there.
    fn withdraw(&mut self, ids: BTreeSet<Id>, changes: &mut Vec<Change>) {
        for id in ids {
            let Some(copies) = self.copies.get_mut(&id) else {
                continue;
            };
            *copies -= 1;
            if *copies == 0 {
                self.copies.remove(&id);
                changes.push(id.gone());
                continue;
            }
            let mut others = self.files.values_mut().rev();
            if let Some(file) = others.find(|file| file.ids.contains(&id)) {
                file.stamp = None;
            }
        }
    }
}

/// Turns the objects of one file into changes.
struct ObjectReader<'a> {
    converter: &'a mut Converter,
    /// What the file said when it was last read: an object that has become unreadable stays as it was.
    previous: &'a BTreeSet<Id>,
    changes: BTreeMap<Id, Change>,
    unchanged: BTreeSet<Id>,
    warnings: Vec<Warning>,
    path: &'a Path,
}

impl ObjectReader<'_> {
    fn read(&mut self, object: &Value, list_kind: &str) {
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
                if self.changes.insert(id.clone(), change).is_some() {
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
                let kept = id.filter(|id| self.previous.contains(id));
                let outcome = if kept.is_some() {
                    "the object stays as it was"
                } else {
                    "the object is left out"
                };
                self.unchanged.extend(kept);
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
        metadata.namespace = "default".into();
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
