//! What an upstream shows of the hub's WAL before it is followed: the cases in which it is followed
//! without anybody's help, with a proof or with a weak one.

use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::streaming::wait_connected;
use crate::wait;
use serde_json::Value;
use walhub::wal::lsn::Lsn;

/// The upstream as `walhub ctl status` shows it.
fn upstream(hub: &Hub<'_>) -> Value {
    hub.told(&["status"])["status"]["upstream"].clone()
}

/// What the upstream has shown.
fn outcome(hub: &Hub<'_>) -> String {
    upstream(hub)["proof"]["outcome"].as_str().unwrap_or("none").to_owned()
}

fn lsn(value: &Value) -> Lsn {
    value.as_str().unwrap_or_else(|| panic!("no LSN: {value}")).parse().unwrap()
}

/// The hub has everything.
fn wait_received(primary: &Cluster<'_>, hub: &Hub<'_>) {
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
}

/// The hub follows another server from now on.
fn follow(hub: &mut Hub<'_>, server: &Cluster<'_>) {
    hub.stop();
    hub.set_upstream(&server.conninfo());
    hub.start();
}

fn assert_no_evidence(hub: &Hub<'_>) {
    assert_eq!(hub.inspect().evidence(), None);
}

/// A hub of a primary with segments of 1 MiB, and a standby of the hub.
fn stage(scene: &Scene) -> (Cluster<'_>, Hub<'_>, Cluster<'_>) {
    let primary = Cluster::primary_with_segments(scene, "primary", 1);
    let hub = Hub::run(scene, "hub", &primary.conninfo());
    load::prepare(scene, &primary);
    wait_connected(&primary);
    let standby = primary.standby("standby", &hub.conninfo());
    standby.wait_streaming();
    (primary, hub, standby)
}

#[test]
fn a_primary_is_proved_back_to_a_commit_a_mib_before_the_end() {
    let scene = Scene::new();
    let (primary, mut hub, standby) = stage(&scene);
    load::write_mib(&primary, 6);
    wait_received(&primary, &hub);
    hub.kill();
    hub.start();
    wait_connected(&primary);
    wait::until("it is proved", || outcome(&hub) == "proved");
    let proof = upstream(&hub)["proof"].clone();
    let (from, to) = (lsn(&proof["from_lsn"]), lsn(&proof["to_lsn"]));
    assert!(to.bytes_since(from) >= 1 << 20, "{proof}");
    assert_eq!(upstream(&hub)["weak_joins"], 0);
    let text = hub.ctl().arg("status").output().unwrap().stdout;
    assert!(String::from_utf8(text).unwrap().contains("proved: WAL from"));
    load::write_mib(&primary, 2);
    assert_converged(&primary, &[&standby]);
}

/// As archive_timeout leaves it on a server with little to do: segments that end early, and no
/// commit in them.
#[test]
fn a_primary_whose_segments_end_early_without_a_commit_is_followed() {
    let scene = Scene::new();
    let (primary, mut hub, standby) = stage(&scene);
    for _ in 0..4 {
        primary.sql("select pg_logical_emit_message(false, 'idle', 'x'), pg_switch_wal()");
    }
    wait_received(&primary, &hub);
    for _ in 0..2 {
        hub.kill();
        hub.start();
        wait_connected(&primary);
        hub.wait_state("streaming");
    }
    assert_no_evidence(&hub);
    load::write_mib(&primary, 1);
    assert_converged(&primary, &[&standby]);
}

#[test]
fn a_primary_with_archive_timeout_is_followed() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    primary.stop_fast();
    primary.set("archive_timeout=1s");
    primary.start();
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    primary.sql("create table few (n int)");
    // The checkpointer has begun before the server was up, and sleeps for checkpoint_timeout.
    primary.sql("checkpoint");
    // The end of an ended segment counts as the next one's start.
    let segment = || primary.sql("select pg_walfile_name(pg_current_wal_insert_lsn() + 1)");
    for _ in 0..4 {
        let open = segment();
        primary.sql("insert into few values (1)");
        wait::until("the segment is ended", || segment() != open);
        wait_received(&primary, &hub);
        hub.kill();
        hub.start();
        wait_connected(&primary);
        hub.wait_state("streaming");
        assert_no_evidence(&hub);
    }
}

