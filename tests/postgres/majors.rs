//! Primaries and standbys of other major versions.
//!
//! `WALHUB_PG_MAJORS="13 14 16 17 18"` asks for them: they are fetched, 80 MB each.

use crate::client::Client;
use crate::cluster::{Birth, Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::programs::Programs;
use crate::receivewal::Receiver;
use crate::scene::Scene;
use crate::segments::assert_identical;
use crate::skip::skipped;
use crate::streaming::wait_connected;
use crate::wait;

#[test]
fn each_major_streams_through_the_hub() {
    let Ok(majors) = std::env::var("WALHUB_PG_MAJORS") else {
        return skipped("WALHUB_PG_MAJORS is not set");
    };
    for major in majors.split_whitespace() {
        let programs = Programs::of(major.parse().unwrap());
        eprintln!("PostgreSQL {}", programs.major);
        streams(programs);
        fails_over(programs);
    }
}

fn streams(programs: &'static Programs) {
    let scene = Scene::new();
    let birth = Birth { programs, segment_mib: 1, ..Birth::default() };
    let primary = Cluster::born(&scene, "primary", &birth);
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    load::prepare(&scene, &primary);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    let mut receiver = Receiver::start(&scene, programs, "received", &hub.conninfo(), &[]);
    load::write_mib(&primary, 8);
    assert_converged(&primary, &[&standby]);
    receiver.wait_segments(6);
    receiver.stop();
    assert_identical(receiver.folder(), &primary.pg_wal(), 6);
    wait::until("the hub has ended its segments", || {
        hub.inspect().record_end() >= primary.flush_lsn()
    });
    assert_identical(&hub.pg_wal(), &primary.pg_wal(), 6);

    let [direct, through] =
        [primary.port(), hub.port()].map(|port| Client::connect(port).parameters);
    assert_eq!(through["server_version"], direct["server_version"]);
}

/// The primary dies, a standby beside the hub takes over; a standby behind it and the hub
/// follow, the standby on its old connection.
fn fails_over(programs: &'static Programs) {
    let scene = Scene::new();
    let birth = Birth { programs, segment_mib: 1, ..Birth::default() };
    let mut old = Cluster::born(&scene, "old", &birth);
    load::prepare(&scene, &old);
    let new = old.standby("new", &old.conninfo());
    new.wait_streaming();
    let both = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres target_session_attrs=primary",
        old.port(),
        new.port()
    );
    let mut hub = Hub::run(&scene, "hub", &both);
    wait_connected(&old);
    let leaf = old.standby("leaf", &hub.conninfo());
    leaf.wait_streaming();
    load::write_mib(&old, 3);
    assert_converged(&old, &[&new, &leaf]);
    let walreceiver = leaf.walreceiver();

    old.kill();
    new.promote();
    load::write_mib(&new, 3);
    assert_converged(&new, &[&leaf]);
    assert_eq!(leaf.walreceiver(), walreceiver, "it was cut");

    // Once more through a restart of the hub: both timelines are found again.
    hub.kill();
    hub.start();
    load::write_mib(&new, 2);
    assert_converged(&new, &[&leaf]);
    assert_identical(&hub.pg_wal(), &new.pg_wal(), 6);
}
