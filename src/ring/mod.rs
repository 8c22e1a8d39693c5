//! The engine that talks to the kernel: typed operations over io_uring, the memory
//! they use, and the cache of WAL chunks that all cores share.
//!
//! The only module with unsafe code, in four files: `uring` (submitting), `replies` (buffers
//! lent to the kernel), `memory` and `chunks` (bytes that one thread fills while others read
//! what is filled).
//!
//! The rule of this module (I7, I8): what the kernel may still use is owned by the slab of
//! operations in flight. Submitting moves it in, and only the completion returns it. Nothing is
//! cancelled by being dropped.
//!
//! [`Ring`] mentions nothing of io_uring, so the loop of a data core also runs on a simulated
//! ring.

mod buffer;
mod chunks;
mod clock;
mod completions;
#[cfg(all(test, not(walhub_loom)))]
pub(crate) mod conformance;
mod chunk_index;
mod memory;
#[cfg(all(test, walhub_loom))]
mod models;
mod probe;
mod replies;
mod slab;
#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests;
mod uring;
mod waker;

pub use buffer::Buffer;
#[cfg(all(test, not(walhub_loom)))]
pub(crate) use chunks::audit::{Audit, Watched};
pub use chunks::{
    CHUNK_SIZE, ChunkHold, ChunkRange, ChunkReader, ChunkWriter, Full, Pin, cache_memory, chunks,
};
pub use clock::{Clock, SystemClock};
pub use probe::{Features, KernelVersion, RingRefused, Support, probe};
pub use replies::ReplyBuffer;
pub use slab::OpId;
pub use uring::{Setup, Uring};
pub use waker::Waker;

use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

/// An open descriptor. Every operation in flight keeps one alive.
pub type Fd = Arc<OwnedFd>;

/// At most this many messages are in one submission; a longer batch is split.
pub const SEND_SLICE: usize = 32;

/// The caller's own value; it comes back with the completion.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Token(pub u64);

/// One message of a batch, gathered from several places.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The destination.
    pub socket: &'a Fd,
    /// The bytes, in order.
    pub parts: &'a [IoSlice<'a>],
    /// What follows it.
    pub then: Then,
}

/// What follows a message on its socket.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Then {
    /// Nothing that is known of: the network gets the message at once.
    Nothing,
    /// The next send, at once: the socket may wait for it and combine the two.
    More,
}

/// Was a send without a copy copied after all?
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Copied {
    /// The network read the memory itself.
    No,
    /// The kernel copied after all (a peer on this machine, a device without support). Such a
    /// send costs more than a plain one.
    Yes,
}

/// The addresses of a TCP connection.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Ends {
    /// The other side's.
    pub peer: SocketAddr,
    /// This side's.
    pub own: SocketAddr,
}

/// What a ring has counted since it was made.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Sends that were not complete when submitting returned. The kernel promises that there are
    /// none; this held in every run, but is not relied upon.
    pub late_sends: u64,
    /// Sends without a copy.
    pub zerocopy_sends: u64,
    /// Those that were copied after all.
    pub zerocopy_copied: u64,
    /// Those whose memory is still in use.
    pub zerocopy_unreleased: u64,
}

/// How long a turn may sleep when there is nothing to do.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until something completes or the waker fires.
    Forever,
    /// The same, but no later than this.
    Until(Instant),
}

/// The result of an operation. A cancelled one ends in `ECANCELED`, or in its result when that
/// came first.
#[derive(Debug)]
pub enum Outcome {
    /// [`Ring::receive_reply`]; no bytes mean the end of the stream. `ENOBUFS` means that every
    /// buffer was in use: ask again when some were returned.
    Reply(io::Result<ReplyBuffer>),
    /// [`Ring::receive`]; 0 is the end of the stream. The bytes follow those that the buffer
    /// held before.
    Received(io::Result<usize>, Buffer),
    /// [`Ring::poll_writable`]; an error of the socket shows at the next send.
    Writable(io::Result<()>),
    /// [`Ring::write`]; may be short.
    Written(io::Result<usize>),
    /// [`Ring::sync_data`].
    Synced(io::Result<()>),
    /// [`Ring::read`]; may be short, 0 is the end of the file.
    Read(io::Result<usize>, Buffer),
    /// [`Ring::send_zerocopy`], its first completion: the bytes that the socket took, or
    /// its error. Other sends to the socket may follow.
    ZeroCopySent(io::Result<usize>),
    /// [`Ring::send_zerocopy`], its second and last completion, perhaps much later: the
    /// memory is free again.
    ZeroCopyReleased(Copied),
}

/// A completion.
#[derive(Debug)]
pub struct Done {
    /// The token given with the operation.
    pub token: Token,
    /// Its result.
    pub outcome: Outcome,
}

