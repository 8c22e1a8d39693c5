//! The everyday life: a primary under load, a hub, standbys and pg_receivewal.

use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load::{self, Load};
use crate::programs::Programs;
use crate::receivewal::{Receiver, until_lsn};
use crate::scene::Scene;
use crate::segments::assert_identical;
use crate::wait;
use std::thread;
use std::time::Duration;

#[test]
fn three_standbys_follow_a_primary_under_load() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    load::prepare(&scene, &primary);
    let [a, b, c] = ["a", "b", "c"].map(|name| primary.standby(name, &hub.conninfo()));
    for standby in [&a, &b, &c] {
        standby.wait_streaming();
    }

    let work = Load::start(&scene, &primary);
    let before = positions(&primary);
    wait::until("the hub's positions move at the primary", || positions(&primary) != before);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(primary.count("select count(*) from pg_stat_replication"), 1);
    work.stop(&primary);
    assert_converged(&primary, &[&a, &b, &c]);

    // What the primary is told: everything is flushed here, so it waits for nobody.
    let end = primary.flush_lsn();
    wait::until("the hub reports all as flushed", || {
        primary.sql(&format!(
            "select flush_lsn >= '{end}' and write_lsn >= flush_lsn from pg_stat_replication"
        )) == "t"
    });
}

#[test]
fn a_standby_over_the_unix_socket() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let sockets = scene.folder("sockets", primary.programs.account());
    // The upstream connection goes over a Unix socket too.
    let hub = Hub::new(&scene, "hub", &primary.unix_conninfo())
        .flag(&format!("--unix-socket-directories={}", sockets.display()))
        .started();
    wait_connected(&primary);
    let upstream = format!("host={} port={} user=postgres", sockets.display(), hub.port());
    let standby = primary.standby("standby", &upstream);
    standby.wait_streaming();
    load::prepare(&scene, &primary);
    assert_converged(&primary, &[&standby]);
}

#[test]
fn receivewal_is_byte_identical_with_1_mib_segments() {
    receivewal_is_byte_identical(1, 30);
}

#[test]
fn receivewal_is_byte_identical_with_16_mib_segments() {
    receivewal_is_byte_identical(16, 4);
}

#[test]
fn receivewal_is_byte_identical_with_64_mib_segments() {
    receivewal_is_byte_identical(64, 2);
}

/// Three receivers of different habits, full segments and segments ended early.
fn receivewal_is_byte_identical(segment_mib: u64, segments: u64) {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", segment_mib);
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    // The primary counts the stream before the hub has seen its first message, and
    // pg_receivewal does not try twice to connect.
    hub.wait_state("streaming");

    let programs = Programs::usual();
    let receive = |name: &str, options: &[&str]| {
        Receiver::start(&scene, programs, name, &hub.conninfo(), options)
    };
    let mut plain = receive("plain", &[]);
    let mut synchronous = receive("synchronous", &["--synchronous"]);
    load::write_mib(&primary, segment_mib * segments);
    load::switch_segment(&primary);
    load::prepare(&scene, &primary);
    load::switch_segment(&primary);
    let end = primary.flush_lsn();
    load::write_mib(&primary, 1);

    // One that comes late and finds its beginning in the files.
    let mut once = receive("once", &["--no-loop", &until_lsn(end)]);
    let count = usize::try_from(segments).unwrap() + 1;
    for receiver in [&mut plain, &mut synchronous] {
        receiver.wait_segments(count);
        receiver.stop();
        assert_identical(receiver.folder(), &primary.pg_wal(), count);
    }
    once.wait_end();
    assert_identical(once.folder(), &primary.pg_wal(), 0);
    assert_identical(&hub.pg_wal(), &primary.pg_wal(), count);
}

#[test]
fn a_primary_under_load_stops_promptly_and_the_hub_waits_for_it() {
    let scene = Scene::new();
    let mut primary = Cluster::primary(&scene, "primary");
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    load::prepare(&scene, &primary);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();

    let work = Load::start(&scene, &primary);
    thread::sleep(Duration::from_secs(1));
    let took = primary.stop_fast();
    assert!(took < Duration::from_secs(5), "the fast stop took {took:?}");
    drop(work);

    primary.start();
    wait_connected(&primary);
    assert_converged(&primary, &[&standby]);
}

/// Waits until the primary has the hub as its one streaming receiver.
pub(crate) fn wait_connected(primary: &Cluster<'_>) {
    wait::until("the hub streams from the primary", || {
        primary.count("select count(*) from pg_stat_replication where state = 'streaming'") > 0
    });
}

fn positions(primary: &Cluster<'_>) -> String {
    primary.sql("select sent_lsn, write_lsn, flush_lsn from pg_stat_replication")
}
