//! What the primary hears of standbys behind a hub: the transactions that their queries
//! need, and what they have replayed.

use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::load;
use crate::process::Process;
use crate::scene::Scene;
use crate::streaming::wait_connected;
use crate::wait;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A query that holds a snapshot until dropped.
struct LongQuery(Process);

impl LongQuery {
    fn start(scene: &Scene, standby: &Cluster<'_>) -> Self {
        let (_, out, err) = scene.log("long-query");
        let mut psql = standby.programs.client("psql");
        psql.args(["-XAtq", "-d", &standby.conninfo()])
            .args(["-c", "begin transaction isolation level repeatable read"])
            .args(["-c", "select count(*) from t", "-c", "select pg_sleep(3600)"]);
        let process = Process::start(psql.stdout(out).stderr(err));
        wait::until("the long query runs", || {
            standby.count("select count(*) from pg_stat_activity where query like '%pg_sleep(3%'")
                == 2
        });
        Self(process)
    }

    /// Ends the query at the server, too.
    fn end(mut self, standby: &Cluster<'_>) {
        standby.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where query like 'select pg_sleep(3600)%'",
        );
        wait::until("the long query's psql ends", || self.0.ended().is_some());
    }
}

fn backend_xmin(primary: &Cluster<'_>) -> Option<u64> {
    let xmin = primary.sql("select backend_xmin from pg_stat_replication");
    xmin.parse().ok()
}

/// Some transactions, so that a snapshot of now is an old one.
fn go_on(primary: &Cluster<'_>) -> u64 {
    for _ in 0..5 {
        primary.sql("insert into t values (1)");
    }
    primary.count("select txid_current()")
}

/// Waits until what is held back is as new as this transaction, or nothing.
fn wait_released(primary: &Cluster<'_>, xid: u64, why: &str) {
    wait::until(why, || backend_xmin(primary).is_none_or(|xmin| xmin >= xid));
}

#[test]
fn a_long_query_behind_the_hub_holds_back_the_primary_as_long_as_it_lasts() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    primary.sql("create table t (n int)");
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-receiver-status-interval=1s")
        .started();
    wait_connected(&primary);
    let mut standby = primary.standby("standby", &hub.conninfo());
    standby.stop_fast();
    standby.set("hot_standby_feedback=on");
    standby.start();
    standby.wait_streaming();

    // With the query.
    let before = go_on(&primary);
    standby.wait_replayed(primary.flush_lsn());
    let query = LongQuery::start(&scene, &standby);
    let later = go_on(&primary);
    let held = wait::eventually("it holds back the primary", || {
        backend_xmin(&primary).filter(|xmin| *xmin > 0)
    });
    wait::stays(Duration::from_secs(3), "it is held back", || {
        backend_xmin(&primary).is_some_and(|xmin| xmin <= later)
    });
    assert!(held > 0 && before < later);
    query.end(&standby);
    wait_released(&primary, later, "it goes with the query");

    // With the standby.
    let query = LongQuery::start(&scene, &standby);
    let later = go_on(&primary);
    wait::until("it holds back the primary", || {
        backend_xmin(&primary).is_some_and(|xmin| xmin <= later)
    });
    standby.kill();
    wait::until("it goes with the standby", || backend_xmin(&primary).is_none());
    drop(query);
    standby.start();
    standby.wait_streaming();

    // With the hub.
    let query = LongQuery::start(&scene, &standby);
    let later = go_on(&primary);
    wait::until("it holds back the primary", || {
        backend_xmin(&primary).is_some_and(|xmin| xmin <= later)
    });
    hub.kill();
    wait::until("it goes with the hub", || backend_xmin(&primary).is_none());
    hub.start();
    wait::until("it comes back with the hub", || {
        backend_xmin(&primary).is_some_and(|xmin| xmin <= later)
    });
    query.end(&standby);
}

#[test]
fn feedback_can_be_bounded_and_switched_off() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    primary.sql("create table t (n int)");
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-receiver-status-interval=1s")
        .flag("--feedback-max-age=4s")
        .started();
    wait_connected(&primary);
    let mut standby = primary.standby("standby", &hub.conninfo());
    standby.stop_fast();
    standby.set("hot_standby_feedback=on");
    standby.start();
    standby.wait_streaming();
    let query = LongQuery::start(&scene, &standby);
    let later = go_on(&primary);
    wait::until("it holds back the primary", || {
        backend_xmin(&primary).is_some_and(|xmin| xmin <= later)
    });
    wait_released(&primary, later, "it does so for --feedback-max-age");
    hub.stop();
    let hub = hub.flag("--hot-standby-feedback=off").started();
    standby.wait_streaming();
    go_on(&primary);
    wait::stays(Duration::from_secs(3), "nothing is held back", || {
        backend_xmin(&primary).is_none()
    });
    query.end(&standby);
    drop(hub);
}

