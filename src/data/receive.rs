//! The receive role: WAL from the upstream into the cache and onto the disk, and the
//! watermark behind it.
//!
//! Nothing is stored before it has passed the walk (page headers, record CRCs, links
//! to the record before), and nothing is published before its batch is synced.

use super::core::{DataCore, Halted};
use super::feedback::{FeedbackClock, Looked};
use super::figures::ReceiverFigures;
use super::handoff::{ToControl, UpstreamHandoff};
use super::pg_now;
use super::store::Store;
use super::token::Purpose;
use crate::hub::Hub;
use crate::keeper::{Job, JobDone, JobKind};
use crate::ring::Clock as _;
use crate::ring::{self, Buffer, ChunkWriter, Fd, OpId, Outcome, Outgoing, Ring, Then, Waker};
use crate::store::RecoveredWal;
use crate::store::append::Action;
use crate::store::retention::Receiving;
use crate::upstream::apply::ApplyReport;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::position::Position;
use crate::upstream::stream::{Clock, Due, MAX_BODY, Positions, Told, next_told};
use crate::wal::{Lsn, TimelineId};
use crate::watermark::Bell;
use crate::wire::copy::ReplyRequest;
use crate::wire::frontend;
use bytes::BytesMut;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// Room for received bytes that are not looked at yet: a whole message and what comes
/// behind it.
const RECEIVE_BUFFER: usize = 2 * MAX_BODY;

/// Replies that wait for room in the upstream's socket, bytes: more than any server that
/// reads leaves unread.
const MAX_UNSENT: usize = 64 << 10;

/// How long the keeper may take to write the `halted` marker before the process ends
/// without it.
const HALT_PATIENCE: Duration = Duration::from_secs(5);

/// Exit status after a failed sync: the last word is the `halted` marker's.
pub const EXIT_HALTED: i32 = 3;

/// Another core, to be woken when the watermark moves.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Says whether it may be asleep.
    pub bell: Arc<Bell>,
    /// Wakes it.
    pub waker: Waker,
}

/// The receive role of core 0.
#[derive(Debug)]
pub struct Receiver {
    peers: Vec<Peer>,
    pub(super) writer: ChunkWriter,
    pub(super) store: Option<Store>,
    link: Option<Link>,
    /// Counts upstream connections, so that a late completion is known as one.
    connection: u32,
    /// The stream has ended; it is reported when what it brought is durable.
    ended: Option<UpstreamEnd>,
    recall: Recall,
    /// Jobs that found the keeper's queue full.
    jobs: VecDeque<Job>,
    actions: Vec<Action>,
    /// Unsynced WAL is bounded by this, half of `wal_buffers`.
    max_unsynced: u64,
    halted_at: Option<Instant>,
    /// What is said of standbys' replay; none before the first connection.
    apply: Option<ApplyReport>,
}

/// The upstream connection.
#[derive(Debug)]
struct Link {
    socket: Fd,
    host: String,
    /// With the ring while a receive is in flight.
    buffer: Option<Buffer>,
    reading: Option<OpId>,
    clock: Clock,
    feedback: FeedbackClock,
    outbox: Vec<u8>,
    waiting_room: Option<OpId>,
    /// The next byte of the stream.
    expected: Lsn,
    /// Has it asked for a status since the last one?
    asked: Asked,
    /// The timeline has ended: only the next one's name is awaited.
    next: Option<UpstreamEnd>,
}

/// Has the upstream asked for a status?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    No,
    Yes,
}

/// Does the control thread wait until there is no stream?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recall {
    No,
    Asked,
}

/// What taking a message came to.
enum Taken {
    /// It is done with.
    Yes,
    /// There is no room for it until more is durable.
    NotYet,
    /// The stream ends.
    End(UpstreamEnd),
}

