//! The loop of a data core, both roles, over a simulated kernel: sockets that take a
//! part, operations that complete late and in any order, disks and peers that fail.
//! Every byte that a standby is sent is looked at, and in the end everybody has
//! everything.
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
mod standby;
mod tap;
mod truth;
mod world;

use plants::Plant;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds of an ordinary run.
const SEEDS: u64 = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn promises_hold() {
    if let Some(seed) = number("WALHUB_SEED") {
        let seen = world::run(seed, Plant::Honest).unwrap();
        return println!("{seen:#?}");
    }
    let seeds = number("WALHUB_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut broken, mut seen) = (Vec::new(), BTreeSet::new());
    std::thread::scope(|scope| {
        let work = || {
            let (mut broken, mut seen) = (Vec::new(), BTreeSet::new());
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds || broken.len() >= 10 {
                    return (broken, seen);
                }
                match world::run(seed, Plant::Honest) {
                    Ok(sights) => seen.extend(sights),
                    Err(error) => broken.push(error),
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (errors, sights) = worker.join().unwrap();
            broken.extend(errors);
            seen.extend(sights);
        }
    });
    assert!(broken.is_empty(), "broken promises:\n{}", broken.join("\n"));
    let missing: Vec<_> = world::SIGHTS.iter().filter(|sight| !seen.contains(*sight)).collect();
    assert!(seeds < SEEDS || missing.is_empty(), "never came up: {missing:?}");
}

/// Some seed finds the mistake, and by what it leads to: the error says one of `signs`.
fn finds(plant: Plant, signs: &[&str]) {
    let broken = (0..2000).find_map(|seed| world::run(seed, plant).err());
    let broken = broken.expect("no seed noticed the mistake");
    assert!(signs.iter().any(|sign| broken.contains(sign)), "found by something else: {broken}");
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
    // The cell notices too, when the core publishes what is durable.
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
fn finds_a_chunk_rewritten_under_a_send() {
    finds(Plant::ReleasesEarly, &["I7: a chunk changes while the network reads it", "false byte"]);
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
