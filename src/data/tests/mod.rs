//! What a core does for a single peer.

mod bench;
mod seams;
mod slots;

use super::handoff::ToCore;
use super::send::HUB_PAUSE;
use crate::keeper::{Job, JobDone, Order};
use crate::ring::Wait;
use crate::store::append::Begun;
use crate::wal::{Lsn, TimelineId};
use crate::watermark::Cell;
use crate::wire::copy::{ReplyRequest, StatusReply, xlog_data_header};
use crate::wire::time::PgTime;
use bench::{Bench, START, wal};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A stream that begins: the welcome is sent, and there is nothing else to send.
fn caught_up(timeout: Duration) -> (Bench, bench::Peer) {
    let mut bench = Bench::serving(START);
    let mut standby = bench.standby(|session| session.wal_sender_timeout = timeout);
    let mut welcome = None;
    bench.run_until("the stream begins", |_| {
        welcome = standby.next();
        welcome.is_some()
    });
    assert_eq!(welcome.map(|(tag, _)| tag), Some(b'W'));
    (bench, standby)
}

#[test]
fn a_ping_goes_out_before_the_core_sleeps_again() {
    let timeout = Duration::from_secs(2);
    let begun = Instant::now();
    let (mut bench, mut standby) = caught_up(timeout);
    let Wait::Until(at) = bench.run_to_sleep() else { panic!("it has a timer") };
    assert!(at <= begun + timeout, "{:?}", at - begun);
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
    bench.run_to_sleep();
    let ping = standby.next();
    assert!(Instant::now() < begun + timeout, "the machine is too slow for this test");
    let (tag, body) = ping.expect("a ping");
    assert_eq!((tag, body[0], body[17]), (b'd', b'k', 1));
}

#[test]
fn streams_of_wal_that_was_moved_aside_end() {
    let (mut bench, mut standby) = caught_up(Duration::from_secs(60));
    bench.hub.set_cells(Vec::new());
    bench.post(ToCore::BeginAnew);
    bench.run_until("the stream ends", |bench| standby.is_closed() && bench.hub.holds.count() == 0);
}

/// A stream that is being handed over at that time ends too.
#[test]
fn a_stream_of_wal_that_was_moved_aside_does_not_begin() {
    let mut bench = Bench::serving(START);
    let mut standby = bench.standby(|_| ());
    bench.hub.set_cells(Vec::new());
    bench.run_until("the stream ends", |bench| standby.is_closed() && bench.hub.holds.count() == 0);
}

/// A slow keeper or disk is no reason to be silent.
#[test]
fn a_laggard_that_waits_for_its_block_is_answered_and_asked() {
    let timeout = Duration::from_secs(2);
    let mut bench = Bench::serving(START.saturating_add(2 << 20));
    let mut laggard = bench.standby(|session| session.wal_sender_timeout = timeout);
    let mut asked = None;
    bench.run_until("the file is asked for", |bench| {
        asked = bench.orders.take();
        asked.is_some()
    });
    let Some(Order { job: Job::Open { tli, no }, reply }) = asked else { panic!("{asked:?}") };
    assert_eq!(laggard.next().map(|(tag, _)| tag), Some(b'W'));
    let heard = Instant::now();
    laggard.send(&status(ReplyRequest::Yes));
    for (what, reply) in [("the answer", 0), ("the ping", 1)] {
        let mut keepalive = None;
        bench.run_until(what, |_| {
            keepalive = laggard.next();
            keepalive.is_some() || laggard.is_closed()
        });
        let (tag, body) = keepalive.expect(what);
        assert_eq!((tag, body[0], body[17]), (b'd', b'k', reply), "{what}");
    }
    assert!(heard.elapsed() < timeout, "{:?}", heard.elapsed());
    laggard.send(&status(ReplyRequest::No));

    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&wal(2 << 20), 0).unwrap();
    let result = Ok(Arc::new(file.into()));
    reply.send(JobDone::Opened { tli, no, result });
    let mut first = None;
    bench.run_until("its WAL comes", |_| {
        first = laggard.next();
        first.is_some()
    });
    let (_, body) = first.unwrap();
    assert_eq!((body[0], &body[1..9]), (b'w', &START.raw().to_be_bytes()[..]));
}