#[test]
fn a_hub_whose_end_is_a_segments_goes_on() {
    let scene = Scene::new();
    let (primary, mut hub, standby) = stage(&scene);
    load::write_mib(&primary, 2);
    load::switch_segment(&primary);
    wait_received(&primary, &hub);
    hub.kill();
    hub.start();
    wait_connected(&primary);
    wait::until("it is proved", || outcome(&hub) == "proved");
    assert_no_evidence(&hub);
    load::write_mib(&primary, 2);
    assert_converged(&primary, &[&standby]);
}

/// It has nothing from before its base backup: that is followed, said, counted, and proved when
/// there is more.
#[test]
fn a_rebuilt_standby_is_followed_and_proved_later() {
    let scene = Scene::new();
    let (mut primary, mut hub, standby) = stage(&scene);
    load::write_mib(&primary, 4);
    load::switch_segment(&primary);
    primary.backup_again();
    let rebuilt = primary.standby("rebuilt", &primary.conninfo());
    rebuilt.wait_streaming();
    wait_received(&primary, &hub);
    rebuilt.wait_replayed(primary.flush_lsn());
    follow(&mut hub, &rebuilt);
    wait_connected(&rebuilt);
    hub.wait_log(&["WARN", "it is not proved that", "the upstream has no WAL before that"]);
    wait::until("it is counted", || upstream(&hub)["weak_joins"] == 1);
    let proof = upstream(&hub)["proof"].clone();
    assert_eq!(proof["outcome"], "weak", "{proof}");
    assert!(lsn(&proof["from_lsn"]) < lsn(&proof["to_lsn"]), "{proof}");
    let text = String::from_utf8(hub.ctl().arg("status").output().unwrap().stdout).unwrap();
    assert!(text.contains("weak: WAL from") && text.contains("weak proofs:"), "{text}");

    for _ in 0..4 {
        load::write_mib(&primary, 1);
    }
    assert_converged(&primary, &[&standby]);
    hub.kill();
    hub.start();
    wait_connected(&rebuilt);
    wait::until("it is proved", || outcome(&hub) == "proved");
    assert_no_evidence(&hub);
}

#[test]
fn a_rebuilt_standby_is_refused_where_a_proof_is_required() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo()).flag("--require-proof").started();
    load::prepare(&scene, &primary);
    wait_connected(&primary);
    load::write_mib(&primary, 4);
    load::switch_segment(&primary);
    primary.backup_again();
    let rebuilt = primary.standby("rebuilt", &primary.conninfo());
    rebuilt.wait_streaming();
    wait_received(&primary, &hub);
    let end = hub.inspect().record_end();
    follow(&mut hub, &rebuilt);
    hub.wait_state("upstream not proved");
    assert_eq!(hub.inspect().record_end(), end);
    // One that proves it is followed.
    follow(&mut hub, &primary);
    load::write_mib(&primary, 2);
    wait_received(&primary, &hub);
    assert_eq!(upstream(&hub)["proof"]["outcome"], "proved");
}

