//! What is refused, and how: PostgreSQL's SQLSTATEs and words. The first tables are put
//! to a real primary too, so that they say what PostgreSQL really says.

use crate::client::{Client, ServerError, startup_packet};
use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::segments::complete_segments;
use crate::streaming::wait_connected;
use crate::wait;

/// A command, the SQLSTATE and the beginning of the message.
type Refusal = (&'static str, &'static str, &'static str);

const SQL: &str = "cannot execute SQL commands in WAL sender for physical replication";

const AS_POSTGRESQL: &[Refusal] = &[
    ("IDENTIFY_SYSTEM;;", "42601", "syntax error"),
    ("IDENTIFY_SYSTEM IDENTIFY_SYSTEM", "42601", "syntax error"),
    ("START_REPLICATION", "42601", "syntax error"),
    ("START_REPLICATION 0/XYZ", "42601", "syntax error"),
    ("SHOW 'x", "42601", "unterminated quoted string"),
    ("TIMELINE_HISTORY 0", "42601", "invalid timeline 0"),
    ("TIMELINE_HISTORY 4294967296", "42601", "invalid timeline 0"),
    ("identify_system", "0A000", SQL),
    ("", "0A000", SQL),
    (";", "0A000", SQL),
    ("SELECT 1", "0A000", SQL),
    ("SET datestyle = iso", "0A000", SQL),
    ("SHOW nosuch", "42704", "unrecognized configuration parameter \"nosuch\""),
    ("SHOW walhub.nosuch", "42704", "unrecognized configuration parameter \"walhub.nosuch\""),
    (
        "TIMELINE_HISTORY 77",
        "58P01",
        "could not open file \"pg_wal/0000004D.history\": No such file or directory",
    ),
    (
        "TIMELINE_HISTORY 1",
        "58P01",
        "could not open file \"pg_wal/00000001.history\": No such file or directory",
    ),
    (
        "START_REPLICATION SLOT \"nosuch\" 0/1000000",
        "42704",
        "replication slot \"nosuch\" does not exist",
    ),
    (
        "START_REPLICATION 0/1000000 TIMELINE 9",
        "XX000",
        "requested timeline 9 is not in this server's history",
    ),
    (
        "START_REPLICATION PHYSICAL FFFFFFFF/0",
        "XX000",
        "requested starting point FFFFFFFF/0 is ahead of the WAL flush position of this server",
    ),
    (
        "START_REPLICATION 0/0 TIMELINE 1",
        "58P01",
        "requested WAL segment 000000010000000000000000 has already been removed",
    ),
    ("DROP_REPLICATION_SLOT nosuch", "42704", "replication slot \"nosuch\" does not exist"),
];

const OWN: &[Refusal] =
    &[("BASE_BACKUP ( LABEL 'x' )", "0A000", ""), ("BASE_BACKUP LABEL 'x'", "0A000", "")];

/// Startup parameters, the SQLSTATE and the beginning of the message.
type RefusedStartup = (&'static [(&'static str, &'static str)], &'static str, &'static str);

const STARTUPS: &[RefusedStartup] = &[
    (&[("replication", "true")], "28000", "no PostgreSQL user name specified in startup packet"),
    (
        &[("user", "postgres"), ("replication", "foo")],
        "22023",
        "invalid value for parameter \"replication\": \"foo\"",
    ),
    (
        &[("user", "postgres"), ("replication", "Database")],
        "22023",
        "invalid value for parameter \"replication\": \"Database\"",
    ),
];

#[test]
fn postgresql_itself_refuses_as_these_tables_say() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    refuses_as_postgresql(primary.port());
}

#[test]
fn the_hub_refuses_as_postgresql_does() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    refuses_as_postgresql(hub.port());
    refuses_commands(hub.port(), OWN);
    // What one connection logs is limited, and what was not logged is counted.
    hub.wait_log(&["ERROR: 42601: syntax error", "peer=\"127.0.0.1:"]);
    hub.wait_log(&["errors of this connection were not logged"]);
    let sql = Client::try_connect(hub.port(), &[("user", "postgres"), ("database", "postgres")]);
    assert_eq!(sql.err().unwrap().severity, "FATAL");
}

fn refuses_as_postgresql(port: u16) {
    refuses_commands(port, AS_POSTGRESQL);
    for (parameters, sqlstate, message) in STARTUPS {
        let refusal = Client::try_connect(port, parameters).err();
        assert_refused(&format!("{parameters:?}"), refusal, sqlstate, message);
    }
    refuses_unknown_protocol(port);
    refuses_extended_protocol(port);
}