impl Receiver {
    /// A receive role whose newest WAL is in `writer`; `store` is none for an empty
    /// directory.
    pub fn new(
        peers: Vec<Peer>,
        writer: ChunkWriter,
        store: Option<Store>,
        wal_buffers: usize,
    ) -> Self {
        Self {
            peers,
            writer,
            store,
            link: None,
            connection: 0,
            ended: None,
            recall: Recall::No,
            jobs: VecDeque::new(),
            actions: Vec::new(),
            max_unsynced: (wal_buffers / 2) as u64,
            halted_at: None,
            apply: None,
        }
    }

    /// Where the role stands; none before the first WAL.
    pub(super) fn figures(&self) -> Option<ReceiverFigures> {
        let store = self.store.as_ref()?;
        Some(ReceiverFigures {
            tli: store.cell.tli(),
            received: store.received(),
            written: store.appender.written_upto(),
            durable: store.appender.durable(),
            record_end: store.record_end(),
            needed: self.link.as_ref().and_then(|link| link.feedback.told()),
        })
    }

    /// Is there no connection, and everything that came durable or dropped?
    pub(super) fn is_at_rest(&self) -> bool {
        let stored = self.store.as_ref().is_none_or(|store| {
            store.appender.settled() || store.appender.out_of_space() || store.appender.halted()
        });
        self.link.is_none() && self.ended.is_none() && stored
    }

    /// Operations on the upstream's socket that are in flight, with the number of the
    /// connection.
    #[cfg(all(test, not(walhub_loom)))]
    pub(super) fn in_flight(&self) -> (u32, [Option<OpId>; 2]) {
        let link = self.link.as_ref();
        let ops = [link.and_then(|link| link.reading), link.and_then(|link| link.waiting_room)];
        (self.connection, ops)
    }

