//! Failovers under a fleet that stays connected: of a standby behind the hub, of one
//! beside it, with a hub that had more than the one that was promoted.

use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::programs::Programs;
use crate::receivewal::Receiver;
use crate::scene::Scene;
use crate::segments::{assert_identical, complete_segments};
use crate::streaming::wait_connected;
use crate::wait;
use std::fs;
use walhub::wal::lsn::Lsn;

/// Whoever of these is the primary.
fn primary_of(clusters: [&Cluster<'_>; 2]) -> String {
    let [a, b] = clusters.map(Cluster::port);
    format!("host=127.0.0.1,127.0.0.1 port={a},{b} user=postgres target_session_attrs=primary")
}

/// The primary dies, a standby behind the hub takes its place, and the hub follows its
/// own former client; all others, pg_receivewal too, stay on their connections.
#[test]
fn a_standby_behind_the_hub_is_promoted() {
    let scene = Scene::new();
    let mut old = Cluster::primary_with_segments(&scene, "old", 1);
    load::prepare(&scene, &old);
    let mut hub = Hub::new(&scene, "hub", "");
    let new = old.standby("new", &hub.conninfo());
    hub.set_upstream(&primary_of([&old, &new]));
    hub.start();
    let others = ["b", "c"].map(|name| old.standby(name, &hub.conninfo()));
    for standby in others.iter().chain([&new]) {
        standby.wait_streaming();
    }
    let mut receiver = Receiver::start(&scene, Programs::usual(), "received", &hub.conninfo(), &[]);
    load::write_mib(&old, 5);
    assert_converged(&old, &[&new, &others[0], &others[1]]);
    let walreceivers = others.each_ref().map(Cluster::walreceiver);

    old.kill();
    new.promote();
    load::write_mib(&new, 5);
    assert_converged(&new, &[&others[0], &others[1]]);
    assert_eq!(others.each_ref().map(Cluster::walreceiver), walreceivers, "nobody was cut");

    load::switch_segment(&new);
    let last = new.sql("select pg_walfile_name(pg_switch_wal())");
    load::write_mib(&new, 1);
    receiver.wait_segment(&last);
    receiver.stop();
    let received = complete_segments(receiver.folder());
    for tli in ["00000001", "00000002"] {
        let count = received.iter().filter(|name| name.starts_with(tli)).count();
        assert!(count >= 4, "{count} segments of timeline {tli}: {received:?}");
    }
    assert_identical(receiver.folder(), &new.pg_wal(), 8);
    assert_identical(&hub.pg_wal(), &new.pg_wal(), 8);
}

/// A standby beside the hub takes over; the old primary comes back, and is refused by
/// name and reason while the hub goes on with the new one.
#[test]
fn a_standby_beside_the_hub_is_promoted_and_the_old_primary_comes_back() {
    let scene = Scene::new();
    let mut old = Cluster::primary_with_segments(&scene, "old", 1);
    load::prepare(&scene, &old);
    let new = old.standby("new", &old.conninfo());
    new.wait_streaming();
    let mut hub = Hub::run(&scene, "hub", &primary_of([&old, &new]));
    wait_connected(&old);
    let leaves = ["a", "b", "c"].map(|name| old.standby(name, &hub.conninfo()));
    for leaf in &leaves {
        leaf.wait_streaming();
    }
    load::write_mib(&old, 3);
    assert_converged(&old, &[&new, &leaves[0], &leaves[1], &leaves[2]]);
    let walreceivers = leaves.each_ref().map(Cluster::walreceiver);
    old.kill();
    new.promote();
    load::write_mib(&new, 3);
    assert_converged(&new, &[&leaves[0], &leaves[1], &leaves[2]]);
    assert_eq!(leaves.each_ref().map(Cluster::walreceiver), walreceivers, "nobody was cut");

    // It says that it is a primary, and it writes.
    old.start();
    load::write_mib(&old, 1);
    let old_port = old.port().to_string();
    hub.kill();
    hub.start();
    hub.wait_log(&["forked off", &old_port]);
    load::write_mib(&new, 3);
    assert_converged(&new, &[&leaves[0], &leaves[1], &leaves[2]]);
    assert_identical(&hub.pg_wal(), &new.pg_wal(), 6);
    assert_eq!(old.count("select count(*) from pg_stat_replication"), 0);
}

#[test]
fn the_hub_is_ahead_by_a_record() {
    ahead_of_the_fork("select pg_logical_emit_message(true, 'x', 'y')");
}

#[test]
fn the_hub_is_ahead_by_a_page() {
    ahead_of_the_fork("select pg_logical_emit_message(true, 'x', repeat('y', 8192))");
}

/// The hub and one standby have a little that the promoted server never saw: it is set
/// aside, the standby is named with where it stands, everybody else goes on.
fn ahead_of_the_fork(tail: &str) {
    let scene = Scene::new();
    let mut old = Cluster::primary_with_segments(&scene, "old", 1);
    load::prepare(&scene, &old);
    let mut new = old.standby("new", &old.conninfo());
    new.wait_streaming();
    let mut hub = Hub::run(&scene, "hub", &old.conninfo());
    wait_connected(&old);
    let ahead = old.standby("ahead", &hub.conninfo());
    let mut behind = old.standby("behind", &hub.conninfo());
    for leaf in [&ahead, &behind] {
        leaf.wait_streaming();
    }
    load::write_mib(&old, 2);
    let fork = old.flush_lsn();
    for standby in [&new, &ahead, &behind] {
        standby.wait_replayed(fork);
    }
    // In this order: what the server writes by itself meanwhile is not past the fork.
    behind.kill();
    new.kill();
    old.sql(tail);
    let end = old.flush_lsn();
    ahead.wait_replayed(end);
    old.kill();
    new.set("primary_conninfo=");
    new.start();
    new.promote();
    let left_at: Lsn = new
        .sql("select split_part(pg_read_file('pg_wal/00000002.history'), E'\\t', 2)")
        .parse()
        .unwrap();
    assert!(left_at >= fork && left_at < end, "{fork} {left_at} {end}");
    load::write_mib(&new, 2);

    hub.stop();
    hub.set_upstream(&new.conninfo());
    hub.start();
    // Before it knows that the timeline has ended, it serves all that it has.
    hub.wait_log(&["timeline 1 ended"]);
    behind.start();
    assert_converged(&new, &[&behind]);
    let named = hub.wait_log(&["standby has diverged", "ahead"]);
    for position in [left_at, end] {
        assert!(named.contains(&position.to_string()), "no {position} in {named}");
    }
    let folder = format!("1-{}", left_at.to_string().replace('/', "_"));
    let aside = hub.pg_wal().with_file_name("diverged").join(folder);
    let files = fs::read_dir(&aside).unwrap().count();
    assert!(files > 0, "{} is empty", aside.display());
    // It asks again and again, and is told of the end each time.
    wait::until("it streams no other history", || ahead.walreceiver().is_none());
    let replayed = ahead.replay_lsn();
    assert!(replayed < end.saturating_add(1 << 20), "{replayed} {end}");
    assert_identical(&hub.pg_wal(), &new.pg_wal(), 3);
    one_commit_was_abandoned(&mut hub, left_at, end);
}

/// The hub names the commit that the promoted server does not have, until that is confirmed.
fn one_commit_was_abandoned(hub: &mut Hub<'_>, left_at: Lsn, end: Lsn) {
    hub.wait_log(&["ERROR", &left_at.to_string(), "1 commit", "walhub ctl confirm"]);
    let abandoned = |hub: &Hub<'_>| hub.told(&["status"])["status"]["abandoned"].clone();
    let told = abandoned(hub);
    assert_eq!(told.as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(told[0]["commits"], 1, "{told}");
    assert_eq!(told[0]["start_lsn"], left_at.to_string(), "{told}");
    assert!(told[0]["end_lsn"].as_str().unwrap().parse::<Lsn>().unwrap() >= end, "{told}");
    assert_eq!(told[0]["first_commit_time"], told[0]["last_commit_time"], "{told}");
    hub.kill();
    hub.start();
    assert_eq!(abandoned(hub), told, "a restart forgets it");
    let (code, refused) = hub.ask(&["confirm", "0/1"]);
    assert_eq!(code, 1, "{refused}");
    assert_eq!(abandoned(hub), told);
    // The one that is ahead may not have come back by then.
    assert!(told[0]["standbys"].as_u64().is_some_and(|standbys| standbys <= 1), "{told}");
    let left = hub.told(&["confirm", "abandoned", &left_at.to_string()]);
    assert_eq!(left["abandoned"].as_array().map(Vec::len), Some(0), "{left}");
    hub.stop();
    hub.start();
    assert_eq!(abandoned(hub).as_array().map(Vec::len), Some(0));
}