/// All on one connection, which goes on being usable.
fn refuses_commands(port: u16, refusals: &[Refusal]) {
    let mut client = Client::connect(port);
    for (command, sqlstate, message) in refusals {
        let refusal = client.query(command).err();
        assert_refused(command, refusal, sqlstate, message);
    }
    let row = client.query("IDENTIFY_SYSTEM").unwrap().remove(0);
    assert_eq!(row.len(), 4, "columns of IDENTIFY_SYSTEM");
    assert_eq!((row[1].as_deref(), row[3].as_deref()), (Some("1"), None));
}

fn refuses_unknown_protocol(port: u16) {
    let mut client = Client::dial(port);
    client.send(&startup_packet(0x0004_0000, &[("user", "postgres"), ("replication", "true")]));
    let refusal = client.read_greeting().err();
    assert_refused("protocol 4.0", refusal, "0A000", "unsupported frontend protocol 4.0");
}

fn refuses_extended_protocol(port: u16) {
    let mut client = Client::connect(port);
    client.send_message(b'P', b"\0select 1\0\0\0");
    client.send_message(b'E', b"\0\0\0\0\0");
    client.send_message(b'S', b"");
    let error = client.read_message().unwrap();
    assert_eq!(error.tag, b'E');
    assert!(error.body.windows(5).any(|code| code == b"08P01"));
    assert_eq!(client.read_message().unwrap().tag, b'Z');
    client.query("IDENTIFY_SYSTEM").unwrap();
}

fn assert_refused(what: &str, refusal: Option<ServerError>, sqlstate: &str, message: &str) {
    let refusal = refusal.unwrap_or_else(|| panic!("{what}: not refused"));
    assert_eq!(refusal.sqlstate, sqlstate, "{what}: {}", refusal.message);
    assert!(refusal.message.starts_with(message), "{what}: {}", refusal.message);
}

#[test]
fn removed_wal_is_refused_with_58p01() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = Hub::new(&scene, "hub", &primary.conninfo()).flag("--wal-keep-size=1MB").started();
    wait_connected(&primary);
    load::write_mib(&primary, 4);
    wait::until("the hub has segments", || complete_segments(&hub.pg_wal()).len() > 2);
    let first = complete_segments(&hub.pg_wal()).remove(0);
    // Sixteen segments are kept whatever the setting.
    load::write_mib(&primary, 30);
    wait::until("the first segment is removed", || !hub.pg_wal().join(&first).exists());
    wait::until("the hub has it all", || hub.inspect().record_end() >= primary.flush_lsn());
    assert!(complete_segments(&hub.pg_wal()).len() >= 16);

    let number = u64::from_str_radix(&first[16..], 16).unwrap();
    let mut client = Client::connect(hub.port());
    let start = walhub::wal::lsn::Lsn::new(number << 20);
    let refusal = client.query(&format!("START_REPLICATION PHYSICAL {start} TIMELINE 1")).err();
    let message = format!("requested WAL segment {first} has already been removed");
    assert_refused("START_REPLICATION", refusal, "58P01", &message);
    client.query("IDENTIFY_SYSTEM").unwrap();
}

#[test]
fn too_many_walsenders_are_refused_with_53300() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub = Hub::new(&scene, "hub", &primary.conninfo()).flag("--max-wal-senders=2").started();
    wait_connected(&primary);
    let first = Client::connect(hub.port());
    let second = Client::connect(hub.port());
    let connect =
        || Client::try_connect(hub.port(), &[("user", "postgres"), ("replication", "true")]);
    assert_refused(
        "the third",
        connect().err(),
        "53300",
        "number of requested standby connections exceeds max_wal_senders (currently 2)",
    );
    drop(first);
    wait::until("there is room again", || connect().is_ok());
    drop(second);
}

#[test]
fn a_start_a_little_ahead_is_held() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    load::write_mib(&primary, 1);
    let end = primary.flush_lsn();
    // As a standby asks that has read whole segments from an archive.
    let next = walhub::wal::lsn::Lsn::new((end.raw() | 0xF_FFFF) + 1);
    let mut client = Client::connect(hub.port());
    client.start_replication(next, 1).unwrap();
    load::write_mib(&primary, 3);
    drop(client.read_wal(next, primary.flush_lsn()));
}

/// A standby that is refused again and again is seen in the hub's log.
#[test]
fn a_refused_standby_is_named_in_the_log() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let mut client = Client::try_connect(
        hub.port(),
        &[("user", "postgres"), ("replication", "true"), ("application_name", "lost")],
    )
    .unwrap();
    let start = primary.flush_lsn();
    drop(client.query(&format!("START_REPLICATION SLOT \"s1\" {start} TIMELINE 1")).unwrap_err());
    let line = hub.wait_log(&["42704", "replication slot \"s1\" does not exist"]);
    assert!(line.contains("application_name=\"lost\""), "{line}");
}
