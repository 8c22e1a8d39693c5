//! Replication slots of the hub: made by PostgreSQL's own programs, used by its standbys,
//! over crashes, and lost when they keep too much.
//!
//! `WALHUB_SLOT_ROUNDS` asks for more than the few streams that want one slot in every run.

use crate::client::{self, Client, ServerError};
use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::load;
use crate::programs::Programs;
use crate::receivewal::Receiver;
use crate::scene::Scene;
use crate::segments::complete_segments;
use crate::streaming::wait_connected;
use crate::wait;
use walhub::wal::lsn::Lsn;

/// Errors that PostgreSQL 15 gives in the same situation, in the same words.
const AS_POSTGRESQL: &[(&str, &str, &str)] = &[
    (
        "CREATE_REPLICATION_SLOT \"BAD\" PHYSICAL",
        "42602",
        "replication slot name \"BAD\" contains invalid character",
    ),
    ("CREATE_REPLICATION_SLOT \"\" PHYSICAL", "42602", "replication slot name \"\" is too short"),
    (
        "CREATE_REPLICATION_SLOT taken PHYSICAL RESERVE_WAL",
        "42710",
        "replication slot \"taken\" already exists",
    ),
    (
        "CREATE_REPLICATION_SLOT taken TEMPORARY PHYSICAL",
        "42710",
        "replication slot \"taken\" already exists",
    ),
    ("CREATE_REPLICATION_SLOT one_more PHYSICAL", "53400", "all replication slots are in use"),
    (
        "CREATE_REPLICATION_SLOT s LOGICAL test_decoding",
        "55000",
        "logical decoding requires wal_level >= logical",
    ),
    ("CREATE_REPLICATION_SLOT s PHYSICAL ( NOSUCH )", "XX000", "unrecognized option: nosuch"),
    ("DROP_REPLICATION_SLOT nosuch", "42704", "replication slot \"nosuch\" does not exist"),
    ("START_REPLICATION SLOT nosuch 0/0", "42704", "replication slot \"nosuch\" does not exist"),
];

fn commands_as_postgresql(port: u16) {
    let mut client = Client::connect(port);
    let null = vec![None, None, None];
    assert_eq!(client.query("READ_REPLICATION_SLOT taken").unwrap(), [null]);
    let created = client.query("CREATE_REPLICATION_SLOT taken PHYSICAL").unwrap();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(created, [[text("taken"), text("0/0"), None, None]]);
    let read = client.query("READ_REPLICATION_SLOT taken").unwrap();
    assert_eq!(read, [[text("physical"), None, None]]);
    client.query("CREATE_REPLICATION_SLOT \"other\" PHYSICAL ( RESERVE_WAL )").unwrap();
    let read = client.query("READ_REPLICATION_SLOT other").unwrap().remove(0);
    assert_eq!((&read[0], &read[2]), (&text("physical"), &text("1")));
    assert!(read[1].is_some());
    for (command, sqlstate, message) in AS_POSTGRESQL {
        let error = client.query(command).unwrap_err();
        assert_eq!((error.sqlstate.as_str(), error.message.as_str()), (*sqlstate, *message));
    }
    client.query("DROP_REPLICATION_SLOT other").unwrap();

    // A temporary slot belongs to its session, and goes with any error.
    client.query("CREATE_REPLICATION_SLOT t TEMPORARY PHYSICAL RESERVE_WAL").unwrap();
    let mut stranger = Client::connect(port);
    assert_active(stranger.query("DROP_REPLICATION_SLOT t"), "t");
    client.query("SHOW nosuch").unwrap_err();
    let error = stranger.query("DROP_REPLICATION_SLOT t").unwrap_err();
    assert_eq!(error.sqlstate, "42704");
    client.query("CREATE_REPLICATION_SLOT t TEMPORARY PHYSICAL").unwrap();
    drop(client);
    wait::until("the temporary slot goes with its session", || {
        stranger.query("DROP_REPLICATION_SLOT t").unwrap_err().sqlstate == "42704"
    });

    // Who waits for it to be free hears that it has gone.
    let mut client = Client::connect(port);
    client.query("CREATE_REPLICATION_SLOT t TEMPORARY PHYSICAL").unwrap();
    let mut waiting = Client::connect(port);
    waiting.send_query("DROP_REPLICATION_SLOT t WAIT");
    client.query("SHOW nosuch").unwrap_err();
    let answer = waiting.read_message().unwrap();
    assert_eq!((answer.tag, ServerError::parse(&answer.body).sqlstate.as_str()), (b'E', "42704"));

    // DROP ... WAIT waits for the end of the stream.
    let mut user = Client::connect(port);
    let at = user.query_value_of("IDENTIFY_SYSTEM", 2).parse::<Lsn>().unwrap();
    user.start_with_slot("taken", at).unwrap();
    assert_active(stranger.query("DROP_REPLICATION_SLOT taken"), "taken");
    let mut second = Client::connect(port);
    assert_active(second.start_with_slot("taken", at), "taken");
    stranger.send_query("DROP_REPLICATION_SLOT taken WAIT");
    drop(user);
    assert_eq!(stranger.read_message().unwrap().tag, b'C');
    assert_eq!(stranger.read_message().unwrap().tag, b'Z');
    assert_eq!(second.query("DROP_REPLICATION_SLOT taken").unwrap_err().sqlstate, "42704");
}

