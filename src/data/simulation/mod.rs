//! The loop of a data core, with both roles, over a simulated kernel: sockets that take a part,
//! operations that complete late and in any order, disks and peers that fail. Every byte sent to a
//! standby is checked, and in the end every standby has everything.
//!
//! Each seed is one world, and the same one on every run. `WALHUB_SEEDS=10000` runs more
//! of them, `WALHUB_SEED=17` runs that one.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod disk;
mod keeper;
mod kernel;
mod plants;
mod primary;
#[path = "../../../tests/store_simulation/random.rs"]
mod random;
mod ring;
mod scenes;
#[path = "../../../tests/store_simulation/seeds.rs"]
mod seeds;
mod standby;
mod tap;
mod truth;
mod world;

use plants::Plant;
use seeds::Tally;

/// Seeds of an ordinary run.
const SEEDS: u64 = 300;

#[test]
fn promises_hold() {
    if let Some(seed) = seeds::alone() {
        let seen = world::run(seed, Plant::Honest).unwrap();
        return println!("{seen:#?}");
    }
    let count = seeds::count(SEEDS);
    let tally = seeds::run(count, |seed| match world::run(seed, Plant::Honest) {
        Ok(seen) => Tally { seen, ..Tally::default() },
        Err(broken) => Tally { broken: vec![broken], ..Tally::default() },
    });
    tally.assert_kept();
    if count >= SEEDS {
        tally.assert_seen(world::SIGHTS);
    }
}

/// Some seed finds the mistake, through its consequence: the error contains one of `signs`.
fn finds(plant: Plant, signs: &[&str]) {
    seeds::finds(2000, signs, |seed| world::run(seed, plant).err());
}

#[test]
fn finds_a_cursor_that_counts_what_was_offered() {
    finds(Plant::CountsTheOffered, &["framing", "false byte"]);
}

#[test]
fn finds_a_header_resumed_elsewhere() {
    finds(Plant::ResumesHeaderElsewhere, &["framing", "false byte"]);
}

#[test]
fn finds_an_ignored_limit() {
    // The cell also notices, when the core publishes what is durable.
    finds(Plant::IgnoresTheLimit, &["beyond the durable mark", "goes back"]);
}

#[test]
fn finds_a_sync_that_lies() {
    finds(Plant::SyncLies, &["beyond the durable mark", "I5", "I12", "not durable"]);
}

#[test]
fn finds_a_publication_that_wakes_nobody() {
    finds(Plant::WakesNobody, &["liveness"]);
}

#[test]
fn finds_a_message_without_a_bell() {
    finds(Plant::PostsInSilence, &["liveness"]);
}

#[test]
fn finds_a_pin_that_is_dropped_early() {
    finds(Plant::DropsPinEarly, &["nobody has pinned"]);
}

#[test]
fn finds_a_reply_buffer_given_back_twice() {
    finds(Plant::ReturnsReplyTwice, &["given back twice"]);
}

#[test]
fn finds_a_segment_named_late() {
    finds(Plant::NamesLate, &["I5: flush"]);
}

#[test]
fn finds_a_lost_completion() {
    finds(Plant::LosesCompletion, &["I8"]);
}

#[test]
fn finds_a_poll_that_never_began() {
    finds(Plant::NeverPolls, &["I8"]);
}

#[test]
fn finds_a_lost_notification() {
    finds(Plant::LosesNotification, &["I8: a notification is lost"]);
}

#[test]
fn finds_a_reset_that_frees_nothing() {
    finds(Plant::NeverResets, &["I8: Some(Zerocopy"]);
}

#[test]
fn finds_that_nothing_is_held() {
    finds(Plant::HoldsNothing, &["I6"]);
}
