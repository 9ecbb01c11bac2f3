//! What of the cluster's objects could not be used, as long as that is so.

use std::collections::BTreeMap;

use crate::source::Warning;
use crate::source::changes::Cause;

/// How many objects are remembered.
const MOST_OBJECTS: usize = 1000;
/// How many warnings are remembered of each.
const MOST_WARNINGS: usize = 8;

/// Warnings by object.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    by_object: BTreeMap<String, Vec<Warning>>,
    /// So many warnings of further objects were not kept.
    beyond: usize,
}

impl Noted {
    /// Of objects that have changed counts what is said of them now.
    pub(super) fn take(&mut self, causes: &[Cause], warnings: &[Warning]) {
        if !self.by_object.is_empty() {
            for cause in causes {
                let name = match cause.key.namespace.is_empty() {
                    true => format!("{} {}", cause.kind, cause.key.name),
                    false => format!("{} {}", cause.kind, cause.key),
                };
                self.by_object.remove(&name);
            }
        }
        for warning in warnings {
            if self.by_object.len() >= MOST_OBJECTS && !self.by_object.contains_key(&warning.object)
            {
                self.beyond += 1;
                continue;
            }
            let known = self.by_object.entry(warning.object.clone()).or_default();
            if known.len() < MOST_WARNINGS && !known.contains(warning) {
                known.push(warning.clone());
            }
        }
    }

    /// What is said of an object.
    pub(crate) fn about(&self, object: &str) -> impl Iterator<Item = String> {
        let warnings = self.by_object.get(object).into_iter().flatten();
        warnings.map(ToString::to_string)
    }

    /// How many more there have been.
    pub(crate) const fn beyond(&self) -> usize {
        self.beyond
    }

    /// All of it, in the order of the objects' names.
    pub(crate) fn all(&self) -> impl Iterator<Item = String> {
        self.by_object.values().flatten().map(ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::ObjectKey;

    fn warning(object: &str, problem: &str) -> Warning {
        Warning {
            object: object.to_owned(),
            field: "spec".to_owned(),
            problem: problem.to_owned(),
        }
    }

    fn changed(name: &str) -> Cause {
        Cause {
            kind: "Service",
            key: ObjectKey::new("shop", name),
            version: 1,
            gone: false,
        }
    }

    #[test]
    fn what_is_said_of_an_object_counts_until_it_changes() {
        let mut noted = Noted::default();
        noted.take(&[changed("web")], &[warning("Service shop/web", "is odd")]);
        noted.take(
            &[changed("api")],
            &[warning("Service shop/api", "is odd too")],
        );
        assert_eq!(noted.all().count(), 2);
        noted.take(&[changed("web")], &[]);
        let left: Vec<String> = noted.all().collect();
        assert_eq!(left, ["Service shop/api: spec: is odd too"]);
    }

    #[test]
    fn who_makes_many_bad_objects_takes_a_bounded_amount_of_memory() {
        let mut noted = Noted::default();
        for number in 0..2 * MOST_OBJECTS {
            let object = format!("Service shop/{number}");
            let many: Vec<Warning> = (0..20).map(|n| warning(&object, &n.to_string())).collect();
            noted.take(&[], &many);
        }
        assert_eq!(noted.all().count(), MOST_OBJECTS * MOST_WARNINGS);
        assert_eq!(noted.beyond, 1000 * 20);
    }
}