fn assert_active<T: std::fmt::Debug>(answer: Result<T, ServerError>, slot: &str) {
    let error = answer.unwrap_err();
    assert_eq!(error.sqlstate, "55006");
    let text = format!("replication slot \"{slot}\" is active for PID ");
    assert!(error.message.starts_with(&text), "{}", error.message);
}

#[test]
fn slot_commands_are_postgresqls() {
    let scene = Scene::new();
    let mut primary = Cluster::primary(&scene, "primary");
    primary.set("max_replication_slots=2");
    primary.stop_fast();
    primary.start();
    commands_as_postgresql(primary.port());

    let hub = Hub::new(&scene, "hub", &primary.conninfo()).flag("--max-replication-slots=2");
    let hub = hub.started();
    wait_connected(&primary);
    commands_as_postgresql(hub.port());
    assert_eq!(Client::connect(hub.port()).query_value("SHOW max_replication_slots"), "2");
}

/// The standby's CopyDone.
const COPY_DONE: &[u8] = b"c\0\0\0\x04";

/// One connection streams with a slot, again and again, and always sends its next
/// START_REPLICATION together with its CopyDone. Nobody else gets the slot while it streams.
fn a_stream_keeps_its_slot(port: u16, rounds: usize) {
    let mut user = Client::connect(port);
    user.query("CREATE_REPLICATION_SLOT mine PHYSICAL").unwrap();
    let at = user.query_value_of("IDENTIFY_SYSTEM", 2).parse::<Lsn>().unwrap();
    user.start_with_slot("mine", at).unwrap();
    let mut thief = Client::connect(port);
    let start = format!("START_REPLICATION SLOT mine {at}\0");
    let again = [COPY_DONE, &client::message(b'Q', start.as_bytes())].concat();
    for round in 0..rounds {
        user.send(&again);
        loop {
            let message = user.read_message().expect("the stream goes on");
            match message.tag {
                b'W' => break,
                b'E' => panic!("round {round}: {:?}", ServerError::parse(&message.body)),
                _ => {}
            }
        }
        // It streams.
        match round % 2 {
            0 => assert_active(thief.query("DROP_REPLICATION_SLOT mine"), "mine"),
            _ => assert_active(thief.start_with_slot("mine", at), "mine"),
        }
    }
    user.send(COPY_DONE);
    while user.read_message().expect("the connection goes on").tag != b'Z' {}
    user.query("DROP_REPLICATION_SLOT mine").unwrap();
}

#[test]
fn a_slot_has_one_user_whatever_its_clients_pipeline() {
    let rounds = std::env::var("WALHUB_SLOT_ROUNDS").map_or(2000, |n| n.parse().unwrap());
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    a_stream_keeps_its_slot(primary.port(), rounds);
    let hub = Hub::new(&scene, "hub", &primary.conninfo()).started();
    hub.wait_state("streaming");
    a_stream_keeps_its_slot(hub.port(), rounds);
}

