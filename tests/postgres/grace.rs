//! Nothing is taken from somebody who may come back, or because of one bad file: standbys that
//! left a moment ago, starts above the watermark, clocks and files that are wrong.

use crate::client::Client;
use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::segments::complete_segments;
use crate::streaming::wait_connected;
use crate::wait;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::time::{Duration, SystemTime};
use walhub::store::slots::Generation;
use walhub::wal::lsn::Lsn;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn wait_received(primary: &Cluster<'_>, hub: &Hub<'_>) {
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
}

/// Why a slot lost its WAL; empty when it has it.
fn invalidated(hub: &Hub<'_>, name: &str) -> String {
    let answer = hub.told(&["slots"]);
    let slots = answer["slots"].as_array().unwrap();
    let slot = slots.iter().find(|slot| slot["slot_name"] == name).unwrap();
    slot["invalidation_reason"].as_str().unwrap_or_default().to_owned()
}

/// The newest of the two files of the slots.
fn newest_slots(hub: &Hub<'_>) -> Option<Generation> {
    let read = |n| fs::read(hub.directory().join(format!("slots.{n}"))).ok();
    let whole = [0, 1].into_iter().filter_map(|n| Generation::decode(&read(n)?).ok());
    whole.max_by_key(|generation| generation.number)
}

/// Where the newest file of the slots has a slot.
fn saved_at(hub: &Hub<'_>, name: &str) -> Option<Lsn> {
    let newest = newest_slots(hub)?;
    newest.slots.iter().find(|slot| slot.name.as_str() == name)?.restart_lsn
}

#[test]
fn a_start_above_the_watermark_waits_for_the_users_of_the_slots() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo()).flag("--wal-keep-size=1MB");
    hub.start();
    wait_connected(&primary);
    hub.wait_state("streaming");
    let mut client = Client::connect(hub.port());
    for slot in ["node", "nobody"] {
        client.query(&format!("CREATE_REPLICATION_SLOT {slot} PHYSICAL (RESERVE_WAL)")).unwrap();
    }
    drop(client);
    let mut standby = primary.standby_with("standby", &hub.conninfo(), "node");
    standby.wait_streaming();
    load::write_mib(&primary, 30);
    wait_received(&primary, &hub);
    standby.wait_replayed(primary.flush_lsn());
    standby.stop_fast();
    load::write_mib(&primary, 20);
    wait_received(&primary, &hub);
    let end = primary.flush_lsn();

    hub.kill();
    // No disk has as much room as that.
    hub.set_flag("--disk-high-watermark=2000TB");
    hub.set_flag("--reconnect-grace=12s");
    hub.start();
    hub.wait_log(&["--disk-high-watermark", "receiving is paused"]);
    wait::stays(Duration::from_secs(5), "both slots have their WAL", || {
        ["node", "nobody"].iter().all(|slot| invalidated(&hub, slot).is_empty())
    });
    let answer = hub.told(&["retention"]);
    let kept_by = answer["retention"]["kept_by"].as_array().unwrap();
    assert_eq!(kept_by[0]["reason"], "start", "{answer}");
    assert!(kept_by[0]["ends_in_seconds"].as_f64() < Some(12.0), "{answer}");
    let awaited = kept_by.iter().filter(|kept| kept["reason"] == "slot_awaited");
    let mut names: Vec<_> = awaited.map(|kept| kept["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["nobody", "node"], "{answer}");
    assert_eq!(answer["retention"]["receiving"], "paused");
    let text = hub.ctl().arg("retention").output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("Would go now:     nothing") && text.contains("slot awaited"), "{text}");
    standby.start();
    standby.wait_replayed(end);
    // After the grace the one that nobody uses goes, and never the other.
    hub.wait_log(&["WARN", "invalidating", "\"nobody\""]);
    wait::until("its WAL goes", || complete_segments(&hub.pg_wal()).len() <= 20);
    assert_eq!(invalidated(&hub, "node"), "");
    hub.assert_running();
}

