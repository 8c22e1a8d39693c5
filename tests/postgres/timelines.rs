//! Failovers: of the hub's upstream, of a standby behind it, of one beside it.

use crate::client::Client;
use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::segments::assert_identical;
use crate::streaming::wait_connected;
use crate::wait;
use walhub::wal::lsn::Lsn;

/// The upstream is promoted under the hub: every standby follows on its connection,
/// without a restart, and so does pg_receivewal.
#[test]
fn the_upstream_is_promoted() {
    let scene = Scene::new();
    let old = Cluster::primary(&scene, "old");
    load::prepare(&scene, &old);
    let middle = old.standby("middle", &old.conninfo());
    middle.wait_streaming();
    let mut hub = Hub::run(&scene, "hub", &middle.conninfo());
    wait_connected(&middle);
    let leaves = ["leaf1", "leaf2", "leaf3"].map(|name| old.standby(name, &hub.conninfo()));
    for leaf in &leaves {
        leaf.wait_streaming();
    }
    load::write_mib(&old, 20);
    assert_converged(&old, &[&middle, &leaves[0], &leaves[1], &leaves[2]]);
    let walreceivers: Vec<_> = leaves.iter().map(Cluster::walreceiver).collect();

    middle.promote();
    load::write_mib(&middle, 20);
    assert_converged(&middle, &[&leaves[0], &leaves[1], &leaves[2]]);
    let after: Vec<_> = leaves.iter().map(Cluster::walreceiver).collect();
    assert_eq!(after, walreceivers, "nobody was cut");
    hub.wait_log(&["timeline 1 ended"]);

    // Both timelines, as the servers have them, over a restart of the hub too.
    let end = middle.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    hub.kill();
    hub.start();
    wait_connected(&middle);
    load::write_mib(&middle, 20);
    assert_converged(&middle, &[&leaves[0], &leaves[1], &leaves[2]]);
    assert_identical(&hub.pg_wal(), &middle.pg_wal(), 2);
}

/// Twice in a row, and once more while the hub is down.
#[test]
fn three_promotions() {
    let scene = Scene::new();
    let first = Cluster::primary(&scene, "first");
    load::prepare(&scene, &first);
    let second = first.standby("second", &first.conninfo());
    let third = first.standby("third", &second.conninfo());
    let fourth = first.standby("fourth", &third.conninfo());
    fourth.wait_streaming();
    let mut hub = Hub::run(&scene, "hub", &fourth.conninfo());
    wait_connected(&fourth);
    let leaf = first.standby("leaf", &hub.conninfo());
    leaf.wait_streaming();
    load::write_mib(&first, 3);
    assert_converged(&first, &[&fourth, &leaf]);

    second.promote();
    load::write_mib(&second, 3);
    assert_converged(&second, &[&fourth, &leaf]);
    third.promote();
    load::write_mib(&third, 3);
    assert_converged(&third, &[&fourth, &leaf]);

    hub.kill();
    fourth.promote();
    load::write_mib(&fourth, 3);
    hub.start();
    assert_converged(&fourth, &[&leaf]);
    let mut direct = Client::connect(fourth.port());
    let mut through = Client::connect(hub.port());
    for tli in 2..=4 {
        let history = format!("TIMELINE_HISTORY {tli}");
        assert_eq!(through.query(&history).unwrap(), direct.query(&history).unwrap());
    }
}

/// Two promotions while the hub was down, within one segment.
#[test]
fn two_promotions_while_the_hub_is_down() {
    let scene = Scene::new();
    let first = Cluster::primary(&scene, "first");
    load::prepare(&scene, &first);
    let second = first.standby("second", &first.conninfo());
    let third = first.standby("third", &second.conninfo());
    third.wait_streaming();
    let mut hub = Hub::run(&scene, "hub", &third.conninfo());
    wait_connected(&third);
    let leaf = first.standby("leaf", &hub.conninfo());
    leaf.wait_streaming();
    load::write_mib(&first, 1);
    assert_converged(&first, &[&third, &leaf]);
    hub.kill();
    load::write_mib(&first, 1);
    third.wait_replayed(first.flush_lsn());
    second.promote();
    load::write_mib(&second, 1);
    third.wait_replayed(second.flush_lsn());
    third.promote();
    load::write_mib(&third, 1);
    hub.start();
    assert_converged(&third, &[&leaf]);
}

