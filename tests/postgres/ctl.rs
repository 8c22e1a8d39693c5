//! `walhub ctl`: what it says agrees with what PostgreSQL says, and what it steers is
//! steered.

use crate::client::Client;
use crate::cluster::{Cluster, assert_converged};
use crate::hub::Hub;
use crate::load::{self, Load};
use crate::process::Process;
use crate::scene::Scene;
use crate::streaming::wait_connected;
use crate::wait;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::time::Duration;
use walhub::wal::lsn::Lsn;

#[test]
fn figures_agree_with_postgresqls() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-keep-size=1MB")
        .flag("--max-slot-wal-keep-size=200MB")
        .started();
    wait_connected(&primary);
    hub.wait_state("streaming");
    Client::connect(hub.port()).query("CREATE_REPLICATION_SLOT first PHYSICAL").unwrap();
    let mut first = primary.standby_with("first", &hub.conninfo(), "first");
    first.stop_fast();
    first.set("hot_standby_feedback=on");
    first.start();
    let second = primary.standby("second", &hub.conninfo());
    for standby in [&first, &second] {
        standby.wait_streaming();
    }
    load::prepare(&scene, &primary);
    load::write_mib(&primary, 30);
    assert_converged(&primary, &[&first, &second]);
    let end = primary.flush_lsn();

    // What the primary knows of the hub.
    let status = wait::eventually("the hub says what the primary says", || {
        let status = hub.told(&["status"])["status"].clone();
        let query = "select flush_lsn, backend_xmin from pg_stat_replication";
        let said = format!("{}|{}", text(&status, "durable_lsn"), status["xmin"]);
        (primary.sql(query) == said).then_some(status)
    });
    assert_eq!(lsn(&status, "durable_lsn"), end);
    for position in ["received_lsn", "written_lsn"] {
        assert_eq!(lsn(&status, position), end, "{position}");
    }
    assert_eq!(
        text(&status, "system_id"),
        primary.sql("select system_identifier from pg_control_system()")
    );
    assert_eq!(text(&status, "server_version"), primary.sql("show server_version"));
    assert_eq!((&status["timeline"], &status["standbys"]), (&1.into(), &2.into()));
    assert_eq!((&status["slots"], &status["senders"]), (&1.into(), &2.into()));
    assert_eq!(status["archiver"], Value::Null);
    assert_eq!(status["upstream"]["state"], "streaming");
    assert_eq!(status["upstream"]["timeline"], 1);
    let host = format!("127.0.0.1:{}", primary.port());
    assert_eq!(text(&status["upstream"], "host"), host);
    assert!(lsn(&status, "oldest_lsn") < end);

    // What the standbys say of themselves.
    wait::until("the hub has heard the standbys out", || {
        let answer = hub.told(&["standbys"]);
        [&first, &second].iter().zip(["first", "second"]).all(|(standby, name)| {
            let row = row(&answer["standbys"]["standbys"], "application_name", name);
            let own = standby.sql("select flushed_lsn, received_tli from pg_stat_wal_receiver");
            let told = format!("{}|{}", text(&row, "flush_lsn"), row["timeline"]);
            own == told && lsn(&row, "replay_lsn") == standby.replay_lsn()
        })
    });
    let answer = hub.told(&["standbys"]);
    assert_eq!(answer["standbys"]["diverged"], Value::Array(vec![]));
    let mine = row(&answer["standbys"]["standbys"], "application_name", "first");
    assert_eq!((text(&mine, "state"), text(&mine, "slot_name")), ("streaming", "first"));
    assert_eq!((text(&mine, "user"), text(&mine, "client_addr")), ("postgres", "127.0.0.1"));
    assert_eq!((&mine["replay_lag_bytes"], &mine["replay_lag_seconds"]), (&0.into(), &0.0.into()));
    assert_eq!(lsn(&mine, "sent_lsn"), end);

    // The slot, as the protocol tells it.
    let slots = hub.told(&["slots"]);
    let slot = row(&slots["slots"], "slot_name", "first");
    let read = Client::connect(hub.port()).query("READ_REPLICATION_SLOT first").unwrap();
    assert_eq!(text(&slot, "restart_lsn"), read[0][1].as_deref().unwrap());
    assert_eq!((&slot["active"], &slot["active_pid"]), (&true.into(), &mine["pid"]));
    assert_eq!(text(&slot, "wal_status"), "reserved");
    // Nothing lags, so nearly all of the limit is left.
    let safe = slot["safe_wal_size"].as_i64().unwrap();
    assert!((199 << 20..=201 << 20).contains(&safe), "{safe}");

    // A standby that stands still falls behind, by bytes and by seconds.
    second.freeze();
    load::write_mib(&primary, 2);
    wait::until("it is seen to be behind", || {
        let answer = hub.told(&["standbys"]);
        let row = row(&answer["standbys"]["standbys"], "application_name", "second");
        row["replay_lag_bytes"].as_u64() > Some(1 << 20)
            && row["replay_lag_seconds"].as_f64() >= Some(2.0)
    });
    second.thaw();

    for command in ["status", "standbys", "slots"] {
        let output = hub.ctl().arg(command).output().unwrap();
        assert!(output.status.success());
        let table = String::from_utf8(output.stdout).unwrap();
        assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
        assert!(table.lines().count() >= 2, "{table}");
    }

    // A slot in use is not dropped, another is.
    let (status, refused) = hub.ask(&["slots", "drop", "first"]);
    let message = text(&refused["error"], "message").to_owned();
    assert_eq!(status, 1);
    let active = format!("replication slot \"first\" is active for PID {}", mine["pid"]);
    assert_eq!(message, active);
    first.stop_fast();
    wait::until("the slot is free, and dropped", || hub.ask(&["slots", "drop", "first"]).0 == 0);
    assert_eq!(hub.told(&["slots"])["slots"], Value::Array(vec![]));
    let (status, refused) = hub.ask(&["slots", "drop", "first"]);
    assert_eq!(
        (status, text(&refused["error"], "message")),
        (1, "replication slot \"first\" does not exist")
    );
}

