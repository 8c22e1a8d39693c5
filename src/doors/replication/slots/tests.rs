//! Commands about slots, as a client sees them.

mod interleavings;

use super::super::session::Conversation;
use super::*;
use crate::cluster::instance::InstanceId;
use crate::config::{AutoCreate, Config, SlotSettings};
use crate::hub::tests::{config, hub};
use crate::store::retention::{Holds, Plan, Receiving};
use crate::store::slots::{Cause, SlotChange};
use crate::wal::{SegmentNo, SegmentSize, TimelineId};
use crate::wire::frame::next_frame;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

const SEGMENT: u64 = 16 << 20;

/// A hub on timeline 3, which forked off 1 in segment 5; WAL from segment 4 on.
fn serving(version: &str, slots: SlotSettings) -> Hub {
    let config = Config { slots, ..config("host=/nonexistent user=walhub") };
    let start = Lsn::new(4 * SEGMENT);
    let hub_of = Hub::new(Arc::new(config), InstanceId::new(0xE), Arc::new(Holds::new(start)));
    hub_of.set_identity(hub(version).identity().unwrap());
    let tli = TimelineId::new(3).unwrap();
    let cell = Cell::new(tli, start, Lsn::new(6 * SEGMENT + 0x28));
    hub_of.push_cell(Arc::new(cell));
    hub_of.set_history(tli, Bytes::from_static(b"1\t0/5000060\treason\n\n"));
    hub_of
}

fn at_most(max: usize) -> SlotSettings {
    SlotSettings { max, auto_create: None }
}

fn session(pid: u32) -> Session {
    Session {
        pid,
        user: "replicator".into(),
        application_name: "standby1".into(),
        peer: "[local]".into(),
        wal_sender_timeout: Duration::from_secs(4),
        instance: None,
    }
}

/// Message types, values of rows, and what errors say.
fn shorten(out: &[u8]) -> String {
    let (mut at, mut words) = (0, Vec::new());
    while let Some(frame) = next_frame(&out[at..], 1 << 20).unwrap() {
        at += frame.len;
        words.push(match frame.tag {
            b'E' => {
                let fields = frame.body.split(|b| *b == 0).map(String::from_utf8_lossy);
                let field = |code: char| {
                    fields.clone().find_map(|f| f.strip_prefix(code).map(str::to_owned))
                };
                let (code, text) = (field('C').unwrap(), field('M').unwrap());
                let more = field('D').or(field('H')).map(|more| format!(": {more}"));
                format!("E[{code} {text}{}]", more.unwrap_or_default())
            }
            b'D' => {
                let (mut rest, mut values) = (&frame.body[2..], Vec::new());
                while let Some((len, tail)) = rest.split_first_chunk::<4>() {
                    let len = usize::try_from(i32::from_be_bytes(*len)).ok();
                    let (value, tail) = tail.split_at(len.unwrap_or(0));
                    let value = String::from_utf8_lossy(value).into_owned();
                    values.push(len.map_or("NULL".to_owned(), |_| value));
                    rest = tail;
                }
                format!("D[{}]", values.join("|"))
            }
            tag => char::from(tag).to_string(),
        });
    }
    words.join(" ")
}

/// Does the keeper's work, on a disk that never fails.
fn keep(hub: &Hub, task: &SlotTask) {
    let mut slots = hub.holds.slots.lock();
    match task {
        SlotTask::Create { name } | SlotTask::CreateThenStart { name, .. } => {
            for _ in 0..2 {
                let records = slots.records(&SlotChange::None);
                slots.saved(records);
            }
            slots.set_free(name);
        }
        SlotTask::Drop { name } => slots.forget(name),
        SlotTask::AwaitFree { .. } => {}
    }
}

fn query(text: &str) -> BytesMut {
    let mut query = BytesMut::from(&b"Q"[..]);
    query.extend_from_slice(&(text.len() as u32 + 5).to_be_bytes());
    query.extend_from_slice(text.as_bytes());
    query.extend_from_slice(b"\0");
    query
}

/// Asks in a session of its own.
fn ask_for(hub: &Hub, pid: u32, text: &str) -> (String, Step) {
    ask_in(&mut Conversation::new(hub, &session(pid)), hub, pid, text)
}

/// Asks, and does at once whatever the answer waits for. A stream keeps its slot as long as the
/// step lives.
fn ask_in(conversation: &mut Conversation, hub: &Hub, pid: u32, text: &str) -> (String, Step) {
    let mut out = BytesMut::new();
    let mut step = conversation.take(hub, &session(pid), &mut query(text), &mut out);
    while let Step::Slot(task) = step {
        if matches!(task, SlotTask::AwaitFree { .. }) {
            return ("waits".to_owned(), Step::Slot(task));
        }
        keep(hub, &task);
        let done = SlotDone { task, result: Ok(()) };
        step = conversation.resume(hub, &session(pid), done, &mut out);
    }
    let answer = match &step {
        Step::Stream(accepted) => format!("stream {}", accepted.start),
        _ => shorten(&out),
    };
    (answer, step)
}

