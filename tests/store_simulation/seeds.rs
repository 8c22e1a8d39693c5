//! Which seeds a simulation runs, and how: on all CPUs, until enough promises are broken.
//!
//! `WALHUB_SEEDS=10000` runs so many, `WALHUB_SEED=17` that one alone.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// A thread stops at so many broken promises.
const PLENTY: usize = 10;

/// What came of a seed, or of many.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Promises that were broken.
    pub(crate) broken: Vec<String>,
    /// Situations that came up.
    pub(crate) seen: BTreeSet<&'static str>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.broken.extend(other.broken);
        self.seen.extend(other.seen);
    }

    /// Fails when a promise was broken.
    pub(crate) fn assert_kept(&self) {
        assert!(self.broken.is_empty(), "broken promises:\n{}", self.broken.join("\n"));
    }

    /// Fails when one of these situations never came up.
    pub(crate) fn assert_seen(&self, expected: &[&str]) {
        let missing: Vec<_> = expected.iter().filter(|what| !self.seen.contains(*what)).collect();
        assert!(missing.is_empty(), "never came up: {missing:?}");
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The one seed that is to be run, if so.
pub(crate) fn alone() -> Option<u64> {
    number("WALHUB_SEED")
}

/// So many seeds are to be run, where `usual` is what an ordinary run takes.
pub(crate) fn count(usual: u64) -> u64 {
    number("WALHUB_SEEDS").unwrap_or(usual)
}

/// Runs the first `count` seeds.
pub(crate) fn run(count: u64, world: impl Fn(u64) -> Tally + Sync) -> Tally {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut tally = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count || tally.broken.len() >= PLENTY {
                return tally;
            }
            tally.add(world(seed));
        }
    };
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            all.add(worker.join().expect("a world says what is broken"));
        }
    });
    all.broken.sort();
    all
}

/// Some seed of the first `count` notices a mistake, and by what it leads to: the error says
/// one of `signs`.
pub(crate) fn finds(count: u64, signs: &[&str], world: impl Fn(u64) -> Option<String>) {
    let broken = (0..count).find_map(world).expect("no seed noticed the mistake");
    assert!(signs.iter().any(|sign| broken.contains(sign)), "found by something else: {broken}");
}
