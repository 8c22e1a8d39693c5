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
use crate::streaming::wait_connected;
use crate::wait;

#[test]
fn each_major_streams_through_the_hub() {
    let Ok(majors) = std::env::var("WALHUB_PG_MAJORS") else {
        eprintln!("skipped: WALHUB_PG_MAJORS is not set");
        return;
    };
    for major in majors.split_whitespace() {
        let programs = Programs::of(major.parse().unwrap());
        eprintln!("PostgreSQL {}", programs.major);
        streams(programs);
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
