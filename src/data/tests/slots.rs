//! What a core does with a standby's slot.

use super::super::handoff::ToCore;
use super::bench::{Bench, Peer, START};
use crate::hub::Hub;
use crate::store::slots::{
    Cause, Create, InvalidSlots, Origin, Slot, SlotName, SlotSession, SlotUse,
};
use crate::wal::{Lsn, TimelineId};
use crate::watermark::Cell;
use crate::wire::command::SlotLifetime;
use crate::wire::copy::{ReplyRequest, StatusReply};
use crate::wire::time::PgTime;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PID: u32 = 7;

fn name() -> SlotName {
    SlotName::parse("s").unwrap()
}

/// The slot loses its WAL.
fn lose(hub: &Hub) {
    let mut slots = hub.holds.slots.lock();
    let losses = slots.losses([(&name(), Cause::WalRemoved)].into_iter());
    slots.lose(losses);
}

/// A slot that is in use.
fn slot(hub: &Hub) -> SlotUse {
    slot_of(hub, SlotLifetime::Persistent).1
}

/// The same, and whose it is.
fn slot_of(hub: &Hub, lifetime: SlotLifetime) -> (SlotSession, SlotUse) {
    let mut slots = hub.holds.slots.lock();
    let (session, origin) = (slots.enter(PID), Origin::Asked);
    let create = Create { name: name(), lifetime, origin, reserve: Some(START), session };
    slots.create(create, 10).unwrap();
    slots.set_free(&name());
    drop(slots);
    (session, hub.holds.use_slot("s", session, InvalidSlots::Refuse).unwrap())
}

fn flush(at: Lsn) -> Vec<u8> {
    let status = StatusReply {
        write: at,
        flush: at,
        apply: Lsn::INVALID,
        client_time: PgTime::new(0),
        reply: ReplyRequest::No,
    };
    status.encode().to_vec()
}

fn user(bench: &Bench) -> Option<u32> {
    bench.hub.holds.slots.lock().get("s").unwrap().active_pid()
}

/// The stream ends with FATAL 57P01, and the slot is free.
fn ends_as_terminated(bench: &mut Bench, standby: &mut Peer) {
    let mut tags = Vec::new();
    bench.run_until("the stream ends", |bench| {
        while let Some((tag, body)) = standby.next() {
            let has = |what: &[u8]| body.windows(what.len()).any(|found| found == what);
            assert!(tag != b'E' || (has(b"FATAL") && has(b"57P01")));
            tags.push(tag);
        }
        standby.is_closed() && user(bench).is_none() && bench.hub.holds.count() == 0
    });
    assert_eq!(tags, b"WE");
}

#[test]
fn a_flush_report_is_the_slots_position_and_the_end_frees_it() {
    let mut bench = Bench::serving(START);
    let used = slot(&bench.hub);
    let mut standby = bench.standby_with(Some(used), |session| session.pid = PID);
    let position = |bench: &Bench| {
        let mut slots = bench.hub.holds.slots.lock();
        slots.absorb(START);
        slots.get("s").unwrap().restart_lsn
    };
    let at = START.saturating_add(0x28);
    standby.send(&flush(at));
    bench.run_until("it is heard", |bench| position(bench) == Some(at));
    standby.send(&flush(Lsn::INVALID));
    standby.send(&flush(START));
    bench.run_until("it went back", |bench| position(bench) == Some(START));
    assert_eq!(user(&bench), Some(PID));
    drop(standby);
    bench.run_until("the slot is free", |bench| user(bench).is_none());
}

#[test]
fn the_user_of_an_invalidated_slot_is_terminated() {
    let mut bench = Bench::serving(START);
    let used = slot(&bench.hub);
    let token = used.token();
    let mut standby = bench.standby_with(Some(used), |session| session.pid = PID);
    bench.run_to_sleep();
    lose(&bench.hub);
    bench.post(ToCore::Terminate { slot: token });
    ends_as_terminated(&mut bench, &mut standby);
}

#[test]
fn so_is_one_that_was_on_its_way_to_the_core() {
    let mut bench = Bench::serving(START);
    let used = slot(&bench.hub);
    lose(&bench.hub);
    bench.post(ToCore::Terminate { slot: used.token() });
    let mut standby = bench.standby_with(Some(used), |session| session.pid = PID);
    ends_as_terminated(&mut bench, &mut standby);
}