/// A message begun before the switchpoint was known is finished with WAL past it, whatever has
/// happened to the block in the meantime.
#[test]
fn a_message_begun_past_the_end_of_its_timeline_is_finished_from_its_file() {
    let mut bench = Bench::serving(START.saturating_add(2 << 20));
    let mut laggard = bench.standby(|_| ());
    let truth = wal(2 << 20);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&truth, 0).unwrap();
    let file = Arc::new(file.into());
    let unfinished = |bench: &Bench| {
        let sender = bench.core.send.senders().next()?.1;
        sender.cursor.unfinished().map(|rest| (rest.next, rest.end))
    };
    let mut cut = None;
    bench.run_until("its socket takes part of a message", |bench| {
        if let Some(Order { job: Job::Open { tli, no }, reply }) = bench.orders.take() {
            let result = Ok(Arc::clone(&file));
            reply.send(JobDone::Opened { tli, no, result });
        }
        cut = unfinished(bench);
        cut.is_some_and(|(next, end)| next > START.saturating_add(9000) && next < end)
    });
    let (next, end) = cut.unwrap();
    let old = bench.hub.current_cell().unwrap();
    let fork = next.saturating_sub(8192);
    let child = Arc::new(Cell::new(TimelineId::new(2).unwrap(), fork, fork));
    bench.hub.push_cell(Arc::clone(&child));
    old.seal(fork);
    old.link(child);
    bench.core.readback.forget_blocks();

    let mut sent = Vec::new();
    let mut done = false;
    bench.run_until("the message is whole, and the timeline ends", |_| {
        while let Some((tag, body)) = laggard.next() {
            match (tag, body.first()) {
                (b'd', Some(b'w')) => sent.extend_from_slice(&body[25..]),
                (b'c', _) => done = true,
                _ => {}
            }
        }
        done
    });
    assert_eq!(START.saturating_add(sent.len() as u64), end);
    assert!(sent == truth[..sent.len()], "a false byte");
}

fn status(reply: ReplyRequest) -> Vec<u8> {
    let (write, client_time) = (Lsn::INVALID, PgTime::new(0));
    StatusReply { write, flush: write, apply: write, client_time, reply }.encode().to_vec()
}

#[test]
fn a_stream_that_we_close_is_logged_as_ended_once() {
    let log = Log::default();
    let written = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || written.clone()).finish();
    // With only one subscriber, the thread that reaches an event first decides whether it is
    // wanted. That is often another test's thread, which wants none.
    let _second =
        tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
    tracing::subscriber::with_default(subscriber, || {
        let (mut bench, mut standby) = caught_up(Duration::from_secs(60));
        bench.hub.set_cells(Vec::new());
        bench.post(ToCore::BeginAnew);
        bench.run_until("the stream ends", |bench| bench.hub.holds.count() == 0);
        assert!(standby.is_closed());
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("stream to standby ended").count(), 1, "{text}");
    assert!(text.contains("moved aside"), "{text}");
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn hubs_below_are_sent_to_look_again_one_after_the_other() {
    let mut bench = Bench::serving(START);
    let mut other = bench.standby(|_| ());
    let mut hubs: Vec<_> = (0..8).map(|_| bench.hub_below()).collect();
    bench.run_until("all are adopted", |bench| bench.core.send.senders().count() == 9);
    let begun = Instant::now();
    bench.post(ToCore::EndHubStreams);
    bench.run_until("the first ends", |_| hubs.iter_mut().any(|hub| hub.is_closed()));
    bench.run_until("all end", |_| hubs.iter_mut().all(|hub| hub.is_closed()));
    let took = begun.elapsed();
    assert!(took >= HUB_PAUSE * 7, "{took:?}");
    assert!(!other.is_closed());
}

/// The end of a bulk load: WAL that came while the disk was behind is taken as soon as there is
/// room, though the upstream has nothing more to send.
#[test]
fn a_catch_up_ends_though_the_upstream_falls_silent_while_it_is_not_read() {
    let mut bench = Bench::receiving();
    let mut upstream = bench.upstream();
    // More than may wait for the disk, less than is read ahead.
    let wal = wal(bench.hub.config.wal_buffers * 3 / 4);
    let end = START.saturating_add(wal.len() as u64);
    let writer = std::thread::spawn(move || {
        let mut at = START;
        for piece in wal.chunks(64 << 10) {
            let header = xlog_data_header(at, end, PgTime::new(0), piece.len());
            upstream.write_all(&[&header[..], piece].concat()).unwrap();
            at = at.saturating_add(piece.len() as u64);
        }
        upstream
    });
    let is_paused = |bench: &Bench| bench.core.is_paused();
    bench.run_until("too much is unsynced", |bench| is_paused(bench) && writer.is_finished());
    let _upstream = writer.join().unwrap();
    // All of it is now in our buffer or in the socket's.
    bench.run_to_sleep();

    let folder = tempfile::tempdir().unwrap();
    bench.run_until("everything is durable", |bench| {
        keep(bench, &folder);
        bench.hub.current_cell().is_some_and(|cell| cell.durable() == end)
    });
}

/// Does the keeper's work.
fn keep(bench: &mut Bench, folder: &tempfile::TempDir) {
    while let Some(Order { job, reply }) = bench.orders.take() {
        let done = match job {
            Job::Prepare { tli, no, .. } => {
                let file = std::fs::File::options()
                    .create(true)
                    .truncate(false)
                    .read(true)
                    .write(true)
                    .open(folder.path().join(no.raw().to_string()))
                    .unwrap();
                JobDone::Prepared { tli, no, file: Arc::new(file.into()) }
            }
            Job::Begin { tli, .. } => JobDone::Begun { tli, begun: Begun::Wholly },
            other => panic!("{other:?}"),
        };
        reply.send(done);
    }
}
