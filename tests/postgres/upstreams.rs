//! Upstreams that are not what they were, or want something first.

use crate::client::Client;
use crate::cluster::{Birth, Cluster, PASSWORD, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::segments::{assert_identical, complete_segments};
use crate::streaming::wait_connected;
use crate::wait;
use serde_json::Value;
use std::time::Duration;
use walhub::wal::lsn::Lsn;

#[test]
fn another_cluster_is_refused_and_serving_goes_on() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let stranger = Cluster::primary(&scene, "stranger");
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    load::write_mib(&primary, 2);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    hub.stop();

    hub.set_upstream(&stranger.conninfo());
    hub.start();
    let [ours, theirs] = [&primary, &stranger].map(|cluster| system_id(cluster.port()));
    hub.wait_log(&[&ours, &theirs]);
    load::write_mib(&stranger, 8);
    wait::stays(Duration::from_secs(1), "nothing of it is taken", || {
        hub.inspect().record_end() < end.saturating_add(1 << 20)
    });
    assert_eq!(system_id(hub.port()), ours);
}

/// Two histories of the same length that end at the same segment border: only what lies
/// before the border tells them apart.
#[test]
fn another_history_that_meets_ours_at_a_segment_is_never_stored() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    primary.stop_fast();
    let mut restored = primary.copy_of_files("restored");
    let live = |server: &mut Cluster<'_>, letter: char| {
        server.start();
        for _ in 0..2 {
            server.sql(&format!(
                "select pg_logical_emit_message(true, 'load', repeat('{letter}', 1000))"
            ));
        }
        server.sql("select pg_switch_wal()");
    };
    live(&mut primary, 'a');
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    hub.kill();
    primary.kill();

    live(&mut restored, 'b');
    load::write_mib(&restored, 3);
    hub.set_upstream(&restored.conninfo());
    hub.start();
    hub.wait_state("diverged");
    assert_identical(&hub.pg_wal(), &primary.pg_wal(), 1);
    hub.assert_running();
}

#[test]
fn another_history_of_the_same_positions_is_never_stored() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    load::prepare(&scene, &primary);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();

    // A copy of the files, as a snapshot would give; then the primary goes on.
    primary.stop_fast();
    let mut restored = primary.copy_of_files("restored");
    primary.start();
    wait_connected(&primary);
    load::write_mib(&primary, 20);
    let end = primary.flush_lsn();
    standby.wait_replayed(end);
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    primary.kill();

    // The copy is behind first, then beyond, with other WAL under the same numbers.
    restored.start();
    hub.kill();
    hub.set_upstream(&restored.conninfo());
    hub.start();
    hub.wait_state("waiting for upstream");
    load::prepare(&scene, &restored);
    while restored.flush_lsn() < end.saturating_add(8 << 20) {
        load::write_mib(&restored, 4);
    }
    hub.wait_state("diverged");
    hub.wait_log(&["diverged"]);
    let held = hub.inspect().record_end();
    wait::stays(Duration::from_secs(2), "nothing of it is taken", || {
        hub.inspect().record_end() == held
    });
    assert_identical(&hub.pg_wal(), &primary.pg_wal(), 10);
    hub.assert_running();
    assert!(standby.replay_lsn() < end.saturating_add(1 << 20), "the standby took another history");

    // The true primary comes back: nothing was harmed.
    drop(restored);
    primary.start();
    hub.kill();
    hub.set_upstream(&primary.conninfo());
    hub.start();
    wait_connected(&primary);
    load::write_mib(&primary, 2);
    assert_converged(&primary, &[&standby]);
}

/// What it streams could not be found again at the next start, and no standby takes it.
#[test]
fn a_timeline_without_its_history_file_is_refused() {
    let scene = Scene::new();
    let mut primary = Cluster::primary(&scene, "primary");
    primary.stop_fast();
    primary.reset_wal("000000020000000000000010");
    primary.start();
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    hub.wait_state("upstream refused");
    hub.wait_log(&["history file", "timeline 2"]);
    assert_eq!(complete_segments(&hub.pg_wal()).len(), 0);

    // With one it is followed, over a restart of the hub too.
    std::fs::write(primary.pg_wal().join("00000002.history"), "# reset\n").unwrap();
    wait_connected(&primary);
    load::write_mib(&primary, 1);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    hub.stop();
    hub.start();
    wait_connected(&primary);
}

#[test]
fn a_gap_is_never_bridged() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo()).started();
    wait_connected(&primary);
    load::write_mib(&primary, 3);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    hub.kill();
    shorten_memory(&mut primary);
    forget_wal(&primary);

    hub.start();
    hub.wait_state("gap");
    hub.assert_running();
    assert!(hub.inspect().record_end() < end.saturating_add(2 << 20));
    Client::connect(hub.port()).query("IDENTIFY_SYSTEM").unwrap();
    hub.kill();

    // The operator decides to begin anew.
    let hub = hub.flag("--on-gap=restart-at-current").flag("--reconnect-grace=2s");
    let hub = hub.flag("--keep-set-aside=2s").started();
    hub.wait_log(&["WARN", "no upstream has this hub's next WAL", "within 2 s"]);
    wait_connected(&primary);
    primary.backup_again();
    load::prepare(&scene, &primary);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    assert_converged(&primary, &[&standby]);
    assert!(complete_segments(&hub.pg_wal()).iter().all(|name| segment_end(name) > end));
    goes_when_it_is_confirmed(&hub, "pg_wal.aside.1");
}

