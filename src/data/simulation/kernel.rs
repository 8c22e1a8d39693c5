//! What is behind the rings: time, sockets, files. One per world, on one thread.

use super::disk::{Disk, Sync};
use super::plants::Plant;
use super::random::Random;
use super::tap::Tap;
use crate::ring::{Buffer, ChunkHold, ChunkRange, Ends, Fd, OpId, Token, Watched};
use crate::wal::{Lsn, SegmentNo};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

pub(super) const MICROSECOND: Duration = Duration::from_micros(1);
pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) type Shared = Rc<RefCell<Kernel>>;

/// The other end of a socket, which checks every byte.
#[derive(Debug)]
pub(super) enum Peer {
    Standby(Tap),
    /// The bytes it was sent, to be read as messages.
    Upstream(Vec<u8>),
}

#[derive(Debug)]
pub(super) struct Socket {
    pub(super) peer: Peer,
    /// Bytes that the peer has not read.
    pub(super) unread: usize,
    pub(super) capacity: usize,
    /// What the peer said.
    pub(super) said: VecDeque<u8>,
    /// It sends nothing more.
    pub(super) said_all: bool,
    /// It is gone; the first operation gets a reset.
    pub(super) reset: bool,
    pub(super) shut_write: bool,
    pub(super) shut_read: bool,
    /// Neither side has any use for what is in transit.
    pub(super) torn: bool,
    /// `None` for a Unix-domain socket.
    pub(super) ends: Option<Ends>,
    /// Bytes that it has taken.
    pub(super) taken: u64,
    /// A send without a copy has no result yet.
    pub(super) sending: bool,
}

impl Socket {
    pub(super) fn new(peer: Peer, capacity: usize) -> Self {
        Self {
            torn: false,
            ends: None,
            taken: 0,
            sending: false,
            peer,
            unread: 0,
            capacity,
            said: VecDeque::new(),
            said_all: false,
            reset: false,
            shut_write: false,
            shut_read: false,
        }
    }

