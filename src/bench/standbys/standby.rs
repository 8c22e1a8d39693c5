//! One synthetic standby: where it is, and what it owes.

use super::frames::Frames;
use super::handshake::Handshake;
use super::plan::Group;
use super::verify::Check;
use crate::bench::clock::Nanos;
use crate::wal::Lsn;
use crate::wire::copy::{ReplyRequest, STATUS_FRAME, StatusReply};
use crate::wire::time::PgTime;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use socket2::Socket;
use std::time::SystemTime;

/// A standby of a fleet.
pub(super) struct Standby {
    /// Its number in the fleet, from 0.
    pub(super) number: usize,
    pub(super) group: Group,
    /// Connections so far: events of earlier ones are told apart by it.
    pub(super) generation: u32,
    pub(super) state: State,
    /// When something is due; anything else in the timers is outdated.
    pub(super) due: Nanos,
    /// The next endpoint to try.
    pub(super) endpoint: usize,
    /// The next byte of the stream.
    pub(super) at: Lsn,
    /// The first byte that was never received.
    pub(super) received: Lsn,
    /// When the stream began.
    pub(super) since: Nanos,
    pub(super) heard: Nanos,
    pub(super) told: Nanos,
    /// It has asked for a sign of life.
    pub(super) pinged: bool,
    /// What its replies say is durable.
    pub(super) flushed: Lsn,
    /// A slow one reads no more until then; a stalled or flapping one acts then.
    pub(super) act: Nanos,
    pub(super) frames: Frames,
    pub(super) check: Check,
    out: Out,
}

/// Where it is.
pub(super) enum State {
    /// Connects when it is due.
    Idle,
    /// On its way.
    Connecting(Box<Connecting>),
    /// In its stream.
    Streaming(Socket),
    /// In its stream, and does nothing.
    Stalled(Socket),
    /// Has received all that it was to receive.
    Finished,
    /// Has seen a fault.
    GivenUp,
}

/// A connection that does not stream yet.
pub(super) struct Connecting {
    pub(super) socket: Socket,
    pub(super) begun: Nanos,
    pub(super) endpoint: usize,
    pub(super) handshake: Handshake,
    /// What the socket has not taken yet.
    pub(super) out: bytes::BytesMut,
    /// The socket is connected.
    pub(super) open: bool,
    /// The epoll tells when the socket has room.
    pub(super) wants_room: bool,
}

/// Which count a state belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connecting,
    Streaming,
    Failed,
    Finished,
}

/// A status update that the socket has not taken whole.
#[derive(Default)]
struct Out {
    rest: Vec<u8>,
    owed: Option<ReplyRequest>,
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Written {
    /// The socket took all.
    All,
    /// It is full: go on when it has room.
    Full,
    /// It is gone.
    Gone,
}

impl Standby {
    pub(super) fn new(number: usize, group: Group) -> Self {
        Self {
            number,
            group,
            generation: 0,
            state: State::Idle,
            due: Nanos(0),
            endpoint: 0,
            at: Lsn::INVALID,
            received: Lsn::INVALID,
            since: Nanos(0),
            heard: Nanos(0),
            told: Nanos(0),
            pinged: false,
            flushed: Lsn::INVALID,
            act: Nanos(u64::MAX),
            frames: Frames::default(),
            check: Check::default(),
            out: Out::default(),
        }
    }

    pub(super) const fn kind(&self) -> Kind {
        match self.state {
            State::Connecting(_) => Kind::Connecting,
            State::Streaming(_) | State::Stalled(_) => Kind::Streaming,
            State::Idle if self.generation == 0 => Kind::Connecting,
            State::Idle | State::GivenUp => Kind::Failed,
            State::Finished => Kind::Finished,
        }
    }

    /// A stream begins at `at`.
    pub(super) fn begin_stream(&mut self, at: Lsn, now: Nanos) {
        self.at = at;
        self.received = self.received.max(at);
        self.since = now;
        self.heard = now;
        self.told = now;
        self.pinged = false;
        self.flushed = self.flushed.max(at);
        self.act = Nanos(u64::MAX);
        self.frames = Frames::default();
        self.check = Check::default();
        self.out = Out::default();
    }

    /// Sends a status update: what was received is written, and durable up to
    /// `flushed`. What is replayed comes after the one before.
    pub(super) fn tell(&mut self, flush: Lsn, reply: ReplyRequest, now: Nanos) -> Written {
        let State::Streaming(socket) = &self.state else { return Written::Gone };
        let apply = self.flushed;
        self.flushed = flush;
        self.told = now;
        if !self.out.rest.is_empty() {
            self.out.owed = Some(reply);
            return Written::Full;
        }
        let frame = status(self.received, flush, apply, reply);
        put(socket, &frame, &mut self.out.rest)
    }

    /// The socket has room again.
    pub(super) fn go_on(&mut self, now: Nanos) -> Written {
        let State::Streaming(socket) = &self.state else { return Written::Gone };
        let rest = std::mem::take(&mut self.out.rest);
        match put(socket, &rest, &mut self.out.rest) {
            Written::All => match self.out.owed.take() {
                Some(reply) => self.tell(self.flushed, reply, now),
                None => Written::All,
            },
            other => other,
        }
    }
}

fn status(write: Lsn, flush: Lsn, apply: Lsn, reply: ReplyRequest) -> [u8; STATUS_FRAME] {
    let client_time = PgTime::from(SystemTime::now());
    StatusReply { write, flush, apply, client_time, reply }.encode()
}

/// Sends `bytes`; what is not taken goes into `rest`.
fn put(socket: &Socket, bytes: &[u8], rest: &mut Vec<u8>) -> Written {
    let taken = match send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(taken) => taken,
        Err(Errno::AGAIN | Errno::INTR) => 0,
        Err(_) => return Written::Gone,
    };
    match bytes.get(taken..) {
        None | Some([]) => Written::All,
        Some(left) => {
            rest.extend_from_slice(left);
            Written::Full
        }
    }
}