/// A stream whose client makes a mistake ends with its connection. Who sees that may come back at
/// once, though the other side of the old connection is still open.
#[test]
fn who_sees_the_end_of_its_stream_finds_its_slot_and_a_place_free() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let mut hub =
        Hub::new(&scene, "hub", &primary.conninfo()).flag("--max-wal-senders=2").started();
    hub.wait_state("streaming");
    let mut other = Client::connect(hub.port());
    other.query("CREATE_REPLICATION_SLOT s PHYSICAL").unwrap();
    let at = other.query_value_of("IDENTIFY_SYSTEM", 2).parse::<Lsn>().unwrap();
    let next = |client: &mut Client, tag: u8| loop {
        match client.read_message() {
            Some(message) if message.tag == tag => break,
            Some(_) => {}
            None => panic!("closed before {:?}", char::from(tag)),
        }
    };
    let parameters = [("user", "postgres"), ("replication", "true")];
    for _ in 0..100 {
        // The one before says nothing when it goes.
        let mut user = wait::eventually("a place is free", || {
            Client::try_connect(hub.port(), &parameters).ok()
        });
        user.start_with_slot("s", at).unwrap();
        assert_active(other.start_with_slot("s", at), "s");
        // A message that no walreceiver sends.
        user.send_message(b'?', b"");
        next(&mut user, b'E');
        let mut again = Client::connect(hub.port());
        again.start_with_slot("s", at).unwrap();
        again.send(COPY_DONE);
        next(&mut again, b'c');
        other.start_with_slot("s", at).unwrap();
        other.send(COPY_DONE);
        next(&mut other, b'Z');
        assert_eq!(user.read_message(), None);
    }
    hub.assert_running();
}

/// The slot's position as the hub tells it.
fn restart_lsn(hub: &Hub<'_>, slot: &str) -> Option<Lsn> {
    let row = Client::connect(hub.port()).query(&format!("READ_REPLICATION_SLOT {slot}"));
    row.unwrap()[0][1].as_ref().map(|lsn| lsn.parse().unwrap())
}

#[test]
fn a_standbys_slot_keeps_its_wal_over_a_crash_of_the_hub() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo()).flag("--wal-keep-size=1MB");
    hub.start();
    wait_connected(&primary);
    hub.wait_state("streaming");
    // As an operator does it, with psql.
    let psql = |command: &str| {
        let conninfo = format!("{} dbname=postgres replication=1", hub.conninfo());
        let output = primary
            .programs
            .client("psql")
            .args(["-XAtq", "-d", &conninfo, "-c", command])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    assert_eq!(psql("CREATE_REPLICATION_SLOT standby PHYSICAL (RESERVE_WAL)"), "standby|0/0||");
    let mut standby = primary.standby_with("standby", &hub.conninfo(), "standby");
    standby.wait_streaming();
    load::write_mib(&primary, 4);
    standby.wait_replayed(primary.flush_lsn());
    let before = primary.flush_lsn();
    wait::until("the slot follows", || restart_lsn(&hub, "standby") >= Some(before));

    standby.stop_fast();
    hub.kill();
    hub.start();
    let kept = restart_lsn(&hub, "standby").unwrap();
    assert!(kept <= before, "{kept} was never confirmed");
    load::write_mib(&primary, 40);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    let oldest = complete_segments(&hub.pg_wal()).remove(0);
    let number = u64::from_str_radix(&oldest[16..], 16).unwrap();
    assert!(number << 20 <= kept.raw(), "{oldest} is the oldest, {kept} is needed");
    hub.kill();
    hub.start();
    standby.start();
    standby.wait_replayed(end);

    // With the slot out of the way old WAL goes.
    wait::until("the slot lets go", || restart_lsn(&hub, "standby") >= Some(end));
    wait::until("old WAL goes", || complete_segments(&hub.pg_wal()).len() < 20);
}