    /// When the role has to be looked at again, whatever happens.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let link = self.link.as_ref().and_then(|link| link.clock.deadline());
        let halted = self.halted_at.map(|at| at + HALT_PATIENCE);
        // Other cores' pins keep the cache full: nobody rings when they are gone.
        let pinned = self.link.as_ref().is_some_and(|link| link.clock.is_paused())
            && self.store.as_ref().is_none_or(|store| store.appender.idle());
        let soon = (pinned || !self.jobs.is_empty()).then(|| now + Duration::from_millis(1));
        let feedback = self.link.as_ref().and_then(|link| link.feedback.deadline(now));
        [link, halted, soon, feedback].into_iter().flatten().min()
    }

    /// Wakes every other core that may be asleep.
    pub(super) fn wake_others(&self) {
        for peer in &self.peers {
            if peer.bell.rings_needed() {
                peer.waker.wake();
            }
        }
    }

    /// The status reply of this moment, queued. Write and flush are both what is
    /// durable: WAL that is only in our memory is nothing to rely on.
    fn queue_status(&mut self, reply: ReplyRequest, clock: &impl ring::Clock, now: Instant) {
        let Some(positions) = self.positions() else { return };
        let Some(link) = &mut self.link else { return };
        let status = link.clock.status(positions, reply, pg_now(clock), now);
        link.outbox.extend_from_slice(&status.encode());
        link.asked = Asked::No;
    }

    /// Does the upstream wait for a status, or would one say something new?
    fn owes_status(&self) -> bool {
        let (Some(link), Some(positions)) = (&self.link, self.positions()) else { return false };
        link.asked == Asked::Yes || link.clock.has_news(positions)
    }

    /// Where this hub stands, as the upstream is told.
    fn positions(&self) -> Option<Positions> {
        let appender = &self.store.as_ref()?.appender;
        let (write, flush) = (appender.durable(), appender.flush_reportable());
        Some(Positions { write, flush, apply: self.apply?.value(flush) })
    }

    /// Takes over what standbys have replayed, and tells the upstream what they need.
    fn look_at_fleet(&mut self, hub: &Hub, clock: &impl ring::Clock, now: Instant) {
        let Some(link) = &mut self.link else { return };
        let looked = link.feedback.look(&hub.fleet, now);
        if let Some(apply) = self.apply.as_mut().filter(|apply| apply.is_of_standbys())
            && looked == Looked::News
        {
            apply.note(hub.fleet.slowest());
        }
        if let Some(need) = link.feedback.take_due(now) {
            link.outbox.extend_from_slice(&need.message(pg_now(clock)).encode());
        }
    }

    /// Has something happened to the standbys since the last look that the upstream may
    /// have to be told?
    pub(super) fn has_missed(&self, hub: &Hub) -> bool {
        self.link.as_ref().is_some_and(|link| link.feedback.has_missed(&hub.fleet))
    }

    /// Takes one message of the stream.
    fn take(&mut self, told: Told<'_>, now: Instant) -> Taken {
        let Some(link) = &mut self.link else { return Taken::Yes };
        link.clock.heard(now);
        match told {
            Told::Nothing => Taken::Yes,
            Told::ReplyWanted => {
                link.asked = Asked::Yes;
                Taken::Yes
            }
            Told::Wal { start, wal } => self.take_wal(start, wal, now),
            Told::CopyDone => {
                let mut done = BytesMut::new();
                frontend::copy_done(&mut done);
                link.outbox.extend_from_slice(&done);
                link.next = Some(UpstreamEnd::Lost {
                    error: "upstream ended the stream without naming a next timeline".to_owned(),
                    at: link.expected,
                });
                Taken::Yes
            }
            Told::Next { tli, at } => Taken::End(UpstreamEnd::Timeline { next: tli, at }),
            Told::Error(error) => Taken::End(UpstreamEnd::Refused {
                sqlstate: error.sqlstate,
                message: error.message,
            }),
            Told::ShutDown => Taken::End(UpstreamEnd::Lost {
                error: "replication terminated by upstream server".to_owned(),
                at: link.expected,
            }),
        }
    }

    fn take_wal(&mut self, start: Lsn, wal: &[u8], now: Instant) -> Taken {
        let (Some(link), Some(store)) = (&mut self.link, &mut self.store) else {
            return Taken::Yes;
        };
        let lost = |error: String, at| Taken::End(UpstreamEnd::Lost { error, at });
        if link.next.is_some() {
            return Taken::Yes;
        }
        if start != link.expected {
            return lost(
                format!("upstream sent WAL at {start}, expected {}", link.expected),
                start,
            );
        }
        let Some(end) = start.checked_add(wal.len() as u64) else {
            return lost("upstream sent WAL past the end of the number space".to_owned(), start);
        };
        let received = store.received();
        let known = (received.bytes_since(start) as usize).min(wal.len());
        let (overlap, new) = wal.split_at(known);
        if let Err(end) = store.compare(&self.writer, start, overlap) {
            return Taken::End(end);
        }
        let unsynced = received.bytes_since(store.appender.durable());
        if unsynced > 0 && unsynced + new.len() as u64 > self.max_unsynced {
            link.clock.pause(now);
            return Taken::NotYet;
        }
        if !new.is_empty() {
            match store.append(&mut self.writer, new) {
                Ok(true) => store.appender.received(end, &mut self.actions),
                Ok(false) => {
                    link.clock.pause(now);
                    return Taken::NotYet;
                }
                Err(end) => return Taken::End(end),
            }
        }
        link.clock.resume(now);
        link.expected = end;
        Taken::Yes
    }
}

impl<R: Ring> DataCore<R> {
    /// Is the upstream left unread?
    #[cfg(test)]
    pub(super) fn is_paused(&self) -> bool {
        let link = self.receiver.as_ref().and_then(|receiver| receiver.link.as_ref());
        link.is_some_and(|link| link.clock.is_paused())
    }

    /// Does this core have the receive role?
    pub(super) const fn is_receiving(&self) -> bool {
        self.receiver.is_some()
    }

