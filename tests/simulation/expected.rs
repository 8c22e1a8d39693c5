//! Seeds that fail because the hub has a fault that they show. An entry goes when its fault
//! goes: a run fails when a listed seed passes, and when one that is not listed fails.

use crate::kinds::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// Why some seeds of a world fail.
pub(crate) struct Expected {
    pub(crate) kind: Kind,
    /// Those among the first [`LISTED`].
    pub(crate) seeds: &'static [u64],
    /// What each of them says, one of these. Later seeds may fail by it, too.
    pub(crate) signs: &'static [&'static str],
    /// The fault.
    pub(crate) why: &'static str,
}

/// Seeds of a world that are listed one by one.
pub(crate) const LISTED: u64 = 20;

pub(crate) const EXPECTED: &[Expected] = &[];

/// Is this what the fault of a world breaks?
pub(crate) fn is_expected(kind: Kind, broken: &str) -> bool {
    let says = |entry: &Expected| entry.signs.iter().any(|sign| broken.contains(sign));
    EXPECTED.iter().any(|entry| entry.kind == kind && says(entry))
}

/// Which seeds have failed as expected.
#[derive(Default)]
pub(crate) struct Failed(Mutex<BTreeMap<Kind, BTreeSet<u64>>>);

impl Failed {
    /// Notes what a run of a seed came to. The error says what was not expected of any seed of its
    /// world.
    pub(crate) fn note(
        &self,
        kind: Kind,
        seed: u64,
        result: Result<(), String>,
    ) -> Result<(), String> {
        let Err(broken) = result else { return Ok(()) };
        if !is_expected(kind, &broken) {
            return Err(format!("{kind:?} {broken}"));
        }
        if seed < LISTED {
            self.0.lock().unwrap().entry(kind).or_default().insert(seed);
        }
        Ok(())
    }

    /// Fails unless exactly the listed seeds have failed.
    pub(crate) fn assert_as_listed(&self) {
        let failed = self.0.lock().unwrap();
        let mut wrong = Vec::new();
        for entry in EXPECTED {
            let due = BTreeSet::from_iter(entry.seeds.iter().copied());
            let found = failed.get(&entry.kind).cloned().unwrap_or_default();
            if found != due {
                let passed: Vec<_> = due.difference(&found).collect();
                let new: Vec<_> = found.difference(&due).collect();
                wrong.push(format!(
                    "{:?}: {passed:?} pass, though expected to fail ({}); {new:?} fail, though not \
                     expected to; all that fail: {found:?}",
                    entry.kind, entry.why
                ));
            }
        }
        assert!(wrong.is_empty(), "not as listed:\n{}", wrong.join("\n"));
    }
}
