//! A ring over the simulated kernel. It keeps the rules of the real one: sends are complete when
//! they return, and every other operation owns what it was lent until its completion.

use super::disk::Disk;
use super::kernel::{
    Faults, Kernel, Op, Peer, SECOND, Shared, Socket, SocketId, Stage, What, ZeroCopy,
};
use super::plants::Plant;
use super::random::Random;
use super::truth::{MIB, Truth};
use crate::data::token::Purpose;
use crate::ring::conformance::{self, Arm, FROM, REPLIES, conforms};
use crate::ring::{
    Audit, Buffer, ChunkHold, ChunkRange, ChunkReader, Clock, Copied, Counters, Done, Ends, Fd,
    OpId, Outcome, Outgoing, ReplyBuffer, Ring, Token, Wait, Watched,
};
use crate::wal::{Lsn, SegmentSize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The world's time. Instants are only compared with each other.
#[derive(Clone)]
pub(super) struct FakeClock {
    kernel: Shared,
    zero: Instant,
}

impl FakeClock {
    pub(super) fn new(kernel: &Shared, zero: Instant) -> Self {
        Self { kernel: Rc::clone(kernel), zero }
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Instant {
        self.zero + self.kernel.borrow().now
    }

    fn time_of_day(&self) -> SystemTime {
        let millennium = Duration::from_secs(946_684_800);
        UNIX_EPOCH + millennium + self.kernel.borrow().now
    }
}

/// The part of a ring that is also inspected from outside.
pub(super) struct Inner {
    pub(super) ops: Vec<Op>,
    next: u32,
    /// Reply buffers: their bytes while they are out.
    lent: BTreeMap<u16, Vec<u8>>,
    buffers: u16,
    pub(super) returned: Rc<RefCell<Vec<u16>>>,
    /// The cache's memory is locked.
    registered: bool,
    counters: Counters,
}

impl Inner {
    /// Takes back the reply buffers that were dropped.
    pub(super) fn collect(&mut self) {
        for id in self.returned.borrow_mut().drain(..) {
            assert!(self.lent.remove(&id).is_some(), "I8: reply buffer {id} is given back twice");
        }
    }

    pub(super) fn buffers_out(&self) -> usize {
        self.lent.len()
    }
}

/// What runs in the middle of a send.
pub(super) type Meanwhile = Box<dyn Fn()>;

pub(super) struct FakeRing {
    kernel: Shared,
    inner: Rc<RefCell<Inner>>,
    clock: FakeClock,
    audit: Audit,
    meanwhile: Meanwhile,
}

impl FakeRing {
    pub(super) fn new(
        kernel: &Shared,
        clock: &FakeClock,
        buffers: u16,
        audit: Audit,
        meanwhile: Meanwhile,
    ) -> Self {
        let inner = Inner {
            ops: Vec::new(),
            next: 0,
            lent: BTreeMap::new(),
            buffers,
            returned: Rc::default(),
            registered: false,
            counters: Counters::default(),
        };
        Self {
            kernel: Rc::clone(kernel),
            inner: Rc::new(RefCell::new(inner)),
            clock: clock.clone(),
            audit,
            meanwhile,
        }
    }

    pub(super) fn inner(&self) -> Rc<RefCell<Inner>> {
        Rc::clone(&self.inner)
    }

    fn start(&self, fd: &Fd, token: Token, what: What) -> OpId {
        let mut inner = self.inner.borrow_mut();
        inner.next += 1;
        let id = OpId::numbered(inner.next);
        let fd = Some(Fd::clone(fd));
        inner.ops.push(Op { id, token, fd, what, ripe_at: None, cancelled: false });
        id
    }

    /// Sends one message; returns how much of it the socket takes.
    fn send(&self, message: &Outgoing<'_>) -> io::Result<usize> {
        let total: usize = message.parts.iter().map(|part| part.len()).sum();
        assert!(total > 0, "an empty send");
        let mut kernel = self.kernel.borrow_mut();
        let kernel = &mut *kernel;
        let faults = kernel.faults;
        let id = kernel.socket_of(message.socket);
        if kernel.random.chance(faults.interrupted) {
            return Err(io::Error::from_raw_os_error(libc::EINTR));
        }
        let blocked = kernel.random.chance(faults.would_block);
        let cut = kernel.random.chance(faults.short_sends).then(|| {
            // Half of the cuts are near the front, where the headers are.
            let near = if kernel.random.chance(500) { 64 } else { total as u64 };
            1 + kernel.random.below(near)
        });
        let (now, durable, plant) = (kernel.now, kernel.disk.durable(), kernel.plant);
        let socket = kernel.socket(id);
        assert!(!socket.sending, "a plain send overtakes one without a copy");
        if let Some(refusal) = socket.refusal() {
            return Err(refusal);
        }
        let taken = socket.room().min(total).min(cut.unwrap_or(u64::MAX) as usize);
        if taken == 0 || blocked {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let mut left = taken;
        for part in message.parts {
            let bytes = &part[..left.min(part.len())];
            left -= bytes.len();
            socket.take(bytes, durable, now);
        }
        let to_standby = matches!(socket.peer, Peer::Standby(_));
        Ok(match plant {
            Plant::CountsTheOffered if to_standby => total,
            Plant::ResumesHeaderElsewhere
                if to_standby && (2..30).contains(&taken) && taken < total =>
            {
                taken - 1
            }
            _ => taken,
        })
    }

    /// Another core's work in the middle of a send: it must not change anything being sent.
    fn go_on_meanwhile(&self, batch: &[Outgoing<'_>]) {
        let meanwhile = self.kernel.borrow().faults.meanwhile;
        if !self.kernel.borrow_mut().random.chance(meanwhile) {
            return;
        }
        let print = || {
            let parts = batch.iter().flat_map(|message| message.parts);
            parts.fold(0, |crc, part| crc32c::crc32c_append(crc, part))
        };
        let before = print();
        (self.meanwhile)();
        assert_eq!(before, print(), "I7: memory changes while it is sent");
    }

    fn complete(&self, kernel: &mut Kernel, inner: &mut Inner, op: Op) -> Done {
        let Op { token, fd, what, cancelled, .. } = op;
        let fd = fd.expect("only sends without a copy go on without their socket");
        let error = |code| io::Error::from_raw_os_error(code);
        let outcome = match what {
            What::Reply => Outcome::Reply(self.reply(kernel, inner, &fd, cancelled)),
            What::Receive(mut buffer) => {
                let room = buffer.room();
                let result = heard(kernel, &fd, room, cancelled);
                if let Ok(bytes) = &result {
                    assert_eq!(buffer.append(bytes), bytes.len());
                }
                Outcome::Received(result.map(|bytes| bytes.len()), buffer)
            }
            What::Writable => {
                Outcome::Writable(if cancelled { Err(error(libc::ECANCELED)) } else { Ok(()) })
            }
            What::Write { at, bytes, seen } => {
                let segment = kernel.segment(&fd);
                let now = bytes.to_vec();
                let good = {
                    let start = segment.raw() * MIB + at;
                    let zeros = seen.iter().rev().take_while(|byte| **byte == 0).count();
                    // Only the zeros past the fill mark may have become WAL.
                    let filled = seen.len() - zeros;
                    assert!(
                        now[..filled] == seen[..filled],
                        "I7: bytes at {start} change while they are written"
                    );
                    now
                };
                let faults = kernel.faults;
                if kernel.random.chance(faults.no_space) {
                    kernel.no_space += 1;
                    Outcome::Written(Err(error(libc::ENOSPC)))
                } else if kernel.random.chance(faults.deadly_disk) {
                    kernel.dead_disk = true;
                    Outcome::Written(Err(error(libc::EIO)))
                } else {
                    let count = if kernel.random.chance(faults.short_writes) {
                        kernel.random.below(good.len() as u64) as usize
                    } else {
                        good.len()
                    };
                    let image = if kernel.random.chance(500) { &seen } else { &good };
                    if count == 0 {
                        kernel.no_space += 1;
                    } else {
                        kernel.disk.write(segment, at, image, count);
                    }
                    Outcome::Written(Ok(count))
                }
            }
            What::Sync(sync) => {
                let faults = kernel.faults;
                if kernel.random.chance(faults.deadly_disk) {
                    kernel.dead_disk = true;
                    Outcome::Synced(Err(error(libc::EIO)))
                } else {
                    if kernel.plant != Plant::SyncLies {
                        kernel.disk.end_sync(&sync);
                    }
                    Outcome::Synced(Ok(()))
                }
            }
            What::Read { at, mut buffer, len } => {
                let segment = kernel.segment(&fd);
                let mut bytes = kernel.disk.read(segment, at, len);
                let faults = kernel.faults;
                let mut result = Ok(bytes.len());
                if kernel.random.chance(faults.bad_reads) {
                    kernel.bad_reads += 1;
                    match kernel.random.below(3) {
                        0 => result = Err(error(libc::EIO)),
                        _ => {
                            let whole = bytes.len();
                            bytes.truncate(kernel.random.below(whole as u64) as usize);
                            result = Ok(bytes.len());
                        }
                    }
                }
                if let Ok(count) = &result {
                    assert_eq!(buffer.append(&bytes[..*count]), *count, "a read needs room");
                }
                Outcome::Read(result, buffer)
            }
            What::ZeroCopy(_) => panic!("a send without a copy has two completions"),
        };
        Done { token, outcome }
    }

    /// One of the two completions of a send without a copy. After an error both come
    /// at once, as from a kernel that refuses it before it uses the memory.
    fn complete_half(
        &self,
        kernel: &mut Kernel,
        inner: &mut Inner,
        mut op: Op,
        done: &mut Vec<Done>,
    ) {
        let What::ZeroCopy(send) = &mut op.what else { panic!("a send without a copy") };
        let token = op.token;
        if let Stage::Taken { bytes, .. } = send.stage {
            let now = send.memory.bytes();
            assert!(
                now[..bytes] == send.seen[..bytes],
                "I7: a chunk changes while the network reads it"
            );
            if kernel.plant == Plant::LosesNotification && kernel.random.chance(100) {
                return;
            }
            let copies = kernel.random.chance(kernel.faults.copied);
            let copied = if copies && bytes > 0 { Copied::Yes } else { Copied::No };
            inner.counters.zerocopy_copied += u64::from(copied == Copied::Yes);
            return done.push(Done { token, outcome: Outcome::ZeroCopyReleased(copied) });
        }
        let result = self.take_without_copy(kernel, inner.registered, send);
        let sent = result.as_ref().ok().copied();
        done.push(Done { token, outcome: Outcome::ZeroCopySent(result) });
        let Some(bytes) = sent else {
            return done.push(Done { token, outcome: Outcome::ZeroCopyReleased(Copied::No) });
        };
        let socket = kernel.socket(send.socket);
        send.stage = Stage::Taken { bytes, upto: socket.taken };
        if kernel.plant == Plant::ReleasesEarly {
            send.hold = None;
        }
        (op.fd, op.ripe_at) = (None, None);
        inner.ops.push(op);
    }

    /// What the socket takes of a send without a copy.
    fn take_without_copy(
        &self,
        kernel: &mut Kernel,
        registered: bool,
        send: &ZeroCopy,
    ) -> io::Result<usize> {
        let faults = kernel.faults;
        let starved = kernel.random.chance(faults.no_memory);
        let blocked = kernel.random.chance(faults.would_block);
        let cut = kernel.random.chance(faults.short_sends);
        let near = 1 + kernel.random.below(send.seen.len() as u64) as usize;
        let (now, durable, plant) = (kernel.now, kernel.disk.durable(), kernel.plant);
        let socket = kernel.socket(send.socket);
        socket.sending = false;
        if !registered {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        if starved {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        if let Some(refusal) = socket.refusal() {
            return Err(refusal);
        }
        let bytes = send.memory.bytes();
        let most = if cut { near } else { bytes.len() };
        let count = socket.room().min(most);
        if count == 0 || blocked {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        socket.take(&bytes[..count], durable, now);
        kernel.zerocopied += count as u64;
        Ok(if plant == Plant::CountsTheOffered { bytes.len() } else { count })
    }

    fn reply(
        &self,
        kernel: &mut Kernel,
        inner: &mut Inner,
        fd: &Fd,
        cancelled: bool,
    ) -> io::Result<ReplyBuffer> {
        let faults = kernel.faults;
        let none = kernel.random.chance(faults.no_buffers);
        let free = (0..inner.buffers).find(|id| !inner.lent.contains_key(id));
        let id = kernel.socket_of(fd);
        let has_bytes = !kernel.socket(id).said.is_empty();
        let Some(id) = free.filter(|_| !none || !has_bytes) else {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        };
        let bytes = heard(kernel, fd, 512, cancelled)?;
        if bytes.is_empty() {
            return Ok(ReplyBuffer::numbered(0, 0));
        }
        let len = bytes.len();
        inner.lent.insert(id, bytes);
        Ok(ReplyBuffer::lent(id, len, &inner.returned))
    }
}

/// What a receive returns: at most `room` bytes, often fewer than have arrived.
fn heard(kernel: &mut Kernel, fd: &Fd, room: usize, cancelled: bool) -> io::Result<Vec<u8>> {
    if kernel.random.chance(kernel.faults.interrupted) {
        return Err(io::Error::from_raw_os_error(libc::EINTR));
    }
    let short = kernel.random.chance(kernel.faults.short_sends / 4);
    let near = kernel.random.below(100) as usize + 1;
    let id = kernel.socket_of(fd);
    let socket = kernel.socket(id);
    if std::mem::take(&mut socket.reset) {
        (socket.shut_write, socket.torn) = (true, true);
        socket.said.clear();
        socket.said_all = true;
        return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
    }
    let len = socket.said.len().min(room).min(if short { near } else { usize::MAX });
    if len == 0 && cancelled && !socket.said_all && !socket.shut_read {
        return Err(io::Error::from_raw_os_error(libc::ECANCELED));
    }
    Ok(socket.said.drain(..len).collect())
}

impl Ring for FakeRing {
    type Clock = FakeClock;

    fn clock(&self) -> FakeClock {
        self.clock.clone()
    }

    fn send_now(&mut self, batch: &[Outgoing<'_>], results: &mut Vec<io::Result<usize>>) {
        results.clear();
        if self.kernel.borrow().plant == Plant::DropsPinEarly {
            self.audit.unpin();
        }
        for part in batch.iter().flat_map(|message| message.parts) {
            assert!(!self.audit.is_unpinned(part), "I7: bytes are sent that nobody has pinned");
        }
        self.go_on_meanwhile(batch);
        results.extend(batch.iter().map(|message| self.send(message)));
    }

    fn receive_reply(&mut self, socket: &Fd, token: Token) -> OpId {
        self.start(socket, token, What::Reply)
    }

    fn with_reply<T>(&mut self, buffer: ReplyBuffer, read: impl FnOnce(&[u8]) -> T) -> T {
        let bytes = if buffer.is_empty() {
            Vec::new()
        } else {
            let inner = self.inner.borrow();
            inner.lent.get(&buffer.id()).expect("a reply that was lent").clone()
        };
        assert_eq!(bytes.len(), buffer.len(), "another reply lies in the buffer");
        if self.kernel.borrow().plant == Plant::ReturnsReplyTwice && !buffer.is_empty() {
            self.inner.borrow().returned.borrow_mut().push(buffer.id());
        }
        read(&bytes)
    }

    fn receive(&mut self, socket: &Fd, mut buffer: Buffer, token: Token) -> OpId {
        assert!(buffer.room() > 0, "a receive needs room");
        buffer.poison();
        self.start(socket, token, What::Receive(buffer))
    }

    fn poll_writable(&mut self, socket: &Fd, token: Token) -> OpId {
        if self.kernel.borrow().plant == Plant::NeverPolls {
            return OpId::numbered(0);
        }
        self.start(socket, token, What::Writable)
    }

    fn write(&mut self, file: &Fd, at: u64, bytes: ChunkRange, token: Token) -> OpId {
        let seen = bytes.to_vec();
        self.start(file, token, What::Write { at, bytes, seen })
    }

    fn sync_data(&mut self, file: &Fd, token: Token) -> OpId {
        let kernel = self.kernel.borrow();
        let sync = kernel.disk.begin_sync(kernel.segment(file));
        drop(kernel);
        self.start(file, token, What::Sync(sync))
    }

    fn read(&mut self, file: &Fd, at: u64, mut buffer: Buffer, len: usize, token: Token) -> OpId {
        assert!(len <= buffer.room(), "a read of {len} bytes needs room");
        buffer.poison();
        self.start(file, token, What::Read { at, buffer, len })
    }

    fn shut(&mut self, socket: &Fd, side: Shutdown) -> io::Result<()> {
        let mut kernel = self.kernel.borrow_mut();
        let id = kernel.socket_of(socket);
        let socket = kernel.socket(id);
        socket.shut_write |= side != Shutdown::Read;
        socket.shut_read |= side != Shutdown::Write;
        Ok(())
    }

    fn register(&mut self, _: &ChunkReader) -> io::Result<()> {
        if !self.kernel.borrow().locks_memory {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        self.inner.borrow_mut().registered = true;
        Ok(())
    }

    fn send_zerocopy(&mut self, socket: &Fd, bytes: ChunkHold, token: Token) -> OpId {
        let memory = Watched::of(&bytes);
        let seen = memory.bytes();
        let id = {
            let mut kernel = self.kernel.borrow_mut();
            let id = kernel.socket_of(socket);
            let sends = std::mem::replace(&mut kernel.socket(id).sending, true);
            assert!(!sends, "two sends without a copy at one time");
            id
        };
        self.inner.borrow_mut().counters.zerocopy_sends += 1;
        let (hold, stage) = (Some(bytes), Stage::Sending);
        let send = ZeroCopy { hold, memory, seen, socket: id, stage };
        self.start(socket, token, What::ZeroCopy(send))
    }

    fn counters(&self) -> Counters {
        let inner = self.inner.borrow();
        let unreleased = inner.ops.iter().filter(|op| matches!(op.what, What::ZeroCopy(_)));
        Counters { zerocopy_unreleased: unreleased.count() as u64, ..inner.counters }
    }

    fn ends(&self, socket: &Fd) -> Option<Ends> {
        let mut kernel = self.kernel.borrow_mut();
        let id = kernel.socket_of(socket);
        kernel.socket(id).ends
    }

    fn reset(&mut self, socket: &Fd) -> io::Result<()> {
        self.shut(socket, Shutdown::Both)?;
        let mut kernel = self.kernel.borrow_mut();
        if kernel.plant != Plant::NeverResets {
            let id = kernel.socket_of(socket);
            kernel.socket(id).torn = true;
        }
        Ok(())
    }

    fn cancel(&mut self, op: OpId) {
        let mut inner = self.inner.borrow_mut();
        if let Some(op) = inner.ops.iter_mut().find(|other| other.id == op) {
            op.cancelled = true;
        }
    }

    fn in_flight(&self) -> usize {
        self.inner.borrow().ops.len()
    }

    fn turn(&mut self, _wait: Wait, done: &mut Vec<Done>) -> io::Result<()> {
        let mut kernel = self.kernel.borrow_mut();
        let kernel = &mut *kernel;
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        inner.collect();
        for op in &mut inner.ops {
            kernel.ripen(op);
        }
        loop {
            let now = kernel.now;
            let ripe = |op: &Op| op.ripe_at.is_some_and(|at| at <= now);
            let count = inner.ops.iter().filter(|op| ripe(op)).count();
            if count == 0 {
                return Ok(());
            }
            let nth = kernel.random.below(count as u64) as usize;
            let place = (0..inner.ops.len()).filter(|n| ripe(&inner.ops[*n])).nth(nth);
            let op = inner.ops.swap_remove(place.expect("one of those counted"));
            kernel.completions += 1;
            let lost = kernel.plant == Plant::LosesCompletion
                && matches!(Purpose::of(op.token), Some(Purpose::Room(_)))
                && kernel.random.chance(20);
            if let What::ZeroCopy(_) = op.what {
                self.complete_half(kernel, inner, op, done);
                for op in &mut inner.ops {
                    kernel.ripen(op);
                }
                continue;
            }
            let completion = self.complete(kernel, inner, op);
            if !lost {
                done.push(completion);
            }
        }
    }
}

/// Which mistake a simulated ring makes.
trait Planted {
    const PLANT: Plant;
}

struct Honest;

impl Planted for Honest {
    const PLANT: Plant = Plant::Honest;
}

struct ReleasesEarly;

impl Planted for ReleasesEarly {
    const PLANT: Plant = Plant::ReleasesEarly;
}

/// The simulated ring, for the checks that the real one must also pass.
struct FakeArm<P> {
    ring: FakeRing,
    truth: &'static Truth,
    planted: PhantomData<P>,
}

impl<P> FakeArm<P> {
    fn socket<T>(&self, id: SocketId, act: impl FnOnce(&mut Socket) -> T) -> T {
        act(self.ring.kernel.borrow_mut().socket(id))
    }

    /// When the next operation completes, if one does without an event.
    fn next_ripe(&self) -> Option<Duration> {
        let mut kernel = self.ring.kernel.borrow_mut();
        let mut inner = self.ring.inner.borrow_mut();
        for op in &mut inner.ops {
            kernel.ripen(op);
        }
        inner.ops.iter().filter_map(|op| op.ripe_at).min()
    }

    fn turn(&mut self) -> Vec<Done> {
        let mut done = Vec::new();
        self.ring.turn(Wait::No, &mut done).unwrap();
        done
    }
}

impl<P: Planted> Arm for FakeArm<P> {
    type Ring = FakeRing;
    type Peer = SocketId;

    fn new() -> Self {
        let mut random = Random::new(1);
        let truth = Truth::any(&mut random);
        let mut disk = Disk::new(truth, FROM, FROM);
        disk.prepare(FROM.segment(SegmentSize::new(MIB).unwrap()), FROM);
        let kernel = Kernel::new(random, Faults::default(), P::PLANT, disk);
        let kernel: Shared = Rc::new(RefCell::new(kernel));
        let clock = FakeClock::new(&kernel, Instant::now());
        // The checks have their own cache, and this one is never pinned.
        let (_, readers) = crate::ring::chunks(0, 1).unwrap();
        let audit = Audit::of(&readers[0], 0);
        let ring = FakeRing::new(&kernel, &clock, REPLIES, audit, Box::new(|| ()));
        Self { ring, truth, planted: PhantomData }
    }

    fn ring(&mut self) -> &mut FakeRing {
        &mut self.ring
    }

    fn connect(&mut self) -> (Fd, SocketId) {
        let mut socket = Socket::new(Peer::Upstream(Vec::new()), 500_000);
        let address = |host| std::net::SocketAddr::from(([192, 0, 2, host], 5433));
        socket.ends = Some(Ends { peer: address(2), own: address(1) });
        let (id, fd) = self.ring.kernel.borrow_mut().connect(socket);
        (Fd::new(fd), id)
    }

    fn says(&mut self, peer: &mut SocketId, bytes: &[u8]) {
        self.socket(*peer, |socket| socket.said.extend(bytes));
    }

    fn reads(&mut self, peer: &mut SocketId, len: usize) -> Vec<u8> {
        self.socket(*peer, |socket| {
            socket.unread -= len;
            let Peer::Upstream(told) = &mut socket.peer else { panic!("a raw peer") };
            told.drain(..len).collect()
        })
    }

    fn falls_silent(&mut self, peer: &mut SocketId) {
        self.socket(*peer, |socket| socket.said_all = true);
    }

    fn resets(&mut self, peer: SocketId) {
        self.socket(peer, |socket| socket.reset = true);
    }

    fn wal(&self, at: Lsn, len: usize) -> Vec<u8> {
        self.truth.bytes(at, len).to_vec()
    }

    fn file(&mut self) -> Fd {
        self.ring.kernel.borrow_mut().open(FROM.segment(SegmentSize::new(MIB).unwrap()))
    }

    fn next(&mut self) -> Vec<Done> {
        loop {
            let done = self.turn();
            if !done.is_empty() {
                return done;
            }
            let ripe = self.next_ripe().expect("something completes");
            self.ring.kernel.borrow_mut().now = ripe;
        }
    }

    fn moment(&mut self) -> Vec<Done> {
        let mut done = self.turn();
        let until = self.ring.kernel.borrow().now + SECOND;
        while let Some(ripe) = self.next_ripe().filter(|ripe| *ripe <= until) {
            self.ring.kernel.borrow_mut().now = ripe;
            done.extend(self.turn());
        }
        self.ring.kernel.borrow_mut().now = until;
        done
    }
}

conforms!(FakeArm<Honest>);

#[test]
#[should_panic(expected = "I7: a chunk changes while the network reads it")]
fn finds_a_chunk_rewritten_under_a_send() {
    conformance::a_chunk_that_a_peer_has_not_read_is_not_written_again::<FakeArm<ReleasesEarly>>();
}