#[test]
fn a_slot_lives_on_over_a_promotion() {
    let scene = Scene::new();
    let old = Cluster::primary_with_segments(&scene, "old", 1);
    let middle = old.standby("middle", &old.conninfo());
    middle.wait_streaming();
    let mut hub = Hub::new(&scene, "hub", &middle.conninfo()).flag("--wal-keep-size=1MB");
    hub.start();
    wait_connected(&middle);
    hub.wait_state("streaming");
    let mut client = Client::connect(hub.port());
    client.query("CREATE_REPLICATION_SLOT leaf PHYSICAL ( RESERVE_WAL )").unwrap();
    client.query("CREATE_REPLICATION_SLOT astray PHYSICAL ( RESERVE_WAL )").unwrap();
    let mut leaf = old.standby_with("leaf", &hub.conninfo(), "leaf");
    leaf.wait_streaming();
    load::write_mib(&old, 3);
    let end = old.flush_lsn();
    leaf.wait_replayed(end);
    // What it says to have lies beyond the promotion to come.
    let beyond = Lsn::new(end.raw() + (8 << 20));
    client.start_with_slot("astray", restart_lsn(&hub, "astray").unwrap()).unwrap();
    client.send_status(beyond);
    wait::until("the slot follows", || restart_lsn(&hub, "astray") == Some(beyond));
    drop(client);

    middle.promote();
    load::write_mib(&middle, 1);
    leaf.wait_replayed(middle.flush_lsn());
    assert!(
        restart_lsn(&hub, "astray") <= Some(middle.flush_lsn()),
        "no position of a lost branch"
    );
    let confirmed = middle.flush_lsn();
    wait::until("the slot follows", || restart_lsn(&hub, "leaf") >= Some(confirmed));
    leaf.stop_fast();
    hub.kill();
    hub.start();
    load::write_mib(&middle, 40);
    let end = middle.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    leaf.start();
    leaf.wait_replayed(end);
    let row = Client::connect(hub.port()).query("READ_REPLICATION_SLOT leaf").unwrap().remove(0);
    assert_eq!(row[2].as_deref(), Some("2"));
}

#[test]
fn receivewal_creates_and_uses_a_slot() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    hub.wait_state("streaming");
    let programs = Programs::usual();
    let create = || {
        let mut create = programs.client("pg_receivewal");
        create.args(["--create-slot", "--slot=archive", "-d", &hub.conninfo()]).output().unwrap()
    };
    assert!(create().status.success());
    let again = create();
    assert!(!again.status.success());
    let text = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(text.contains("replication slot \"archive\" already exists"), "{text}");
    assert_eq!(restart_lsn(&hub, "archive"), None, "it does not reserve");

    let options = ["--slot=archive", "--synchronous"];
    let mut receiver = Receiver::start(&scene, programs, "wal", &hub.conninfo(), &options);
    receiver.wait_begun();
    load::write_mib(&primary, 3);
    let end = primary.flush_lsn();
    wait::until("the slot follows", || restart_lsn(&hub, "archive") >= Some(end));
    receiver.stop();
    let mut drop_slot = programs.client("pg_receivewal");
    drop_slot.args(["--drop-slot", "--slot=archive", "-d", &hub.conninfo()]);
    wait::until("the slot is dropped", || drop_slot.output().unwrap().status.success());
    assert_eq!(restart_lsn(&hub, "archive"), None);
}

/// More at once than the keeper's queue takes: none is refused, and none is left with a user
/// who has gone.
#[test]
fn a_fleet_creates_its_slots_at_once() {
    const SLOTS: usize = 600;
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    hub.wait_state("streaming");
    let mut fleet: Vec<_> = (0..SLOTS).map(|_| Client::connect(hub.port())).collect();
    for (n, client) in fleet.iter_mut().enumerate() {
        client.send_query(&format!("CREATE_REPLICATION_SLOT s{n} PHYSICAL"));
    }
    for client in &mut fleet {
        let answer = client.read_message().unwrap();
        assert_eq!(answer.tag, b'T', "{:?}", String::from_utf8_lossy(&answer.body));
    }
    drop(fleet);
    for n in 0..SLOTS {
        let dropped =
            Client::connect(hub.port()).query(&format!("DROP_REPLICATION_SLOT s{n} WAIT"));
        assert!(dropped.is_ok(), "s{n}: {dropped:?}");
    }
}

