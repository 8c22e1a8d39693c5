//! Garbage, oversized and truncated packets: each ends its own connection, nobody
//! else's. Where PostgreSQL has the same answer, it is asked too.

use crate::client::{Client, message, startup_packet};
use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::load;
use crate::scene::Scene;
use crate::streaming::wait_connected;
use crate::wait;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::thread;
use std::time::{Duration, Instant};
use walhub::wal::lsn::Lsn;

/// How far the connection is when the bytes come.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Dialled,
    Ready,
    Streaming,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Closed, with no message or with a FATAL one.
    Closed,
    /// FATAL with this SQLSTATE, then closed.
    Fatal(&'static str),
    /// ERROR 08P01, and the connection is back to commands.
    BackToCommands,
}

fn attacks() -> Vec<(&'static str, Stage, Vec<u8>, Answer)> {
    use Answer::{BackToCommands, Closed, Fatal};
    use Stage::{Dialled, Ready, Streaming};
    let mut unterminated = startup_packet(0x0003_0000, &[("user", "postgres")]);
    unterminated.pop();
    unterminated[3] -= 1;
    vec![
        ("HTTP", Dialled, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), Closed),
        ("a packet of no length", Dialled, vec![0; 8], Closed),
        ("a packet of 2 GiB", Dialled, vec![0x7F, 0xFF, 0xFF, 0xFF, 0, 3, 0, 0], Closed),
        ("a TLS ClientHello", Dialled, [&[0x16, 3, 1, 2, 0, 1][..], &[0x41; 512]].concat(), Closed),
        ("an unterminated startup", Dialled, unterminated, Fatal("08P01")),
        ("an unknown message", Ready, message(b'?', b""), Fatal("08P01")),
        ("a query of length 3", Ready, vec![b'Q', 0, 0, 0, 3, 0], Closed),
        ("a query of 4 GiB", Ready, vec![b'Q', 0xFF, 0xFF, 0xFF, 0xFF, 0], Closed),
        ("a query in the stream", Streaming, message(b'Q', b"x\0"), Fatal("08P01")),
        ("a Sync in the stream", Streaming, message(b'S', b""), Fatal("08P01")),
        ("an unknown payload", Streaming, message(b'd', b"zzzz"), Closed),
        ("a payload of 2 GiB", Streaming, vec![b'd', 0x7F, 0xFF, 0xFF, 0xFF, b'r'], Closed),
        ("a CopyDone of 1 MiB", Streaming, vec![b'c', 0, 0x10, 0, 0, b'r'], Closed),
        ("a short reply", Streaming, message(b'd', b"r1234"), BackToCommands),
        ("a short feedback", Streaming, message(b'd', b"h1234"), BackToCommands),
        ("an empty payload", Streaming, message(b'd', b""), BackToCommands),
    ]
}

#[test]
fn postgresql_itself_ends_these_connections_so() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    attack(primary.port(), primary.flush_lsn());
}

#[test]
fn hostile_packets_end_their_own_connection_only() {
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let start = primary.flush_lsn();
    let mut bystander = Client::connect(hub.port());
    bystander.start_replication(start, 1).unwrap();
    let memory = hub.private_kib();

    attack(hub.port(), start);
    floods(hub.port(), start);
    hub.assert_running();
    let growth = hub.private_kib().saturating_sub(memory);
    assert!(growth < 16 * 1024, "the hub grew by {growth} KiB");

    load::write_mib(&primary, 1);
    drop(bystander.read_wal(start, primary.flush_lsn()));
    // Not a dropped connection of our own making: the upstream one is the first still.
    assert_eq!(primary.count("select count(*) from pg_stat_replication"), 1);
}

