//! The store on a disk that tears, loses, fails and fills up: whatever is cut off when,
//! what was published is there again, and nothing false is served.
//!
//! Each seed is one world, and the same one on every run. `WALHUB_SEEDS=10000` runs more
//! of them, `WALHUB_SEED=17` runs that one.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

#[expect(dead_code, reason = "directories and long lives are the whole hub's simulation's")]
mod fake_disk;
mod model;
mod plants;
mod random;
mod world;

use plants::{
    BelievesTheCache, ForgetsWhatWaits, Honest, KeepsOldTail, NoDirectorySync, NoSyncInRecovery,
    Plant, PublishesBeforeSync,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds of an ordinary run.
const SEEDS: u64 = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn promises_hold() {
    if let Some(seed) = number("WALHUB_SEED") {
        return world::run(seed, Honest).unwrap();
    }
    let seeds = number("WALHUB_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let broken: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut broken = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds || broken.len() >= 10 {
                    return broken;
                }
                broken.extend(world::run(seed, Honest).err());
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(broken.is_empty(), "broken promises:\n{}", broken.join("\n"));
    let missing = world::not_seen();
    assert!(seeds < SEEDS || missing.is_empty(), "never came up: {missing:?}");
}

/// Some seed finds the mistake, and by what it leads to: the error says one of `signs`.
fn finds<P: Plant>(plant: impl Fn() -> P, signs: &[&str]) {
    let broken = (0..5000).find_map(|seed| world::run(seed, plant()).err());
    let broken = broken.expect("no seed noticed the mistake");
    assert!(signs.iter().any(|sign| broken.contains(sign)), "found by something else: {broken}");
}

#[test]
fn finds_publishing_before_the_sync() {
    finds(|| PublishesBeforeSync, &["published up to", "false bytes"]);
}

#[test]
fn finds_a_missing_directory_sync() {
    finds(
        || NoDirectorySync,
        &["published up to", "control file lost", "no readable walhub.control"],
    );
}

#[test]
fn finds_a_recovery_that_does_not_sync() {
    finds(|| NoSyncInRecovery, &["false bytes", "published up to"]);
}

#[test]
fn finds_a_recovery_that_believes_the_cache() {
    finds(|| BelievesTheCache, &["in the medium"]);
}

#[test]
fn finds_a_start_that_forgets_what_waits_for_the_archive() {
    finds(|| ForgetsWhatWaits, &["not archived"]);
}

#[test]
fn finds_an_old_tail_that_stays() {
    finds(|| KeepsOldTail, &["false bytes", "is not complete"]);
}
