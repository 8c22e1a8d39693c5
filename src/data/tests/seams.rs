//! What a core does with a standby before a seam, or on a timeline that has ended.

use super::bench::{Bench, Peer, START, wal};
use crate::data::handoff::ToControl;
use crate::hub::diverged::{Diverged, Left};
use crate::keeper::{Job, JobDone, Order};
use crate::standby::client::StreamEnd;
use crate::store::seams::Seam;
use crate::store::slots::{Create, InvalidSlots, Origin, SlotName};
use crate::wal::{Lsn, TimelineId};
use crate::wire::command::SlotLifetime;
use crate::wire::copy::{ReplyRequest, StatusReply};
use crate::wire::time::PgTime;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

const END: Lsn = START.saturating_add(1 << 20);

/// In the middle of a page.
const SEAM: Lsn = START.saturating_add(300_000);

/// A hub with a MiB of WAL, a seam in it, and a standby that begins at the start.
fn scene(timeout: Duration) -> (Bench, Peer) {
    let mut bench = Bench::serving(END);
    bench.seam = Some(SEAM);
    let peer = bench.standby(|session| session.wal_sender_timeout = timeout);
    (bench, peer)
}

fn report(write: Lsn, flush: Lsn, apply: Lsn) -> Vec<u8> {
    let (client_time, reply) = (PgTime::new(0), ReplyRequest::No);
    StatusReply { write, flush, apply, client_time, reply }.encode().to_vec()
}

/// What the standby has got.
#[derive(Default)]
struct Got {
    wal: u64,
    /// The furthest end of WAL that it was told.
    told: u64,
    asked: usize,
    error: Option<String>,
}

impl Got {
    fn take(&mut self, bench: &mut Bench, peer: &mut Peer) {
        while let Some(Order { job, reply }) = bench.orders.take() {
            let Job::Open { tli, no } = job else { panic!("{job:?}") };
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&wal(1 << 20), 0).unwrap();
            reply.send(JobDone::Opened { tli, no, result: Ok(Arc::new(file.into())) });
        }
        // The control thread would send it.
        while let Ok(news) = bench.news.try_recv() {
            let ToControl::StandbyEnded(ended) = news else { panic!("{news:?}") };
            let StreamEnd::Failed(refusal) = ended.ended else { panic!("{ended:?}") };
            self.error = Some(format!("{refusal:?}"));
        }
        while let Some((tag, body)) = peer.next() {
            let end = |from: usize| u64::from_be_bytes(body[from..from + 8].try_into().unwrap());
            match (tag, body.first()) {
                (b'd', Some(b'w')) => {
                    self.wal += body.len() as u64 - 25;
                    self.told = self.told.max(end(9));
                }
                (b'd', Some(b'k')) => self.asked += usize::from(body[17] == 1),
                _ => {}
            }
        }
    }
}

fn run(bench: &mut Bench, peer: &mut Peer, got: &mut Got, what: &str, done: fn(&Got) -> bool) {
    bench.run_until(what, |bench| {
        got.take(bench, peer);
        done(got)
    });
}