/// A fork on a segment's boundary: the segment after it is the first of its timeline, and what
/// precedes it is asked for on the parent's.
#[test]
fn after_a_promotion_on_a_boundary_the_parent_is_compared_too() {
    let scene = Scene::new();
    let (primary, mut hub, standby) = stage(&scene);
    let middle = primary.standby("middle", &primary.conninfo());
    middle.wait_streaming();
    load::write_mib(&primary, 2);
    load::switch_segment(&primary);
    wait_received(&primary, &hub);
    middle.wait_replayed(primary.flush_lsn());
    middle.promote();
    follow(&mut hub, &middle);
    hub.wait_log(&["timeline 1 ended"]);
    wait_received(&middle, &hub);
    hub.kill();
    hub.start();
    wait_connected(&middle);
    wait::until("it is proved", || outcome(&hub) == "proved");
    let proof = upstream(&hub)["proof"].clone();
    let history = std::fs::read_to_string(middle.pg_wal().join("00000002.history")).unwrap();
    let fork: Lsn = history.split_whitespace().nth(1).unwrap().parse().unwrap();
    // A server that is not quite idle writes a record before it stops.
    let boundary = Lsn::new(fork.raw() >> 20 << 20);
    assert!(fork.bytes_since(boundary) < 8192, "{fork}");
    assert!(lsn(&proof["from_lsn"]) < boundary, "{proof}, {fork}");
    load::write_mib(&middle, 2);
    assert_converged(&middle, &[&standby]);
}

#[test]
fn a_standby_promoted_right_after_the_hub_has_connected_is_followed() {
    let scene = Scene::new();
    let (primary, mut hub, standby) = stage(&scene);
    let middle = primary.standby("middle", &primary.conninfo());
    middle.wait_streaming();
    load::write_mib(&primary, 3);
    wait_received(&primary, &hub);
    middle.wait_replayed(primary.flush_lsn());
    follow(&mut hub, &middle);
    middle.promote();
    load::write_mib(&middle, 2);
    assert_converged(&middle, &[&standby]);
    assert_no_evidence(&hub);
}

#[test]
fn a_rewound_server_is_followed() {
    let scene = Scene::new();
    let (mut primary, mut hub, standby) = stage(&scene);
    primary.stop_fast();
    primary.set("wal_log_hints=on");
    primary.start();
    let mut other = primary.new_standby("other", &primary.conninfo());
    other.set("wal_log_hints=on");
    other.start();
    other.wait_streaming();
    load::write_mib(&primary, 2);
    other.wait_replayed(primary.flush_lsn());
    other.promote();
    // The old primary writes what nobody follows, and is rewound.
    load::write_mib(&primary, 1);
    primary.stop_fast();
    follow(&mut hub, &other);
    load::write_mib(&other, 2);
    // Until its first checkpoint the promoted server's control file names the old timeline.
    other.sql("checkpoint");
    primary.rewind_to(&other);
    primary.make_standby();
    primary.set(&format!("primary_conninfo={} application_name=rewound", other.conninfo()));
    primary.start();
    primary.wait_streaming();
    wait_received(&other, &hub);
    primary.wait_replayed(other.flush_lsn());
    follow(&mut hub, &primary);
    wait_connected(&primary);
    assert_no_evidence(&hub);
    let new = other.backup_standby("new", &hub.conninfo());
    load::write_mib(&other, 2);
    assert_converged(&other, &[&new]);
    drop(standby);
}

/// A standby behind the hub is compared where it is, and waited for.
#[test]
fn a_standby_that_lags_behind_the_hub_is_waited_for() {
    let scene = Scene::new();
    let (primary, mut hub, standby) = stage(&scene);
    let mut late = primary.standby("late", &primary.conninfo());
    late.wait_streaming();
    load::write_mib(&primary, 2);
    late.wait_replayed(primary.flush_lsn());
    late.stop_fast();
    late.set("primary_conninfo=");
    late.start();
    load::write_mib(&primary, 3);
    wait_received(&primary, &hub);
    follow(&mut hub, &late);
    hub.wait_state("waiting for upstream");
    assert_no_evidence(&hub);
    late.stop_fast();
    late.set(&format!("primary_conninfo={} application_name=late", primary.conninfo()));
    late.start();
    hub.wait_state("streaming");
    load::write_mib(&primary, 2);
    assert_converged(&primary, &[&standby]);
}