    /// Between two submissions: publishes what has become durable meanwhile and starts
    /// the next batch.
    pub(super) fn look_at_receiver(&mut self, now: Instant) {
        if let Err(error) = self.ring.turn(ring::Wait::No, &mut self.done) {
            error!("io_uring: {error}");
        }
        self.complete(now);
        self.drive_receiver(now);
    }

    /// The control thread has an upstream that streams.
    pub(super) fn begin_receiving(&mut self, handoff: UpstreamHandoff, now: Instant) {
        let config = Arc::clone(&self.hub.config);
        let stopping = self.is_stopping();
        let Some(receiver) = &mut self.receiver else { return };
        if stopping || receiver.link.is_some() || receiver.ended.is_some() {
            // Stopping: the socket closes with the hand-over.
            return;
        }
        if receiver.store.is_none() {
            match Store::begin(
                &self.hub,
                handoff.tli,
                handoff.start,
                &mut receiver.writer,
                config.wal_buffers,
            ) {
                Ok(store) => receiver.store = Some(store),
                Err(end) => return self.report_end(end),
            }
        }
        if let Some(store) = &mut receiver.store {
            if store.appender.out_of_space() {
                store.appender.resume(&mut receiver.actions);
                // What standbys have let go meanwhile may be the space that is missing.
                let (tli, newest) = (store.appender.tli(), store.appender.durable());
                let now = self.clock.time_of_day();
                receiver.jobs.push_back(Job::Retain { tli, newest, now });
            }
            store.appender.warm_up(&mut receiver.actions);
        }
        if let Some(store) = &receiver.store
            && (handoff.tli != store.cell.tli() || handoff.start > store.received())
        {
            // Bytes are never joined over a hole, nor two timelines.
            let error = format!(
                "the stream begins at {} on timeline {}, behind our {} on timeline {}",
                handoff.start,
                handoff.tli,
                store.received(),
                store.cell.tli()
            );
            return self.report_end(UpstreamEnd::Lost { error, at: handoff.start });
        }
        let mut buffer = Buffer::with_capacity(RECEIVE_BUFFER);
        let taken = buffer.append(&handoff.unread);
        if taken < handoff.unread.len() {
            return self.report_end(UpstreamEnd::Lost {
                error: "upstream sent too much before the stream began".to_owned(),
                at: handoff.start,
            });
        }
        receiver.connection = receiver.connection.wrapping_add(1);
        receiver.link = Some(Link {
            socket: Arc::new(handoff.socket),
            host: handoff.host,
            buffer: Some(buffer),
            reading: None,
            clock: Clock::new(
                now,
                config.wal_receiver_status_interval,
                config.wal_receiver_timeout,
            ),
            feedback: FeedbackClock::new(config.wal_receiver_status_interval),
            outbox: Vec::new(),
            waiting_room: None,
            expected: handoff.start,
            asked: Asked::No,
            next: None,
        });
        receiver.apply.get_or_insert(ApplyReport::new(config.feedback.report_apply));
        receiver.look_at_fleet(&self.hub, &self.clock, now);
        receiver.queue_status(ReplyRequest::No, &self.clock, now);
    }

    /// Everything the receive role can do now. Returns whether it did anything.
    pub(super) fn drive_receiver(&mut self, now: Instant) -> bool {
        if self.receiver.is_none() {
            return false;
        }
        let mut busy = self.parse_stream(now);
        busy |= self.act(now);
        self.status(now);
        self.read_stream();
        self.finish_stream();
        self.post_jobs();
        self.end_if_halted(now);
        busy
    }