#[test]
fn nothing_past_a_seam_goes_out_before_the_standby_has_said_where_it_is() {
    let (mut bench, mut peer) = scene(Duration::from_secs(60));
    let mut got = Got::default();
    run(&mut bench, &mut peer, &mut got, "it is sent what both have, and asked", |got| {
        got.wal == SEAM.bytes_since(START) && got.asked == 1
    });
    for _ in 0..50 {
        bench.run_to_sleep();
        got.take(&mut bench, &mut peer);
    }
    assert_eq!((got.wal, got.told), (SEAM.bytes_since(START), SEAM.raw()));
    // Words without a position say nothing.
    peer.send(b"d\0\0\0\x1Dh\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    bench.run_to_sleep();
    got.take(&mut bench, &mut peer);
    assert_eq!(got.wal, SEAM.bytes_since(START));
    peer.send(&report(SEAM, SEAM, SEAM.saturating_sub(100)));
    run(&mut bench, &mut peer, &mut got, "the rest follows", |got| {
        got.wal == END.bytes_since(START)
    });
    // Once it has passed it may be anywhere.
    peer.send(&report(END, END, END));
    bench.run_to_sleep();
    got.take(&mut bench, &mut peer);
    assert_eq!(got.error, None);
}

/// Others at its position are sent more.
#[test]
fn a_standby_before_a_seam_does_not_share_what_others_are_sent() {
    let (mut bench, mut held) = scene(Duration::from_secs(60));
    bench.seam = None;
    let mut free = bench.standby(|_| ());
    let (mut of_held, mut of_free) = (Got::default(), Got::default());
    bench.run_until("the other has everything", |bench| {
        of_held.take(bench, &mut held);
        of_free.take(bench, &mut free);
        of_free.wal == END.bytes_since(START)
    });
    bench.run_to_sleep();
    of_held.take(&mut bench, &mut held);
    assert_eq!((of_held.wal, of_held.told), (SEAM.bytes_since(START), SEAM.raw()));
}

#[test]
fn a_standby_past_a_seam_is_refused_named_and_moves_no_slot() {
    let past = SEAM.saturating_add(8);
    for (write, flush, apply) in
        [(past, SEAM, SEAM), (SEAM, past, SEAM), (SEAM, Lsn::INVALID, past)]
    {
        let mut bench = Bench::serving(END);
        bench.seam = Some(SEAM);
        let name = SlotName::parse("s").unwrap();
        let holds = Arc::clone(&bench.hub.holds);
        let session = holds.slots.lock().enter(9);
        let (lifetime, origin) = (SlotLifetime::Persistent, Origin::Asked);
        let create = Create { name: name.clone(), lifetime, origin, reserve: Some(START), session };
        holds.slots.lock().create(create, 10).unwrap();
        holds.slots.lock().set_free(&name);
        let slot = holds.use_slot("s", session, InvalidSlots::Accept).unwrap();
        let mut peer = bench.standby_with(Some(slot), |session| {
            session.application_name = "late".to_owned();
        });
        let mut got = Got::default();
        run(&mut bench, &mut peer, &mut got, "it is asked", |got| got.asked == 1);
        peer.send(&report(write, flush, apply));
        run(&mut bench, &mut peer, &mut got, "it is refused", |got| got.error.is_some());
        let error = got.error.unwrap();
        let expected =
            format!("reported position {past} on timeline 1 is not in this server's history");
        for part in ["XX000", &expected, "from 0/404", "walhub ctl confirm"] {
            assert!(error.contains(part), "{error}");
        }
        let diverged = bench.hub.diverged();
        let [one] = &diverged[..] else { panic!("{diverged:?}") };
        let left = Left::Seam(Seam { tli: TimelineId::FIRST, at: SEAM });
        assert_eq!((&*one.application_name, one.at, one.left), ("late", past, left));
        let mut slots = holds.slots.lock();
        slots.absorb(START);
        assert_eq!(slots.get("s").unwrap().restart_lsn, Some(START));
    }
}

#[test]
fn a_silent_standby_is_refused() {
    let (mut bench, mut peer) = scene(Duration::from_millis(300));
    let mut got = Got::default();
    run(&mut bench, &mut peer, &mut got, "it is refused", |got| got.error.is_some());
    let error = got.error.unwrap();
    for part in ["55000", "standby did not report its flush and replay positions"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(got.wal, SEAM.bytes_since(START));
}

/// A hub below asks for WAL past the seam in order to compare it. What it compares it does not keep,
/// and it says so.
#[test]
fn nothing_goes_out_from_past_a_seam_before_a_hub_says_that_it_keeps_nothing() {
    let mut bench = Bench::serving(END);
    bench.seam = Some(START.saturating_sub(8));
    let mut peer = bench.hub_below();
    let mut got = Got::default();
    run(&mut bench, &mut peer, &mut got, "it is asked", |got| got.asked == 1);
    for _ in 0..50 {
        bench.run_to_sleep();
        got.take(&mut bench, &mut peer);
    }
    assert_eq!(got.wal, 0);
    peer.send(&report(Lsn::INVALID, Lsn::INVALID, Lsn::INVALID));
    run(&mut bench, &mut peer, &mut got, "it is sent all", |got| got.wal == END.bytes_since(START));
}

/// A standby past the end asks for the beginning of a segment again and again.
#[test]
fn a_standby_stays_named_as_diverged_until_it_reports_a_position_before_the_end() {
    let mut bench = Bench::serving(END);
    bench.hub.current_cell().unwrap().seal(SEAM);
    let [past, before] = [8, 0].map(|more| SEAM.saturating_add(more));
    bench.hub.note_diverged(Diverged {
        application_name: "late".to_owned(),
        peer: "[local]".to_owned(),
        tli: TimelineId::FIRST,
        at: past,
        left: Left::Fork(SEAM),
    });
    for (at, named) in [(past, 1), (before, 0)] {
        let mut peer = bench.standby(|session| session.application_name = "late".to_owned());
        bench.run_to_sleep();
        assert_eq!(bench.hub.diverged().len(), 1, "it has said nothing");
        peer.send(&report(at, at, at));
        bench.run_until("it is heard", |bench| {
            let senders = bench.core.send.senders();
            let mut heard = senders.map(|(_, sender)| sender.talk.positions().flush);
            heard.any(|flush| flush == at)
        });
        assert_eq!(bench.hub.diverged().len(), named, "{at}");
    }
}
