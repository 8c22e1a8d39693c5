//! The load generator's standbys between real servers.

use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::load::{self, Load};
use crate::scene::Scene;
use crate::wait;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use walhub::bench::clock::Clock;
use walhub::bench::commits::Commits;
use walhub::bench::standbys::{
    self, Flapping, Fleet, FleetPlan, FleetResult, Group, Replies, Slow, Stalled, StandbySlots,
    StartAt, TruthFrom, Verify,
};
use walhub::bench::truth::Truth;
use walhub::wal::Lsn;
use walhub::wire::conninfo::Conninfo;
use walhub::wire::copy::FromSender;
use walhub::wire::frame::next_frame;

/// A fleet whose first receiver says what is true.
fn plan(conninfo: &str, count: usize) -> FleetPlan {
    let target = Conninfo::parse(conninfo, &|_| None).unwrap();
    let truth = Arc::new(Truth::new(Lsn::INVALID, 64 << 20));
    let commits = Arc::new(Commits::new(100_000));
    let mut plan = FleetPlan::new(target, count, Clock::start(), truth, commits);
    plan.truth_from = TruthFrom::FirstReceiver;
    plan.retry = Duration::from_millis(200);
    plan
}

fn wait_received(fleet: &Fleet, end: Lsn) {
    wait::until(&format!("all good standbys have received up to {end}"), || {
        let progress = fleet.progress();
        assert_eq!(progress.faults, 0, "{progress:?}");
        progress.slowest >= end
    });
}

fn assert_faultless(result: &FleetResult) {
    let faults: Vec<_> = result.faults.iter().map(ToString::to_string).collect();
    assert!(result.fault_count == 0 && faults.is_empty(), "{faults:?}");
}

#[test]
fn a_fleet_receives_what_the_primary_writes_through_storm_and_flapping() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    load::prepare(&scene, &primary);
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    let mut plan = plan(&hub.conninfo(), 200);
    plan.threads = 2;
    plan.behaviours.slow = Some(Slow { count: 3, bytes_per_second: 100_000 });
    plan.behaviours.stalled = Some(Stalled { count: 2, after: Duration::from_millis(100) });
    let every = Duration::from_millis(200)..=Duration::from_millis(900);
    plan.behaviours.flapping = Some(Flapping { count: 5, every });
    let (clock, commits) = (plan.clock, Arc::clone(&plan.commits));
    let fleet = standbys::start(plan).unwrap();
    wait::until("all good standbys stream", || fleet.progress().all_streaming.is_some());

    let work = Load::start(&scene, &primary);
    wait::until("the flapping ones have come back", || fleet.progress().reconnects >= 5);
    fleet.storm();
    wait::until("the storm is over", || fleet.progress().reconnects >= 195);
    work.stop(&primary);
    wait_received(&fleet, primary.flush_lsn());

    fleet.mark();
    for _ in 0..10 {
        let due = clock.now();
        primary.sql("select pg_logical_emit_message(true, 'fleet', 'commit')");
        commits.add(primary.flush_lsn(), due);
    }
    wait_received(&fleet, primary.flush_lsn());
    wait::stays(Duration::from_millis(300), "nobody finds a fault", || {
        fleet.progress().faults == 0
    });
    let result = fleet.stop();
    assert_faultless(&result);
    let good = &result.groups[0];
    assert_eq!((good.group, good.standbys, good.each.len()), (Group::Good, 190, 1900));
    assert_eq!((result.first.len(), result.last.len()), (10, 10));
    assert_eq!((result.incomplete_commits, good.forgotten), (0, 0));
    assert!(result.first.min() > 0 && result.first.max() <= result.last.max());
    assert_eq!(result.last.max(), good.each.max());
    assert!(result.storms.iter().all(|storm| storm.over.is_some()));
    assert_eq!(result.end.bytes, result.end.sums.verified, "every byte was compared");
    assert!(result.end.replies > result.end.messages / 2);
}