    fn parse_stream(&mut self, now: Instant) -> bool {
        let Some(receiver) = &mut self.receiver else { return false };
        let Some(mut buffer) = receiver.link.as_mut().and_then(|link| link.buffer.take()) else {
            return false;
        };
        let mut busy = false;
        let end = loop {
            match next_told(buffer.filled()) {
                Ok(None) => break None,
                Ok(Some((told, len))) => match receiver.take(told, now) {
                    Taken::Yes => {
                        buffer.consume(len);
                        busy = true;
                    }
                    Taken::NotYet => break None,
                    Taken::End(end) => break Some(end),
                },
                Err(fault) => {
                    let at = receiver.link.as_ref().map_or(Lsn::INVALID, |link| link.expected);
                    break Some(UpstreamEnd::Lost { error: fault.to_string(), at });
                }
            }
        };
        if let Some(link) = &mut receiver.link {
            link.buffer = Some(buffer);
        }
        if let Some(end) = end {
            self.end_stream(end);
            busy = true;
        }
        busy
    }

    /// Carries out what the store's state machine asked for.
    fn act(&mut self, now: Instant) -> bool {
        let mut busy = false;
        loop {
            let Some(receiver) = &mut self.receiver else { return busy };
            if receiver.actions.is_empty() {
                return busy;
            }
            busy = true;
            let actions = std::mem::take(&mut receiver.actions);
            for action in actions {
                self.act_on(action, now);
            }
        }
    }

    fn act_on(&mut self, action: Action, now: Instant) {
        let Some(receiver) = &mut self.receiver else { return };
        let Some(store) = &mut receiver.store else { return };
        let tli = store.cell.tli();
        match action {
            Action::Prepare { segment, keep } => {
                receiver.jobs.push_back(Job::Prepare { tli, no: segment, keep });
            }
            Action::Write { id, segment, offset, from, to } => {
                let file = &store.files[&segment];
                let bytes = receiver.writer.range(from, to);
                self.ring.write(file, offset, bytes, Purpose::Write(id.0).token());
            }
            Action::Sync(segment) => {
                let file = &store.files[&segment];
                self.ring.sync_data(file, Purpose::Sync(segment.raw()).token());
            }
            Action::Begin(upto) => {
                let start = store.begins;
                receiver.jobs.push_back(Job::Begin { tli, start, upto });
            }
            Action::Durable(lsn) => {
                store.publish(lsn, &mut receiver.writer);
                receiver.wake_others();
            }
            Action::Finalize(segment) => {
                store.files.remove(&segment);
                receiver.jobs.push_back(Job::Finalize { tli, no: segment });
            }
            Action::DropToDurable(lsn) => {
                store.rewind(lsn, &mut receiver.writer);
                warn!(
                    "no space left for WAL: received WAL is dropped back to {lsn}, which is durable"
                );
                self.end_stream(UpstreamEnd::NoSpace);
            }
            Action::Halt(reason) => {
                let durable = store.appender.durable();
                error!(
                    "PANIC: {reason}; nothing behind {durable} will be acknowledged or served, and \
                     the hub ends"
                );
                receiver.halted_at = Some(now);
                receiver.jobs.push_front(Job::MarkHalted { durable, reason: reason.to_string() });
            }
        }
    }

    fn status(&mut self, now: Instant) {
        let Some(receiver) = &mut self.receiver else { return };
        receiver.look_at_fleet(&self.hub, &self.clock, now);
        if receiver.owes_status() {
            receiver.queue_status(ReplyRequest::No, &self.clock, now);
        }
        let due = receiver.link.as_mut().map_or(Due::Nothing, |link| link.clock.due(now));
        let at = receiver.link.as_ref().map_or(Lsn::INVALID, |link| link.expected);
        match due {
            Due::Nothing => {}
            Due::Status(reply) => receiver.queue_status(reply, &self.clock, now),
            Due::GiveUp => self.end_stream(UpstreamEnd::TimedOut),
            Due::DiskTooSlow(unread) => self.end_stream(UpstreamEnd::Lost {
                error: format!(
                    "our disk is too slow: the upstream was left unread for {unread:.1?}"
                ),
                at,
            }),
        }
        self.send_status();
    }