/// The switchpoint lies on a segment's boundary.
/// The hub has the old timeline's last bytes only at the beginning of the new one's first file, and a
/// standby that was off during the failover needs them.
#[test]
fn a_hub_that_began_after_the_failover_serves_the_forks_segment_on_the_old_timeline() {
    let scene = Scene::new();
    let old = Cluster::primary(&scene, "old");
    load::prepare(&scene, &old);
    let new = old.standby("new", &old.conninfo());
    let mut leaf = old.standby("leaf", &old.conninfo());
    for standby in [&new, &leaf] {
        standby.wait_streaming();
    }
    leaf.stop_fast();
    load::write_mib(&old, 1);
    new.wait_replayed(old.flush_lsn());
    new.promote();
    let mut hub = Hub::run(&scene, "hub", &new.conninfo());
    wait_connected(&new);
    leaf.set(&format!("primary_conninfo={} application_name=leaf", hub.conninfo()));
    leaf.start();
    load::write_mib(&new, 1);
    assert_converged(&new, &[&leaf]);
    // The next start knows no more of the old timeline.
    hub.kill();
    leaf.stop_fast();
    hub.start();
    let mut client = Client::connect(hub.port());
    let history = std::fs::read_to_string(new.pg_wal().join("00000002.history")).unwrap();
    let fork: Lsn = history.split_whitespace().nth(1).unwrap().parse().unwrap();
    let start = Lsn::new(fork.raw() >> 24 << 24);
    client.start_replication(start, 1).unwrap();
    let served = client.read_wal(start, fork);
    let segment = old.sql(&format!("select pg_walfile_name('{start}'::pg_lsn + 1)"));
    let truth = std::fs::read(old.pg_wal().join(segment)).unwrap();
    assert!(served == truth[..served.len()] && served.len() as u64 == fork.bytes_since(start));
}

#[test]
fn a_promotion_at_a_segment_boundary() {
    let scene = Scene::new();
    let old = Cluster::primary_with_segments(&scene, "old", 1);
    load::prepare(&scene, &old);
    let middle = old.standby("middle", &old.conninfo());
    middle.wait_streaming();
    let hub = Hub::run(&scene, "hub", &middle.conninfo());
    wait_connected(&middle);
    let leaf = old.standby("leaf", &hub.conninfo());
    leaf.wait_streaming();
    load::write_mib(&old, 2);
    load::switch_segment(&old);
    middle.wait_replayed(old.flush_lsn());
    middle.promote();
    load::write_mib(&middle, 3);
    assert_converged(&middle, &[&leaf]);
}

/// The hub and one standby had more than the one that was promoted: what nobody follows
/// is set aside, and named.
#[test]
fn the_hub_is_ahead_of_the_fork() {
    let scene = Scene::new();
    let mut old = Cluster::primary_with_segments(&scene, "old", 1);
    load::prepare(&scene, &old);
    let mut new = old.standby("new", &old.conninfo());
    new.wait_streaming();
    let mut hub = Hub::run(&scene, "hub", &old.conninfo());
    wait_connected(&old);
    let ahead = old.standby("ahead", &hub.conninfo());
    ahead.wait_streaming();
    load::write_mib(&old, 2);
    new.wait_replayed(old.flush_lsn());
    new.kill();
    let fork = old.flush_lsn();
    // Three segments that the new primary will never have.
    load::write_mib(&old, 3);
    ahead.wait_replayed(old.flush_lsn());
    let tail = old.flush_lsn();
    wait::until("the hub has the tail", || hub.inspect().record_end() >= tail);
    let keeps_up = old.standby("keeps_up", &hub.conninfo());
    drop(keeps_up);
    old.kill();
    new.set("primary_conninfo=");
    new.start();
    new.promote();
    load::write_mib(&new, 1);
    let behind = new.standby("behind", &hub.conninfo());
    hub.kill();
    hub.set_upstream(&new.conninfo());
    hub.start();
    hub.wait_log(&["timeline 1 ended"]);
    assert_converged(&new, &[&behind]);
    let folders: Vec<_> = std::fs::read_dir(hub.pg_wal().with_file_name("diverged"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(folders.len(), 1, "{folders:?}");
    assert!(folders[0].starts_with("1-"), "{folders:?}");

    // The one that has the tail is not given another history.
    hub.wait_log(&["standby has diverged", "ahead"]);
    let standbys = hub.told(&["standbys"]);
    let diverged = standbys["standbys"]["diverged"].as_array().unwrap();
    assert_eq!(diverged.len(), 1, "{standbys}");
    assert_eq!(diverged[0]["application_name"], "ahead");
    assert_eq!(diverged[0]["timeline"], 1);
    let history = std::fs::read_to_string(new.pg_wal().join("00000002.history")).unwrap();
    let left = diverged[0]["left_lsn"].as_str().unwrap();
    assert!(history.contains(left), "{left}: {history}");
    let text = hub.ctl().arg("standbys").output().unwrap().stdout;
    assert!(String::from_utf8(text).unwrap().contains(left));
    assert!(ahead.replay_lsn() >= fork.max(Lsn::new(1)));

    // The old primary comes back: another branch.
    old.start();
    hub.stop();
    hub.set_upstream(&old.conninfo());
    hub.start();
    hub.wait_state("upstream refused");
    hub.wait_log(&["forked off"]);
}
