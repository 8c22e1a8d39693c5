//! Hubs, servers, an archive and a network, all of it by seed: first everything may go
//! wrong (crashes at any step of a disk, connections that break and deliver in pieces,
//! promotions, old primaries that come back, WAL that is removed, an archive with gaps and
//! damage, slots that come and go), then nothing does any more. At every step: no byte is
//! served that was not written on its timeline, nothing past a switchpoint, nothing that is
//! not durable; no slot is ahead of its user or without its WAL; what was acknowledged is
//! there after a crash. In the end everybody who can be is at the newest timeline's end.
//!
//! Each seed is one world, and the same one on every run. `WALHUB_SEEDS=10000` runs more
//! of them, `WALHUB_SEED=17` runs that one and prints its story with the hubs' log.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod archive;
mod checks;
mod client;
mod environment;
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
mod receiving;
#[path = "../store_simulation/random.rs"]
mod random;
#[path = "../store_simulation/seeds.rs"]
mod seeds;
mod server;
mod session;
mod shared;
mod truth;
mod walreceiver;
mod world;

use expected::Failed;
use kinds::{Kind, SPECIAL};
use plants::Plant;
use seeds::Tally;
use shared::Traced;

/// Seeds of an ordinary run.
const SEEDS: u64 = 60;

/// So many lead to every ordinary situation, and find every mistake.
const ENOUGH: u64 = 500;

/// So many lead to the rare situations, too.
const PLENTY: u64 = 5000;

/// The world of `WALHUB_WORLD`, by its name.
fn asked() -> Kind {
    let Ok(name) = std::env::var("WALHUB_WORLD") else { return Kind::Ordinary };
    let mut all = SPECIAL.into_iter();
    all.find(|kind| format!("{kind:?}") == name).unwrap_or_else(|| panic!("no world {name}"))
}

/// The worlds with one fault: those seeds fail that are expected to, and no others.
#[test]
fn special_worlds_end_as_expected() {
    let each = (seeds::count(0) / 10).max(expected::LISTED);
    let failed = Failed::default();
    let tally = seeds::run(each * SPECIAL.len() as u64, |n| {
        let (kind, seed) = (SPECIAL[(n / each) as usize], n % each);
        let outcome = world::run(seed, kind, Plant::Honest, Traced::No);
        let wrong = failed.note(kind, seed, outcome.result).err();
        Tally { broken: Vec::from_iter(wrong), seen: outcome.sights }
    });
    tally.assert_kept();
    failed.assert_as_listed();
    tally.assert_seen(kinds::SIGHTS);
}

#[test]
fn promises_hold() {
    if let Some(seed) = seeds::alone() {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG);
        let log = log.without_time().with_ansi(false).with_writer(|| environment::Story);
        let outcome = tracing::subscriber::with_default(log.finish(), || {
            world::run(seed, asked(), Plant::Honest, Traced::Yes)
        });
        println!("{}", outcome.trace.join("\n"));
        println!("{:#?}", outcome.sights);
        return outcome.result.unwrap();
    }
    let count = seeds::count(SEEDS);
    let tally = seeds::run(count, |seed| {
        let outcome = world::run(seed, Kind::Ordinary, Plant::Honest, Traced::No);
        Tally { broken: Vec::from_iter(outcome.result.err()), seen: outcome.sights }
    });
    tally.assert_kept();
    if count >= ENOUGH {
        tally.assert_seen(world::SIGHTS);
    }
    if count >= PLENTY {
        tally.assert_seen(world::RARE_SIGHTS);
    }
}

/// Some seed among those that every run looks at finds the mistake, and by what it leads
/// to: the error says one of `signs`.
fn finds(plant: Plant, signs: &[&str]) {
    finds_in(Kind::Ordinary, plant, signs);
}

/// Some seed of a world finds the mistake. A world with a fault of its own finds it by another
/// promise than the one that the fault breaks, or in a seed that passes without the mistake.
fn finds_in(kind: Kind, plant: Plant, signs: &[&str]) {
    finds_among(ENOUGH, kind, plant, signs);
}

