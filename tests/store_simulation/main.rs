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
mod seeds;
mod starts;
mod world;

use plants::{
    BelievesFailedCommands, BelievesTheCache, ForgetsWhatWaits, Honest, KeepsOldTail,
    NoDirectorySync, NoSyncInRecovery, Plant, PublishesBeforeSync,
};
use seeds::Tally;

/// Seeds of an ordinary run.
const SEEDS: u64 = 300;

#[test]
fn promises_hold() {
    if let Some(seed) = seeds::alone() {
        return world::run(seed, Honest).unwrap();
    }
    let count = seeds::count(SEEDS);
    let mut tally = seeds::run(count, |seed| {
        let broken = Vec::from_iter(world::run(seed, Honest).err());
        Tally { broken, ..Tally::default() }
    });
    tally.assert_kept();
    tally.seen = world::seen_so_far();
    if count >= SEEDS {
        tally.assert_seen(world::EXPECTED);
    }
}

/// Some seed finds the mistake, and by what it leads to: the error says one of `signs`.
fn finds<P: Plant>(plant: impl Fn() -> P, signs: &[&str]) {
    seeds::finds(5000, signs, |seed| world::run(seed, plant()).err());
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
fn finds_a_failed_command_that_counts() {
    finds(|| BelievesFailedCommands, &["not archived as it was sent"]);
}

#[test]
fn finds_an_old_tail_that_stays() {
    finds(|| KeepsOldTail, &["false bytes", "is not complete"]);
}