#[test]
fn a_hub_that_cannot_be_asked() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo());
    let unasked = |hub: &Hub<'_>, words: &str| {
        let (status, answer) = hub.ask(&["status"]);
        let message = text(&answer["error"], "message").to_owned();
        assert_eq!(status, 2, "{message}");
        assert!(message.contains(words), "{message}");
    };
    unasked(&hub, "does not exist");
    hub.start();
    hub.told(&["status"]);
    let socket = hub.pg_wal().with_file_name("walhub.ctl");
    if let Some(account) = primary.programs.account() {
        // Another user cannot even look into the directory.
        let program = scene.path("walhub");
        fs::copy(env!("CARGO_BIN_EXE_walhub"), &program).unwrap();
        let mut other = std::process::Command::new(program);
        other.uid(account.uid).gid(account.gid).args(["ctl", "-D"]);
        other.arg(socket.parent().unwrap()).arg("status");
        // A process that another test forks holds the copy open for writing a moment longer.
        let output = wait::eventually("the copy can be run", || match other.output() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => None,
            output => Some(output.unwrap()),
        });
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("permission denied"), "{message}");
    }
    hub.kill();
    assert!(socket.exists());
    unasked(&hub, "left its socket");
    hub.start();
    hub.told(&["status"]);
    hub.signal(Signal::STOP);
    let output = hub.ctl().args(["--timeout=300ms", "status"]).output().unwrap();
    hub.signal(Signal::CONT);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("did not answer within 300ms"));
    hub.stop();
    assert!(!socket.exists());
    unasked(&hub, "there is no socket");
}