/// What a data core asks of the kernel.
///
/// Operations are queued when they are called and submitted by the next
/// [`Ring::send_now`] or [`Ring::turn`].
pub trait Ring {
    /// What [`Wait::Until`] is measured by.
    type Clock: Clock;

    /// The ring's clock.
    fn clock(&self) -> Self::Clock;

    /// Sends each message now or not at all, and keeps none of the memory: bytes,
    /// parts and list are free again when it returns.
    ///
    /// `results` is cleared and gets one entry per message: the number of bytes that the socket
    /// took (less than all when it filled up), `WouldBlock` when it was full, or its error.
    /// Completions of other operations seen meanwhile are kept for [`Ring::turn`].
    fn send_now(&mut self, batch: &[Outgoing<'_>], results: &mut Vec<io::Result<usize>>);

    /// Receives what comes next, once, into one of the ring's small buffers. A buffer is used
    /// only when the socket has something.
    fn receive_reply(&mut self, socket: &Fd, token: Token) -> OpId;

    /// Reads a reply and returns its buffer to the ring.
    fn with_reply<T>(&mut self, buffer: ReplyBuffer, read: impl FnOnce(&[u8]) -> T) -> T;

    /// Receives what comes next, once, into `buffer` after what it holds. The buffer must not be
    /// full.
    fn receive(&mut self, socket: &Fd, buffer: Buffer, token: Token) -> OpId;

    /// Completes when the socket takes bytes again, or is broken. Holds no memory.
    fn poll_writable(&mut self, socket: &Fd, token: Token) -> OpId;

    /// Writes `bytes` at the file's offset `at`.
    fn write(&mut self, file: &Fd, at: u64, bytes: ChunkRange, token: Token) -> OpId;

    /// Makes the file's bytes durable (`fdatasync`). Only writes that completed
    /// before this call are covered.
    fn sync_data(&mut self, file: &Fd, token: Token) -> OpId;

    /// Reads at most `len` bytes at the file's offset `at` into `buffer`, after what it holds.
    /// The buffer must have room for them.
    fn read(&mut self, file: &Fd, at: u64, buffer: Buffer, len: usize, token: Token) -> OpId;

    /// Makes the cache's memory usable for [`Ring::send_zerocopy`]. Called once, before its
    /// first use.
    ///
    /// # Errors
    /// The kernel's: too old, or `ENOMEM` when so much memory may not be locked.
    fn register(&mut self, chunks: &ChunkReader) -> io::Result<()>;

    /// Sends bytes of a registered chunk without copying them: the network reads them in place,
    /// until the peer has acknowledged them. The hold belongs to the ring until then, even after
    /// everyone else has closed the socket (I7, I8).
    ///
    /// Completes twice under the same token: [`Outcome::ZeroCopySent`], then, also after errors,
    /// [`Outcome::ZeroCopyReleased`]. The first never waits for the peer: the socket takes what
    /// fits, less than all when it fills up, or nothing (`WouldBlock`). Between the call and the
    /// first completion nothing else may be sent to the socket. After it, everything may, and
    /// the socket can be closed or handed on. `ENOMEM`, `EOPNOTSUPP` and the like mean that it
    /// does not work on this socket now: the same bytes can be sent by [`Ring::send_now`].
    ///
    /// A socket that is closed holds the memory for as long as the kernel tries to deliver:
    /// [`Ring::reset`] it first when nobody listens any more.
    fn send_zerocopy(&mut self, socket: &Fd, bytes: ChunkHold, token: Token) -> OpId;

    /// What has been counted so far.
    fn counters(&self) -> Counters;

    /// The addresses of a TCP connection. Returns `None` for other sockets, and for one that is
    /// no longer connected.
    fn ends(&self, socket: &Fd) -> Option<Ends>;

    /// Shuts one side of a socket, or both, at once. This ends operations in flight on that
    /// side.
    fn shut(&mut self, socket: &Fd, side: Shutdown) -> io::Result<()>;

    /// Resets a connection at once: what is not delivered never will be, and the memory of sends
    /// without a copy is freed.
    fn reset(&mut self, socket: &Fd) -> io::Result<()>;

    /// Asks for the operation to end early; it still completes.
    fn cancel(&mut self, op: OpId);

    /// Operations whose last completion [`Ring::turn`] has not handed out.
    fn in_flight(&self) -> usize;

    /// Submits everything queued and adds what has completed to `done`. If nothing has, sleeps
    /// as `wait` says. It may return early with nothing (the core was woken, a signal came): the
    /// caller checks its queues and turns again.
    fn turn(&mut self, wait: Wait, done: &mut Vec<Done>) -> io::Result<()>;
}