    fn send_status(&mut self) {
        let Some(receiver) = &mut self.receiver else { return };
        let Some(link) = &mut receiver.link else { return };
        if link.outbox.len() > MAX_UNSENT {
            let at = link.expected;
            let error = "upstream does not read our replies".to_owned();
            return self.end_stream(UpstreamEnd::Lost { error, at });
        }
        if link.outbox.is_empty() || link.waiting_room.is_some() {
            return;
        }
        let mut results = std::mem::take(&mut self.results);
        let parts = [IoSlice::new(&link.outbox)];
        self.ring.send_now(
            &[Outgoing { socket: &link.socket, parts: &parts, then: Then::Nothing }],
            &mut results,
        );
        let result = results.pop().unwrap_or(Ok(0));
        self.results = results;
        let sent = match result {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => {
                let at = link.expected;
                return self.end_stream(UpstreamEnd::Lost { error: error.to_string(), at });
            }
        };
        link.outbox.drain(..sent);
        if !link.outbox.is_empty() {
            let token = Purpose::UpstreamRoom(receiver.connection).token();
            link.waiting_room = Some(self.ring.poll_writable(&link.socket, token));
        }
    }

    /// Reads on, unless a receive is in flight or there is no room for more.
    fn read_stream(&mut self) {
        let Some(receiver) = &mut self.receiver else { return };
        let Some(link) = &mut receiver.link else { return };
        // A paused stream's next message waits in the buffer: the ring must not have it
        // when there is room again, for the upstream may have nothing more to say.
        if link.reading.is_some() || link.clock.is_paused() {
            return;
        }
        if let Some(buffer) = link.buffer.take_if(|buffer| buffer.room() > 0) {
            let token = Purpose::Upstream(receiver.connection).token();
            link.reading = Some(self.ring.receive(&link.socket, buffer, token));
        }
    }

    /// A completion of the receive role.
    pub(super) fn complete_receive(&mut self, purpose: Purpose, outcome: Outcome, now: Instant) {
        let Some(receiver) = &mut self.receiver else { return };
        match (purpose, outcome) {
            (Purpose::Upstream(connection), Outcome::Received(result, buffer))
                if connection == receiver.connection =>
            {
                let Some(link) = &mut receiver.link else { return };
                link.reading = None;
                link.buffer = Some(buffer);
                let at = link.expected;
                let error = match result {
                    Ok(0) => "server closed the connection unexpectedly".to_owned(),
                    Ok(_) => return,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
                    Err(error) => error.to_string(),
                };
                // What came before the end counts.
                self.parse_stream(now);
                self.end_stream(UpstreamEnd::Lost { error, at });
            }
            (Purpose::UpstreamRoom(connection), Outcome::Writable(_))
                if connection == receiver.connection =>
            {
                if let Some(link) = &mut receiver.link {
                    link.waiting_room = None;
                }
            }
            (Purpose::Write(id), Outcome::Written(result)) => {
                if let Some(store) = &mut receiver.store {
                    let id = crate::store::append::WriteId(id);
                    store.appender.written(id, result, &mut receiver.actions);
                }
            }
            (Purpose::Sync(segment), Outcome::Synced(result)) => {
                if let Some(store) = &mut receiver.store {
                    let segment = crate::wal::SegmentNo::new(segment);
                    store.appender.synced(segment, result, &mut receiver.actions);
                }
            }
            _ => {}
        }
    }