/// The whole of a failover with a hub that the primary waits for.
#[test]
fn fence_promote_unfence() {
    let scene = Scene::new();
    let mut primary = Cluster::primary_with_segments(&scene, "primary", 1);
    load::prepare(&scene, &primary);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let [mut heir, other, third] =
        ["heir", "other", "third"].map(|name| primary.standby(name, &hub.conninfo()));
    for standby in [&heir, &other, &third] {
        standby.wait_streaming();
    }
    primary.stop_fast();
    primary.set("synchronous_standby_names=walhub");
    primary.start();
    wait_connected(&primary);
    wait::until("the primary waits for the hub", || {
        primary.sql("select sync_state from pg_stat_replication") == "sync"
    });
    let work = Load::start(&scene, &primary);
    let committed = || primary.count("select count(*) from pgbench_history");
    wait::until("there is work", || committed() > 200);

    let fence = hub.told(&["fence"]);
    let at = lsn(&fence["fence"], "lsn");
    assert_eq!(fence["fence"]["timeline"], 1);
    assert_eq!(hub.told(&["status"])["status"]["fence"], fence["fence"]);
    hub.wait_state("fenced");
    assert_eq!(hub.inspect().record_end(), at, "it is the end of what the hub has");
    wait::until("the hub has left the primary", || left(&primary));
    // A commit that was acknowledged just before may still be on its way to be seen.
    let mut acknowledged = committed();
    wait::until("no commit returns any more", || {
        std::mem::replace(&mut acknowledged, committed()) == acknowledged
    });
    wait::stays(Duration::from_secs(1), "no commit returns", || committed() == acknowledged);
    // The hub may have all that waits, and have left before it said so.
    assert!(primary.flush_lsn() >= at, "they are written, and wait");

    // Nor after a crash, and the same is said.
    hub.kill();
    hub.start();
    assert_eq!(hub.told(&["fence"]), fence);
    for standby in [&heir, &other, &third] {
        standby.wait_streaming();
        standby.wait_replayed(at);
    }
    wait::stays(Duration::from_secs(1), "nobody asks the primary for WAL", || left(&primary));
    assert_eq!(committed(), acknowledged);
    assert_eq!(hub.inspect().record_end(), at);
    let walreceivers: Vec<_> = [&other, &third].map(Cluster::walreceiver).into();

    primary.kill();
    drop(work);
    heir.promote();
    assert!(heir.count("select count(*) from pgbench_history") >= acknowledged, "a commit is lost");
    let unfenced = hub.told(&["unfence", "--upstream", &heir.conninfo()]);
    assert_eq!(unfenced["fence"], Value::Null);
    assert!(text(&unfenced, "note").starts_with("unfenced; now: "), "{unfenced}");
    let again = hub.ctl().arg("unfence").output().unwrap().stdout;
    let again = String::from_utf8(again).unwrap();
    assert!(again.starts_with("was not fenced; now: "), "{again}");
    wait_connected(&heir);
    load::write_mib(&heir, 3);
    assert_converged(&heir, &[&other, &third]);
    let after: Vec<_> = [&other, &third].map(Cluster::walreceiver).into();
    assert_eq!(after, walreceivers, "nobody was cut");
    let standbys = hub.told(&["standbys"]);
    assert_eq!(standbys["standbys"]["diverged"], Value::Array(vec![]), "{standbys}");
    assert_eq!(hub.logged(&["standby has diverged"]), None);
    assert_eq!(hub.told(&["status"])["status"]["timeline"], 2);

    // The old primary is not followed, whatever the flag says at the next start.
    primary.start();
    hub.kill();
    hub.start();
    wait_connected(&heir);
    assert!(left(&primary));
    heir.stop_fast();
}

/// The fence goes up in the middle of a record. What standbys have of it nobody follows,
/// and nobody misses.
#[test]
fn a_record_that_the_fence_cuts_makes_nobody_diverge() {
    let scene = Scene::new();
    let mut primary = Cluster::primary(&scene, "primary");
    load::prepare(&scene, &primary);
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let [heir, other] = ["heir", "other"].map(|name| primary.standby(name, &hub.conninfo()));
    for standby in [&heir, &other] {
        standby.wait_streaming();
    }
    let writing = WriteOn::start(&scene, &primary);
    let fence = wait::eventually("a record is cut", || {
        hub.told(&["unfence"]);
        let before = hub.inspect().record_end();
        wait::until("WAL comes in", || hub.inspect().record_end() > before);
        let fence = hub.told(&["fence"])["fence"].clone();
        let durable = lsn(&fence, "durable_lsn");
        // A standby of 15 that was cut at the end of a segment asks for the next one on the new
        // timeline, never has the one with the fork, and panics. That fence is lifted again.
        let at_segment_end = durable.raw().is_multiple_of(16 << 20);
        (durable > lsn(&fence, "lsn") && !at_segment_end).then_some(fence)
    });
    let (at, durable) = (lsn(&fence, "lsn"), lsn(&fence, "durable_lsn"));
    for standby in [&heir, &other] {
        standby.wait_replayed(at);
        wait::until("it has the part of the record, too", || {
            standby.sql("select pg_last_wal_receive_lsn()").parse::<Lsn>().unwrap() == durable
        });
        assert_eq!(standby.replay_lsn(), at);
    }
    let walreceiver = other.walreceiver();
    primary.kill();
    drop(writing);
    heir.promote();
    hub.told(&["unfence", "--upstream", &heir.conninfo()]);
    wait_connected(&heir);
    load::write_mib(&heir, 3);
    assert_converged(&heir, &[&other]);
    assert_eq!(other.walreceiver(), walreceiver, "it was cut");
    hub.wait_log(&[&format!("timeline 1 ended at {at}")]);
    assert_eq!(hub.logged(&["standby has diverged"]), None);
}