#[test]
fn a_planned_switchover_back_and_forth_is_followed() {
    let scene = Scene::new();
    let mut one = Cluster::primary_with_segments(&scene, "one", 1);
    load::prepare(&scene, &one);
    let mut two = one.standby("two", &one.conninfo());
    two.wait_streaming();
    let both = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres target_session_attrs=primary",
        one.port(),
        two.port()
    );
    let hub = Hub::run(&scene, "hub", &both);
    let leaf = one.standby("leaf", &hub.conninfo());
    leaf.wait_streaming();
    for round in 0..4 {
        let (old, new) = if round % 2 == 0 { (&mut one, &mut two) } else { (&mut two, &mut one) };
        load::write_mib(old, 2);
        old.stop_fast();
        new.promote();
        old.make_standby();
        old.set(&format!("primary_conninfo={} application_name=old", new.conninfo()));
        old.start();
        load::write_mib(new, 1);
        assert_converged(new, &[&leaf]);
        old.wait_replayed(new.flush_lsn());
    }
    assert_no_evidence(&hub);
    assert_eq!(hub.told(&["status"])["status"]["timeline"], 5);
}

/// Recovery to a point before the hub's end: the hub sets the rest aside.
#[test]
fn a_server_recovered_to_a_point_before_the_hubs_end_is_followed() {
    let scene = Scene::new();
    let (mut primary, mut hub, standby) = stage(&scene);
    let mut recovered = primary.backup("recovered");
    load::write_mib(&primary, 2);
    let target = primary.flush_lsn();
    load::write_mib(&primary, 2);
    wait_received(&primary, &hub);
    primary.kill();
    recovered.set(&format!("recovery_target_lsn={target}"));
    recovered.set("recovery_target_action=promote");
    let recovered = recovered.restored(&format!("cp {}/%f %p", primary.pg_wal().display()));
    wait::until("recovery has ended", || recovered.sql("select pg_is_in_recovery()") == "f");
    follow(&mut hub, &recovered);
    hub.wait_log(&["timeline 1 ended"]);
    assert_no_evidence(&hub);
    let new = recovered.backup_standby("new", &hub.conninfo());
    load::write_mib(&recovered, 2);
    assert_converged(&recovered, &[&new]);
    drop(standby);
}

/// Recovery to a point past the hub's end: the hub gets the rest, and goes on.
#[test]
fn a_server_recovered_to_a_point_past_the_hubs_end_is_followed() {
    let scene = Scene::new();
    let (mut primary, mut hub, standby) = stage(&scene);
    let recovered = primary.backup("recovered");
    load::write_mib(&primary, 2);
    wait_received(&primary, &hub);
    hub.kill();
    load::write_mib(&primary, 2);
    primary.kill();
    let recovered = recovered.restored(&format!("cp {}/%f %p", primary.pg_wal().display()));
    wait::until("recovery has ended", || recovered.sql("select pg_is_in_recovery()") == "f");
    hub.set_upstream(&recovered.conninfo());
    hub.start();
    load::write_mib(&recovered, 2);
    assert_converged(&recovered, &[&standby]);
    assert_no_evidence(&hub);
}

/// It begins in a new segment, and what precedes that is gone: a gap, not another history.
#[test]
fn a_server_restarted_by_pg_resetwal_is_a_gap_that_is_skipped() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = Hub::new(&scene, "hub", &primary.conninfo());
    let hub = hub.flag("--on-gap=restart-at-current").flag("--reconnect-grace=1s").started();
    load::prepare(&scene, &primary);
    wait_connected(&primary);
    load::write_mib(&primary, 2);
    wait_received(&primary, &hub);
    let newest = primary.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    primary.stop_fast();
    let next = u64::from_str_radix(&newest[16..], 16).unwrap() + 3;
    primary.reset_wal(&format!("{}{next:08X}", &newest[..16]));
    primary.start();
    wait_connected(&primary);
    assert_no_evidence(&hub);
    let standby = primary.standby("standby", &hub.conninfo());
    load::write_mib(&primary, 2);
    assert_converged(&primary, &[&standby]);
}
