//! kill -9, of the hub and of the primary, under load.
//!
//! `WALHUB_KILLS` and `WALHUB_PRIMARY_KILLS` ask for more than the few of every run.

use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load::{self, Load};
use crate::receivewal::Receiver;
use crate::scene::Scene;
use crate::segments::{assert_identical, last_record_by_waldump};
use crate::streaming::wait_connected;
use crate::wait::{self, from_environment};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[test]
fn nothing_is_lost_or_false_when_the_hub_is_killed() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    load::prepare(&scene, &primary);
    let [a, b] = ["a", "b"].map(|name| primary.standby(name, &hub.conninfo()));
    let mut receiver = Receiver::start(&scene, primary.programs, "received", &hub.conninfo(), &[]);
    receiver.wait_begun();

    let work = Load::start(&scene, &primary);
    let mut pauses = Pauses::new();
    for _ in 0..from_environment("WALHUB_KILLS", 4) {
        pauses.pause();
        hub.kill();
        agrees_with_waldump(&scene, &primary, &hub);
        hub.start();
        wait_connected(&primary);
    }
    work.stop(&primary);
    assert_converged(&primary, &[&a, &b]);
    all_files_are_identical(&primary, &hub, &mut receiver);
}

#[test]
fn nothing_is_lost_or_false_when_the_primary_is_killed() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    load::prepare(&scene, &primary);
    let standby = primary.standby("standby", &hub.conninfo());
    let mut receiver = Receiver::start(&scene, primary.programs, "received", &hub.conninfo(), &[]);
    receiver.wait_begun();

    let mut pauses = Pauses::new();
    for _ in 0..from_environment("WALHUB_PRIMARY_KILLS", 2) {
        let work = Load::start(&scene, &primary);
        pauses.pause();
        primary.kill();
        drop(work);
        primary.start();
        wait_connected(&primary);
    }
    hub.assert_running();
    let work = Load::start(&scene, &primary);
    pauses.pause();
    work.stop(&primary);
    assert_converged(&primary, &[&standby]);
    all_files_are_identical(&primary, &hub, &mut receiver);
}

/// The hub's own files say the same end of WAL to `walhub inspect` and to pg_waldump.
fn agrees_with_waldump(scene: &Scene, primary: &Cluster<'_>, hub: &Hub<'_>) {
    if let Some(last) = last_record_by_waldump(scene, primary.programs, &hub.pg_wal()) {
        let inspection = hub.inspect();
        assert_eq!(inspection.last_record(), last, "walhub inspect against pg_waldump");
        assert!(inspection.record_end() > last);
    }
}

/// Ends the current segment, and compares all complete ones.
fn all_files_are_identical(primary: &Cluster<'_>, hub: &Hub<'_>, receiver: &mut Receiver) {
    let last = primary.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    load::switch_segment(primary);
    load::write_mib(primary, 1);
    receiver.wait_segment(&last);
    receiver.stop();
    assert_identical(receiver.folder(), &primary.pg_wal(), 2);
    wait::until("the hub has ended the segment", || hub.pg_wal().join(&last).exists());
    assert_identical(&hub.pg_wal(), &primary.pg_wal(), 2);
}

/// Pauses of random length; their seed is printed with the failure.
struct Pauses(u64);

impl Pauses {
    fn new() -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
        eprintln!("seed of the pauses: {seed}");
        Self(u64::from(seed))
    }

    /// 0.2 to 1.2 seconds.
    fn pause(&mut self) {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        thread::sleep(Duration::from_millis(200 + (self.0 >> 33) % 1000));
    }
}