/// How long a commit is waited for before it counts as one that waits for ever.
const COMMIT: Duration = Duration::from_secs(3);

/// Does a commit with this `synchronous_commit` return? One that does not is ended.
fn commits(primary: &Cluster<'_>, level: &str) -> bool {
    let mut psql = primary.programs.client("psql");
    psql.args(["-XAtq", "-d", &primary.conninfo()])
        .args(["-c", &format!("set synchronous_commit = {level}")])
        .args(["-c", "insert into t values (1)"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut psql = Process::start(&mut psql);
    let end = Instant::now() + COMMIT;
    while Instant::now() < end {
        if psql.ended().is_some_and(|status| status.success()) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let waiting = "from pg_stat_activity where wait_event = 'SyncRep'";
    wait::until("the waiting commit is ended", || {
        primary.sql(&format!("select pg_terminate_backend(pid) {waiting}"));
        psql.ended().is_some()
    });
    false
}

/// A primary that waits for its hub, and a hub that reports so.
fn synchronous(scene: &Scene, report: &str, check: impl FnOnce(&Cluster<'_>, &Hub<'_>)) {
    let primary = Cluster::primary(scene, "primary");
    primary.sql("create table t (n int)");
    let hub = Hub::new(scene, "hub", &primary.conninfo())
        .flag(&format!("--report-apply={report}"))
        .flag("--cluster-name=hub")
        .started();
    wait_connected(&primary);
    primary.sql("alter system set synchronous_standby_names = 'hub'");
    primary.sql("select pg_reload_conf()");
    wait::until("the hub is synchronous", || {
        primary.sql("select sync_state from pg_stat_replication") == "sync"
    });
    check(&primary, &hub);
    for level in ["remote_write", "on"] {
        assert!(commits(&primary, level), "{level} with --report-apply={report}");
    }
}

#[test]
fn a_synchronous_hub_that_reports_flush_as_applied() {
    let scene = Scene::new();
    synchronous(&scene, "flush", |primary, hub| {
        assert!(commits(primary, "remote_apply"), "as soon as it is flushed");
        // A primary that wants replay is told what it gets.
        primary.sql("alter system set synchronous_commit = 'remote_apply'");
        primary.sql("select pg_reload_conf()");
        primary.sql("select pg_terminate_backend(pid) from pg_stat_replication");
        hub.wait_log(&["remote_apply", "--report-apply"]);
    });
}

#[test]
fn a_synchronous_hub_that_reports_no_apply() {
    let scene = Scene::new();
    synchronous(&scene, "none", |primary, _| {
        assert!(!commits(primary, "remote_apply"), "nobody says that it is replayed");
    });
}

#[test]
fn a_synchronous_hub_that_reports_the_slowest_standby() {
    let scene = Scene::new();
    synchronous(&scene, "slowest", |primary, hub| {
        assert!(!commits(primary, "remote_apply"), "nobody is there to replay");
        let [a, b] = ["a", "b"].map(|name| primary.standby(name, &hub.conninfo()));
        for standby in [&a, &b] {
            standby.wait_streaming();
        }
        wait::until("both replay", || commits(primary, "remote_apply"));
        b.sql("select pg_wal_replay_pause()");
        wait::until("replay is paused", || {
            b.sql("select pg_get_wal_replay_pause_state()") == "paused"
        });
        assert!(!commits(primary, "remote_apply"), "one does not replay");
        b.sql("select pg_wal_replay_resume()");
        wait::until("both replay again", || commits(primary, "remote_apply"));
        let replayed = || primary.sql("select replay_lsn from pg_stat_replication");
        drop((a, b));
        hub.wait_log(&["stream to standby ended"]);
        load::write_mib(primary, 1);
        let last = replayed();
        load::write_mib(primary, 1);
        assert_eq!(replayed(), last, "without standbys the last value stays");
        assert_ne!(last, "");
        assert!(!commits(primary, "remote_apply"), "nobody is there to replay");
    });
}