/// Of each client the log has a few errors and how many it does not have. So a flood from many
/// clients leaves little in the log, nothing uncounted, and what another client was refused.
#[test]
fn a_flood_of_errors_from_many_clients_is_counted_in_the_log() {
    const CLIENTS: usize = 30;
    const ERRORS: usize = 400;
    let scene = Scene::new();
    let primary = Cluster::primary(&scene, "primary");
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    wait_connected(&primary);
    let port = hub.port();
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = Client::connect(port);
                for _ in 0..ERRORS {
                    assert_eq!(client.query("IDENTIFY_SYSTEM;;").unwrap_err().sqlstate, "42601");
                }
            });
        }
        let refused = Client::connect(port).query("DROP_REPLICATION_SLOT bystander").unwrap_err();
        assert_eq!(refused.sqlstate, "42704");
    });
    let took = begun.elapsed();

    // The last count of a connection comes when it has ended.
    let (logged, counts) = wait::eventually("each error is logged or counted", || {
        let log = hub.log_text();
        let logged = log.lines().filter(|line| line.contains("syntax error")).count();
        let count = |line: &str| {
            let (before, _) = line.split_once(" errors of this connection were not logged")?;
            before.rsplit(' ').next()?.parse::<usize>().ok()
        };
        let counts: Vec<_> = log.lines().filter_map(count).collect();
        (logged + counts.iter().sum::<usize>() == CLIENTS * ERRORS).then_some((logged, counts))
    });
    let one_for_each_interval = took.as_secs() as usize / 10;
    let most = CLIENTS * (10 + one_for_each_interval);
    assert!(logged <= most, "{logged} errors in the log, {most} are allowed");
    assert!(counts.len() >= CLIENTS, "{counts:?}");
    assert!(counts.len() <= CLIENTS * (1 + one_for_each_interval), "{counts:?}");
    assert!(hub.logged(&["\"bystander\" does not exist"]).is_some());
}

/// Connections that say nothing must not take the descriptors that WAL is written and
/// read through.
#[test]
fn idle_connections_leave_descriptors_for_the_wal() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut hub = Hub::new(&scene, "hub", &primary.conninfo()).with_descriptors(1200).started();
    hub.wait_state("streaming");
    let start = Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF);
    let mut standby = Client::connect(hub.port());
    standby.start_replication(start, 1).unwrap();
    // Each takes one there, until the hub closes it, and one here.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let idle: Vec<_> = (0..1500).map(|_| Client::dial(hub.port())).collect();

    // New segments, files for a laggard, and the upstream connection itself.
    load::write_mib(&primary, 8);
    let end = primary.flush_lsn();
    drop(standby.read_wal(start, end));
    wait::until("the hub has it all", || hub.inspect().record_end() >= end);
    primary.sql("select pg_terminate_backend(pid) from pg_stat_replication");
    load::write_mib(&primary, 2);
    let end = primary.flush_lsn();
    wait::until("the hub goes on", || hub.inspect().record_end() >= end);
    assert!(hub.logged(&["too many open files"]).is_none());
    hub.assert_running();
    drop(idle);
    wait::until("there is room again", || {
        let parameters = [("user", "postgres"), ("replication", "true")];
        Client::try_connect(hub.port(), &parameters).is_ok()
    });
}

fn attack(port: u16, start: Lsn) {
    for (what, stage, bytes, answer) in attacks() {
        let mut client = at_stage(port, stage, start);
        client.send(&bytes);
        match answer {
            Answer::BackToCommands => {
                let error = client.query("IDENTIFY_SYSTEM").err();
                let error = error.unwrap_or_else(|| panic!("{what}: no error"));
                assert_eq!(error.sqlstate, "08P01", "{what}: {}", error.message);
            }
            Answer::Closed | Answer::Fatal(_) => {
                let (error, took) = client.read_to_close();
                assert!(took < Duration::from_secs(5), "{what}: closed after {took:?}");
                if let Answer::Fatal(sqlstate) = answer {
                    let error = error.unwrap_or_else(|| panic!("{what}: closed in silence"));
                    assert_eq!(
                        (&error.severity[..], &error.sqlstate[..]),
                        ("FATAL", sqlstate),
                        "{what}: {}",
                        error.message
                    );
                }
            }
        }
    }
}

/// Much of what is allowed: announced gigabytes, and replies without end.
fn floods(port: u16, start: Lsn) {
    let mut long_query = at_stage(port, Stage::Ready, start);
    long_query.send(&[b'Q', 0x3F, 0xFF, 0xFF, 0xFF]);
    for _ in 0..64 {
        long_query.send(&vec![b'x'; 1 << 20]);
    }
    let mut talker = at_stage(port, Stage::Streaming, start);
    let mut reply = vec![b'r'; 34];
    reply[1..].fill(0);
    reply[33] = 1;
    let replies = message(b'd', &reply).repeat(1000);
    for _ in 0..20 {
        talker.send(&replies);
    }
    assert!(talker.read_message().is_some(), "a talker is answered");
}

fn at_stage(port: u16, stage: Stage, start: Lsn) -> Client {
    match stage {
        Stage::Dialled => Client::dial(port),
        Stage::Ready => Client::connect(port),
        Stage::Streaming => {
            let mut client = Client::connect(port);
            client.start_replication(start, 1).unwrap();
            client
        }
    }
}
