//! A thread with its share of the standbys.

use super::frames::Came;
use super::handshake::{self, Handshake, Seen, Stage, Wish};
use super::ledger::Ledger;
use super::outcome::histogram;
use super::plan::{Group, Replies, Slots, StartAt, Verify};
use super::shared::{Counts, Shared};
use super::standby::{Connecting, Kind, Standby, State, Written};
use super::verify::Verifier;
use crate::bench::clock::Nanos;
use crate::wal::Lsn;
use crate::wire::backend_read::FromServer;
use crate::wire::copy::ReplyRequest;
use crate::wire::frame::next_frame;
use crate::wire::frontend;
use crate::wire::sqlstate;
use bytes::BytesMut;
use hdrhistogram::Histogram;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What is received at once.
const BUFFER: usize = 128 << 10;
/// Likewise when most of it is to be dropped in the kernel.
const PEEP: usize = 8 << 10;
/// Receives of one standby before others get their turn.
const ROUNDS: usize = 4;
/// Events taken at once.
const EVENTS: usize = 512;
/// The waker's mark among the events.
const WAKER: u64 = u64::MAX;
/// A walreceiver is started anew so soon after the last one ended.
const RESTART: Duration = Duration::from_millis(25);
/// For a connection and its login, where the target sets no bound.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// `wal_receiver_status_interval`
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// A receipt whose commit is not known yet is looked at so often.
const WAITING_TICK: Duration = Duration::from_millis(5);
const NEVER: Nanos = Nanos(u64::MAX);

pub(super) struct Worker {
    shared: Arc<Shared>,
    thread: usize,
    epoll: OwnedFd,
    standbys: Vec<Standby>,
    timers: BinaryHeap<Reverse<(Nanos, u32)>>,
    buffer: Box<[u8]>,
    ledger: Ledger,
    verifier: Verifier,
    counts: [Counts; 4],
    marked_counts: [Counts; 4],
    marked: Nanos,
    storms: u64,
    next_storm: Nanos,
    states: [usize; 4],
    connect: Histogram<u64>,
    /// Standbys that have received a batch and not said so yet.
    unreported: Vec<usize>,
    random: Random,
}

/// What a thread has seen since the mark.
pub(super) struct Report {
    pub(super) groups: [GroupReport; 4],
    pub(super) connect: Histogram<u64>,
}

pub(super) struct GroupReport {
    pub(super) counts: Counts,
    pub(super) each: Histogram<u64>,
    pub(super) forgotten: u64,
}

/// Why a handshake came to nothing.
enum NoStream {
    /// The server does not want, or is not there: it is asked again.
    Refused(String),
    /// Its answers are none of the protocol.
    Fault(String),
}

fn no_stream(host: &str, why: &handshake::NoStream) -> NoStream {
    let text = format!("{host}: {why}");
    match why {
        handshake::NoStream::Malformed(_) | handshake::NoStream::Unexpected(_) => {
            NoStream::Fault(text)
        }
        handshake::NoStream::Refused(_)
        | handshake::NoStream::Login(_)
        | handshake::NoStream::Other(_) => NoStream::Refused(text),
    }
}