    pub(super) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.unread)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.reset || self.shut_write || self.shut_read
    }

    /// Why nothing can be sent any more, if so. A reset is reported once.
    pub(super) fn refusal(&mut self) -> Option<io::Error> {
        if std::mem::take(&mut self.reset) {
            (self.shut_write, self.said_all, self.torn) = (true, true, true);
            return Some(io::Error::from_raw_os_error(libc::ECONNRESET));
        }
        self.shut_write.then(|| io::Error::from_raw_os_error(libc::EPIPE))
    }

    /// The peer's end of the socket takes these bytes.
    pub(super) fn take(&mut self, bytes: &[u8], durable: Lsn, now: Duration) {
        match &mut self.peer {
            Peer::Standby(tap) => tap.take(bytes, durable, now),
            Peer::Upstream(told) => told.extend_from_slice(bytes),
        }
        self.unread += bytes.len();
        self.taken += bytes.len() as u64;
    }

    /// Has the network no more use for the first `upto` bytes?
    fn is_through_with(&self, upto: u64) -> bool {
        self.torn || self.reset || self.taken - self.unread as u64 >= upto
    }

    pub(super) fn tap(&mut self) -> &mut Tap {
        match &mut self.peer {
            Peer::Standby(tap) => tap,
            Peer::Upstream(_) => panic!("the upstream has no tap"),
        }
    }

    pub(super) fn tap_ref(&self) -> &Tap {
        match &self.peer {
            Peer::Standby(tap) => tap,
            Peer::Upstream(_) => panic!("the upstream has no tap"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketId(usize);

#[derive(Clone, Copy, Debug)]
enum Object {
    Socket(SocketId),
    File(SegmentNo),
}

/// An operation in flight, with the memory it was lent.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) id: OpId,
    pub(super) token: Token,
    /// `None` for a send without a copy that the socket has taken.
    pub(super) fd: Option<Fd>,
    pub(super) what: What,
    /// The earliest time at which it completes; `None` while what it waits for has not happened.
    pub(super) ripe_at: Option<Duration>,
    pub(super) cancelled: bool,
}

#[derive(Debug)]
pub(super) enum What {
    Reply,
    Receive(Buffer),
    Writable,
    Write { at: u64, bytes: ChunkRange, seen: Vec<u8> },
    Sync(Sync),
    Read { at: u64, buffer: Buffer, len: usize },
    ZeroCopy(ZeroCopy),
}

/// A send without a copy. The network reads the memory until it is released.
#[derive(Debug)]
pub(super) struct ZeroCopy {
    /// `None` with the mistake that gives it up too early.
    pub(super) hold: Option<ChunkHold>,
    pub(super) memory: Watched,
    /// What the memory held when the send began.
    pub(super) seen: Vec<u8>,
    pub(super) socket: SocketId,
    pub(super) stage: Stage,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// The socket has not processed it yet.
    Sending,
    /// The socket took `bytes` bytes, the last of them as its `upto`th.
    Taken { bytes: usize, upto: u64 },
}

impl Op {
    /// The socket or file of an operation that needs it until the end.
    pub(super) fn fd(&self) -> &Fd {
        self.fd.as_ref().expect("only sends without a copy go on without their socket")
    }
}

/// How often each fault occurs, in 1000.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) short_sends: u64,
    pub(super) would_block: u64,
    pub(super) interrupted: u64,
    pub(super) no_buffers: u64,
    pub(super) late: u64,
    pub(super) bad_reads: u64,
    pub(super) no_space: u64,
    pub(super) short_writes: u64,
    pub(super) deadly_disk: u64,
    /// An fdatasync takes seconds.
    pub(super) stuck_disk: u64,
    /// The kernel has no memory for a send without a copy.
    pub(super) no_memory: u64,
    /// A send without a copy is copied nevertheless.
    pub(super) copied: u64,
    /// Another core runs in the middle of a send.
    pub(super) meanwhile: u64,
    pub(super) early_wake_ups: u64,
    pub(super) keeper: u64,
    pub(super) peers: u64,
}

pub(super) struct Kernel {
    pub(super) now: Duration,
    pub(super) random: Random,
    pub(super) faults: Faults,
    pub(super) plant: Plant,
    pub(super) disk: Disk,
    /// Kept after they are closed: a peer may still have to notice.
    sockets: Vec<Socket>,
    /// What open descriptors stand for.
    open: BTreeMap<RawFd, Object>,
    /// Faults injected into the core that excuse an end.
    pub(super) bad_reads: u64,
    pub(super) no_space: u64,
    pub(super) dead_disk: bool,
    pub(super) completions: u64,
    /// May a ring lock the cache's memory?
    pub(super) locks_memory: bool,
    /// Bytes that were sent without a copy.
    pub(super) zerocopied: u64,
}

impl Kernel {
    pub(super) fn new(random: Random, faults: Faults, plant: Plant, disk: Disk) -> Self {
        Self {
            now: SECOND,
            random,
            faults,
            plant,
            disk,
            sockets: Vec::new(),
            open: BTreeMap::new(),
            bad_reads: 0,
            no_space: 0,
            dead_disk: false,
            completions: 0,
            locks_memory: true,
            zerocopied: 0,
        }
    }

    /// A descriptor that only stands for an object.
    fn descriptor() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    pub(super) fn connect(&mut self, socket: Socket) -> (SocketId, OwnedFd) {
        let fd = Self::descriptor();
        let id = SocketId(self.sockets.len());
        self.sockets.push(socket);
        self.open.insert(fd.as_raw_fd(), Object::Socket(id));
        (id, fd)
    }

    pub(super) fn open(&mut self, segment: SegmentNo) -> Fd {
        let fd = Self::descriptor();
        self.open.insert(fd.as_raw_fd(), Object::File(segment));
        Fd::new(fd)
    }

    pub(super) fn socket(&mut self, id: SocketId) -> &mut Socket {
        &mut self.sockets[id.0]
    }

    pub(super) fn socket_of(&mut self, fd: &impl AsRawFd) -> SocketId {
        match self.open.get(&fd.as_raw_fd()) {
            Some(Object::Socket(id)) => *id,
            other => panic!("a socket is meant, not {other:?}"),
        }
    }

    pub(super) fn segment(&self, fd: &Fd) -> SegmentNo {
        match self.open.get(&fd.as_raw_fd()) {
            Some(Object::File(segment)) => *segment,
            other => panic!("a file is meant, not {other:?}"),
        }
    }

    /// How long something takes: mostly a short time, with faults sometimes very long.
    pub(super) fn delay(&mut self, usual: Duration) -> Duration {
        let share = 1 + self.random.below(1000) as u32;
        let delay = usual * share / 500;
        if self.random.chance(self.faults.late) {
            return delay * (2 + self.random.below(300) as u32);
        }
        delay
    }

    /// What a send without a copy waits for.
    pub(super) fn describe(&self, op: &Op) -> String {
        let What::ZeroCopy(ZeroCopy { stage, socket, .. }) = &op.what else {
            return String::new();
        };
        let socket = &self.sockets[socket.0];
        let (taken, unread) = (socket.taken, socket.unread);
        format!("{stage:?}, the peer has {unread} of {taken} bytes to read")
    }

    /// Notes when an operation completes, if what it waits for has happened.
    pub(super) fn ripen(&mut self, op: &mut Op) {
        if op.ripe_at.is_some() {
            return;
        }
        let usual = match &op.what {
            What::Reply | What::Receive(_) => {
                let id = self.socket_of(op.fd());
                let socket = self.socket(id);
                let ready = !socket.said.is_empty() || socket.said_all;
                (ready || socket.reset || socket.shut_read).then_some(20 * MICROSECOND)
            }
            What::Writable => {
                let id = self.socket_of(op.fd());
                let socket = self.socket(id);
                let ready = socket.room() > 0 || socket.is_broken() || socket.said_all;
                ready.then_some(20 * MICROSECOND)
            }
            What::Write { .. } => Some(100 * MICROSECOND),
            What::Sync(_) if self.random.chance(self.faults.stuck_disk) => Some(4 * SECOND),
            What::Sync(_) => Some(400 * MICROSECOND),
            What::Read { .. } => Some(200 * MICROSECOND),
            What::ZeroCopy(ZeroCopy { stage: Stage::Sending, .. }) => Some(10 * MICROSECOND),
            What::ZeroCopy(ZeroCopy { stage: Stage::Taken { upto, .. }, socket, .. }) => {
                let through = self.sockets[socket.0].is_through_with(*upto);
                through.then_some(50 * MICROSECOND)
            }
        };
        let is_cancelled = op.cancelled && !matches!(op.what, What::ZeroCopy(_));
        let usual = if is_cancelled { Some(MICROSECOND) } else { usual };
        if let Some(usual) = usual {
            op.ripe_at = Some(self.now + self.delay(usual).min(8 * SECOND));
        }
    }
}