fn ask(hub: &Hub, pid: u32, text: &str) -> String {
    ask_for(hub, pid, text).0
}

fn report(step: &Step, flush: u64) {
    match step {
        Step::Stream(accepted) => accepted.hold.report(Lsn::INVALID, Lsn::new(flush)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_life() {
    let hub = serving("15.18", at_most(10));
    let read = "READ_REPLICATION_SLOT s";
    assert_eq!(ask(&hub, 1, read), "T D[NULL|NULL|NULL] C Z");
    let created = "T D[s|0/0|NULL|NULL] C Z";
    assert_eq!(ask(&hub, 1, "CREATE_REPLICATION_SLOT \"s\" PHYSICAL"), created);
    assert_eq!(ask(&hub, 1, read), "T D[physical|NULL|NULL] C Z");
    let start = "START_REPLICATION SLOT \"s\" 0/6000000 TIMELINE 3";
    let (answer, stream) = ask_for(&hub, 2, start);
    assert_eq!(answer, "stream 0/6000000");
    let active = "E[55006 replication slot \"s\" is active for PID 2] Z";
    assert_eq!(ask(&hub, 3, start), active);
    assert_eq!(ask(&hub, 3, "DROP_REPLICATION_SLOT s"), active);
    assert_eq!(ask(&hub, 3, "DROP_REPLICATION_SLOT s WAIT"), "waits");
    report(&stream, 0x500_0010);
    assert_eq!(ask(&hub, 1, read), "T D[physical|0/5000010|1] C Z", "of the old timeline");
    report(&stream, 0x600_0028);
    report(&stream, 0);
    assert_eq!(ask(&hub, 1, read), "T D[physical|0/6000028|3] C Z");
    drop(stream);
    assert_eq!(ask(&hub, 3, "DROP_REPLICATION_SLOT s WAIT"), "C Z");
    assert_eq!(ask(&hub, 3, start), "E[42704 replication slot \"s\" does not exist] Z");
}

#[test]
fn what_create_refuses() {
    let hub = serving("17.2", at_most(1));
    let create = |name: &str| ask(&hub, 1, &format!("CREATE_REPLICATION_SLOT {name} PHYSICAL"));
    assert_eq!(create("\"\""), "E[42602 replication slot name \"\" is too short] Z");
    assert!(
        create("\"BAD\"").starts_with(
            "E[42602 replication slot name \"BAD\" contains invalid character: Replication slot \
             names may only contain"
        ),
        "{}",
        create("\"BAD\"")
    );
    create("s");
    assert_eq!(create("s"), "E[42710 replication slot \"s\" already exists] Z");
    assert_eq!(
        create("t"),
        "E[53400 all replication slots are in use: Free one or increase \"max_replication_slots\".] \
         Z"
    );
    assert_eq!(
        ask(&hub, 1, "ALTER_REPLICATION_SLOT s ( FAILOVER )"),
        "E[0A000 cannot use ALTER_REPLICATION_SLOT with a physical replication slot] Z"
    );
    assert_eq!(ask(&hub, 1, "SHOW max_replication_slots"), "T D[1] C Z");
}

#[test]
fn a_slot_that_could_not_be_saved_is_an_error() {
    let hub = serving("15.18", at_most(1));
    let name = SlotName::parse("s").unwrap();
    let mut out = BytesMut::new();
    let done =
        SlotDone { task: SlotTask::Create { name }, result: Err("No space left".to_owned()) };
    let step = Conversation::new(&hub, &session(1)).resume(&hub, &session(1), done, &mut out);
    assert!(matches!(step, Step::Answered));
    let expected = "E[58030 could not save replication slot \"s\": No space left] Z";
    assert_eq!(shorten(&out), expected);
}

#[test]
fn reserved_wal_begins_with_the_oldest_that_is_here() {
    let hub = serving("15.18", at_most(10));
    for (n, options) in
        ["PHYSICAL RESERVE_WAL", "PHYSICAL ( RESERVE_WAL )", "PHYSICAL (RESERVE_WAL true)"]
            .into_iter()
            .enumerate()
    {
        ask(&hub, 1, &format!("CREATE_REPLICATION_SLOT s{n} {options}"));
        let read = ask(&hub, 1, &format!("READ_REPLICATION_SLOT s{n}"));
        assert_eq!(read, "T D[physical|0/4000000|1] C Z", "{options}");
    }
}

#[test]
fn temporary_slots_go_with_any_error() {
    let hub = serving("15.18", at_most(10));
    let mut own = Conversation::new(&hub, &session(1));
    let mut ask_own = |text| ask_in(&mut own, &hub, 1, text);
    let create = "CREATE_REPLICATION_SLOT t TEMPORARY PHYSICAL ( RESERVE_WAL )";
    assert_eq!(ask_own(create).0, "T D[t|0/0|NULL|NULL] C Z");
    let start = "START_REPLICATION SLOT \"t\" 0/6000000";
    let active = "E[55006 replication slot \"t\" is active for PID 1] Z";
    for pid in [1, 2] {
        assert_eq!(ask(&hub, pid, start), active, "whatever its number, it is another session");
    }
    let (answer, stream) = ask_own(start);
    assert_eq!(answer, "stream 0/6000000");
    drop(stream);
    assert_eq!(hub.holds.slots.lock().len(), 1, "as long as its session");
    assert!(ask_own("SHOW nosuch").0.starts_with("E[42704"));
    assert!(hub.holds.slots.lock().is_empty());
    assert_eq!(ask_own(create).0, "T D[t|0/0|NULL|NULL] C Z");
    drop(own);
    assert!(hub.holds.slots.lock().is_empty(), "its session is over");
}

#[test]
fn invalid_slots_by_version() {
    let name = SlotName::parse("s").unwrap();
    for (version, expected) in [
        ("13.23", "stream 0/6000000"),
        ("17.10", "stream 0/6000000"),
        (
            "18.4",
            "E[55000 can no longer access replication slot \"s\": This replication slot has been \
             invalidated due to \"wal_removed\".] Z",
        ),
    ] {
        let hub = serving(version, at_most(10));
        ask(&hub, 1, "CREATE_REPLICATION_SLOT s PHYSICAL RESERVE_WAL");
        let mut slots = hub.holds.slots.lock();
        let losses = slots.losses([(&name, Cause::WalRemoved)].into_iter());
        slots.lose(losses);
        drop(slots);
        assert_eq!(ask(&hub, 1, "READ_REPLICATION_SLOT s"), "T D[physical|NULL|NULL] C Z");
        let (answer, stream) = ask_for(&hub, 2, "START_REPLICATION SLOT s 0/6000000");
        assert_eq!(answer, expected, "{version}");
        if matches!(stream, Step::Stream(_)) {
            report(&stream, 0x600_0000);
            let read = ask(&hub, 1, "READ_REPLICATION_SLOT s");
            assert_eq!(read, "T D[physical|0/6000000|3] C Z", "a flush revives it");
        }
    }
}

#[test]
fn a_refused_start_leaves_the_slot_free() {
    let hub = serving("15.18", at_most(10));
    ask(&hub, 1, "CREATE_REPLICATION_SLOT s PHYSICAL");
    for start in ["0/3000000", "FF/0", "0/6000000 TIMELINE 9"] {
        let answer = ask(&hub, 1, &format!("START_REPLICATION SLOT s {start}"));
        assert!(answer.contains("E["), "{start}: {answer}");
        assert_eq!(hub.holds.slots.lock().get("s").unwrap().active_pid(), None, "{start}");
    }
    assert_eq!(hub.holds.count(), 0);
}

#[test]
fn slots_that_come_into_being_by_themselves() {
    let auto_create: AutoCreate = "node_*,limit=1".parse().unwrap();
    let hub = serving("15.18", SlotSettings { max: 10, auto_create: Some(auto_create) });
    let start = |name: &str| format!("START_REPLICATION SLOT \"{name}\" 0/6000000 TIMELINE 3");
    assert!(ask(&hub, 1, &start("other")).starts_with("E[42704"));
    let (answer, stream) = ask_for(&hub, 1, &start("node_a"));
    assert_eq!(answer, "stream 0/6000000");
    assert_eq!(
        ask(&hub, 2, "READ_REPLICATION_SLOT node_a"),
        "T D[physical|0/6000000|3] C Z",
        "its start is reserved"
    );
    assert!(ask(&hub, 2, &start("node_b")).starts_with("E[42704"), "the limit");
    drop(stream);
    assert_eq!(ask(&hub, 2, &start("node_a")), "stream 0/6000000");
}

/// The slots' lock orders it with a plan, which gives up WAL.
#[test]
fn a_position_that_has_just_been_given_up_is_not_taken_over() {
    let hub = serving("15.18", at_most(10));
    ask(&hub, 1, "CREATE_REPLICATION_SLOT s PHYSICAL");
    let (_, stream) = ask_for(&hub, 2, "START_REPLICATION SLOT s 0/6000000");
    report(&stream, 4 * SEGMENT + 0x28);
    let planning = hub.holds.slots.lock();
    std::thread::scope(|scope| {
        let read = scope.spawn(|| ask(&hub, 1, "READ_REPLICATION_SLOT s"));
        // By then it waits for the lock.
        std::thread::sleep(Duration::from_millis(300));
        let (horizon, receiving) = (SegmentNo::new(5), Receiving::Open);
        let size = SegmentSize::new(SEGMENT).unwrap();
        let now = (std::time::Instant::now(), Duration::ZERO);
        hub.holds.advance(size, now, |_| Plan { horizon, invalidate: Vec::new(), receiving });
        drop(planning);
        assert_eq!(read.join().unwrap(), "T D[physical|NULL|NULL] C Z");
    });
}