/// What the hub has set aside stays until an operator says that nobody needs it. It may have set more
/// aside: the primary keeps little.
fn goes_when_it_is_confirmed(hub: &Hub<'_>, name: &str) {
    let find = |all: &Value| {
        let all = all["set_aside"].as_array().expect("a list");
        all.iter().find(|aside| aside["name"] == name).cloned()
    };
    let seen = || find(&hub.told(&["status"])["status"]);
    let aside = wait::eventually("the hub has seen it", seen);
    assert!(aside["confirmed"].is_null());
    assert!(find(&hub.told(&["confirm"])).is_some());
    assert_eq!(hub.ask(&["confirm", "aside", "pg_wal.aside.7"]).0, 1);
    let left = hub.told(&["confirm", "aside", name]);
    assert_eq!(find(&left), None, "{left}");
    hub.wait_log(&["WARN", "removing", name, "confirmed at"]);
    wait::until("it is gone", || !hub.directory().join(name).exists());
    wait::until("the hub has seen that", || seen().is_none());
    assert!(hub.inspect().wrong().is_empty());
}

#[test]
fn a_slot_upstream_keeps_the_wal() {
    let scene = Scene::new();
    let primary = short_memory(&scene);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--primary-slot-name=walhub")
        .flag("--create-slot")
        .started();
    wait_connected(&primary);
    assert_eq!(primary.sql("select active from pg_replication_slots"), "t");
    load::write_mib(&primary, 3);
    hub.kill();
    forget_wal(&primary);
    load::prepare(&scene, &primary);
    // The slot is there already at the second start.
    hub.start();
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    wait::until("the slot moves", || {
        primary.sql(&format!("select restart_lsn >= '{end}' from pg_replication_slots")) == "t"
    });
}

#[test]
fn an_empty_directory_may_begin_with_the_oldest() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    load::write_mib(&primary, 6);
    let hub = Hub::new(&scene, "hub", &primary.conninfo()).flag("--start-from=oldest").started();
    wait_connected(&primary);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    let [theirs, ours] = [primary.pg_wal(), hub.pg_wal()].map(|folder| complete_segments(&folder));
    assert_eq!(ours.first(), theirs.first());
    wait::until("segments have their names", || complete_segments(&hub.pg_wal()).len() >= 5);
    assert_identical(&hub.pg_wal(), &primary.pg_wal(), 5);
}

#[test]
fn a_start_that_the_upstream_cannot_give_names_the_flag() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = |name: &str, at: &str| {
        Hub::new(&scene, name, &primary.conninfo()).flag(&format!("--start-from={at}")).started()
    };
    let late = hub("late", "99/0");
    late.wait_log(&["waiting for upstream", "before --start-from 99/0"]);
    late.wait_state("waiting for upstream");
    let early = hub("early", "0/0");
    early.wait_log(&["gap", "already been removed", "--start-from 0/0", "--start-from oldest"]);
}

#[test]
fn a_missing_slot_says_how_to_get_one() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub =
        Hub::new(&scene, "hub", &primary.conninfo()).flag("--primary-slot-name=hub").started();
    hub.wait_log(&["replication slot \"hub\" does not exist", "--create-slot"]);
}

#[test]
fn an_upstream_that_asks_for_a_password() {
    let scene = Scene::new();
    for method in ["scram-sha-256", "password"] {
        let name = &method[..5];
        let birth = Birth { authentication: "trust", ..Birth::default() };
        let primary = Cluster::born(&scene, name, &birth);
        primary.sql(&format!("create role hub login replication password '{PASSWORD}'"));
        primary.let_in(&format!("host replication hub 127.0.0.1/32 {method}"));
        let conninfo = |password: &str| {
            format!("host=127.0.0.1 port={} user=hub password='{password}'", primary.port())
        };
        let refused = Hub::run(&scene, &format!("{name}-refused"), &conninfo("wrong"));
        let line = refused.wait_log(&["password authentication failed"]);
        assert!(!line.contains("wrong"), "the password is in the log: {line}");
        let hub = Hub::run(&scene, &format!("{name}-hub"), &conninfo(PASSWORD));
        wait_connected(&primary);
        assert!(!hub.log_text().contains(PASSWORD), "the password is in the log");
    }
}

#[test]
fn hosts_are_tried_in_order() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let port = primary.port();
    let hosts = format!("host=127.0.0.1,127.0.0.1 port=1,{port} user=postgres connect_timeout=2");
    let uri = format!("postgresql://postgres@127.0.0.1:1,127.0.0.1:{port}/?connect_timeout=2");
    for (name, conninfo) in [("words", hosts), ("uri", uri)] {
        let hub = Hub::run(&scene, name, &conninfo);
        hub.wait_state("streaming");
    }
}

/// A primary that keeps hardly any WAL.
fn short_memory<'a>(scene: &'a Scene) -> Cluster<'a> {
    let mut primary = Cluster::primary_with_segments(scene, "primary", 1);
    shorten_memory(&mut primary);
    primary
}

fn shorten_memory(primary: &mut Cluster<'_>) {
    primary.stop_fast();
    for setting in ["wal_keep_size=0", "min_wal_size=2MB", "max_wal_size=2MB"] {
        primary.set(setting);
    }
    primary.start();
}

/// Writes and checkpoints until old segments are gone, as far as no slot holds them.
fn forget_wal(primary: &Cluster<'_>) {
    for _ in 0..4 {
        load::write_mib(primary, 4);
        primary.sql("checkpoint");
    }
}

fn system_id(port: u16) -> String {
    Client::connect(port).query_value("IDENTIFY_SYSTEM")
}

/// Where a 1 MiB segment ends.
fn segment_end(name: &str) -> Lsn {
    let number = u64::from_str_radix(&name[16..], 16).unwrap();
    Lsn::new((number + 1) << 20)
}
