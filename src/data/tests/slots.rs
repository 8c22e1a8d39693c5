//! What a core does with a standby's slot.

use super::super::handoff::ToCore;
use super::bench::{Bench, Peer, START};
use crate::hub::Hub;
use crate::store::slots::{Cause, Create, InvalidSlots, Origin, SlotName, SlotUse};
use crate::wal::Lsn;
use crate::wire::command::SlotLifetime;
use crate::wire::copy::{ReplyRequest, StatusReply};
use crate::wire::time::PgTime;

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
    let (lifetime, origin) = (SlotLifetime::Persistent, Origin::Asked);
    let mut slots = hub.holds.slots.lock();
    let session = slots.enter(PID);
    let create = Create { name: name(), lifetime, origin, reserve: Some(START), session };
    slots.create(create, 10).unwrap();
    slots.set_free(&name());
    drop(slots);
    hub.holds.use_slot("s", session, InvalidSlots::Refuse).unwrap()
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
        standby.is_closed() && user(bench).is_none()
    });
    assert_eq!(tags, b"WE");
    assert_eq!(bench.hub.holds.count(), 0);
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