#[test]
fn a_segment_file_from_the_future_stops_nothing() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo()).started();
    wait_connected(&primary);
    hub.wait_state("streaming");
    load::write_mib(&primary, 30);
    wait_received(&primary, &hub);
    hub.stop();
    let oldest = complete_segments(&hub.pg_wal()).remove(0);
    let file = File::options().write(true).open(hub.pg_wal().join(oldest)).unwrap();
    file.set_modified(SystemTime::now() + 8 * DAY).unwrap();
    hub.set_flag("--wal-keep-size=1MB");
    hub.set_flag("--wal-keep-time=3s");
    hub.start();
    wait::until("old WAL goes", || complete_segments(&hub.pg_wal()).len() <= 17);
}

#[test]
fn a_standby_finds_the_wal_that_it_was_sent_and_had_not_flushed() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-keep-size=1MB")
        .flag("--reconnect-grace=30s")
        .started();
    wait_connected(&primary);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    load::write_mib(&primary, 2);
    standby.wait_replayed(primary.flush_lsn());
    let walreceiver = standby.walreceiver().unwrap();
    let pid = Pid::from_raw(walreceiver.parse().unwrap()).unwrap();
    // Sockets take some segments, and the standby flushes none of them.
    kill_process(pid, Signal::STOP).unwrap();
    load::write_mib(&primary, 60);
    wait_received(&primary, &hub);
    std::thread::sleep(Duration::from_secs(3));
    for signal in [Signal::TERM, Signal::CONT] {
        kill_process(pid, signal).unwrap();
    }
    standby.wait_replayed(primary.flush_lsn());
    let refused = hub.logged(&["has already been removed"]);
    assert_eq!(refused, None);
}

/// What only rules keep goes at once above the watermark; what a standby without a slot needs does not,
/// though it has a slot nowhere and the hub was killed.
#[test]
fn a_standby_without_a_slot_finds_its_wal_after_a_kill_above_the_watermark() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-keep-size=1GB")
        .flag("--reconnect-grace=60s");
    hub.start();
    wait_connected(&primary);
    load::write_mib(&primary, 20);
    let mut standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    standby.wait_replayed(primary.flush_lsn());
    standby.stop_fast();
    load::write_mib(&primary, 40);
    wait_received(&primary, &hub);
    let end = primary.flush_lsn();
    let before = complete_segments(&hub.pg_wal()).len();
    wait::until("what it needs is written down", || newest_slots(&hub).is_some());

    hub.kill();
    // No disk has as much room as that.
    hub.set_flag("--disk-high-watermark=2000TB");
    hub.start();
    wait::until("old WAL goes", || complete_segments(&hub.pg_wal()).len() < before - 5);
    standby.start();
    standby.wait_replayed(end);
    assert_eq!(hub.logged(&["has already been removed"]), None);
}

#[test]
fn a_segment_that_vanishes_under_the_hub_stops_nothing() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = Hub::new(&scene, "hub", &primary.conninfo()).flag("--wal-keep-size=1MB").started();
    wait_connected(&primary);
    hub.wait_state("streaming");
    let mut client = Client::connect(hub.port());
    for slot in ["old", "node"] {
        client.query(&format!("CREATE_REPLICATION_SLOT {slot} PHYSICAL (RESERVE_WAL)")).unwrap();
    }
    load::write_mib(&primary, 40);
    wait_received(&primary, &hub);
    wait::until("the slots are saved", || saved_at(&hub, "old").is_some());
    let newest = complete_segments(&hub.pg_wal()).pop().unwrap();
    fs::remove_file(hub.pg_wal().join(&newest)).unwrap();
    hub.wait_log(&["WARN", "could not look at WAL segment", &newest]);
    // No segment is completed from here on.
    let end = primary.flush_lsn();
    let from = saved_at(&hub, "node").unwrap();
    let mut user = Client::connect(hub.port());
    user.start_with_slot("node", from).unwrap();
    user.send_status(end);
    wait::until("the slot is saved", || saved_at(&hub, "node") == Some(end));
    client.query("DROP_REPLICATION_SLOT old").unwrap();
    wait::until("old WAL goes", || complete_segments(&hub.pg_wal()).len() <= 17);
}