#[test]
fn a_hub_that_comes_back_finds_its_fleet() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    load::write_mib(&primary, 1);
    let mut hub = Hub::run(&scene, "hub", &primary.conninfo());
    let fleet = standbys::start(plan(&hub.conninfo(), 20)).unwrap();
    wait::until("all stream", || fleet.progress().all_streaming.is_some());
    hub.kill();
    load::write_mib(&primary, 3);
    hub.start();
    wait_received(&fleet, primary.flush_lsn());
    let result = fleet.stop();
    assert_faultless(&result);
    assert!(result.groups[0].reconnects >= 20);
    assert_eq!(result.end.bytes, result.end.sums.verified);
}

#[test]
fn a_silent_hub_is_left_and_found_again() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let hub = Hub::run(&scene, "hub", &primary.conninfo());
    let mut plan = plan(&hub.conninfo(), 5);
    plan.receiver_timeout = Duration::from_millis(1000);
    let fleet = standbys::start(plan).unwrap();
    wait::until("all stream", || fleet.progress().all_streaming.is_some());
    // It answers when it is asked: nobody leaves.
    wait::stays(Duration::from_millis(1500), "all stream", || fleet.progress().streaming == 5);
    hub.signal(Signal::STOP);
    wait::until("all have left", || fleet.progress().streaming == 0);
    let refusal = fleet.progress().last_refusal.unwrap();
    hub.signal(Signal::CONT);
    assert!(refusal.contains("timeout"), "{refusal}");
    wait::until("all are back", || fleet.progress().streaming == 5);
    let result = fleet.stop();
    assert_faultless(&result);
    assert!(result.groups[0].reconnects >= 5);
}

#[test]
fn a_fleet_can_come_slowly_and_use_slots() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut plan = plan(&primary.conninfo(), 6);
    plan.slots = StandbySlots::Created("fleet_".to_owned());
    plan.connect_rate = Some(10);
    plan.replies = Replies::Interval(Duration::from_millis(100));
    let (clock, begun) = (plan.clock, plan.clock.now());
    let fleet = standbys::start(plan.clone()).unwrap();
    wait::until("all stream", || fleet.progress().all_streaming.is_some());
    assert!(clock.now().since(begun) >= Duration::from_millis(500));
    let active =
        "select count(*) from pg_replication_slots where active and slot_name like 'fleet_%'";
    assert_eq!(primary.count(active), 6);
    wait::until("all have replied", || fleet.progress().replies >= 30);
    // They are used again, also by those who find them there.
    fleet.storm();
    wait::until("all are back", || fleet.progress().streaming == 6);
    assert_faultless(&fleet.stop());
    plan.slots = StandbySlots::Existing("fleet_".to_owned());
    let fleet = standbys::start(plan).unwrap();
    wait::until("all stream", || fleet.progress().all_streaming.is_some());
    assert_eq!(primary.count(active), 6);
    drop(fleet);
    wait::until("all slots are free", || primary.count(active) == 0);
}

#[test]
fn each_way_to_verify_comes_to_the_end() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let start = Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF);
    load::write_mib(&primary, 20);
    let end = primary.flush_lsn();
    let to = Lsn::new(start.raw() + (10 << 20));
    for (verify, first) in [
        (Verify::Full, StartAt::At(start)),
        (Verify::Full, StartAt::Spread { from: start, to }),
        (Verify::Crc, StartAt::At(start)),
        (Verify::Off, StartAt::At(start)),
    ] {
        let mut plan = plan(&primary.conninfo(), 8);
        // Too small for those that come late: they walk.
        plan.truth = Arc::new(Truth::new(Lsn::INVALID, 1 << 20));
        (plan.verify, plan.first, plan.until) = (verify, first, Some(end));
        let fleet = standbys::start(plan).unwrap();
        wait::until("all have finished", || fleet.progress().finished == 8);
        let result = fleet.stop();
        assert_faultless(&result);
        let (bytes, verified) = (result.end.bytes, result.end.sums.verified);
        let whole = 8 * end.bytes_since(start);
        match first {
            StartAt::Spread { .. } => assert!(bytes < whole - (30 << 20) && bytes > whole / 2),
            _ => assert!(bytes >= whole, "{bytes} of {whole}"),
        }
        match verify {
            // What is not compared ends with a whole record.
            Verify::Full => assert!(verified <= bytes && bytes - verified < 8 * 9000, "{result:?}"),
            Verify::Crc => assert_eq!(verified, 7 * (end.bytes_since(start) >> 20 << 20)),
            Verify::Off => assert_eq!(verified, 0),
        }
    }
}

