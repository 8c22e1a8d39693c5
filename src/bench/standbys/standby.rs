//! One synthetic standby: its state, and what it still has to send.

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
    /// Connections so far; it distinguishes events of earlier ones.
    pub(super) generation: u32,
    pub(super) state: State,
    /// When something is due; other entries in the timers are outdated.
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
    /// It has asked the server for a reply.
    pub(super) pinged: bool,
    /// The flush position in its replies.
    pub(super) flushed: Lsn,
    /// When a slow one reads again, or when a stalled or flapping one acts.
    pub(super) act: Nanos,
    pub(super) frames: Frames,
    pub(super) check: Check,
    out: Out,
}

/// The state of a standby.
pub(super) enum State {
    /// Connects when it is due.
    Idle,
    /// Connecting.
    Connecting(Box<Connecting>),
    /// Streaming.
    Streaming(Socket),
    /// Streaming, but neither reading nor replying.
    Stalled(Socket),
    /// Has received everything that it was to receive.
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
    /// The epoll reports when the socket has room.
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

/// A status update that the socket has only partly taken.
#[derive(Default)]
struct Out {
    rest: Vec<u8>,
    owed: Option<ReplyRequest>,
}

/// The outcome of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WriteOutcome {
    /// The socket took everything.
    All,
    /// It is full: continue when it has room.
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

    /// Sends a status update: received WAL is written, and durable up to `flush`. The apply
    /// position is the previous flush position.
    pub(super) fn tell(&mut self, flush: Lsn, reply: ReplyRequest, now: Nanos) -> WriteOutcome {
        let State::Streaming(socket) = &self.state else { return WriteOutcome::Gone };
        let apply = self.flushed;
        self.flushed = flush;
        self.told = now;
        if !self.out.rest.is_empty() {
            self.out.owed = Some(reply);
            return WriteOutcome::Full;
        }
        let frame = status(self.received, flush, apply, reply);
        put(socket, &frame, &mut self.out.rest)
    }

    /// The socket has room again.
    pub(super) fn go_on(&mut self, now: Nanos) -> WriteOutcome {
        let State::Streaming(socket) = &self.state else { return WriteOutcome::Gone };
        let rest = std::mem::take(&mut self.out.rest);
        match put(socket, &rest, &mut self.out.rest) {
            WriteOutcome::All => match self.out.owed.take() {
                Some(reply) => self.tell(self.flushed, reply, now),
                None => WriteOutcome::All,
            },
            other => other,
        }
    }
}

fn status(write: Lsn, flush: Lsn, apply: Lsn, reply: ReplyRequest) -> [u8; STATUS_FRAME] {
    let client_time = PgTime::from(SystemTime::now());
    StatusReply { write, flush, apply, client_time, reply }.encode()
}

/// Sends `bytes`; puts what the socket does not take into `rest`.
fn put(socket: &Socket, bytes: &[u8], rest: &mut Vec<u8>) -> WriteOutcome {
    let taken = match send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(taken) => taken,
        Err(Errno::AGAIN | Errno::INTR) => 0,
        Err(_) => return WriteOutcome::Gone,
    };
    match bytes.get(taken..) {
        None | Some([]) => WriteOutcome::All,
        Some(left) => {
            rest.extend_from_slice(left);
            WriteOutcome::Full
        }
    }
}
