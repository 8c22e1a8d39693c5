//! The real ring: one per data core, made and used on that core's thread.
//!
//! Nothing is allocated per operation: slots, message headers, buffers and lists are reused.
//! Only `turn` hands out completions; those that `send_now` encounters wait in `kept`.
#![expect(
    unsafe_code,
    reason = "submitting an entry promises that its memory outlives the operation"
)]

use super::completions::{IGNORED, SEND, State, count, reap};
use super::probe::{self, RingRefused};
use super::replies::Replies;
use super::slab::{Held, OpId, Operation, Slab, Stage, ZeroCopy};
use super::{Buffer, ChunkHold, ChunkRange, ChunkReader, Counters, Done, Ends, Fd};
use super::{Outgoing, ReplyBuffer, Ring, SEND_SLICE, SystemClock, Then, Token, Wait, Waker};
use io_uring::squeue::{self, Flags};
use io_uring::types::{self, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use std::io;
use std::marker::PhantomData;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// The one group of provided buffers.
const REPLIES: u16 = 0;

/// Asks the notification to report whether there was a copy after all. The crate has this only
/// in its internal bindings.
const SEND_ZC_REPORT_USAGE: u16 = 1 << 3;

/// How long a dropped ring waits for peers to acknowledge what they were sent without a copy.
/// Then their connections are reset, and it waits as long again.
const ACKNOWLEDGE: Duration = Duration::from_millis(100);

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Submissions that fit between two turns without an extra system call.
    pub entries: u32,
    /// Small receive buffers for all standbys of the core; rounded up to a power of
    /// two, at most 32768.
    pub reply_buffers: u16,
    /// Bytes in each of them.
    pub reply_size: usize,
    /// Kernel threads for operations that would block: file operations, then the rest.
    pub workers: [u32; 2],
}

impl Default for Setup {
    fn default() -> Self {
        Self { entries: 1024, reply_buffers: 1024, reply_size: 512, workers: [4, 4] }
    }
}

/// An io_uring with everything that its operations use.
pub struct Uring {
    io: IoUring,
    state: State,
    /// Completions seen while submitting, for the next turn.
    kept: Vec<Done>,
    headers: Box<[libc::msghdr; SEND_SLICE]>,
    waker: Waker,
    /// Not `Send`: the kernel takes submissions from the thread that made the ring.
    _this_thread: PhantomData<*const ()>,
}

impl Uring {
    /// Sets up a ring for the calling thread.
    pub fn new(setup: Setup) -> Result<Self, RingRefused> {
        let io = probe::setup(setup.entries)?;
        let replies = Replies::new(setup.reply_buffers, setup.reply_size, REPLIES)?;
        replies.register(&io.submitter())?;
        let mut workers = setup.workers;
        io.submitter().register_iowq_max_workers(&mut workers)?;
        let state = State::new(Slab::with_capacity(setup.entries as usize), replies);
        // SAFETY: a message header is numbers and pointers; all zero is a valid one.
        let headers = Box::new(unsafe { std::mem::zeroed::<[libc::msghdr; SEND_SLICE]>() });
        let kept = Vec::with_capacity(setup.entries as usize);
        let waker = Waker::new()?;
        Ok(Self { io, state, kept, headers, waker, _this_thread: PhantomData })
    }

    /// Wakes this ring's core.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Queues an operation.
    fn start(&mut self, token: Token, fd: &Fd, held: Held) -> OpId {
        let mut operation = Operation { token, fd: Some(Fd::clone(fd)), held };
        let entry = entry_of(&mut operation, types::Fd(fd.as_raw_fd()));
        let op = self.state.slab.insert(operation);
        // SAFETY: the entry names memory that the operation owns, on the heap or in a
        // chunk, where moving it into the slab leaves it. The slab gives it up at the
        // completion only, and is emptied before it is dropped.
        unsafe { self.push(&entry.user_data(op.word())) };
        op
    }

