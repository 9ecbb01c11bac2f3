//! Names of objects, shared instead of copied.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
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

/// Keeps one copy of each value that many objects repeat: names, zones, lists of ports.
#[derive(Debug)]
pub struct Interner<T: ?Sized = str> {
    values: HashSet<Arc<T>, FxBuildHasher>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Self {
            values: HashSet::default(),
            sweep_at: SMALLEST_SWEEP,
        }
    }
}

/// Below this many values a sweep is not worth its walk.
const SMALLEST_SWEEP: usize = 1024;

impl<T: ?Sized + Eq + Hash> Interner<T> {
    /// The shared copy of a value.
    pub fn intern<'a>(&mut self, value: &'a T) -> Arc<T>
    where
        Arc<T>: From<&'a T>,
    {
        if let Some(shared) = self.values.get(value) {
            return Arc::clone(shared);
        }
        if self.values.len() >= self.sweep_at {
            // Values nobody else holds any more go, so churn does not grow the set for ever.
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = (self.values.len() * 2).max(SMALLEST_SWEEP);
        }
        let shared: Arc<T> = Arc::from(value);
        self.values.insert(Arc::clone(&shared));
        shared
    }
}