/// Large records without an end, until dropped.
struct WriteOn(#[expect(dead_code, reason = "held to be dropped")] Process);

impl WriteOn {
    fn start(scene: &Scene, primary: &Cluster<'_>) -> Self {
        let (_, out, err) = scene.log("write-on");
        let mut client = primary.programs.client("psql");
        client.args(["-XAtq", "-d", &primary.conninfo(), "-c"]).arg(
            "select count(pg_logical_emit_message(false, 'load', repeat(md5(n::text), 200))) \
             from generate_series(1, 10000000) n",
        );
        Self(Process::start(client.stdout(out).stderr(err)))
    }
}

/// The hub has no connection to this server.
fn left(server: &Cluster<'_>) -> bool {
    server.count("select count(*) from pg_stat_replication") == 0
}

#[test]
fn the_upstream_is_changed_while_standbys_stream() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    load::prepare(&scene, &primary);
    let middle = primary.standby("middle", &primary.conninfo());
    middle.wait_streaming();
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait::until("the hub and a standby", || {
        primary.count("select count(*) from pg_stat_replication") == 2
    });
    let leaf = primary.standby("leaf", &hub.conninfo());
    let walreceiver = leaf.wait_streaming();
    load::write_mib(&primary, 2);

    for bad in ["hots=x", "host=a sslmode=require", "host=a,b port=1,2,3"] {
        let (status, answer) = hub.ask(&["upstream", bad]);
        assert_eq!(status, 1, "{answer}");
        assert!(text(&answer["error"], "message").starts_with("invalid upstream: "), "{answer}");
    }
    let conninfo = format!("{} password=secret", middle.conninfo());
    let shown = hub.told(&["upstream", &conninfo]);
    let shown = text(&shown["upstream"], "conninfo").to_owned();
    assert!(shown.contains(&middle.port().to_string()) && !shown.contains("secret"), "{shown}");
    wait_connected(&middle);
    wait::until("the primary is left", || {
        primary.sql("select application_name from pg_stat_replication") == "middle"
    });
    load::write_mib(&primary, 2);
    assert_converged(&primary, &[&middle, &leaf]);
    assert_eq!(leaf.walreceiver(), Some(walreceiver), "the leaf was cut");
    // The same once more is no change.
    let since = hub.told(&["status"])["status"]["upstream"]["since"].clone();
    hub.told(&["upstream", &conninfo]);
    assert_eq!(hub.told(&["status"])["status"]["upstream"]["since"], since);
    assert_eq!(hub.told(&["upstream"])["upstream"]["set_by"], "ctl");
    assert!(!hub.log_text().contains("secret"));

    // It outlives a crash; nobody else can read it.
    hub.kill();
    hub.start();
    wait_connected(&middle);
    hub.wait_log(&["not --primary-conninfo"]);
    let file = hub.pg_wal().with_file_name("walhub.auto");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    // Back to the flag, by order.
    assert_eq!(hub.told(&["upstream", "--reset"])["upstream"]["set_by"], "flag");
    let count = "select count(*) from pg_stat_replication";
    wait::until("the hub is back", || primary.count(count) == 2);
    assert!(!file.exists());

    // A flag that is changed later is the newer word.
    hub.told(&["upstream", &middle.conninfo()]);
    wait_connected(&middle);
    hub.stop();
    hub.set_upstream(&primary.unix_conninfo());
    hub.start();
    wait::until("the hub is back", || primary.count(count) == 2);
    hub.wait_log(&["the upstream that was set is discarded"]);
    load::write_mib(&primary, 1);
    assert_converged(&primary, &[&leaf]);
}

/// The row whose `field` says so.
fn row(rows: &Value, field: &str, value: &str) -> Value {
    let rows = rows.as_array().unwrap_or_else(|| panic!("no rows: {rows}"));
    let found = rows.iter().find(|row| row[field] == value);
    found.cloned().unwrap_or_else(|| panic!("no {field} {value} in {rows:?}"))
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_else(|| panic!("no {field} in {object}"))
}

fn lsn(object: &Value, field: &str) -> Lsn {
    text(object, field).parse().unwrap()
}

/// An upstream that cannot be followed is set, and the order says how it goes.
#[test]
fn an_order_says_how_the_new_upstream_goes() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let other = Cluster::primary(&scene, "other");
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    hub.wait_state("streaming");
    let wrong = hub.told(&["upstream", &other.conninfo()]);
    let note = text(&wrong, "note");
    assert!(note.contains("now: upstream refused") && note.contains("identifier"), "{note}");
    let itself = hub.told(&["upstream", &hub.conninfo()]);
    assert!(text(&itself, "note").starts_with("now: "), "{itself}");
    let back = hub.told(&["upstream", "--reset"]);
    assert!(text(&back, "note").starts_with("now: streaming from "), "{back}");
}
