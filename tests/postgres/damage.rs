//! A disk that has changed bytes of WAL, the hub's or the upstream's, before the two are compared.

use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::segments::flip;
use crate::streaming::wait_connected;
use crate::wait;
use serde_json::Value;
use std::fs;

const MIB: u64 = 1 << 20;

/// A hub of a primary with segments of 1 MiB. The newest complete segment holds one record of 600 kB.
fn stage(scene: &Scene) -> (Cluster<'_>, Hub<'_>, Cluster<'_>, String) {
    stage_with(scene, &[])
}

fn stage_with<'a>(scene: &'a Scene, flags: &[&str]) -> (Cluster<'a>, Hub<'a>, Cluster<'a>, String) {
    let primary = Cluster::primary_with_segments(scene, "primary", 1);
    let hub = Hub::new(scene, "hub", &primary.conninfo());
    let hub = flags.iter().fold(hub, |hub, flag| hub.flag(flag)).started();
    load::prepare(scene, &primary);
    wait_connected(&primary);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    load::write_mib(&primary, 3);
    load::switch_segment(&primary);
    let segment = primary
        .sql("select pg_walfile_name(pg_logical_emit_message(false, 'long', repeat('x', 600000)))");
    load::switch_segment(&primary);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    standby.wait_replayed(end);
    (primary, hub, standby, segment)
}

fn evidence(hub: &Hub<'_>) -> Value {
    hub.told(&["status"])["status"]["evidence"].clone()
}

/// The primary ends all streams, and the hub connects again.
fn connect_again(primary: &Cluster<'_>) {
    primary.sql("select pg_terminate_backend(pid) from pg_stat_replication");
}

#[test]
fn our_damaged_record_is_mended_with_the_upstreams() {
    mends(&[]);
}

/// The archive has nothing, and an upstream is asked in its turn.
#[test]
fn our_damaged_record_is_mended_beside_an_archive() {
    mends(&["--restore-command=false %f %p"]);
}

fn mends(flags: &[&str]) {
    let scene = Scene::new();
    let (primary, hub, standby, segment) = stage_with(&scene, flags);
    let ours = hub.pg_wal().join(&segment);
    let damaged = MIB / 4 + 1000;
    drop(flip(&ours, damaged));
    connect_again(&primary);
    hub.wait_log(&["ERROR", &segment, "is damaged", "is replaced"]);
    wait_connected(&primary);
    hub.wait_state("streaming");
    assert!(evidence(&hub).is_null());
    assert_eq!(fs::read(&ours).unwrap(), fs::read(primary.pg_wal().join(&segment)).unwrap());
    let kept: Vec<_> = fs::read_dir(hub.directory().join("damaged")).unwrap().collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    // The digest was of the damaged bytes. The segment gets another without a scrub of all.
    let digest = hub.pg_wal().join(format!("digests/{segment}.digest"));
    wait::until("the segment has a digest again", || digest.exists());
    assert!(hub.told(&["status"])["status"]["scrub"]["last_ended"].is_null());
    load::write_mib(&primary, 2);
    assert_converged(&primary, &[&standby]);
}

#[test]
fn an_upstream_whose_record_is_damaged_is_not_followed_and_not_called_diverged() {
    let scene = Scene::new();
    let (primary, hub, standby, segment) = stage(&scene);
    let mend = flip(&primary.pg_wal().join(&segment), MIB / 4 + 1000);
    connect_again(&primary);
    hub.wait_log(&["its copy of the record at", "is damaged"]);
    assert!(evidence(&hub).is_null());
    assert!(!hub.directory().join("damaged").exists());
    mend();
    wait_connected(&primary);
    hub.wait_state("streaming");
    load::write_mib(&primary, 2);
    assert_converged(&primary, &[&standby]);
}

/// Nobody can say whose it is: no checksum covers it.
#[test]
fn damage_in_a_page_header_is_evidence() {
    let scene = Scene::new();
    let (primary, hub, standby, segment) = stage(&scene);
    let mend = flip(&hub.pg_wal().join(&segment), MIB / 4 + 5);
    connect_again(&primary);
    hub.wait_log(&["ERROR", "evidence of another history"]);
    assert!(!evidence(&hub).is_null());
    mend();
    wait_connected(&primary);
    assert!(evidence(&hub).is_null());
    load::write_mib(&primary, 2);
    assert_converged(&primary, &[&standby]);
}
