//! Which objects of a kind exist, and in which version.
//!
//! Namespaces are few and hold many objects each: an object costs its name and its version.

use rustc_hash::FxHashMap;

use crate::core::model::{Name, ObjectKey};

/// Versions of objects by name.
#[derive(Debug, Default)]
pub(super) struct Versions(FxHashMap<Name, FxHashMap<Name, u64>>);

impl Versions {
    /// Whether none exists.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The version of an object that exists.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<u64> {
        self.0.get(&key.namespace)?.get(&key.name).copied()
    }

    /// An object exists in this version.
    pub(super) fn insert(&mut self, key: ObjectKey, version: u64) {
        let namespace = self.0.entry(key.namespace).or_default();
        namespace.insert(key.name, version);
    }

    /// An object is gone.
    pub(super) fn remove(&mut self, key: &ObjectKey) {
        if let Some(namespace) = self.0.get_mut(&key.namespace) {
            namespace.remove(&key.name);
            if namespace.is_empty() {
                self.0.remove(&key.namespace);
            }
        }
    }

    /// All objects that exist.
    pub(super) fn keys(&self) -> impl Iterator<Item = ObjectKey> {
        self.0.iter().flat_map(|(namespace, objects)| {
            objects.keys().map(|name| ObjectKey {
                namespace: Name::clone(namespace),
                name: Name::clone(name),
            })
        })
    }
}