    /// Puts an entry into the submission queue, submitting first if it is full.
    ///
    /// # Safety
    /// The memory that the entry names stays valid and is not touched against the
    /// operation until its completion has been taken.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller's promise.
        while unsafe { self.io.submission().push(entry) }.is_err() {
            self.submit();
        }
    }

    /// Hands everything queued to the kernel.
    fn submit(&mut self) {
        self.state.replies.give_back();
        while !self.io.submission().is_empty() {
            match self.io.submit() {
                Ok(_) => {}
                // Out of memory for requests, or completions have to be taken first.
                Err(error) if is_passing(&error) => self.reap_into_kept(),
                // The ring is not ours, or broken: what it holds cannot be freed.
                Err(error) => panic!("io_uring_enter: {error}"),
            }
        }
    }

    /// Moves what has completed into `kept`.
    fn reap_into_kept(&mut self) {
        let Self { io, state, kept, .. } = self;
        reap(io, state, kept);
    }

    /// Keeps the read of the waker's descriptor in flight.
    fn listen_to_waker(&mut self) {
        let Some(mut buffer) = self.state.wake_buffer.take() else { return };
        buffer.clear();
        let event = Fd::clone(self.waker.event());
        self.start(Token(0), &event, Held::Wake(buffer));
    }

    /// Sends one slice of a batch: submitted together, complete before this returns.
    fn send_slice(&mut self, slice: &[Outgoing<'_>]) {
        self.state.sends.missing = slice.len();
        for (place, message) in slice.iter().enumerate() {
            let header = &mut self.headers[place];
            // IoSlice is documented to have the layout of iovec; the kernel only reads.
            header.msg_iov = message.parts.as_ptr().cast_mut().cast();
            header.msg_iovlen = message.parts.len() as _;
            let fd = types::Fd(message.socket.as_raw_fd());
            let send = opcode::SendMsg::new(fd, &raw const *header);
            let flags = libc::MSG_DONTWAIT
                | libc::MSG_NOSIGNAL
                | match message.then {
                    Then::Nothing => 0,
                    Then::More => libc::MSG_MORE,
                };
            let entry = send.flags(flags as u32).build().user_data(SEND | place as u64);
            // SAFETY: the header is not touched before the next slice, what it points
            // to is borrowed by `slice`, and this does not return before all sends of
            // the slice have completed.
            unsafe { self.push(&entry) };
        }
        self.submit();
        self.reap_into_kept();
        self.state.counters.late_sends += self.state.sends.missing as u64;
        while self.state.sends.missing > 0 {
            match self.io.submit_and_wait(1) {
                Err(error) if !is_passing(&error) => panic!("io_uring_enter: {error}"),
                _ => self.reap_into_kept(),
            }
        }
    }

    /// Submits and, if `wait` says so, sleeps until something completes.
    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.state.replies.give_back();
        let submitted = match wait {
            Wait::No => {
                let queue = self.io.submission();
                // Nothing to submit, and no completion that needs to be asked for.
                if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                    return Ok(());
                }
                drop(queue);
                self.io.submit()
            }
            Wait::Forever => self.io.submit_and_wait(1),
            Wait::Until(when) => {
                let left = Timespec::from(when.saturating_duration_since(Instant::now()));
                let args = SubmitArgs::new().timespec(&left);
                self.io.submitter().submit_with_args(1, &args)
            }
        };
        match submitted {
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Builds the entry of an operation; all memory it names belongs to the operation.
fn entry_of(operation: &mut Operation, fd: types::Fd) -> squeue::Entry {
    match &mut operation.held {
        Held::Reply => {
            let receive = opcode::Recv::new(fd, std::ptr::null_mut(), 0);
            receive.buf_group(REPLIES).build().flags(Flags::BUFFER_SELECT)
        }
        Held::Receive(buffer) => {
            let spare = buffer.spare();
            opcode::Recv::new(fd, spare.as_mut_ptr(), spare.len() as u32).build()
        }
        Held::Writable => opcode::PollAdd::new(fd, libc::POLLOUT as u32).build(),
        Held::Write { at, bytes } => {
            opcode::Write::new(fd, bytes.pointer(), bytes.len() as u32).offset(*at).build()
        }
        Held::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        Held::Read { at, buffer, len } => {
            let spare = &mut buffer.spare()[..*len];
            opcode::Read::new(fd, spare.as_mut_ptr(), spare.len() as u32).offset(*at).build()
        }
        Held::Wake(buffer) => {
            let spare = buffer.spare();
            opcode::Read::new(fd, spare.as_mut_ptr(), spare.len() as u32).build()
        }
        Held::ZeroCopy(ZeroCopy { bytes, .. }) => {
            opcode::SendZc::new(fd, bytes.pointer(), bytes.len() as u32)
                .buf_index(Some(bytes.region()))
                .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                .zc_flags(SEND_ZC_REPORT_USAGE)
                .build()
        }
    }
}

/// Errors of entering that lose nothing: interrupted, timed out, or the kernel is short of
/// something that taking completions may free.
fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::EINTR, libc::ETIME, libc::EAGAIN, libc::EBUSY];
    error.raw_os_error().is_some_and(|code| passing.contains(&code))
}

