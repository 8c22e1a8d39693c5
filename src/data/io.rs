//! The receive role on a ring: passes it the events of the upstream's socket and of its files, and
//! carries out its effects.

use super::context::Context;
use super::handoff::{ToControl, UpstreamHandoff};
use super::moment::Moment;
use super::receive::{Admission, Effect, Goodbye, Offer, Receiver};
use super::token::Purpose;
use crate::keeper::{CoreClient, Job};
use crate::ring::{Buffer, Fd, OpId, Outcome, Outgoing, Ring, Then, Waker};
use crate::store::append::WriteId;
use crate::upstream::stream::MAX_BODY;
use crate::wal::SegmentNo;
use crate::watermark::Bell;
use crate::wire::frontend;
use bytes::BytesMut;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Room for received bytes that are not processed yet: a whole message and what comes after it.
const RECEIVE_BUFFER: usize = 2 * MAX_BODY;

/// The most bytes of replies that wait for room in the upstream's socket: more than any server that
/// still reads would leave unread.
const MAX_UNSENT: usize = 64 << 10;

/// How soon a job is offered again after the keeper's queue was full.
const ASK_AGAIN: Duration = Duration::from_millis(1);

/// Another core, to be woken when the watermark moves.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Says whether it may be asleep.
    pub bell: Arc<Bell>,
    /// Wakes it.
    pub waker: Waker,
}

/// Must the process end because WAL could not be made durable?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halted {
    /// No.
    No,
    /// Yes: the `halted` marker is written, or took too long.
    ForGood,
}

/// What carrying out effects came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    /// Nothing but messages for the upstream.
    Nothing,
    /// Something was started or has ended.
    Something,
}

/// The receive role, its socket, and its jobs for the keeper.
pub(super) struct ReceiveIo {
    pub(super) role: Receiver,
    keeper: CoreClient,
    peers: Vec<Peer>,
    connection: Option<Connection>,
    /// Counts upstream connections, so that a late completion is recognized.
    number: u32,
    /// Jobs that found the keeper's queue full.
    jobs: VecDeque<Job>,
    /// The role's effects; empty between two events.
    effects: Vec<Effect>,
    results: Vec<io::Result<usize>>,
    halted: Halted,
}

/// The upstream's socket.
struct Connection {
    socket: Fd,
    /// `None` while the ring has it for a receive in flight.
    buffer: Option<Buffer>,
    reading: Option<OpId>,
    outbox: Vec<u8>,
    waiting_room: Option<OpId>,
}

impl ReceiveIo {
    pub(super) const fn new(role: Receiver, keeper: CoreClient, peers: Vec<Peer>) -> Self {
        Self {
            role,
            keeper,
            peers,
            connection: None,
            number: 0,
            jobs: VecDeque::new(),
            effects: Vec::new(),
            results: Vec::new(),
            halted: Halted::No,
        }
    }

    pub(super) const fn halted(&self) -> Halted {
        self.halted
    }

    /// Operations on the upstream's socket that are in flight, with the number of the
    /// connection.
    #[cfg(all(test, not(walhub_loom)))]
    pub(super) fn in_flight(&self) -> (u32, [Option<OpId>; 2]) {
        let connection = self.connection.as_ref();
        let reading = connection.and_then(|connection| connection.reading);
        let waiting = connection.and_then(|connection| connection.waiting_room);
        (self.number, [reading, waiting])
    }

