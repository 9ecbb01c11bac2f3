//! For how long clients are remembered: a rule says it, so there are classes, and not one for each
//! number that a Service may write.
//!
//! The first forty different timeouts are exact. Where more are in use, a further one is rounded up
//! to one of a few that people would write anyway.

use std::collections::BTreeMap;

use crate::dataplane::nftables::program::numbers::{CLASSES, Class};

/// How many different timeouts are honoured to the second.
pub(crate) const EXACT_CLASSES: usize = 40;
/// What others are rounded up to, in seconds. The last is the longest that there is.
const LADDER: [u32; 16] = [
    5, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 64_800, 86_400,
];
/// Each of them has room beside the exact ones.
const _: () = assert!(EXACT_CLASSES + LADDER.len() <= CLASSES as usize);

/// The classes in use, by family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Classes {
    /// The seconds of each, and how many destinations use it.
    used: BTreeMap<Class, (u32, usize)>,
}

impl Classes {
    /// The class for a timeout, which it has one more user from now on, and for how long it is.
    pub(crate) fn enter(&mut self, wanted_seconds: u32) -> (Class, u32) {
        if let Some(found) = self.join(wanted_seconds) {
            return found;
        }
        let seconds = if self.used.len() < EXACT_CLASSES {
            wanted_seconds
        } else {
            let rounded = LADDER.into_iter().find(|step| *step >= wanted_seconds);
            rounded.unwrap_or(LADDER[LADDER.len() - 1])
        };
        if let Some(found) = self.join(seconds) {
            return found;
        }
        // There is one: the ladder has fewer steps than there are classes left.
        let free = (1..=CLASSES).find(|class| !self.used.contains_key(class));
        let class = free.unwrap_or(CLASSES);
        self.used.insert(class, (seconds, 1));
        (class, seconds)
    }

    fn join(&mut self, seconds: u32) -> Option<(Class, u32)> {
        let (class, (_, users)) = self
            .used
            .iter_mut()
            .find(|(_, (known, _))| *known == seconds)?;
        *users += 1;
        Some((*class, seconds))
    }

    /// Takes in that a destination uses a class, as found in the kernel.
    pub(crate) fn found(&mut self, class: Class, seconds: u32) {
        self.used.entry(class).or_insert((seconds, 0)).1 += 1;
    }

    /// A destination does not use the class any more.
    pub(crate) fn leave(&mut self, class: Class) {
        if let Some((_, users)) = self.used.get_mut(&class) {
            *users -= 1;
            if *users == 0 {
                self.used.remove(&class);
            }
        }
    }

    /// The seconds of each class in use.
    pub(crate) fn timeouts(&self) -> BTreeMap<Class, u32> {
        self.used
            .iter()
            .map(|(class, (seconds, _))| (*class, *seconds))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forty_timeouts_are_exact_and_more_are_rounded_up() {
        let mut classes = Classes::default();
        for seconds in 1..=40 {
            assert_eq!(classes.enter(seconds * 7).1, seconds * 7);
        }
        assert_eq!(classes.enter(70).1, 70, "one in use is shared");
        let (rounded, sixty) = classes.enter(41);
        assert_eq!(sixty, 60);
        assert_eq!(classes.enter(42), (6, 42), "42 is in use already");
        assert_eq!(
            classes.enter(59),
            (rounded, 60),
            "one class for all of them"
        );
        for seconds in 1..=86_400 {
            let given = classes.enter(seconds).1;
            assert!(given >= seconds, "{seconds}: {given}");
        }
        assert!(classes.timeouts().len() <= EXACT_CLASSES + LADDER.len());
    }

    #[test]
    fn a_class_that_nobody_uses_is_given_to_another_timeout() {
        let mut classes = Classes::default();
        let (class, _) = classes.enter(10);
        assert_eq!(classes.enter(10).0, class);
        classes.leave(class);
        assert_eq!(classes.timeouts(), [(class, 10)].into());
        classes.leave(class);
        assert!(classes.timeouts().is_empty());
        assert_eq!(classes.enter(20), (class, 20));
    }
}