impl Ring for Uring {
    type Clock = SystemClock;

    fn clock(&self) -> SystemClock {
        SystemClock
    }

    fn send_now(&mut self, batch: &[Outgoing<'_>], results: &mut Vec<io::Result<usize>>) {
        results.clear();
        for slice in batch.chunks(SEND_SLICE) {
            self.send_slice(slice);
            let sent = self.state.sends.results.iter().take(slice.len());
            results.extend(sent.map(|result| count(*result)));
        }
    }

    fn receive_reply(&mut self, socket: &Fd, token: Token) -> OpId {
        self.start(token, socket, Held::Reply)
    }

    fn with_reply<T>(&mut self, buffer: ReplyBuffer, read: impl FnOnce(&[u8]) -> T) -> T {
        read(self.state.replies.bytes(&buffer))
    }

    fn receive(&mut self, socket: &Fd, mut buffer: Buffer, token: Token) -> OpId {
        // A receive into an empty range would look like the end of the stream.
        assert!(buffer.room() > 0, "a receive needs room");
        // Half of the buffer is enough for a receive; more is not worth moving bytes for.
        buffer.make_room(buffer.capacity().div_ceil(2));
        self.start(token, socket, Held::Receive(buffer))
    }

    fn poll_writable(&mut self, socket: &Fd, token: Token) -> OpId {
        self.start(token, socket, Held::Writable)
    }

    fn write(&mut self, file: &Fd, at: u64, bytes: ChunkRange, token: Token) -> OpId {
        self.start(token, file, Held::Write { at, bytes })
    }

    fn sync_data(&mut self, file: &Fd, token: Token) -> OpId {
        self.start(token, file, Held::Sync)
    }

    fn read(&mut self, file: &Fd, at: u64, mut buffer: Buffer, len: usize, token: Token) -> OpId {
        assert!(len <= buffer.room(), "a read of {len} bytes needs room");
        buffer.make_room(len);
        self.start(token, file, Held::Read { at, buffer, len })
    }

    fn register(&mut self, chunks: &ChunkReader) -> io::Result<()> {
        let regions = chunks
            .regions()
            .map(|(start, len)| libc::iovec { iov_base: start.cast(), iov_len: len });
        let regions: Vec<libc::iovec> = regions.collect();
        // SAFETY: the kernel pins the pages itself. What it reads of them is named by
        // `send_zerocopy`, with a hold on bytes that nobody writes.
        unsafe { self.io.submitter().register_buffers(&regions) }
    }

    fn send_zerocopy(&mut self, socket: &Fd, bytes: ChunkHold, token: Token) -> OpId {
        self.state.counters.zerocopy_sends += 1;
        self.start(token, socket, Held::ZeroCopy(ZeroCopy { bytes, stage: Stage::Sending }))
    }

    fn counters(&self) -> Counters {
        let unreleased = self.state.slab.unreleased().count() as u64;
        Counters { zerocopy_unreleased: unreleased, ..self.state.counters }
    }

    fn ends(&self, socket: &Fd) -> Option<Ends> {
        let socket = socket2::SockRef::from(&**socket);
        let address = |found: io::Result<socket2::SockAddr>| found.ok()?.as_socket();
        Some(Ends { peer: address(socket.peer_addr())?, own: address(socket.local_addr())? })
    }

    fn shut(&mut self, socket: &Fd, side: Shutdown) -> io::Result<()> {
        let how = match side {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        Ok(rustix::net::shutdown(&**socket, how)?)
    }

    fn reset(&mut self, socket: &Fd) -> io::Result<()> {
        Ok(rustix::net::connect_unspec(&**socket)?)
    }

    fn cancel(&mut self, op: OpId) {
        if self.state.slab.contains(op) {
            let entry = opcode::AsyncCancel::new(op.word()).build().user_data(IGNORED);
            // SAFETY: a cancellation names no memory.
            unsafe { self.push(&entry) };
        }
    }

    fn in_flight(&self) -> usize {
        self.state.in_flight() + self.kept.len()
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Done>) -> io::Result<()> {
        // This comes first: it may submit, and then keep completions.
        self.listen_to_waker();
        let before = done.len();
        done.append(&mut self.kept);
        reap(&mut self.io, &mut self.state, done);
        let idle = done.len() == before && !self.state.woken;
        self.enter(if idle { wait } else { Wait::No })?;
        reap(&mut self.io, &mut self.state, done);
        self.state.woken = false;
        Ok(())
    }
}

impl Drop for Uring {
    /// Waits for everything in flight (I8): the kernel may use its memory until then. Operations
    /// that wait for others are cancelled; file operations run to their end. A peer that does
    /// not acknowledge gets a moment, and then its connection is reset.
    fn drop(&mut self) {
        let waiting: Vec<OpId> = self.state.slab.waiting().collect();
        for op in waiting {
            self.cancel(op);
        }
        self.drain_until(None, |slab| slab.unreleased().count());
        let moment = || Some(Instant::now() + ACKNOWLEDGE);
        self.drain_until(moment(), |_| 0);
        let unreleased: Vec<Fd> = self.state.slab.unreleased().flatten().collect();
        for socket in unreleased {
            // A connection that is gone already holds nothing.
            drop(self.reset(&socket));
        }
        self.drain_until(moment(), |_| 0);
        let unreleased = self.state.slab.unreleased().count();
        assert_eq!(
            (self.state.slab.len(), self.state.sends.missing),
            (unreleased, 0),
            "operations in flight"
        );
        if unreleased > 0 {
            // A device has not released what it was given to send, so the memory must stay.
            Box::leak(Box::new(std::mem::take(&mut self.state.slab)));
        }
        self.kept.clear();
        // The memory outlives the ring in any case: it is dropped after this.
        drop(self.state.replies.unregister(&self.io.submitter()));
    }
}

impl Uring {
    /// Takes completions until at most `left` operations are in flight, or until `deadline`.
    fn drain_until(&mut self, deadline: Option<Instant>, left: impl Fn(&Slab) -> usize) {
        while self.state.slab.len() > left(&self.state.slab) {
            let wait = match deadline {
                Some(deadline) if deadline <= Instant::now() => return,
                Some(deadline) => Wait::Until(deadline),
                None => Wait::Forever,
            };
            if let Err(error) = self.enter(wait) {
                panic!("io_uring_enter: {error}");
            }
            self.reap_into_kept();
        }
    }
}
