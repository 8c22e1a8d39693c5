//! Hubs behind standbys, behind hubs, in a circle, without anybody.

use crate::client::Client;
use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::streaming::wait_connected;
use crate::wait;
use std::time::Duration;
use walhub::wal::lsn::Lsn;

#[test]
fn a_hub_behind_a_standby() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    load::prepare(&scene, &primary);
    let middle = primary.standby("middle", &primary.conninfo());
    middle.wait_streaming();
    let hub = Hub::run(&scene, "hub", &middle.conninfo());
    wait_connected(&middle);
    let leaf = primary.standby("leaf", &hub.conninfo());
    leaf.wait_streaming();
    load::write_mib(&primary, 20);
    assert_converged(&primary, &[&middle, &leaf]);
}

#[test]
fn a_hub_behind_a_promoted_server() {
    let scene = Scene::new();
    let mut old = Cluster::primary(&scene, "old");
    load::prepare(&scene, &old);
    let primary = old.standby("primary", &old.conninfo());
    primary.wait_streaming();
    primary.wait_replayed(old.flush_lsn());
    old.kill();
    primary.promote();
    load::write_mib(&primary, 2);

    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let leaf = primary.standby("leaf", &hub.conninfo());
    leaf.wait_streaming();
    load::write_mib(&primary, 20);
    assert_converged(&primary, &[&leaf]);

    // Everything about the timeline is the primary's, to the byte.
    let mut direct = Client::connect(primary.port());
    let mut through = Client::connect(hub.port());
    let history = "TIMELINE_HISTORY 2";
    assert_eq!(through.query(history).unwrap(), direct.query(history).unwrap());
}

#[test]
fn a_hub_behind_a_hub() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let first = Hub::run(&scene, "first", &primary.conninfo());
    wait_connected(&primary);
    load::prepare(&scene, &primary);
    let mut second = Hub::run(&scene, "second", &first.conninfo());
    second.wait_state("streaming");
    let leaf = primary.standby("leaf", &second.conninfo());
    leaf.wait_streaming();
    load::write_mib(&primary, 20);
    second.kill();
    load::write_mib(&primary, 20);
    second.start();
    assert_converged(&primary, &[&leaf]);
}

#[test]
fn a_hub_pointed_at_itself_refuses_itself() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    hub.stop();
    let itself = hub.conninfo();
    hub.set_upstream(&itself);
    hub.start();
    hub.wait_log(&["loop"]);
    assert_ne!(hub.inspect().upstream_state(), "streaming");
    Client::connect(hub.port()).query("IDENTIFY_SYSTEM").unwrap();
}

#[test]
fn two_hubs_that_point_at_each_other_refuse() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let mut first = Hub::run(&scene, "first", &primary.conninfo());
    wait_connected(&primary);
    let second = Hub::run(&scene, "second", &first.conninfo());
    second.wait_state("streaming");

    first.stop();
    let upstream = second.conninfo();
    first.set_upstream(&upstream);
    first.start();
    wait::until("one of them says so", || {
        first.logged(&["loop"]).or_else(|| second.logged(&["loop"])).is_some()
    });
    let both_stream =
        || [&first, &second].iter().all(|hub| hub.inspect().upstream_state() == "streaming");
    wait::stays(Duration::from_secs(2), "they don't feed each other", || !both_stream());

    // Set right again, both go on.
    first.stop();
    first.set_upstream(&primary.conninfo());
    first.start();
    load::write_mib(&primary, 2);
    let end = primary.flush_lsn();
    wait::until("the second has it all", || second.inspect().record_end() >= end);
}

#[test]
fn a_hub_without_upstream_serves_what_it_has() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let start = Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF);
    let version = Client::connect(primary.port()).parameters["server_version"].clone();
    load::write_mib(&primary, 6);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    hub.kill();
    primary.kill();

    hub.start();
    let mut client = Client::connect(hub.port());
    assert_eq!(client.parameters["server_version"], version);
    assert_eq!(client.query_value("SHOW wal_segment_size"), "1MB");
    client.start_replication(start, 1).unwrap();
    let wal = client.read_wal(start, end);

    primary.start();
    wait_connected(&primary);
    let mut direct = Client::connect(primary.port());
    direct.start_replication(start, 1).unwrap();
    let expected = direct.read_wal(start, end);
    let both = usize::try_from(end.bytes_since(start)).unwrap();
    assert!(wal[..both] == expected[..both], "the WAL differs");
}

/// The circle closes two hubs above; all three stand still, and go on when it is opened.
#[test]
fn a_ring_of_three_hubs_is_refused() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let mut first = Hub::run(&scene, "first", &primary.conninfo());
    wait_connected(&primary);
    let second = Hub::run(&scene, "second", &first.conninfo());
    second.wait_state("streaming");
    let third = Hub::run(&scene, "third", &second.conninfo());
    third.wait_state("streaming");

    first.stop();
    first.set_upstream(&third.conninfo());
    first.start();
    let hubs = [&first, &second, &third];
    wait::until("one of them says so", || hubs.iter().any(|hub| hub.logged(&["loop"]).is_some()));
    let all_stream = || hubs.iter().all(|hub| hub.inspect().upstream_state() == "streaming");
    wait::stays(Duration::from_secs(2), "the ring is open", || !all_stream());

    first.stop();
    first.set_upstream(&primary.conninfo());
    first.start();
    load::write_mib(&primary, 2);
    let end = primary.flush_lsn();
    wait::until("the third has it all", || third.inspect().record_end() >= end);
}