    /// News from the keeper for the store.
    pub(super) fn receiver_news(&mut self, news: JobDone) {
        let time_of_day = self.clock.time_of_day();
        let Some(receiver) = &mut self.receiver else { return };
        if let JobDone::Done(JobKind::MarkHalted)
        | JobDone::Failed { job: JobKind::MarkHalted, .. } = news
        {
            error!("the hub ends because WAL could not be made durable");
            self.halted = Halted::ForGood;
            return;
        }
        let Some(store) = &mut receiver.store else { return };
        // What was asked for on a timeline that has been left meanwhile is no part of this one.
        if timeline_of(&news).is_some_and(|tli| tli != store.appender.tli()) {
            return;
        }
        let out = &mut receiver.actions;
        match news {
            JobDone::Prepared { no, file, .. } => {
                store.files.insert(no, file);
                store.appender.segment_ready(no, out);
            }
            JobDone::Finalized { no, .. } => {
                store.appender.finalized(no);
                let (tli, newest) = (store.appender.tli(), store.appender.durable());
                receiver.jobs.push_back(Job::Retain { tli, newest, now: time_of_day });
            }
            JobDone::Begun { begun, .. } => store.appender.begun(Ok(begun), out),
            JobDone::Failed { job: JobKind::Prepare { no, .. }, error } => {
                store.appender.prepare_failed(no, &error, out);
            }
            JobDone::Failed { job: JobKind::Finalize { no, .. }, error } => {
                store.appender.finalize_failed(no, &error, out);
            }
            JobDone::Failed { job: JobKind::Begin { .. }, error } => {
                store.appender.begun(Err(&error), out);
            }
            JobDone::Failed { job, error } => warn!("could not {job}: {error}"),
            JobDone::Retained { receiving: Receiving::Paused, .. } => {
                self.end_stream(UpstreamEnd::NoSpace);
            }
            JobDone::Retained { .. }
            | JobDone::Done(_)
            | JobDone::Opened { .. }
            | JobDone::Adopted { .. }
            | JobDone::Switched(_) => {}
        }
    }

    /// Closes the upstream connection; the end is reported when what it brought is
    /// durable.
    pub(super) fn end_stream(&mut self, end: UpstreamEnd) {
        let Some(receiver) = &mut self.receiver else { return };
        let Some(mut link) = receiver.link.take() else { return };
        if matches!(
            end,
            UpstreamEnd::Stopped | UpstreamEnd::Recalled | UpstreamEnd::Timeline { .. }
        ) {
            let mut goodbye = BytesMut::new();
            frontend::terminate(&mut goodbye);
            link.outbox.extend_from_slice(&goodbye);
            let parts = [IoSlice::new(&link.outbox)];
            let mut results = std::mem::take(&mut self.results);
            // A courtesy: the server closes its side without an error in its log.
            self.ring.send_now(
                &[Outgoing { socket: &link.socket, parts: &parts, then: Then::Nothing }],
                &mut results,
            );
            self.results = results;
        }
        super::shut(&mut self.ring, &link.socket);
        info!(host = %link.host, at = %link.expected, "upstream stream ends");
        let end = match link.next {
            Some(next) if !matches!(end, UpstreamEnd::Timeline { .. }) => next,
            _ => end,
        };
        receiver.ended.get_or_insert(end);
    }

    /// Reports the end of the stream once nothing of it is in flight; behind it that there
    /// is none, if that was asked for.
    fn finish_stream(&mut self) {
        self.report_ended();
        if let Some(receiver) = &mut self.receiver
            && receiver.recall == Recall::Asked
            && receiver.link.is_none()
            && receiver.ended.is_none()
        {
            receiver.recall = Recall::No;
            self.report_end(UpstreamEnd::Recalled);
        }
    }

    fn report_ended(&mut self) {
        let Some(receiver) = &mut self.receiver else { return };
        if receiver.ended.is_none() || receiver.halted_at.is_some() {
            return;
        }
        if let Some(store) = &receiver.store {
            let appender = &store.appender;
            if !(appender.settled() || appender.out_of_space()) {
                return;
            }
            self.hub.set_position(Position::At {
                tli: store.cell.tli(),
                durable: appender.durable(),
                start: store.start_of_next(&receiver.writer),
            });
        }
        // What was recalled is reported as such once.
        if let Some(end) = receiver.ended.take_if(|end| !matches!(end, UpstreamEnd::Recalled)) {
            self.report_end(end);
        } else {
            receiver.ended = None;
        }
    }

    fn report_end(&mut self, end: UpstreamEnd) {
        self.say(ToControl::UpstreamEnded(end));
    }