#[test]
fn a_slot_that_keeps_too_much_is_lost_and_its_user_terminated() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--wal-keep-size=1MB")
        .flag("--max-slot-wal-keep-size=20MB")
        .started();
    wait_connected(&primary);
    load::write_mib(&primary, 2);
    let mut idle = Client::connect(hub.port());
    idle.query("CREATE_REPLICATION_SLOT idle PHYSICAL ( RESERVE_WAL )").unwrap();
    idle.query("CREATE_REPLICATION_SLOT slow PHYSICAL ( RESERVE_WAL )").unwrap();
    let from = restart_lsn(&hub, "slow").unwrap();
    // It reads, and never says how far it is.
    let mut slow = Client::connect(hub.port());
    slow.start_with_slot("slow", from).unwrap();
    load::write_mib(&primary, 15);
    assert!(restart_lsn(&hub, "idle").is_some(), "within the limit");
    let end = primary.flush_lsn();
    let mut at = from;
    while at < end {
        at = slow.next_wal().unwrap().unwrap().end();
    }
    load::write_mib(&primary, 30);
    hub.wait_log(&["invalidating", "\"idle\""]);
    hub.wait_log(&["invalidating", "\"slow\""]);
    let terminated = loop {
        match slow.next_wal() {
            Ok(Some(_)) => {}
            other => break other.unwrap_err(),
        }
    };
    assert_eq!((terminated.severity.as_str(), terminated.sqlstate.as_str()), ("FATAL", "57P01"));
    assert_eq!(terminated.message, "terminating connection due to administrator command");
    assert_eq!(restart_lsn(&hub, "idle"), None);
    wait::until("their WAL goes", || complete_segments(&hub.pg_wal()).len() < 25);

    // As with PostgreSQL 15 the slot can be used again, and the WAL is gone.
    let error = idle.query(&format!("START_REPLICATION SLOT idle {from}")).unwrap_err();
    assert_eq!(error.sqlstate, "58P01");
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    let mut user = Client::connect(hub.port());
    let mut at = Lsn::new(end.raw() & !0xF_FFFF);
    user.start_with_slot("idle", at).unwrap();
    while at < end {
        at = user.next_wal().unwrap().unwrap().end();
    }
    user.send_status(end);
    wait::until("a flush report revives the slot", || restart_lsn(&hub, "idle") == Some(end));
}

#[test]
fn slots_come_into_being_and_go_by_themselves() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo())
        .flag("--auto-create-slots=node_*,limit=2,ttl=2s")
        .started();
    wait_connected(&primary);
    let standby = primary.standby_with("standby", &hub.conninfo(), "node_1");
    standby.wait_streaming();
    load::write_mib(&primary, 2);
    standby.wait_replayed(primary.flush_lsn());
    assert!(restart_lsn(&hub, "node_1").is_some());
    hub.kill();
    hub.start();
    standby.wait_streaming();
    assert!(restart_lsn(&hub, "node_1").is_some());
    drop(standby);
    hub.wait_log(&["dropping", "node_1"]);
    // What goes is said before it goes.
    wait::until("the slot is gone", || restart_lsn(&hub, "node_1").is_none());
}

#[test]
fn above_the_watermark_receiving_pauses_and_serving_goes_on() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    load::write_mib(&primary, 30);
    let end = primary.flush_lsn();
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    hub.stop();
    // No disk has as much room as that.
    let mut hub = hub.flag("--disk-high-watermark=2000TB").started();
    hub.wait_log(&["--disk-high-watermark", "receiving is paused"]);
    hub.wait_state("no space");
    wait::until("WAL kept by rules only goes", || complete_segments(&hub.pg_wal()).len() <= 17);
    let from = complete_segments(&hub.pg_wal()).pop().unwrap();
    let from = Lsn::new(u64::from_str_radix(&from[16..], 16).unwrap() << 20);
    let mut client = Client::connect(hub.port());
    client.start_replication(from, 1).unwrap();
    drop(client.read_wal(from, end));
    load::write_mib(&primary, 1);
    assert!(hub.inspect().record_end() <= end);
    hub.assert_running();
}