#[test]
fn a_flipped_byte_is_named() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let start = Lsn::new(primary.flush_lsn().raw() & !0xF_FFFF);
    load::write_mib(&primary, 8);
    let end = primary.flush_lsn();
    let bad = Lsn::new(start.raw() + 5_000_003);
    let proxy = Proxy::start(primary.port(), bad);

    // First somebody receives it unharmed.
    let mut plan = plan(&primary.conninfo(), 1);
    (plan.first, plan.until) = (StartAt::At(start), Some(end));
    let fleet = standbys::start(plan.clone()).unwrap();
    wait::until("it has finished", || fleet.progress().finished == 1);
    assert_faultless(&fleet.stop());

    let conninfo = format!("host=127.0.0.1 port={} user=postgres", proxy.port);
    plan.target = vec![Conninfo::parse(&conninfo, &|_| None).unwrap()];
    plan.standbys = 3;
    let fleet = standbys::start(plan.clone()).unwrap();
    wait::until("all have seen it", || fleet.progress().faults == 3);
    let result = fleet.stop();
    for fault in &result.faults {
        assert_eq!(fault.at, bad);
        let text = fault.to_string();
        let words = format!("standby {}: byte at {bad} differs: expected ", fault.standby);
        assert!(text.starts_with(&words), "{text}");
    }

    // Without anybody to compare with the walk finds it: in the record it is in.
    plan.truth = Arc::new(Truth::new(Lsn::INVALID, 64 << 20));
    plan.standbys = 1;
    let fleet = standbys::start(plan).unwrap();
    wait::until("it has been seen", || fleet.progress().faults == 1);
    let fault = &fleet.stop().faults[0];
    assert!(fault.at <= bad && bad.bytes_since(fault.at) < 9000, "{fault}");
}

#[test]
fn what_cannot_be_had_is_told() {
    let scene = Scene::new();
    let primary = Cluster::primary_with_segments(&scene, "primary", 1);
    let mut old = plan(&primary.conninfo(), 1);
    old.first = StartAt::At(Lsn::new(0x2000));
    let fleet = standbys::start(old).unwrap();
    wait::until("it has been refused", || fleet.progress().faults == 1);
    let fault = fleet.stop().faults.remove(0);
    assert!(fault.text.contains("has already been removed"), "{fault}");

    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let conninfo = format!("host=127.0.0.1 port={port} user=postgres");
    let Err(error) = standbys::start(plan(&conninfo, 1)) else { panic!("somebody is there") };
    assert!(error.to_string().contains(&format!("could not connect to 127.0.0.1:{port}")));
}

/// Stands between, and flips a bit of one byte of WAL.
struct Proxy {
    port: u16,
}

impl Proxy {
    fn start(server: u16, bad: Lsn) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).unwrap();
                let ends = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass(ends.0, ends.1, |bytes| bytes.len()));
                thread::spawn(move || pass(server, client, |bytes| flip(bytes, bad)));
            }
        });
        Self { port }
    }
}

/// Copies what `ready` lets go.
fn pass(mut from: TcpStream, mut to: TcpStream, ready: impl Fn(&mut [u8]) -> usize) {
    let (mut held, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    while let Ok(got @ 1..) = from.read(&mut piece) {
        held.extend_from_slice(&piece[..got]);
        let len = ready(&mut held);
        if to.write_all(&held[..len]).is_err() {
            break;
        }
        held.drain(..len);
    }
    // The other direction ends, too; either may be gone already.
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}

/// The length of the whole messages; the byte at `bad` is flipped on its way.
fn flip(bytes: &mut [u8], bad: Lsn) -> usize {
    let mut at = 0;
    while let Ok(Some(frame)) = next_frame(&bytes[at..], 1 << 20) {
        let len = frame.len;
        if frame.tag == b'd'
            && let Ok(FromSender::XLogData { start, wal, .. }) = FromSender::parse(frame.body)
            && start <= bad
            && bad < start.saturating_add(wal.len() as u64)
        {
            let place = at + len - wal.len() + bad.bytes_since(start) as usize;
            bytes[place] ^= 0x80;
        }
        at += len;
    }
    at
}