    fn post_jobs(&mut self) {
        let Some(receiver) = &mut self.receiver else { return };
        while let Some(job) = receiver.jobs.pop_front() {
            if let Err(job) = self.keeper.post(job) {
                receiver.jobs.push_front(*job);
                return;
            }
        }
    }

    fn end_if_halted(&mut self, now: Instant) {
        let halted_at = self.receiver.as_ref().and_then(|receiver| receiver.halted_at);
        if halted_at.is_some_and(|at| now.saturating_duration_since(at) >= HALT_PATIENCE) {
            error!("the halted marker could not be written in time; the hub ends without it");
            self.halted = Halted::ForGood;
        }
    }

    /// Shutdown, first half: no more WAL comes in.
    pub(super) fn stop_receiving(&mut self, now: Instant) {
        if let Some(receiver) = &mut self.receiver {
            receiver.queue_status(ReplyRequest::No, &self.clock, now);
        }
        self.end_stream(UpstreamEnd::Stopped);
    }

    /// The control thread wants no more of any upstream. What has come becomes durable;
    /// what is durable by now is acknowledged, and nothing afterwards.
    pub(super) fn recall_upstream(&mut self, now: Instant) {
        if let Some(receiver) = &mut self.receiver {
            receiver.queue_status(ReplyRequest::No, &self.clock, now);
            receiver.recall = Recall::Asked;
        }
        self.end_stream(UpstreamEnd::Recalled);
    }

    /// Our timeline has ended, and what follows is on disk: standbys are sent on to it, and
    /// the next connection asks for it.
    pub(super) fn go_on_with(&mut self, wal: RecoveredWal) -> Result<(), String> {
        let Some(receiver) = &mut self.receiver else {
            return Err("this core does not receive".to_owned());
        };
        if receiver.link.is_some() || receiver.ended.is_some() {
            return Err("the stream of the ended timeline is still there".to_owned());
        }
        let (start, fork) = (wal.prefix_from, wal.ended.last().map(|ended| ended.end));
        let old = self.hub.current_cell();
        if old.as_ref().is_some_and(|old| old.tli() == wal.walker.rules().tli) {
            // Asked for twice, done twice on disk.
            return Ok(());
        }
        let store = Store::resume(wal, &mut receiver.writer, self.hub.config.wal_buffers)?;
        let next = Arc::clone(&store.cell);
        if let Some(left) = &receiver.store {
            self.hub.set_record_end(left.cell.tli(), left.record_end());
        }
        // They are about files that are no longer written.
        receiver.jobs.clear();
        receiver.actions.clear();
        receiver.store = Some(store);
        // Whoever is told of the end asks for what follows within a millisecond.
        self.hub.push_cell(Arc::clone(&next));
        self.hub.set_position(Position::At { tli: next.tli(), durable: next.durable(), start });
        if let (Some(old), Some(fork)) = (old, fork) {
            info!("timeline {} ended at {fork}; going on with timeline {}", old.tli(), next.tli());
            old.seal(fork);
            old.link(next);
        }
        receiver.wake_others();
        Ok(())
    }

    /// Our WAL was moved aside: the next connection begins a new line.
    pub(super) fn begin_anew(&mut self) {
        if let Some(receiver) = &mut self.receiver
            && receiver.link.is_none()
        {
            receiver.store = None;
            // They are about files that have moved.
            receiver.jobs.clear();
            receiver.actions.clear();
        }
    }
}

/// What timeline the keeper's news of a file that is written are about.
fn timeline_of(news: &JobDone) -> Option<TimelineId> {
    match news {
        JobDone::Prepared { tli, .. }
        | JobDone::Finalized { tli, .. }
        | JobDone::Begun { tli, .. }
        | JobDone::Failed {
            job:
                JobKind::Prepare { tli, .. } | JobKind::Finalize { tli, .. } | JobKind::Begin { tli },
            ..
        } => Some(*tli),
        _ => None,
    }
}