/// What comes next for a standby whose bytes were looked at.
enum Next {
    /// More of the same.
    Stream,
    /// The connection is over.
    Reconnect(String),
    /// Something that must not be.
    Fault(Lsn, String),
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, thread: usize) -> io::Result<Self> {
        let plan = &shared.plan;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        if let Some(waker) = shared.waker(thread) {
            epoll::add(&epoll, waker, EventData::new_u64(WAKER), EventFlags::IN)?;
        }
        let books = Arc::clone(&shared.first_last);
        let mut ledger = Ledger::new(Arc::clone(&plan.commits), books, thread);
        let (mut standbys, mut timers) = (Vec::new(), BinaryHeap::new());
        let now = plan.clock.now();
        for number in (thread..plan.standbys).step_by(plan.threads) {
            let mut standby = Standby::new(number, plan.group_of(number));
            let wait = plan.connect_rate.map_or(Duration::ZERO, |rate| {
                Duration::from_secs_f64(number as f64 / f64::from(rate.max(1)))
            });
            standby.due = now.after(wait);
            let place = u32::try_from(standbys.len()).map_err(io::Error::other)?;
            timers.push(Reverse((standby.due, place)));
            ledger.open(standby.group);
            standbys.push(standby);
        }
        let storm = plan.behaviours.storm.filter(|_| thread == 0);
        Ok(Self {
            thread,
            epoll,
            states: [standbys.len(), 0, 0, 0],
            standbys,
            timers,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            ledger,
            verifier: Verifier::new(Arc::clone(&shared.common), plan.verify),
            counts: [Counts::default(); 4],
            marked_counts: [Counts::default(); 4],
            marked: Nanos(0),
            storms: 0,
            next_storm: storm.map_or(NEVER, |storm| now.after(storm.first)),
            connect: histogram(),
            unreported: Vec::new(),
            random: Random(plan.seed ^ (thread as u64) << 32),
            shared,
        })
    }

    pub(super) fn run(mut self) -> Report {
        let nothing = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = vec![nothing; EVENTS];
        while !self.shared.stopping.load(Ordering::Acquire) {
            let timeout = self.timeout();
            let count = match epoll::wait(&self.epoll, events.as_mut_slice(), Some(&timeout)) {
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(error) => {
                    self.shared.refusal(format!("could not wait for sockets: {error}"));
                    break;
                }
            };
            self.obey();
            for event in events.iter().take(count) {
                let (data, flags) = (event.data, event.flags);
                self.event(data.u64(), flags);
            }
            self.report_all();
            self.run_timers();
            self.ledger.settle();
            self.publish();
        }
        self.report()
    }

    fn now(&self) -> Nanos {
        self.shared.plan.clock.now()
    }

    fn timeout(&self) -> Timespec {
        let now = self.now();
        let first = self.timers.peek().map_or(NEVER, |Reverse((due, _))| *due);
        let mut due = first.min(self.next_storm);
        if self.ledger.is_waiting() {
            due = due.min(now.after(WAITING_TICK));
        }
        let wait = due.since(now).min(Duration::from_secs(1));
        let (tv_sec, tv_nsec) = (wait.as_secs().cast_signed(), wait.subsec_nanos().into());
        Timespec { tv_sec, tv_nsec }
    }

    /// Looks at what the fleet's owner has changed.
    fn obey(&mut self) {
        let marked = Nanos(self.shared.marked.load(Ordering::Acquire));
        if marked != self.marked {
            self.marked = marked;
            self.ledger.mark(marked);
            self.marked_counts = self.counts;
        }
        let now = self.now();
        if self.next_storm <= now {
            let every = self.shared.plan.behaviours.storm.and_then(|storm| storm.every);
            self.next_storm = every.map_or(NEVER, |every| self.next_storm.after(every));
            self.shared.storm();
        }
        let storms = self.shared.storms.load(Ordering::Acquire);
        if storms != self.storms {
            self.storms = storms;
            self.storm();
        }
    }

    fn storm(&mut self) {
        let mut gone = Vec::new();
        for place in 0..self.standbys.len() {
            let standby = &self.standbys[place];
            if standby.group == Group::Good && standby.kind() == Kind::Streaming {
                self.say_goodbye(place);
                self.leave_stream(place, State::Idle);
                gone.push(place);
            }
        }
        self.shared.storm_obeyed();
        for place in gone {
            self.connect(place);
        }
    }

    fn event(&mut self, data: u64, flags: EventFlags) {
        if data == WAKER {
            let mut count = [0; 8];
            if let Some(waker) = self.shared.waker(self.thread) {
                // Empty when somebody else's wake-up was taken with it.
                rustix::io::read(waker, &mut count).ok();
            }
            return;
        }
        let (place, generation) = ((data & 0xFFFF_FFFF) as usize, (data >> 32) as u32);
        let Some(standby) = self.standbys.get(place) else { return };
        if standby.generation != generation {
            return;
        }
        match &standby.state {
            State::Connecting(_) => self.shake_hands(place),
            State::Streaming(_) => {
                if flags.contains(EventFlags::OUT) {
                    self.go_on(place);
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.receive(place);
                }
            }
            State::Stalled(_) => {
                if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                    self.reconnect(place, "the server closed the connection".to_owned());
                }
            }
            State::Idle | State::Finished | State::GivenUp => {}
        }
    }

    // --- Connecting

    fn connect(&mut self, place: usize) {
        let ordinal = self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let begun = self.now();
        let standby = &mut self.standbys[place];
        let before = standby.kind();
        standby.generation = standby.generation.wrapping_add(1);
        let endpoint = standby.endpoint % self.shared.endpoints.len();
        let target = &self.shared.endpoints[endpoint];
        let timeout = target.timeout.unwrap_or(LOGIN_TIMEOUT);
        let connected = target.connect(ordinal).and_then(|socket| {
            let data = u64::from(standby.generation) << 32 | place as u64;
            let flags = EventFlags::IN | EventFlags::OUT;
            epoll::add(&self.epoll, &socket, EventData::new_u64(data), flags)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => {
                let name = format!("{}{}", self.shared.plan.names, standby.number + 1);
                let mut out = BytesMut::new();
                let handshake = Handshake::begin(target, &name, &mut out);
                standby.state = State::Connecting(Box::new(Connecting {
                    socket,
                    begun,
                    endpoint,
                    handshake,
                    out,
                    open: false,
                    wants_room: true,
                }));
                self.count(before, Kind::Connecting);
                self.set_due(place, begun.after(timeout));
            }
            Err(error) => {
                let text = format!("could not connect to {}: {error}", target.name);
                self.count(before, Kind::Failed);
                self.refused(place, text);
            }
        }
    }

    fn shake_hands(&mut self, place: usize) {
        match self.try_shake_hands(place) {
            Ok(None) => {}
            Ok(Some(behind)) => self.begin_stream(place, &behind),
            Err(NoStream::Refused(text)) => {
                self.standbys[place].state = State::Idle;
                self.count(Kind::Connecting, Kind::Failed);
                self.refused(place, text);
            }
            Err(NoStream::Fault(text)) => {
                let at = self.standbys[place].at;
                self.fault(place, at, text);
            }
        }
    }

    /// What came behind CopyBothResponse, once that is here.
    fn try_shake_hands(&mut self, place: usize) -> Result<Option<BytesMut>, NoStream> {
        let shared = Arc::clone(&self.shared);
        let standby = &mut self.standbys[place];
        let (number, received) = (standby.number, standby.received);
        let State::Connecting(connecting) = &mut standby.state else { return Ok(None) };
        let Connecting { socket, endpoint, handshake, out, open, wants_room, .. } =
            connecting.as_mut();
        let host = &shared.endpoints[*endpoint].name;
        if !*open {
            let lost = |error| NoStream::Refused(format!("could not connect to {host}: {error}"));
            if let Some(error) = socket.take_error().map_err(lost)? {
                return Err(lost(error));
            }
            *open = true;
        }
        let mut start = None;
        let mut behind = None;
        match recv(&*socket, &mut *self.buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => {
                let text = format!("{host}: server closed the connection unexpectedly");
                return Err(NoStream::Refused(text));
            }
            Ok((got, _)) => {
                let bytes = self.buffer.get(..got).unwrap_or_default();
                let mut wish = |seen: &Seen| {
                    let wish = wish(&shared, number, received, seen)?;
                    start = Some(wish.start);
                    Ok(wish)
                };
                let stage = handshake.take(bytes, out, &mut wish);
                if let Stage::Streaming(rest) = stage.map_err(|fault| no_stream(host, &fault))? {
                    behind = Some(rest);
                }
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => {}
            Err(error) => return Err(NoStream::Refused(format!("{host}: {error}"))),
        }
        if !out.is_empty() {
            match send(&*socket, out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(taken) => drop(out.split_to(taken)),
                Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => {}
                Err(error) => return Err(NoStream::Refused(format!("{host}: {error}"))),
            }
        }
        if out.is_empty() == *wants_room {
            *wants_room = !out.is_empty();
            let data = u64::from(standby.generation) << 32 | place as u64;
            let room = if *wants_room { EventFlags::OUT } else { EventFlags::empty() };
            let flags = EventFlags::IN | room;
            epoll::modify(&self.epoll, &*socket, EventData::new_u64(data), flags)
                .map_err(|error| NoStream::Refused(error.to_string()))?;
        }
        if let Some(start) = start {
            standby.at = start;
        }
        Ok(behind)
    }

    /// The attempt has failed; the next one goes to the next endpoint.
    fn refused(&mut self, place: usize, text: String) {
        self.shared.refusal(text);
        let next = self.now().after(self.shared.plan.retry);
        let standby = &mut self.standbys[place];
        standby.endpoint = (standby.endpoint + 1) % self.shared.endpoints.len();
        self.set_due(place, next);
    }

    // --- Streaming

    fn begin_stream(&mut self, place: usize, behind: &[u8]) {
        let now = self.now();
        let standby = &mut self.standbys[place];
        let State::Connecting(connecting) = std::mem::replace(&mut standby.state, State::Idle)
        else {
            return;
        };
        self.connect.saturating_record(now.0.saturating_sub(connecting.begun.0));
        let first = standby.received.is_invalid();
        standby.state = State::Streaming(connecting.socket);
        standby.begin_stream(standby.at, now);
        let behaviours = &self.shared.plan.behaviours;
        match standby.group {
            Group::Stalled => {
                standby.act = behaviours.stalled.map_or(NEVER, |stalled| now.after(stalled.after));
            }
            Group::Flapping => {
                standby.act = behaviours.flapping.as_ref().map_or(NEVER, |flapping| {
                    now.after(self.random.between(*flapping.every.start(), *flapping.every.end()))
                });
            }
            Group::Good | Group::Slow => {}
        }
        let (group, at, number, received) =
            (standby.group, standby.at, standby.number, standby.received);
        if first {
            self.ledger.join(place, at);
            self.shared.received[number].store(received.raw(), Ordering::Relaxed);
        } else {
            self.counts[group.index()].reconnects += 1;
        }
        if group == Group::Good {
            self.shared.good_streams(1);
        }
        self.count(Kind::Connecting, Kind::Streaming);
        // As a walreceiver, which says first where it is.
        self.tell(place, ReplyRequest::No);
        self.tick(place, now);
        let next = self.take(place, behind);
        self.credit(place, at, now);
        self.after(place, next);
        if !behind.is_empty() {
            self.report_batch(place);
        }
    }

    /// The socket has something: a batch, as a walreceiver takes it. Others get their
    /// turn when it has no end.
    fn receive(&mut self, place: usize) {
        let before = self.standbys[place].at;
        for _ in 0..ROUNDS {
            let (next, drained) = self.try_receive(place);
            let stays = matches!(next, Next::Stream);
            self.after(place, next);
            if !stays {
                return;
            }
            if drained {
                break;
            }
        }
        if self.standbys[place].at > before {
            self.report_batch(place);
        }
    }

    fn report_batch(&mut self, place: usize) {
        if self.shared.plan.replies == Replies::Flush {
            self.unreported.push(place);
        }
    }

    fn after(&mut self, place: usize, next: Next) {
        match next {
            Next::Stream if !self.is_finished(place) => {}
            Next::Reconnect(why) => self.reconnect(place, why),
            Next::Fault(at, text) => self.fault(place, at, text),
            Next::Stream => {
                self.say_goodbye(place);
                self.leave_stream(place, State::Finished);
                self.ledger.leave(place);
                self.shared.one_finished();
            }
        }
    }

    /// What to do next, and whether that was all for now.
    fn try_receive(&mut self, place: usize) -> (Next, bool) {
        let slow_share = self.slow_share();
        let standby = &mut self.standbys[place];
        let State::Streaming(socket) = &standby.state else { return (Next::Stream, true) };
        let (before, left) = (standby.at, standby.frames.left());
        let slow = standby.group == Group::Slow;
        let drop_wal = self.shared.plan.verify == Verify::Off;
        // The kernel gets a length that the buffer has, also when it drops.
        let (flags, room) = match drop_wal {
            _ if slow => (RecvFlags::empty(), slow_share),
            true if left > 0 => (RecvFlags::TRUNC, left.min(BUFFER)),
            true => (RecvFlags::empty(), PEEP),
            false => (RecvFlags::empty(), BUFFER),
        };
        let Some(buffer) = self.buffer.get_mut(..room) else { return (Next::Stream, true) };
        let got = match recv(socket, &mut *buffer, flags | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => {
                let text = "server closed the connection unexpectedly";
                return (Next::Reconnect(text.to_owned()), true);
            }
            Ok((_, got)) => got,
            Err(Errno::AGAIN | Errno::INTR) => return (Next::Stream, true),
            Err(error) => return (Next::Reconnect(error.to_string()), true),
        };
        let now = self.shared.plan.clock.now();
        let standby = &mut self.standbys[place];
        standby.heard = now;
        standby.pinged = false;
        let next = if flags.contains(RecvFlags::TRUNC) {
            standby.frames.skip(got);
            standby.at = standby.at.saturating_add(got as u64);
            Next::Stream
        } else {
            let buffer = std::mem::take(&mut self.buffer);
            let next = self.take(place, buffer.get(..got).unwrap_or_default());
            self.buffer = buffer;
            next
        };
        self.credit(place, before, now);
        (next, got < room || slow)
    }

    /// Has it received all that it was to receive?
    fn is_finished(&self, place: usize) -> bool {
        let at = self.standbys[place].at;
        self.shared.plan.until.is_some_and(|until| at >= until)
    }

    /// Takes what came apart.
    fn take(&mut self, place: usize, bytes: &[u8]) -> Next {
        let mut bytes = bytes;
        loop {
            let standby = &mut self.standbys[place];
            let group = standby.group.index();
            match standby.frames.next(&mut bytes) {
                Ok(None) => return Next::Stream,
                Ok(Some(Came::Message(start))) => {
                    self.counts[group].messages += 1;
                    if start != standby.at {
                        let text = format!("WAL from {start} follows {}", standby.at);
                        return Next::Fault(standby.at, text);
                    }
                }
                Ok(Some(Came::Wal(wal))) => {
                    match self.verifier.check(&mut standby.check, standby.at, wal) {
                        Ok(proven) => self.counts[group].verified_bytes += proven,
                        Err(wrong) => return Next::Fault(wrong.at, wrong.text),
                    }
                    standby.at = standby.at.saturating_add(wal.len() as u64);
                }
                Ok(Some(Came::Keepalive(ReplyRequest::No))) => {}
                Ok(Some(Came::Keepalive(ReplyRequest::Yes))) => {
                    standby.received = standby.received.max(standby.at);
                    self.tell(place, ReplyRequest::No);
                }
                Ok(Some(Came::Other(message))) => match self.other(place, &message) {
                    Next::Stream => {}
                    next => return next,
                },
                Err(malformed) => return Next::Fault(standby.at, malformed.to_string()),
            }
        }
    }

    /// A message that is no CopyData.
    fn other(&self, place: usize, message: &[u8]) -> Next {
        let at = self.standbys[place].at;
        let frame = match next_frame(message, message.len()) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Next::Stream,
            Err(malformed) => return Next::Fault(at, malformed.to_string()),
        };
        match FromServer::parse(frame) {
            Ok(FromServer::Error(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE => {
                Next::Fault(at, error.to_string())
            }
            Ok(FromServer::Error(error)) => Next::Reconnect(error.to_string()),
            Ok(FromServer::CommandComplete(_)) => {
                Next::Reconnect("the server is shutting down".to_owned())
            }
            Ok(FromServer::CopyDone) => {
                Next::Fault(at, format!("the stream's timeline ended at {at}"))
            }
            Ok(FromServer::Notice(_) | FromServer::ParameterStatus { .. }) => Next::Stream,
            Ok(_) => {
                let tag = frame.tag.escape_ascii();
                Next::Fault(at, format!("unexpected message of type \"{tag}\" in the stream"))
            }
            Err(malformed) => Next::Fault(at, malformed.to_string()),
        }
    }

    /// WAL from `before` on has come, at `now`.
    fn credit(&mut self, place: usize, before: Lsn, now: Nanos) {
        let standby = &mut self.standbys[place];
        let bytes = standby.at.bytes_since(before);
        if bytes == 0 {
            return;
        }
        let group = standby.group;
        self.counts[group.index()].bytes += bytes;
        if standby.at > standby.received {
            standby.received = standby.at;
            let shown = &self.shared.received[standby.number];
            shown.store(standby.at.raw(), Ordering::Relaxed);
            self.ledger.receipt(place, standby.at, now);
        }
        if group == Group::Slow {
            self.pause(place, bytes, now);
        }
    }

    // --- Replies

    /// A status update of one who has flushed all it has.
    fn tell(&mut self, place: usize, reply: ReplyRequest) {
        let received = self.standbys[place].received;
        self.send_status(place, received, reply);
    }

    fn send_status(&mut self, place: usize, flush: Lsn, reply: ReplyRequest) {
        let now = self.now();
        let standby = &mut self.standbys[place];
        if !matches!(standby.state, State::Streaming(_)) {
            return;
        }
        self.counts[standby.group.index()].replies += 1;
        // One that is gone shows at the next receive.
        if standby.tell(flush, reply, now) == Written::Full {
            self.listen(place, EventFlags::IN | EventFlags::OUT);
        }
    }

    fn go_on(&mut self, place: usize) {
        let now = self.now();
        if self.standbys[place].go_on(now) == Written::All {
            self.listen(place, EventFlags::IN);
        }
    }

    /// The two replies to a batch: it is written; some time after, it is flushed. They
    /// wait until all standbys have been served, because what they cost would be in the
    /// latencies of those behind.
    fn report_all(&mut self) {
        let mut unreported = std::mem::take(&mut self.unreported);
        for place in &unreported {
            let flushed = self.standbys[*place].flushed;
            self.send_status(*place, flushed, ReplyRequest::No);
        }
        for place in unreported.drain(..) {
            self.tell(place, ReplyRequest::No);
        }
        self.unreported = unreported;
    }

    fn listen(&mut self, place: usize, flags: EventFlags) {
        let standby = &self.standbys[place];
        let (State::Streaming(socket) | State::Stalled(socket)) = &standby.state else { return };
        let data = u64::from(standby.generation) << 32 | place as u64;
        if let Err(error) = epoll::modify(&self.epoll, socket, EventData::new_u64(data), flags) {
            self.shared.refusal(error.to_string());
        }
    }

    // --- Slow ones

    /// A tenth of a second's share.
    fn slow_share(&self) -> usize {
        let rate = self.shared.plan.behaviours.slow.map_or(0, |slow| slow.bytes_per_second);
        usize::try_from(rate / 10).unwrap_or(BUFFER).clamp(512, BUFFER)
    }

    /// A slow one has read its share.
    fn pause(&mut self, place: usize, bytes: u64, now: Nanos) {
        let rate = self.shared.plan.behaviours.slow.map_or(0, |slow| slow.bytes_per_second);
        let share = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let standby = &mut self.standbys[place];
        standby.act = now.after(share);
        self.listen(place, EventFlags::empty());
        self.set_due(place, now.after(share));
    }

    // --- Leaving

    fn say_goodbye(&mut self, place: usize) {
        if let State::Streaming(socket) = &self.standbys[place].state {
            let mut out = BytesMut::new();
            frontend::copy_done(&mut out);
            frontend::terminate(&mut out);
            // The close that follows says the same.
            send(socket, &out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).ok();
        }
    }

    /// Closes a stream. What the server sends meanwhile is nobody's business any more.
    fn leave_stream(&mut self, place: usize, state: State) {
        let standby = &mut self.standbys[place];
        let before = standby.kind();
        standby.state = state;
        standby.due = NEVER;
        let (after, good) = (standby.kind(), standby.group == Group::Good);
        self.count(before, after);
        if good && before == Kind::Streaming {
            self.shared.good_streams(-1);
        }
    }

    fn reconnect(&mut self, place: usize, why: String) {
        let now = self.now();
        let retry = self.shared.plan.retry;
        self.shared.refusal(why);
        self.leave_stream(place, State::Idle);
        let standby = &self.standbys[place];
        // As the startup process does: at once, unless it has just done so.
        let wait = if now.since(standby.since) < retry { retry } else { RESTART };
        self.set_due(place, now.after(wait));
    }

    fn fault(&mut self, place: usize, at: Lsn, text: String) {
        self.shared.fault(self.standbys[place].number, at, text);
        self.leave_stream(place, State::GivenUp);
        self.ledger.leave(place);
    }

    // --- Timers

    fn set_due(&mut self, place: usize, due: Nanos) {
        let standby = &mut self.standbys[place];
        if standby.due == due {
            return;
        }
        standby.due = due;
        if due != NEVER {
            self.timers.push(Reverse((due, u32::try_from(place).unwrap_or(u32::MAX))));
        }
    }

    fn run_timers(&mut self) {
        let now = self.now();
        while let Some(Reverse((due, place))) = self.timers.peek().copied() {
            if due > now {
                return;
            }
            self.timers.pop();
            let place = place as usize;
            if self.standbys.get(place).is_some_and(|standby| standby.due == due) {
                self.standbys[place].due = NEVER;
                self.tick(place, now);
            }
        }
    }

    /// Does what is due for a standby, and sets what is due next.
    fn tick(&mut self, place: usize, now: Nanos) {
        match &self.standbys[place].state {
            State::Idle => self.connect(place),
            State::Connecting(_) => {
                self.standbys[place].state = State::Idle;
                self.count(Kind::Connecting, Kind::Failed);
                self.refused(place, "the server does not answer".to_owned());
            }
            State::Streaming(_) => self.tick_stream(place, now),
            State::Stalled(_) | State::Finished | State::GivenUp => {}
        }
    }

    fn tick_stream(&mut self, place: usize, now: Nanos) {
        let standby = &mut self.standbys[place];
        if standby.act <= now {
            match standby.group {
                Group::Flapping => {
                    self.say_goodbye(place);
                    self.leave_stream(place, State::Idle);
                    self.set_due(place, now.after(RESTART));
                    return;
                }
                Group::Stalled => {
                    if let State::Streaming(socket) =
                        std::mem::replace(&mut standby.state, State::Idle)
                    {
                        standby.state = State::Stalled(socket);
                    }
                    self.listen(place, EventFlags::empty());
                    return;
                }
                Group::Slow => {
                    standby.act = NEVER;
                    self.listen(place, EventFlags::IN);
                }
                Group::Good => {}
            }
        }
        let (timeout, interval) = (self.shared.plan.receiver_timeout, self.status_interval());
        let standby = &self.standbys[place];
        let mut due = standby.act;
        if !timeout.is_zero() {
            if now.since(standby.heard) >= timeout {
                self.reconnect(place, "terminating walreceiver due to timeout".to_owned());
                return;
            }
            if now.since(standby.heard) >= timeout / 2 && !standby.pinged {
                self.standbys[place].pinged = true;
                self.tell(place, ReplyRequest::Yes);
            }
            let standby = &self.standbys[place];
            let silence = if standby.pinged { timeout } else { timeout / 2 };
            due = due.min(standby.heard.after(silence));
        }
        if !interval.is_zero() {
            if now.since(self.standbys[place].told) >= interval {
                self.tell(place, ReplyRequest::No);
            }
            due = due.min(self.standbys[place].told.after(interval));
        }
        self.set_due(place, due);
    }

    fn status_interval(&self) -> Duration {
        match self.shared.plan.replies {
            Replies::Interval(interval) => interval,
            Replies::Flush => STATUS_INTERVAL,
        }
    }

    // --- Counting

    fn count(&mut self, before: Kind, after: Kind) {
        self.states[before as usize] = self.states[before as usize].saturating_sub(1);
        self.states[after as usize] += 1;
    }

    fn publish(&self) {
        let all = self.counts.iter().fold(Counts::default(), |all, one| all.plus(one));
        if let Some(board) = self.shared.boards.get(self.thread) {
            board.publish(&self.states, &all);
        }
    }

    fn report(mut self) -> Report {
        for place in 0..self.standbys.len() {
            self.say_goodbye(place);
        }
        self.ledger.settle();
        self.publish();
        let groups = std::array::from_fn(|n| GroupReport {
            counts: self.counts[n].since(&self.marked_counts[n]),
            each: self.ledger.each[n].clone(),
            forgotten: self.ledger.forgotten[n],
        });
        Report { groups, connect: self.connect }
    }
}

/// Where a standby wants to begin, now that it knows whom it talks to.
fn wish(shared: &Shared, number: usize, received: Lsn, seen: &Seen) -> Result<Wish, String> {
    let (plan, identity) = (&shared.plan, &shared.identity);
    if seen.system_id != identity.system_id.to_string() {
        return Err(format!(
            "database system identifier differs: {} here, {} before",
            seen.system_id, identity.system_id
        ));
    }
    if seen.tli != identity.tli {
        return Err(format!("the server is on timeline {} now", seen.tli));
    }
    let size = identity.segment_size;
    let again = !received.is_invalid();
    let start = match plan.first {
        StartAt::Segment if again => received.segment_start(size),
        _ if again => received.page_start(),
        StartAt::Segment => seen.xlogpos.segment_start(size),
        StartAt::Current => seen.xlogpos.page_start(),
        StartAt::At(lsn) => lsn.page_start(),
        StartAt::Spread { from, to } => {
            let share = u128::from(to.bytes_since(from)) * number as u128;
            let share = share / plan.standbys.max(1) as u128;
            from.saturating_add(u64::try_from(share).unwrap_or(u64::MAX)).page_start()
        }
    };
    let (slot, create_slot) = match &plan.slots {
        Slots::None => (None, None),
        Slots::Existing(prefix) => (Some(format!("{prefix}{}", number + 1)), None),
        Slots::Created(prefix) => {
            (Some(format!("{prefix}{}", number + 1)), Some(identity.server_version_num))
        }
    };
    Ok(Wish { start, tli: seen.tli, slot, create_slot })
}

/// Vigna's SplitMix64: good enough to scatter moments.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = high.saturating_sub(low).as_nanos() as u64;
        low + Duration::from_nanos(if span == 0 { 0 } else { self.next() % span })
    }
}
