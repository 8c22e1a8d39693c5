//! The role without a ring: events in, effects out.

use super::*;
use crate::data::moment::Moment;
use crate::hub::{Hub, tests::hub};
use crate::keeper::{JobDone, JobKind};
use crate::ring::{SystemClock, chunks};
use crate::store::append::Begun;
use crate::store::evidence::{Difference, Evidence, WalSource};
use crate::store::retention::{HighWatermark, Space, TooFull};
use crate::upstream::end::UpstreamEnd;
use crate::upstream::position::Position;
use crate::wal::synth::Synth;
use crate::wal::{Lsn, SegmentNo, SegmentSize, TimelineId};
use crate::wire::copy::xlog_data_header;
use crate::wire::time::PgTime;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const SEGMENT: u64 = 16 << 20;
const START: Lsn = Lsn::new(4 * SEGMENT);
const TLI: TimelineId = TimelineId::FIRST;

/// A server that says nothing of itself.
fn primary() -> WalSource {
    WalSource { name: "primary".to_owned(), server: None }
}

/// A role whose files are represented by their numbers.
struct Scene {
    hub: Arc<Hub>,
    role: Receiver<u64>,
    now: Instant,
    effects: Vec<Effect<u64>>,
}

impl Scene {
    /// An empty directory.
    fn new() -> Self {
        let hub = Arc::new(hub("15.18"));
        let (writer, _readers) = chunks(8 << 20, 1).unwrap();
        let role = Receiver::new(Arc::clone(&hub), writer, None);
        Self { hub, role, now: Instant::now(), effects: Vec::new() }
    }

    /// An upstream offers its stream.
    fn offer(&mut self) -> Admission {
        let offer = Offer { tli: TLI, start: START, source: primary() };
        self.tell(|role, at, out| role.on_offer(offer, at, out))
    }

    /// An empty directory, and an upstream that streams.
    fn streaming() -> Self {
        let mut scene = Self::new();
        assert_eq!(scene.offer(), Admission::Accepted);
        scene
    }

    /// The same, with the first segment open and the beginning noted.
    fn receiving() -> Self {
        let mut scene = Self::streaming();
        scene.answer(JobDone::Prepared { tli: TLI, no: SegmentNo::new(4), file: 44 });
        scene.receive(&wal(1));
        scene.write_and_sync();
        scene.answer(JobDone::Begun { tli: TLI, begun: Begun::Wholly });
        scene.effects.clear();
        scene
    }