/// The order is about a stream that has ended. Its session has begun another one since.
#[test]
fn a_late_order_does_not_end_the_next_stream_of_the_same_session() {
    let mut bench = Bench::serving(START);
    let used = slot(&bench.hub);
    let token = used.token();
    drop(used);
    let mut standby = bench.standby_with(None, |session| session.pid = PID);
    bench.run_to_sleep();
    lose(&bench.hub);
    bench.post(ToCore::Terminate { slot: token });
    bench.run_to_sleep();
    assert_eq!(standby.next().map(|(tag, _)| tag), Some(b'W'));
    assert!(!standby.is_closed());
    assert_eq!(bench.hub.holds.count(), 1);
}

/// A way in which a stream can end, and how its standby sees that.
struct End {
    what: &'static str,
    cause: fn(&mut Bench, &mut Peer),
    /// The message that says so; `None` when the connection just ends.
    told: Option<u8>,
}

const ENDS: [End; 7] = [
    End {
        what: "the standby's CopyDone",
        cause: |_, standby| standby.send(b"c\0\0\0\x04"),
        told: Some(b'c'),
    },
    End {
        what: "a payload that makes no sense",
        cause: |_, standby| standby.send(b"d\0\0\0\x05?"),
        told: None,
    },
    End {
        what: "a message of no known type",
        cause: |_, standby| standby.send(b"?\0\0\0\x04"),
        told: Some(b'E'),
    },
    End { what: "Terminate", cause: |_, standby| standby.send(b"X\0\0\0\x04"), told: None },
    End {
        what: "the loss of its slot",
        cause: |bench, _| {
            let token = bench.hub.holds.slots.lock().get("s").unwrap().user().unwrap();
            lose(&bench.hub);
            bench.post(ToCore::Terminate { slot: token });
        },
        told: Some(b'E'),
    },
    End {
        what: "WAL that is moved aside",
        cause: |bench, _| {
            bench.hub.set_cells(Vec::new());
            bench.post(ToCore::BeginAnew);
        },
        told: None,
    },
    End {
        what: "the shutdown",
        cause: |bench, _| {
            bench.hub.come_to_rest();
            bench.post(ToCore::Stop { deadline: Instant::now() + Duration::from_secs(20) });
        },
        told: Some(b'C'),
    },
];

/// Whoever sees the end may come back at once. The standby leaves its own side open, as a slow one
/// does.
#[test]
fn what_a_stream_had_is_free_before_its_end_can_be_seen() {
    for End { what, cause, told } in ENDS {
        for lifetime in [SlotLifetime::Persistent, SlotLifetime::Temporary] {
            let mut bench = Bench::serving(START);
            let (session, used) = slot_of(&bench.hub, lifetime);
            let mut standby = bench.standby_of(session, Some(used), |session| session.pid = PID);
            bench.run_until("the stream begins", |_| {
                standby.next().is_some_and(|(tag, _)| tag == b'W')
            });
            assert_eq!((user(&bench), bench.hub.senders()), (Some(PID), 1));
            cause(&mut bench, &mut standby);
            bench.run_until(what, |_| match told {
                None => standby.is_closed(),
                Some(told) => {
                    let next = standby.next();
                    assert!(next.is_some() || !standby.is_closed(), "{what}: closed silently");
                    next.is_some_and(|(tag, _)| tag == told)
                }
            });
            let slots = bench.hub.holds.slots.lock();
            let slot = slots.get("s");
            assert_eq!(slot.and_then(Slot::user), None, "{what}");
            // Only a connection that goes on keeps its place and its temporary slots.
            let goes_on = told == Some(b'c');
            let is_temporary = lifetime == SlotLifetime::Temporary;
            assert_eq!(slot.is_some(), goes_on || !is_temporary, "{what}");
            assert!(goes_on || bench.hub.senders() == 0, "{what}");
        }
    }
}

/// The end of a timeline is not the end of the stream: the standby still says how far it is.
#[test]
fn at_the_end_of_a_timeline_the_slot_stays_until_the_standby_is_done() {
    let mut bench = Bench::serving(START);
    let used = slot(&bench.hub);
    let mut standby = bench.standby_with(Some(used), |session| session.pid = PID);
    bench.run_to_sleep();
    let old = bench.hub.current_cell().unwrap();
    let child = Arc::new(Cell::new(TimelineId::new(2).unwrap(), START, START));
    bench.hub.push_cell(Arc::clone(&child));
    old.seal(START);
    old.link(child);
    bench.post(ToCore::EndHubStreams);
    bench.run_until("our CopyDone", |_| standby.next().is_some_and(|(tag, _)| tag == b'c'));
    assert_eq!(user(&bench), Some(PID));
    standby.send(b"c\0\0\0\x04");
    bench.run_until("it is done", |bench| user(bench).is_none());
}
