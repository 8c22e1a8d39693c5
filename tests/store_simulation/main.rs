//! The store on a disk that tears, loses, fails and fills up: whatever is cut off when,
//! what was published is there again, and nothing false is served.
//!
//! Each seed is one world, and the same one on every run. `WALHUB_SEEDS=10000` runs more
//! of them, `WALHUB_SEED=17` runs that one.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod digests;
mod cuts;
#[expect(dead_code, reason = "directories and long lives are the whole hub's simulation's")]
mod fake_disk;
mod model;
mod plants;
mod random;
mod seeds;
mod slots;
mod starts;
mod world;

use plants::{LeftOut, Plant, Without};
use seeds::Tally;

/// Seeds of an ordinary run.
const SEEDS: u64 = 300;

#[test]
fn promises_hold() {
    if let Some(seed) = seeds::alone() {
        return world::run(seed, Plant::Honest).unwrap();
    }
    let count = seeds::count(SEEDS);
    let mut tally = seeds::run(count, |seed| {
        let broken = Vec::from_iter(world::run(seed, Plant::Honest).err());
        Tally { broken, ..Tally::default() }
    });
    tally.assert_kept();
    tally.seen = world::seen_so_far();
    if count >= SEEDS {
        tally.assert_seen(world::EXPECTED);
    }
}

/// Some seed finds the mistake, and by what it leads to: the error says one of `signs`.
fn finds(plant: Plant, signs: &[&str]) {
    seeds::finds(5000, signs, |seed| world::run(seed, plant).err());
}

#[test]
fn finds_publishing_before_the_sync() {
    finds(Plant::PublishesBeforeSync, &["published up to", "false bytes"]);
}

#[test]
fn finds_a_missing_directory_sync() {
    let signs = ["published up to", "control file lost", "no readable walhub.control"];
    finds(Plant::NoDirectorySync, &signs);
}

#[test]
fn finds_a_recovery_that_does_not_sync() {
    finds(Plant::NoSyncInRecovery, &["false bytes", "published up to"]);
}

#[test]
fn finds_a_recovery_that_believes_the_cache() {
    finds(Plant::BelievesTheCache, &["in the medium", "on the medium"]);
}

#[test]
fn finds_a_start_that_forgets_what_waits_for_the_archive() {
    finds(Plant::ForgetsWhatWaits, &["not archived"]);
}

#[test]
fn finds_a_failed_command_that_counts() {
    finds(Plant::BelievesFailedCommands, &["not archived as it was sent"]);
}

#[test]
fn finds_an_old_tail_that_stays() {
    finds(Plant::KeepsOldTail, &["false bytes", "is not complete"]);
}

#[test]
fn slots_keep_their_promises() {
    if let Some(seed) = seeds::alone() {
        return slots::run(seed, |disk| disk).unwrap();
    }
    let count = seeds::count(SEEDS);
    let mut tally = seeds::run(count, |seed| {
        let broken = Vec::from_iter(slots::run(seed, |disk| disk).err());
        Tally { broken, ..Tally::default() }
    });
    tally.assert_kept();
    tally.seen = world::seen_so_far();
    if count >= SEEDS {
        tally.assert_seen(slots::EXPECTED);
    }
}

/// Some seed finds what a disk leaves out under the slots.
fn finds_in_slots(left_out: LeftOut, signs: &[&str]) {
    let run = |seed| slots::run(seed, |disk| Without::new(disk, Some(left_out))).err();
    seeds::finds(5000, signs, run);
}

#[test]
fn finds_slots_that_count_before_their_sync() {
    let signs = ["is gone", "is back", "its user was at", "needs WAL from", "start failed"];
    finds_in_slots(LeftOut::FileSyncs, &signs);
}

#[test]
fn finds_slots_whose_directory_is_not_synced() {
    let signs = ["is gone", "is back", "its user was at", "needs WAL from"];
    finds_in_slots(LeftOut::DirectorySyncs, &signs);
}

#[test]
fn finds_that_a_failed_sync_of_slots_counts() {
    finds_in_slots(LeftOut::FailedSyncs, &["is gone", "is back", "needs WAL from", "start failed"]);
}

#[test]
fn finds_that_the_only_generation_is_written_over() {
    finds_in_slots(LeftOut::SecondGeneration, &["start failed", "is gone"]);
}

#[test]
fn finds_that_former_slots_go_before_the_new_ones_are_durable() {
    finds_in_slots(LeftOut::FormerSlots, &["is gone"]);
}

#[test]
fn digests_tell_the_truth() {
    if let Some(seed) = seeds::alone() {
        return digests::run(seed, None).unwrap();
    }
    let count = seeds::count(SEEDS);
    let mut tally = seeds::run(count, |seed| {
        let broken = Vec::from_iter(digests::run(seed, None).err());
        Tally { broken, ..Tally::default() }
    });
    tally.assert_kept();
    tally.seen = world::seen_so_far();
    if count >= SEEDS {
        tally.assert_seen(digests::EXPECTED);
    }
}

#[test]
fn finds_that_the_removal_of_a_digest_is_not_synced() {
    let run = |seed| digests::run(seed, Some(LeftOut::SyncsOfDigests)).err();
    seeds::finds(5000, &["is false in the medium"], run);
}

#[test]
fn finds_that_a_digest_outlives_its_segment() {
    let run = |seed| digests::run(seed, Some(LeftOut::RemovalsOfDigests)).err();
    seeds::finds(5000, &["is false in the cache"], run);
}