    fn tell<T>(
        &mut self,
        event: impl FnOnce(&mut Receiver<u64>, &Moment<'_, SystemClock>, &mut Vec<Effect<u64>>) -> T,
    ) -> T {
        event(&mut self.role, &Moment::new(&SystemClock, self.now), &mut self.effects)
    }

    fn answer(&mut self, news: JobDone<u64>) {
        self.tell(|role, at, out| role.on_keeper(news, at.now, out));
    }

    /// Runs the timers, as the core does after every event.
    fn look(&mut self) {
        self.tell(|role, at, out| {
            role.on_time(at, out);
            role.finish(at.now, out);
        });
    }

    /// The next WAL, in one message.
    fn receive(&mut self, wal: &[u8]) {
        let (taken, of) = self.send(wal);
        assert_eq!(taken, of);
    }

    /// The same; returns how much of the message was taken, and its length.
    fn send(&mut self, wal: &[u8]) -> (usize, usize) {
        let at = self.role.store().map_or(START, Store::received);
        let header = xlog_data_header(at, at, PgTime::new(0), wal.len());
        let message = [&header[..], wal].concat();
        let taken = self.tell(|role, at, out| role.on_bytes(&message, at.now, out));
        (taken, message.len())
    }

    /// Bytes after the end are ignored.
    fn receive_nothing_more(&mut self) {
        let bytes = wal(1);
        let header = xlog_data_header(START, START, PgTime::new(0), bytes.len());
        let message = [&header[..], &bytes].concat();
        self.tell(|role, at, out| role.on_bytes(&message, at.now, out));
        assert!(self.came_out().is_empty());
    }

    /// The effects since the last call.
    fn came_out(&mut self) -> Vec<String> {
        self.effects.drain(..).map(|effect| brief(&effect)).collect()
    }

    /// Completes the batch in progress.
    fn write_and_sync(&mut self) {
        let id = self.effects.iter().find_map(|effect| match effect {
            Effect::Write { id, bytes, .. } => Some((*id, bytes.len())),
            _ => None,
        });
        let (id, len) = id.expect("a write");
        self.tell(|role, at, out| role.on_written(id, Ok(len), at.now, out));
        self.tell(|role, at, out| role.on_synced(SegmentNo::new(4), Ok(()), at.now, out));
    }
}

fn brief(effect: &Effect<u64>) -> String {
    match effect {
        Effect::Write { file, offset, bytes, .. } => {
            format!("write {} bytes at {offset} of file {file}", bytes.len())
        }
        Effect::Sync { file, .. } => format!("sync file {file}"),
        Effect::Job(job) => format!("job: {}", job.kind()),
        Effect::UrgentJob(job) => format!("urgent job: {}", job.kind()),
        Effect::Tell(ToUpstream::Status(status)) => format!("status: flush {}", status.flush),
        Effect::Tell(ToUpstream::Feedback(_)) => "feedback".into(),
        other => format!("{other:?}"),
    }
}

/// WAL from the beginning on, made of `records` records of 1000 bytes.
fn wal(records: usize) -> Vec<u8> {
    let size = SegmentSize::new(SEGMENT).unwrap();
    let system = hub("15.18").identity().unwrap().system_id;
    let mut synth = Synth::new(system, size, TLI, 0xD110, START);
    for _ in 0..records {
        synth.record(&[7; 1000]);
    }
    synth.take_bytes().1
}

/// What follows `wal(1)`.
fn more() -> Vec<u8> {
    wal(2).split_off(wal(1).len())
}

#[test]
fn wal_is_written_synced_published_and_acknowledged_in_this_order() {
    let mut scene = Scene::streaming();
    let begun = scene.came_out();
    let prepare = |no: u64| format!("job: prepare segment {no} of timeline 1");
    assert_eq!(begun[0], "feedback");
    assert_eq!(begun[1..], ["status: flush 0/4000000".into(), prepare(4), prepare(5)]);
    scene.answer(JobDone::Prepared { tli: TLI, no: SegmentNo::new(4), file: 44 });
    assert!(scene.came_out().is_empty());

    scene.receive(&wal(1));
    let Some(Effect::Write { id, .. }) = scene.effects.first() else { panic!("no write") };
    let id = *id;
    assert_eq!(scene.came_out(), ["write 8192 bytes at 0 of file 44"]);
    scene.look();
    assert!(scene.came_out().is_empty(), "nothing is durable yet");
    scene.tell(|role, at, out| role.on_written(id, Ok(8192), at.now, out));
    assert_eq!(scene.came_out(), ["sync file 44"]);
    scene.tell(|role, at, out| role.on_synced(SegmentNo::new(4), Ok(()), at.now, out));
    assert_eq!(scene.came_out(), ["job: note the beginning of timeline 1"]);
    let cell = scene.hub.current_cell().unwrap();
    assert_eq!(cell.durable(), START);
    scene.answer(JobDone::Begun { tli: TLI, begun: Begun::Wholly });
    assert_eq!(scene.came_out(), ["Published"]);
    let end = START.saturating_add(wal(1).len() as u64);
    assert_eq!(cell.durable(), end);
    scene.look();
    assert_eq!(scene.came_out(), [format!("status: flush {end}")]);
}

/// I9.
#[test]
fn after_a_failed_sync_nothing_more_is_acknowledged() {
    let mut scene = Scene::receiving();
    let durable = scene.hub.current_cell().unwrap().durable();
    scene.look();
    assert_eq!(scene.came_out(), [format!("status: flush {durable}")]);

    scene.receive(&more());
    let Some(Effect::Write { id, bytes, .. }) = scene.effects.first() else { panic!("no write") };
    let (id, len) = (*id, bytes.len());
    scene.tell(|role, at, out| role.on_written(id, Ok(len), at.now, out));
    scene.effects.clear();
    let failed = io::Error::from_raw_os_error(libc::EIO);
    scene.tell(|role, at, out| role.on_synced(SegmentNo::new(4), Err(failed), at.now, out));
    assert_eq!(scene.came_out(), ["urgent job: write the halted marker"]);
    scene.look();
    assert!(scene.came_out().is_empty());
    assert_eq!(scene.hub.current_cell().unwrap().durable(), durable);
    scene.answer(JobDone::Done(JobKind::MarkHalted));
    assert_eq!(scene.came_out(), ["Halt"]);
}

#[test]
fn a_marker_that_is_never_written_does_not_keep_the_process() {
    let mut scene = Scene::receiving();
    scene.receive(&more());
    let Some(Effect::Write { id, .. }) = scene.effects.first() else { panic!("no write") };
    let (id, failed) = (*id, io::Error::from_raw_os_error(libc::EIO));
    scene.tell(|role, at, out| role.on_written(id, Err(failed), at.now, out));
    scene.look();
    scene.effects.clear();
    scene.now += Duration::from_secs(6);
    scene.look();
    assert!(scene.came_out().contains(&"Halt".to_owned()));
}

/// The end is reported when the received WAL is durable, after the position is set.
#[test]
fn a_lost_stream_is_reported_after_its_wal_is_durable() {
    let mut scene = Scene::receiving();
    scene.receive(&more());
    let Some(Effect::Write { id, .. }) = scene.effects.first() else { panic!("no write") };
    let id = *id;
    scene.tell(|role, _, out| role.on_lost("reset".into(), out));
    scene.look();
    assert_eq!(scene.came_out()[1..], ["Disconnect(Silent)"]);
    scene.receive_nothing_more();
    scene.tell(|role, at, out| role.on_written(id, Ok(8192), at.now, out));
    scene.tell(|role, at, out| role.on_synced(SegmentNo::new(4), Ok(()), at.now, out));
    scene.look();
    let end = START.saturating_add(wal(2).len() as u64);
    let Some(Effect::Ended(UpstreamEnd::Lost { error, at })) = scene.effects.last() else {
        panic!("{:?}", scene.came_out())
    };
    assert_eq!((error.as_str(), *at), ("reset", end));
    let Position::At { durable, .. } = scene.hub.position() else { panic!("no position") };
    assert_eq!(durable, end);
    assert!(scene.role.is_at_rest());
}

/// Without space the stream ends, and WAL that was not durable is dropped.
#[test]
fn no_space_drops_back_to_the_durable_mark() {
    let mut scene = Scene::receiving();
    let durable = scene.hub.current_cell().unwrap().durable();
    scene.receive(&more());
    let Some(Effect::Write { id, .. }) = scene.effects.first() else { panic!("no write") };
    let (id, full) = (*id, io::Error::from_raw_os_error(libc::ENOSPC));
    scene.effects.clear();
    scene.tell(|role, at, out| role.on_written(id, Err(full), at.now, out));
    scene.look();
    assert_eq!(scene.came_out(), ["Disconnect(Silent)", "Ended(NoSpace)"]);
    assert_eq!(scene.role.store().map(Store::received), Some(durable));
    // The next stream has the segment prepared again, and free space checked.
    let offer = Offer { tli: TLI, start: START, source: primary() };
    let admission = scene.tell(|role, at, out| role.on_offer(offer, at, out));
    assert_eq!(admission, Admission::Accepted);
    let came_out = scene.came_out();
    let kind = JobKind::Prepare { tli: TLI, no: SegmentNo::new(4) };
    assert!(came_out.contains(&format!("job: {kind}")), "{came_out:?}");
}

#[test]
fn while_the_disk_is_too_full_nothing_more_is_taken() {
    let mut scene = Scene::receiving();
    let space = Space { total: 100, free: 1 };
    let too_full = TooFull { mark: HighWatermark::Used(90), space, missing: 9 };
    scene.hub.holds.set_too_full(Some(too_full));
    let received = scene.role.store().map(Store::received);
    let at = received.unwrap();
    let wal = more();
    let message = [&xlog_data_header(at, at, PgTime::new(0), wal.len())[..], &wal].concat();
    scene.tell(|role, at, out| role.on_bytes(&message, at.now, out));
    scene.look();
    assert_eq!(scene.role.store().map(Store::received), received);
    let came_out = scene.came_out();
    assert!(came_out.contains(&"Ended(NoSpace)".to_owned()), "{came_out:?}");
}

/// I13: who had other WAL is known by what a server says of itself, whichever name it has.
#[test]
fn a_server_that_took_over_the_name_of_one_that_differed_is_received_from() {
    let server = |name: &str| Some(format!("cluster_name {name}"));
    let mut scene = Scene::receiving();
    scene.tell(|role, _, out| role.on_lost("reset".into(), out));
    scene.look();
    let mut evidence = Evidence::default();
    evidence.add(Difference {
        tli: TLI,
        at: START,
        source: WalSource { server: server("old"), ..primary() },
        since: SystemTime::UNIX_EPOCH,
        detail: "other bytes".to_owned(),
        bytes: None,
        cleared: true,
    });
    scene.hub.course.set_evidence(evidence);
    for (own, admission) in [
        (server("old"), Admission::Refused),
        // It may be the same one.
        (None, Admission::Refused),
        (server("new"), Admission::Accepted),
    ] {
        let source = WalSource { server: own.clone(), ..primary() };
        let offer = Offer { tli: TLI, start: START, source };
        let admitted = scene.tell(|role, at, out| role.on_offer(offer, at, out));
        assert_eq!(admitted, admission, "{own:?}");
    }
}

/// I1: bytes are never joined across a hole or across timelines.
#[test]
fn a_stream_that_does_not_join_ours_is_refused() {
    let mut scene = Scene::receiving();
    scene.tell(|role, _, out| role.on_lost("reset".into(), out));
    scene.look();
    scene.effects.clear();
    let end = scene.hub.current_cell().unwrap().durable();
    let two = TimelineId::new(2).unwrap();
    for (tli, start) in [(TLI, end.saturating_add(8)), (two, end)] {
        let offer = Offer { tli, start, source: primary() };
        let admission = scene.tell(|role, at, out| role.on_offer(offer, at, out));
        assert_eq!(admission, Admission::Refused);
        let is_end =
            |effect: &Effect<u64>| matches!(effect, Effect::Ended(UpstreamEnd::Lost { .. }));
        assert!(scene.effects.iter().any(is_end), "{:?}", scene.came_out());
        scene.effects.clear();
    }
}

/// A recalled stream is reported once, as `Recalled`, and closed with Terminate.
#[test]
fn a_recall_says_once_that_there_is_no_stream() {
    let mut scene = Scene::receiving();
    scene.look();
    scene.effects.clear();
    scene.tell(|role, at, out| role.recall(at, out));
    let came_out = scene.came_out();
    assert_eq!(came_out[1..], ["Disconnect(Terminate)"], "{came_out:?}");
    scene.look();
    assert_eq!(scene.came_out(), ["Ended(Recalled)"]);
    scene.look();
    assert!(scene.came_out().is_empty());
    // The same holds without a stream.
    scene.tell(|role, at, out| role.recall(at, out));
    scene.look();
    assert_eq!(scene.came_out(), ["Ended(Recalled)"]);
}

/// The keeper's answer about a file of a timeline that was left does not concern this one.
#[test]
fn late_answers_about_another_timeline_change_nothing() {
    let mut scene = Scene::receiving();
    let two = TimelineId::new(2).unwrap();
    scene.answer(JobDone::Prepared { tli: two, no: SegmentNo::new(9), file: 99 });
    assert!(!scene.role.store().unwrap().files.contains_key(&SegmentNo::new(9)));
    let no = SegmentNo::new(4);
    let error = io::Error::from_raw_os_error(libc::EIO);
    scene.answer(JobDone::Failed { job: JobKind::Finalize { tli: two, no }, error });
    assert!(scene.came_out().is_empty(), "this timeline does not halt over it");
}

#[test]
fn no_stream_begins_while_a_difference_stands() {
    let mut scene = Scene::new();
    let evidence = |author: &str, cleared| {
        let source = WalSource { name: author.to_owned(), server: None };
        let (since, detail, bytes) = (SystemTime::UNIX_EPOCH, String::new(), None);
        Evidence::from(Difference { tli: TLI, at: START, source, since, detail, bytes, cleared })
    };
    for standing in [evidence("other", false), evidence("primary", true)] {
        scene.hub.course.set_evidence(standing);
        assert_eq!(scene.offer(), Admission::Refused);
        let told = scene.came_out().join("; ");
        assert!(told.contains("Ended(Lost") && told.contains("a difference stands"), "{told}");
        assert!(scene.role.store().is_none());
    }
    scene.hub.course.set_evidence(evidence("other", true));
    assert_eq!(scene.offer(), Admission::Accepted);
}

/// The difference is then in our record before it: that is where other sources must be compared,
/// and where we have bytes.
#[test]
fn a_record_that_does_not_continue_ours_is_told_with_the_place_of_our_last_one() {
    let mut scene = Scene::receiving();
    let last = START.saturating_add(40);
    let mut wal = more();
    // The record names a different previous record, and is valid otherwise.
    wal[8..16].copy_from_slice(&(last.raw() + 8).to_le_bytes());
    let length = u32::from_le_bytes(*wal.first_chunk().unwrap()) as usize;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&wal[24..length]), &wal[..20]);
    wal[20..24].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(scene.send(&wal).0, 0);
    scene.look();
    let told = scene.came_out().join("; ");
    assert!(told.contains(&format!("Diverged {{ at: {last:?}")), "{told}");
}
