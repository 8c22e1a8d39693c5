//! SIGTERM and SIGINT: like PostgreSQL's fast shutdown, seen from a standby.

use crate::client::Client;
use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::streaming::wait_connected;
use crate::wait;
use rustix::process::Signal;
use std::fs::{self, File};
use std::time::Duration;
use walhub::wal::lsn::Lsn;

/// The start of the segment (16 MiB) that holds the primary's end.
fn segment_start(primary: &Cluster<'_>) -> Lsn {
    Lsn::new(primary.flush_lsn().raw() & !0xFF_FFFF)
}

#[test]
fn shutdown_sends_everything_and_ends_the_stream_in_order() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let start = segment_start(&primary);
    let mut client = Client::connect(hub.port());
    client.start_replication(start, 1).unwrap();
    load::write_mib(&primary, 4);
    let end = primary.flush_lsn();
    drop(client.read_wal(start, end));

    hub.signal(Signal::TERM);
    // Something may still come; then the bare CommandComplete and the close.
    let mut at = end;
    let command_complete = loop {
        let message = client.read_message().expect("closed without CommandComplete");
        match (message.tag, message.body.first()) {
            (b'd', Some(b'w')) => at = at.saturating_add(message.body.len() as u64 - 25),
            (b'd', Some(b'k')) => client.send_status(at),
            _ => break message,
        }
    };
    assert_eq!((command_complete.tag, &command_complete.body[..]), (b'C', &b"COPY 0\0"[..]));
    assert_eq!(client.read_message(), None);
    let (status, _) = hub.wait_exit();
    assert!(status.success(), "{status}");
}

#[test]
fn shutdown_takes_at_most_five_seconds_with_a_stuck_client() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let start = segment_start(&primary);
    let mut stuck = Client::connect(hub.port());
    stuck.start_replication(start, 1).unwrap();
    // More than the kernel takes for a client that reads nothing.
    load::write_mib(&primary, 24);

    hub.signal(Signal::INT);
    let (status, took) = hub.wait_exit();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_millis(5500), "the shutdown took {took:?}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let start = segment_start(&primary);
    let mut stuck = Client::connect(hub.port());
    stuck.start_replication(start, 1).unwrap();
    load::write_mib(&primary, 24);

    hub.signal(Signal::HUP);
    hub.wait_log(&["SIGHUP", "ignored"]);
    hub.signal(Signal::TERM);
    // Within 200 ms it is the same request, as when `timeout` signals process and group.
    hub.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(400));
    hub.assert_running();
    hub.signal(Signal::TERM);
    let (_, took) = hub.wait_exit();
    assert!(took < Duration::from_secs(1), "the immediate end took {took:?}");

    // Nothing of it harms the next start.
    hub.start();
    wait_connected(&primary);
}

/// A start first removes files that an earlier run was writing. There are so many of them that
/// the signals come long before it is through.
#[test]
fn signals_during_a_start_change_nothing_or_end_it() {
    const LEFT: usize = 60_000;
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    hub.stop();
    let pg_wal = hub.pg_wal();
    for n in 0..LEFT {
        File::create(pg_wal.join(format!("spare.{n}.tmp"))).unwrap();
    }

    let before = hub.log_text().len();
    let log = |hub: &Hub<'_>| hub.log_text()[before..].to_owned();
    hub.launch();
    wait::until("the hub has begun to start", || log(&hub).contains("starting walhub"));
    hub.signal(Signal::HUP);
    wait::until("the hub has ignored SIGHUP", || log(&hub).contains("received SIGHUP, ignored"));
    hub.signal(Signal::TERM);
    let (status, took) = hub.wait_exit();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_millis(5500), "the shutdown took {took:?}");
    let log = log(&hub);
    assert!(log.contains("received SIGTERM, shutting down"), "{log}");
    assert!(log.contains("walhub is shut down"), "{log}");
    assert!(!log.contains("listening"), "the start was over: {log}");
    let left = fs::read_dir(&pg_wal).unwrap().count();
    assert!(left > 1000, "the start was over: {left} files are left");

    hub.start();
    wait_connected(&primary);
    assert!(fs::read_dir(&pg_wal).unwrap().count() < 100);
}
