//! Hubs, servers, an archive and a network, all of it by seed: first everything may go
//! wrong (crashes at any step of a disk, connections that break and deliver in pieces,
//! promotions, old primaries that come back, WAL that is removed, an archive with gaps and
//! damage, slots that come and go), then nothing does any more. At every step: no byte is
//! served that was not written on its timeline, nothing past a switchpoint, nothing that is
//! not durable; no slot is ahead of its user or without its WAL; what was acknowledged is
//! there after a crash. In the end everybody who can be is at the newest timeline's end.
//!
//! Each seed is one world, and the same one on every run. `WALHUB_SEEDS=10000` runs more
//! of them, `WALHUB_SEED=17` runs that one and prints its story.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod archive;
mod checks;
mod client;
mod expected;
#[path = "../store_simulation/fake_disk.rs"]
#[expect(
    dead_code,
    reason = "no write fails here for want of space: the store's simulation has that"
)]
mod fake_disk;
mod hub;
mod kinds;
mod network;
mod plants;
#[path = "../store_simulation/random.rs"]
mod random;
mod server;
mod session;
mod shared;
mod truth;
mod upstream;
mod walreceiver;
mod world;

use kinds::{Kind, SPECIAL};
use plants::Plant;
use shared::Traced;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds of an ordinary run.
const SEEDS: u64 = 60;

/// So many lead to every situation, and find every mistake.
const ENOUGH: u64 = 500;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The world of `WALHUB_WORLD`, by its name.
fn asked() -> Kind {
    let Ok(name) = std::env::var("WALHUB_WORLD") else { return Kind::Ordinary };
    let mut all = SPECIAL.into_iter();
    all.find(|kind| format!("{kind:?}") == name).unwrap_or_else(|| panic!("no world {name}"))
}

/// The worlds with one fault: those seeds fail that are expected to, and no others.
#[test]
fn special_worlds_end_as_expected() {
    let seeds = number("WALHUB_SEEDS").map_or(expected::LISTED, |seeds| seeds / 10);
    let seeds = seeds.max(expected::LISTED);
    let (next, total) = (AtomicU64::new(0), seeds * SPECIAL.len() as u64);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    std::thread::scope(|scope| {
        let work = || {
            let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= total {
                    return (wrong, seen);
                }
                let (kind, seed) = (SPECIAL[(n / seeds) as usize], n % seeds);
                let outcome = world::run(seed, kind, Plant::Honest, Traced::No);
                seen.extend(outcome.sights);
                wrong.extend(expected::judge(kind, seed, outcome.result).err());
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (errors, sights) = worker.join().unwrap();
            wrong.extend(errors);
            seen.extend(sights);
        }
    });
    wrong.sort();
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
    let missing: Vec<_> = kinds::SIGHTS.iter().filter(|sight| !seen.contains(*sight)).collect();
    assert!(missing.is_empty(), "never came up: {missing:?}");
}

#[test]
fn promises_hold() {
    if let Some(seed) = number("WALHUB_SEED") {
        let outcome = world::run(seed, asked(), Plant::Honest, Traced::Yes);
        println!("{}", outcome.trace.join("\n"));
        println!("{:#?}", outcome.sights);
        return outcome.result.unwrap();
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
                let outcome = world::run(seed, Kind::Ordinary, Plant::Honest, Traced::No);
                seen.extend(outcome.sights);
                broken.extend(outcome.result.err());
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
    assert!(seeds < ENOUGH || missing.is_empty(), "never came up: {missing:?}");
}

/// Some seed among those that every run looks at finds the mistake, and by what it leads
/// to: the error says one of `signs`.
fn finds(plant: Plant, signs: &[&str]) {
    finds_in(Kind::Ordinary, plant, signs);
}

fn finds_in(kind: Kind, plant: Plant, signs: &[&str]) {
    let run = |seed| world::run(seed, kind, plant, Traced::No).result.err();
    let broken = (0..ENOUGH).find_map(run).expect("no seed noticed the mistake");
    assert!(signs.iter().any(|sign| broken.contains(sign)), "found by something else: {broken}");
}

#[test]
fn finds_a_fork_segment_copied_whole() {
    finds(Plant::CopiesWholeForkSegment, &["past the switchpoint"]);
}

#[test]
fn finds_a_segment_recycled_under_a_reader() {
    finds(Plant::RecyclesUnderReaders, &["is not what it was"]);
}

#[test]
fn finds_serving_past_the_switchpoint() {
    finds(Plant::ServesPastTheSwitchpoint, &["past the switchpoint"]);
}

#[test]
fn finds_retention_by_unsaved_slots() {
    finds(Plant::RetainsByUnsavedSlots, &["needs WAL from"]);
}

#[test]
fn finds_that_a_hole_costs_what_lies_before_it() {
    finds_in(Kind::Hole, Plant::RemovesBeforeAHole, &["goes, and nobody gave it up"]);
}

#[test]
fn finds_a_pipeline_that_is_forgotten() {
    finds_in(Kind::Pipelines, Plant::ForgetsThePipeline, &["liveness"]);
}

#[test]
fn finds_an_archive_that_wins_silently() {
    finds(Plant::ArchiveWinsSilently, &["false byte", "is false in the"]);
}