/// The same for a mistake that fewer worlds show.
fn finds_among(seeds: u64, kind: Kind, plant: Plant, signs: &[&str]) {
    seeds::finds(seeds, signs, |seed| {
        let broken = world::run(seed, kind, plant, Traced::No).result.err()?;
        let honest = || world::run(seed, kind, Plant::Honest, Traced::No).result;
        (!expected::is_expected(kind, &broken) || honest().is_ok()).then_some(broken)
    });
}

#[test]
fn finds_a_fork_segment_copied_whole() {
    finds(Plant::CopiesWholeForkSegment, &["past the switchpoint"]);
}

#[test]
fn finds_a_segment_recycled_under_a_reader() {
    let signs = ["is not what it was", "false byte"];
    finds_among(4 * ENOUGH, Kind::Ordinary, Plant::RecyclesUnderReaders, &signs);
}

#[test]
fn finds_serving_past_the_switchpoint() {
    let signs = ["past the switchpoint"];
    finds_among(4 * ENOUGH, Kind::Ordinary, Plant::ServesPastTheSwitchpoint, &signs);
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
fn finds_a_stream_that_proves_nothing() {
    let signs = ["is sent two histories", "false byte", "is not complete"];
    finds_in(Kind::RolledBack, Plant::AsksWithoutOverlap, &signs);
}

#[test]
fn finds_a_difference_that_is_forgotten() {
    let signs = ["is sent two histories", "false byte", "is not complete"];
    finds_in(Kind::RolledBack, Plant::ForgetsDifferences, &signs);
}

/// The stream itself compares a page.
#[test]
fn finds_a_history_that_is_not_proved() {
    let signs = ["is sent two histories", "false byte", "is not complete"];
    finds_in(Kind::RolledBack, Plant::ReadsTheirsForOurs, &signs);
}

#[test]
fn finds_a_fork_that_is_not_compared() {
    let signs = ["is sent two histories", "is false in the"];
    finds_in(Kind::Promoted, Plant::ReadsTheirsForOurs, &signs);
}

#[test]
fn finds_a_standby_that_is_not_asked_what_it_has() {
    finds_in(Kind::GivenUp, Plant::ForgetsSeams, &["is sent two histories"]);
}

#[test]
fn finds_a_fence_that_is_forgotten() {
    finds_in(Kind::Fenced, Plant::ForgetsTheFence, &["fenced at"]);
}

#[test]
fn finds_an_upstream_that_is_forgotten() {
    finds_in(Kind::Steered, Plant::ForgetsTheUpstream, &["sent away from"]);
}

#[test]
fn finds_a_watermark_that_is_missed() {
    finds_in(Kind::FullDisk, Plant::MissesAFullDisk, &["the disk is full"]);
}

#[test]
fn finds_retention_by_unsaved_slots_among_many() {
    finds_in(Kind::ManySlots, Plant::RetainsByUnsavedSlots, &["needs WAL from"]);
}

#[test]
fn finds_timeouts_by_the_time_of_day() {
    finds_in(Kind::ClockJumps, Plant::TimesOutByTheTimeOfDay, &["was heard a moment ago"]);
}

#[test]
fn finds_wal_that_goes_under_a_connected_standby() {
    let signs = ["is missing, held from", "its user was at"];
    finds(Plant::HoldsWhatIsDurable, &signs);
}

#[test]
fn finds_that_nobody_who_left_is_waited_for() {
    finds_in(Kind::Returns, Plant::ForgetsWhoLeft, &["is back after"]);
    finds_in(Kind::FullDisk, Plant::ForgetsWhoLeft, &["is invalidated"]);
}

#[test]
fn finds_idleness_by_the_time_of_day() {
    finds_in(Kind::ClockJumps, Plant::IdlesByTheTimeOfDay, &["is invalidated"]);
}

#[test]
fn finds_an_archive_that_wins_silently() {
    // The record across our end is of two histories, and a start does not find it.
    let signs = ["false byte", "is false in the", "published"];
    finds(Plant::ArchiveWinsSilently, &signs);
}

#[test]
fn finds_a_keeper_with_one_lane() {
    finds_in(Kind::ManySlots, Plant::OneLane, &["what a commit waits for took"]);
}
