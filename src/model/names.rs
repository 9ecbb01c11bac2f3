//! Names of objects, shared instead of copied.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

/// A shared, immutable name.
pub type Name = Arc<str>;

/// Namespace and name of a namespaced object. Orders by namespace, then name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: Name,
    /// The name within the namespace.
    pub name: Name,
}

impl ObjectKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<Name>, name: impl Into<Name>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Keeps one copy of each name that many objects repeat: namespaces, port names, zones.
#[derive(Debug, Default)]
pub struct Interner {
    names: HashSet<Name, FxBuildHasher>,
    sweep_at: usize,
}

/// Below this many names a sweep is not worth its walk.
const SMALLEST_SWEEP: usize = 1024;

impl Interner {
    /// The shared copy of a name.
    pub fn intern(&mut self, name: &str) -> Name {
        if let Some(shared) = self.names.get(name) {
            return Arc::clone(shared);
        }
        if self.names.len() >= self.sweep_at.max(SMALLEST_SWEEP) {
            // Names nobody else holds any more go, so churn does not grow the set for ever.
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = self.names.len() * 2;
        }
        let shared: Name = Arc::from(name);
        self.names.insert(Arc::clone(&shared));
        shared
    }
}
