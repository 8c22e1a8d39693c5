//! Nothing happens, or somebody does nothing: keepalives, timeouts, a frozen standby.
//!
//! `WALHUB_IDLE_CYCLES` (a second each) and `WALHUB_SIGSTOP_MB` ask for more.

use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::streaming::wait_connected;
use crate::wait::{self, from_environment};
use std::time::{Duration, Instant};

#[test]
fn idle_connections_with_short_timeouts_stay() {
    let scene = Scene::new();
    let mut primary = Cluster::primary(&scene, "primary");
    primary.set("wal_sender_timeout=2s");
    primary.stop_fast();
    primary.start();
    let hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-sender-timeout=2s")
        .flag("--wal-receiver-timeout=2s")
        .started();
    wait_connected(&primary);
    let mut standby = primary.standby("standby", &hub.conninfo());
    standby.stop_fast();
    // The standby reports by itself too seldom to satisfy anybody: pings must be answered.
    standby.set("wal_receiver_status_interval=60s");
    standby.set("wal_receiver_timeout=2s");
    standby.start();

    let receiver = standby.wait_streaming();
    let sender = primary.sql("select pid from pg_stat_replication");
    let cycles = from_environment("WALHUB_IDLE_CYCLES", 8);
    let mut next_look = Instant::now();
    wait::stays(Duration::from_secs(cycles), "both connections are the same", || {
        if Instant::now() < next_look {
            return true;
        }
        next_look += Duration::from_secs(1);
        standby.walreceiver().as_ref() == Some(&receiver)
            && primary.sql("select pid from pg_stat_replication") == sender
    });
}

#[test]
fn a_frozen_standby_within_the_timeout_keeps_its_stream() {
    frozen_standby("5min", AfterThaw::SameStream);
}

#[test]
fn a_frozen_standby_beyond_the_timeout_is_cut_and_comes_back() {
    frozen_standby("3s", AfterThaw::NewStream);
}

#[derive(PartialEq)]
enum AfterThaw {
    SameStream,
    NewStream,
}

/// One of two standbys is frozen while WAL passes: the other does not notice, the hub
/// does not grow, the frozen one catches up.
fn frozen_standby(timeout: &str, after: AfterThaw) {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag(&format!("--wal-sender-timeout={timeout}"))
        .flag("--wal-buffers=16MB")
        .flag("--wal-keep-size=4GB")
        .started();
    wait_connected(&primary);
    load::prepare(&scene, &primary);
    let [lively, frozen] = ["lively", "frozen"].map(|name| primary.standby(name, &hub.conninfo()));
    lively.wait_streaming();
    let stream = frozen.wait_streaming();
    // Every buffer was used once, before the memory is measured.
    load::write_mib(&primary, 48);
    frozen.wait_replayed(primary.flush_lsn());
    lively.wait_replayed(primary.flush_lsn());
    let memory = hub.private_kib();

    frozen.freeze();
    let left = from_environment("WALHUB_SIGSTOP_MB", 160);
    let steps = 8;
    for _ in 0..steps {
        load::write_mib(&primary, left / steps);
        let end = primary.flush_lsn();
        wait::within(Duration::from_secs(60), "the lively standby keeps up", || {
            (lively.replay_lsn() >= end).then_some(())
        });
    }
    if after == AfterThaw::NewStream {
        hub.wait_log(&["timeout", "frozen"]);
    }
    let growth = hub.private_kib().saturating_sub(memory);
    assert!(growth < 8 * 1024, "the hub grew by {growth} KiB");

    frozen.thaw();
    assert_converged(&primary, &[&lively, &frozen]);
    let now = frozen.wait_streaming();
    assert_eq!(now == stream, after == AfterThaw::SameStream);
}