    /// The latest time at which this must be driven again.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let jobs = (!self.jobs.is_empty()).then(|| now + ASK_AGAIN);
        [self.role.deadline(now), jobs].into_iter().flatten().min()
    }

    /// Wakes every other core that may be asleep.
    pub(super) fn wake_others(&self) {
        for peer in &self.peers {
            if peer.bell.rings_needed() {
                peer.waker.wake();
            }
        }
    }

    /// The control thread hands over an upstream that streams.
    pub(super) fn connect<R: Ring>(&mut self, handoff: UpstreamHandoff, cx: &mut Context<'_, R>) {
        let UpstreamHandoff { socket, unread, start, tli, source } = handoff;
        let offer = Offer { tli, start, source };
        let admission = cx.at(|at| self.role.on_offer(offer, at, &mut self.effects));
        if admission == Admission::Accepted {
            let mut buffer = Buffer::with_capacity(RECEIVE_BUFFER);
            let taken = buffer.append(&unread);
            self.number = self.number.wrapping_add(1);
            self.connection = Some(Connection {
                socket: Arc::new(socket),
                buffer: Some(buffer),
                reading: None,
                outbox: Vec::new(),
                waiting_room: None,
            });
            if taken < unread.len() {
                let error = "upstream sent too much before the stream began".to_owned();
                self.role.on_lost(error, &mut self.effects);
            }
        }
        self.carry_out(cx);
    }

    /// Has the role handle something, and carries out the effects.
    pub(super) fn tell<R: Ring, T>(
        &mut self,
        cx: &mut Context<'_, R>,
        event: impl FnOnce(&mut Receiver, &Moment<'_, R::Clock>, &mut Vec<Effect>) -> T,
    ) -> T {
        let told = cx.at(|at| event(&mut self.role, at, &mut self.effects));
        self.carry_out(cx);
        told
    }

    /// Handles a completion that belongs to the receive role.
    pub(super) fn complete<R: Ring>(
        &mut self,
        purpose: Purpose,
        outcome: Outcome,
        cx: &mut Context<'_, R>,
    ) {
        let now = cx.now;
        match (purpose, outcome) {
            (Purpose::Upstream(number), Outcome::Received(result, buffer))
                if number == self.number =>
            {
                self.received(result, buffer, now);
            }
            (Purpose::UpstreamRoom(number), Outcome::Writable(_)) if number == self.number => {
                if let Some(connection) = &mut self.connection {
                    connection.waiting_room = None;
                }
            }
            (Purpose::Write(id), Outcome::Written(result)) => {
                self.role.on_written(WriteId(id), result, now, &mut self.effects);
            }
            (Purpose::Sync(segment), Outcome::Synced(result)) => {
                self.role.on_synced(SegmentNo::new(segment), result, now, &mut self.effects);
            }
            _ => {}
        }
        self.carry_out(cx);
    }

    fn received(&mut self, result: io::Result<usize>, buffer: Buffer, now: Instant) {
        let Some(connection) = &mut self.connection else { return };
        connection.reading = None;
        connection.buffer = Some(buffer);
        let error = match result {
            Ok(0) => "server closed the connection unexpectedly".to_owned(),
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => error.to_string(),
        };
        // What arrived before the end counts.
        self.take_in(now);
        self.role.on_lost(error, &mut self.effects);
    }

    /// Does everything the receive role can do now. Returns whether it did anything.
    pub(super) fn drive<R: Ring>(&mut self, cx: &mut Context<'_, R>) -> bool {
        let taken = self.take_in(cx.now);
        let carried = self.carry_out(cx);
        self.tell(cx, Receiver::on_time);
        if let Err(error) = self.say_unsaid(cx.ring) {
            self.role.on_lost(error, &mut self.effects);
        }
        self.role.finish(cx.now, &mut self.effects);
        self.carry_out(cx);
        self.read_on(cx.ring);
        self.post_jobs();
        taken > 0 || carried == Carried::Something
    }

    /// Offers the received bytes to the role. Returns how many it took.
    fn take_in(&mut self, now: Instant) -> usize {
        let buffer = self.connection.as_mut().and_then(|connection| connection.buffer.as_mut());
        let Some(buffer) = buffer else { return 0 };
        let taken = self.role.on_bytes(buffer.filled(), now, &mut self.effects);
        buffer.consume(taken);
        taken
    }

    /// Carries out the role's effects, in order.
    fn carry_out<R: Ring>(&mut self, cx: &mut Context<'_, R>) -> Carried {
        let Context { ring, news, .. } = cx;
        let mut carried = Carried::Nothing;
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            if let Effect::Tell(message) = &effect {
                if let Some(connection) = &mut self.connection {
                    message.encode(&mut connection.outbox);
                }
                continue;
            }
            carried = Carried::Something;
            match effect {
                Effect::Tell(_) => {}
                Effect::Write { id, file, offset, bytes } => {
                    ring.write(&file, offset, bytes, Purpose::Write(id.0).token());
                }
                Effect::Sync { segment, file } => {
                    ring.sync_data(&file, Purpose::Sync(segment.raw()).token());
                }
                Effect::Job(job) => self.jobs.push_back(job),
                Effect::UrgentJob(job) => self.jobs.push_front(job),
                Effect::ForgetJobs => self.jobs.clear(),
                Effect::Published => self.wake_others(),
                Effect::Disconnect(goodbye) => self.disconnect(goodbye, *ring),
                Effect::Ended(end) => news.push_back(ToControl::UpstreamEnded(end)),
                Effect::Halt => self.halted = Halted::ForGood,
            }
        }
        // The allocation is reused.
        self.effects = effects;
        carried
    }

    fn disconnect<R: Ring>(&mut self, goodbye: Goodbye, ring: &mut R) {
        let Some(mut connection) = self.connection.take() else { return };
        if goodbye == Goodbye::Terminate {
            let mut terminate = BytesMut::new();
            frontend::terminate(&mut terminate);
            connection.outbox.extend_from_slice(&terminate);
            // A courtesy: the server closes its side without an error in its log.
            drop(connection.send(ring, &mut self.results));
        }
        super::shut(ring, &connection.socket);
    }

    /// Sends the messages for the upstream, as far as its socket has room.
    fn say_unsaid<R: Ring>(&mut self, ring: &mut R) -> Result<(), String> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if connection.outbox.len() > MAX_UNSENT {
            return Err("upstream does not read the status messages".to_owned());
        }
        if connection.outbox.is_empty() || connection.waiting_room.is_some() {
            return Ok(());
        }
        let sent = match connection.send(ring, &mut self.results) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        connection.outbox.drain(..sent);
        if !connection.outbox.is_empty() {
            let token = Purpose::UpstreamRoom(self.number).token();
            connection.waiting_room = Some(ring.poll_writable(&connection.socket, token));
        }
        Ok(())
    }

    /// Starts the next receive, unless one is in flight, the role wants no more for now, or the
    /// buffer has no room.
    fn read_on<R: Ring>(&mut self, ring: &mut R) {
        let Some(connection) = &mut self.connection else { return };
        if !self.role.is_reading() {
            return;
        }
        if let Some(buffer) = connection.buffer.take_if(|buffer| buffer.room() > 0) {
            let token = Purpose::Upstream(self.number).token();
            connection.reading = Some(ring.receive(&connection.socket, buffer, token));
        }
    }

    fn post_jobs(&mut self) {
        while let Some(job) = self.jobs.pop_front() {
            if let Err(job) = self.keeper.post(job) {
                self.jobs.push_front(job);
                return;
            }
        }
    }
}

impl Connection {
    /// Sends the outbox now, as far as the socket takes it.
    fn send<R: Ring>(
        &self,
        ring: &mut R,
        results: &mut Vec<io::Result<usize>>,
    ) -> io::Result<usize> {
        let parts = [IoSlice::new(&self.outbox)];
        let message = Outgoing { socket: &self.socket, parts: &parts, then: Then::Nothing };
        ring.send_now(&[message], results);
        results.pop().unwrap_or(Ok(0))
    }
}
