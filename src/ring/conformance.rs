//! What every [`Ring`] has to do. One set of checks runs on the real ring and on the simulated
//! one, so that what the simulation allows is what the kernel does.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use super::*;
use crate::wal::{Lsn, TimelineId};
use crate::watermark::{Cell, CellId};
use std::io::{ErrorKind, Write as _};

/// Where the cache's WAL begins: at a chunk and segment boundary.
pub(crate) const FROM: Lsn = Lsn::new(3 * CHUNK_SIZE as u64);

/// How many chunks are filled.
const FILLED: usize = 4;

/// Reply buffers of the ring, and bytes in each.
pub(crate) const REPLIES: u16 = 8;
pub(crate) const REPLY_SIZE: usize = 512;

/// A ring with peers and files around it.
pub(crate) trait Arm {
    /// The ring, with [`REPLIES`] buffers of [`REPLY_SIZE`] bytes.
    type Ring: Ring;
    /// The other end of a socket.
    type Peer;

    /// A ring in which nothing has happened.
    fn new() -> Self;

    fn ring(&mut self) -> &mut Self::Ring;

    /// A connection between two hosts whose sockets take some hundred kilobytes, not megabytes.
    fn connect(&mut self) -> (Fd, Self::Peer);

    /// The peer sends something that fits into its socket.
    fn says(&mut self, peer: &mut Self::Peer, bytes: &[u8]);

    /// The next bytes sent to the peer; they are at least on their way.
    fn reads(&mut self, peer: &mut Self::Peer, len: usize) -> Vec<u8>;

    /// The peer shuts down its sending side.
    fn falls_silent(&mut self, peer: &mut Self::Peer);

    /// The peer resets its end, discarding all that it has not read.
    fn resets(&mut self, peer: Self::Peer);

    /// WAL from `at` on.
    fn wal(&self, at: Lsn, len: usize) -> Vec<u8>;

    /// The file of the 1 MiB segment that begins at [`FROM`], prepared for writing.
    fn file(&mut self) -> Fd;

    /// Turns until something completes. Panics when nothing does.
    fn next(&mut self) -> Vec<Done>;

    /// Turns for a moment; returns what completes in it.
    fn moment(&mut self) -> Vec<Done>;
}

/// A cache of eight chunks, the first four of them filled and durable.
struct Cache {
    writer: ChunkWriter,
    reader: ChunkReader,
    cell: CellId,
}

impl Cache {
    fn of(arm: &impl Arm) -> Self {
        let (mut writer, mut readers) = chunks(8 * CHUNK_SIZE, 1).unwrap();
        let cell = Cell::new(TimelineId::FIRST, Lsn::INVALID, Lsn::INVALID).id();
        writer.open(cell, FROM, &[]).unwrap();
        let wal = arm.wal(FROM, FILLED * CHUNK_SIZE);
        assert_eq!(writer.append(&wal), wal.len());
        writer.durable(writer.filled());
        Self { writer, reader: readers.remove(0), cell }
    }

    fn hold(&self, at: Lsn, len: usize) -> ChunkHold {
        self.reader.pin().hold(self.cell, at, len).unwrap()
    }
}

fn after(bytes: usize) -> Lsn {
    FROM.saturating_add(bytes as u64)
}

fn outgoing<'a>(socket: &'a Fd, parts: &'a [IoSlice<'a>], then: Then) -> Outgoing<'a> {
    Outgoing { socket, parts, then }
}

fn send(arm: &mut impl Arm, socket: &Fd, bytes: &[u8], then: Then) -> io::Result<usize> {
    let (parts, mut results) = ([IoSlice::new(bytes)], Vec::new());
    arm.ring().send_now(&[outgoing(socket, &parts, then)], &mut results);
    assert_eq!(results.len(), 1, "one result a message");
    results.remove(0)
}

/// Turns until exactly one thing completes.
fn one(arm: &mut impl Arm) -> Done {
    let mut done = arm.next();
    assert_eq!(done.len(), 1, "{done:?}");
    done.remove(0)
}

fn code(error: &io::Error) -> Option<i32> {
    error.raw_os_error()
}

pub(crate) fn a_send_is_over_when_it_returns<A: Arm>() {
    let mut arm = A::new();
    let (mut sockets, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..SEND_SLICE + 3 {
        let (socket, peer) = arm.connect();
        sockets.push(socket);
        peers.push(peer);
    }
    let mut results = Vec::new();
    for round in 1..4u8 {
        let (mut header, mut body) = ([round; 30], vec![round ^ 0x55; 8192]);
        let parts = [IoSlice::new(&header), IoSlice::new(&body)];
        let batch: Vec<_> =
            sockets.iter().map(|socket| outgoing(socket, &parts, Then::Nothing)).collect();
        arm.ring().send_now(&batch, &mut results);
        drop(batch);
        header.fill(0xEE);
        body.fill(0xEE);
        assert_eq!(results.len(), sockets.len());
        for (result, peer) in results.drain(..).zip(&mut peers) {
            assert_eq!(result.unwrap(), 30 + 8192);
            let got = arm.reads(peer, 30 + 8192);
            assert!(got[..30].iter().all(|byte| *byte == round));
            assert!(got[30..].iter().all(|byte| *byte == round ^ 0x55));
        }
    }
    assert_eq!((arm.ring().in_flight(), arm.ring().counters()), (0, Counters::default()));
}

pub(crate) fn a_full_socket_takes_a_part_then_nothing<A: Arm>() {
    let mut arm = A::new();
    let (near, mut far) = arm.connect();
    let sent = fill_up(&mut arm, &near);
    arm.ring().poll_writable(&near, Token(9));
    assert!(arm.moment().is_empty());
    assert_eq!(arm.ring().in_flight(), 1);
    arm.reads(&mut far, sent);
    let done = one(&mut arm);
    assert_eq!(done.token, Token(9));
    assert!(matches!(done.outcome, Outcome::Writable(Ok(()))));
    // Armed again, and immediately true again.
    arm.ring().poll_writable(&near, Token(10));
    assert!(matches!(one(&mut arm).outcome, Outcome::Writable(Ok(()))));
    assert_eq!(send(&mut arm, &near, b"few", Then::Nothing).unwrap(), 3);
    assert_eq!(arm.reads(&mut far, 3), b"few");
}

/// Sends until the socket takes nothing more; returns how much it took.
fn fill_up(arm: &mut impl Arm, near: &Fd) -> usize {
    let big = vec![7u8; 16 << 20];
    let mut sent = send(arm, near, &big, Then::Nothing).unwrap();
    assert!(sent > 0 && sent < big.len(), "{sent}");
    loop {
        match send(arm, near, &big, Then::Nothing) {
            Ok(more) => sent += more,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return sent;
            }
        }
        // A real connection may still move bytes from our queue to the peer's.
        assert!(arm.moment().is_empty());
    }
}

pub(crate) fn a_broken_connection_takes_nothing<A: Arm>() {
    let mut arm = A::new();
    let (near, far) = arm.connect();
    arm.ring().receive(&near, Buffer::with_capacity(32), Token(1));
    assert!(arm.moment().is_empty());
    arm.resets(far);
    let done = one(&mut arm);
    let Outcome::Received(Err(error), buffer) = done.outcome else { panic!("a reset") };
    assert_eq!((code(&error), buffer.is_empty()), (Some(libc::ECONNRESET), true));
    let error = send(&mut arm, &near, b"wal", Then::Nothing).unwrap_err();
    assert_eq!(code(&error), Some(libc::EPIPE));
    arm.ring().poll_writable(&near, Token(2));
    assert!(matches!(one(&mut arm).outcome, Outcome::Writable(Ok(()))));
    arm.ring().receive(&near, buffer, Token(3));
    assert!(matches!(one(&mut arm).outcome, Outcome::Received(Ok(0), _)));
}

pub(crate) fn completions_met_while_sending_are_kept<A: Arm>() {
    let mut arm = A::new();
    let (near, mut far) = arm.connect();
    arm.says(&mut far, b"status");
    arm.ring().receive_reply(&near, Token(1));
    assert_eq!(send(&mut arm, &near, b"wal", Then::Nothing).unwrap(), 3);
    assert_eq!(arm.ring().in_flight(), 1);
    let Done { token: Token(1), outcome: Outcome::Reply(Ok(reply)) } = one(&mut arm) else {
        panic!("the reply");
    };
    assert_eq!(arm.ring().with_reply(reply, <[u8]>::to_vec), b"status");
    assert_eq!(arm.ring().in_flight(), 0);
}

pub(crate) fn reply_buffers_run_out_and_return<A: Arm>() {
    let mut arm = A::new();
    let mut pairs: Vec<_> = (0..REPLIES + 4).map(|_| arm.connect()).collect();
    for _ in 0..5 {
        for (number, (near, far)) in pairs.iter_mut().enumerate() {
            arm.says(far, &[number as u8 + 1; 39]);
            arm.ring().receive_reply(near, Token(number as u64));
        }
        let mut done = Vec::new();
        while done.len() < pairs.len() {
            done.extend(arm.next());
        }
        let (mut held, mut refused) = (Vec::new(), Vec::new());
        for Done { token, outcome } in done {
            match outcome {
                Outcome::Reply(Ok(reply)) => held.push((token, reply)),
                Outcome::Reply(Err(error)) => {
                    assert_eq!(code(&error), Some(libc::ENOBUFS));
                    refused.push(token);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((held.len(), refused.len()), (REPLIES.into(), 4));
        // Half are read, half are dropped unread: both return the buffer.
        for (place, (token, reply)) in held.into_iter().enumerate() {
            if place % 2 == 0 {
                let bytes = arm.ring().with_reply(reply, <[u8]>::to_vec);
                assert_eq!(bytes, [token.0 as u8 + 1; 39]);
            }
        }
        for token in refused {
            arm.ring().receive_reply(&pairs[token.0 as usize].0, token);
            let Outcome::Reply(Ok(reply)) = one(&mut arm).outcome else { panic!("a reply") };
            let bytes = arm.ring().with_reply(reply, <[u8]>::to_vec);
            assert_eq!(bytes, [token.0 as u8 + 1; 39]);
        }
    }
}

pub(crate) fn a_large_reply_comes_in_pieces_and_then_the_end<A: Arm>() {
    let mut arm = A::new();
    let (near, mut far) = arm.connect();
    arm.says(&mut far, &[3; REPLY_SIZE + 36]);
    arm.falls_silent(&mut far);
    let mut sizes = Vec::new();
    // The end of the stream uses up no buffer, however often it is received.
    for _ in 0..3 * REPLIES {
        arm.ring().receive_reply(&near, Token(0));
        let Outcome::Reply(Ok(reply)) = one(&mut arm).outcome else { panic!("a reply") };
        sizes.push((reply.len(), arm.ring().with_reply(reply, <[u8]>::len)));
    }
    assert_eq!(sizes[..2], [(REPLY_SIZE, REPLY_SIZE), (36, 36)]);
    assert!(sizes[2..].iter().all(|size| *size == (0, 0)), "{sizes:?}");
}

pub(crate) fn a_receive_appends_to_what_is_there<A: Arm>() {
    let mut arm = A::new();
    let (near, mut far) = arm.connect();
    let mut buffer = Buffer::with_capacity(16);
    assert_eq!(buffer.append(b"0123456789"), 10);
    buffer.consume(8);
    arm.ring().receive(&near, buffer, Token(4));
    assert!(arm.moment().is_empty());
    arm.says(&mut far, b"abc");
    let Outcome::Received(Ok(3), buffer) = one(&mut arm).outcome else { panic!("three bytes") };
    assert_eq!(buffer.filled(), b"89abc");
    arm.falls_silent(&mut far);
    arm.ring().receive(&near, buffer, Token(5));
    let Outcome::Received(Ok(0), buffer) = one(&mut arm).outcome else { panic!("the end") };
    assert_eq!(buffer.filled(), b"89abc");
}

pub(crate) fn a_cancelled_operation_completes_and_gives_back<A: Arm>() {
    let mut arm = A::new();
    let (near, mut far) = arm.connect();
    let receive = arm.ring().receive(&near, Buffer::with_capacity(32), Token(1));
    let reply = arm.ring().receive_reply(&near, Token(2));
    assert!(arm.moment().is_empty());
    for (op, token) in [(receive, Token(1)), (reply, Token(2))] {
        arm.ring().cancel(op);
        let done = one(&mut arm);
        assert_eq!(done.token, token);
        let error = match done.outcome {
            Outcome::Received(Err(error), buffer) => {
                assert!(buffer.is_empty());
                error
            }
            Outcome::Reply(Err(error)) => error,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(&error), Some(libc::ECANCELED));
        // A stale name does nothing.
        arm.ring().cancel(op);
    }
    // Nothing was lost.
    arm.says(&mut far, b"next command");
    arm.ring().receive_reply(&near, Token(3));
    let Outcome::Reply(Ok(reply)) = one(&mut arm).outcome else { panic!("a reply") };
    assert_eq!(arm.ring().with_reply(reply, <[u8]>::to_vec), b"next command");
}

pub(crate) fn a_side_that_is_shut_ends_what_waits_on_it<A: Arm>() {
    let mut arm = A::new();
    let (near, _far) = arm.connect();
    arm.ring().receive(&near, Buffer::with_capacity(32), Token(1));
    assert!(arm.moment().is_empty());
    arm.ring().shut(&near, Shutdown::Write).unwrap();
    assert!(arm.moment().is_empty());
    let error = send(&mut arm, &near, b"wal", Then::Nothing).unwrap_err();
    assert_eq!(code(&error), Some(libc::EPIPE));
    arm.ring().shut(&near, Shutdown::Read).unwrap();
    assert!(matches!(one(&mut arm).outcome, Outcome::Received(Ok(0), _)));
}

pub(crate) fn what_is_written_is_read_back<A: Arm>() {
    let mut arm = A::new();
    let mut cache = Cache::of(&arm);
    let file = arm.file();
    let wal = arm.wal(FROM, CHUNK_SIZE);
    // Both halves of the filled bytes, out of order.
    for (from, to, token) in [(24_576, 49_152, Token(1)), (0, 24_576, Token(2))] {
        let range = cache.writer.range(after(from), after(to));
        arm.ring().write(&file, from as u64, range, token);
        let done = one(&mut arm);
        assert!(matches!(done.outcome, Outcome::Written(Ok(24_576))), "{done:?}");
    }
    arm.ring().sync_data(&file, Token(3));
    assert!(matches!(one(&mut arm).outcome, Outcome::Synced(Ok(()))));
    let mut buffer = Buffer::with_capacity(65_536);
    buffer.append(b"before");
    arm.ring().read(&file, 8192, buffer, 32_768, Token(4));
    let Outcome::Read(Ok(32_768), mut buffer) = one(&mut arm).outcome else { panic!("read") };
    assert_eq!(&buffer.filled()[..6], b"before");
    assert!(buffer.filled()[6..] == wal[8192..8192 + 32_768]);
    buffer.clear();
    arm.ring().read(&file, CHUNK_SIZE as u64, buffer, 10, Token(5));
    let end = one(&mut arm).outcome;
    assert!(matches!(end, Outcome::Read(Ok(0), _)), "{end:?}");
    // A range keeps its chunk from being reused only as long as it lives.
    for _ in 0..20 {
        assert_eq!(cache.writer.append(&[1; CHUNK_SIZE]), CHUNK_SIZE);
        cache.writer.durable(cache.writer.filled());
    }
}

/// Both completions of the only send without a copy, in their order.
fn both(arm: &mut impl Arm) -> (io::Result<usize>, Copied) {
    let mut done = Vec::new();
    while done.len() < 2 {
        done.extend(arm.next());
    }
    outcomes(done)
}

fn outcomes(done: Vec<Done>) -> (io::Result<usize>, Copied) {
    let outcomes: Vec<_> = done.into_iter().map(|done| done.outcome).collect();
    let Ok([Outcome::ZeroCopySent(sent), Outcome::ZeroCopyReleased(copied)]) =
        <[_; 2]>::try_from(outcomes)
    else {
        panic!("sent, then released");
    };
    (sent, copied)
}

/// The result of the newest send without a copy; others may be released in the meantime.
fn sent(arm: &mut impl Arm) -> io::Result<usize> {
    loop {
        let sent = arm.next().into_iter().find_map(|done| match done.outcome {
            Outcome::ZeroCopySent(sent) => Some(sent),
            _ => None,
        });
        if let Some(sent) = sent {
            return sent;
        }
    }
}

pub(crate) fn memory_that_is_not_registered_is_refused_and_free_again<A: Arm>() {
    let mut arm = A::new();
    let cache = Cache::of(&arm);
    let (near, _far) = arm.connect();
    arm.ring().send_zerocopy(&near, cache.hold(FROM, 8192), Token(1));
    let (sent, copied) = both(&mut arm);
    assert_eq!((code(&sent.unwrap_err()), copied), (Some(libc::EFAULT), Copied::No));
    assert_eq!((arm.ring().in_flight(), arm.ring().counters().zerocopy_unreleased), (0, 0));
    every_chunk_can_be_held(&cache);
    // The connection is as it was.
    assert_eq!(send(&mut arm, &near, b"wal", Then::Nothing).unwrap(), 3);
}

/// Is the cache registered? A user that may not lock so much memory skips the check with a note.
pub(super) fn is_locked(registered: io::Result<()>) -> bool {
    match registered {
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            let thread = std::thread::current();
            let (test, needed) =
                (thread.name().unwrap_or_default(), cache_memory(8 * CHUNK_SIZE) >> 10);
            let why = "kB of memory are to be locked and may not be (ulimit -l)";
            // Written directly, because the test harness captures ordinary output.
            drop(writeln!(io::stderr(), "skipped: {test}: {needed} {why}"));
            false
        }
        registered => {
            registered.unwrap();
            true
        }
    }
}

pub(crate) fn sends_without_a_copy_are_the_bytes<A: Arm>() {
    let mut arm = A::new();
    let cache = Cache::of(&arm);
    if !is_locked(arm.ring().register(&cache.reader)) {
        return;
    }
    let (near, mut far) = arm.connect();
    let places = [0, 8192, CHUNK_SIZE - 100, 3 * CHUNK_SIZE + 5];
    let mut copies = 0;
    for (number, at) in places.into_iter().enumerate() {
        let hold = cache.hold(after(at), 64 << 10);
        let len = hold.len();
        let header = [number as u8; 30];
        assert_eq!(send(&mut arm, &near, &header, Then::More).unwrap(), 30);
        arm.ring().send_zerocopy(&near, hold, Token(number as u64));
        assert_eq!(arm.ring().in_flight(), 1);
        let mut done = arm.next();
        let got = arm.reads(&mut far, 30 + len);
        assert!(got[..30] == header && got[30..] == arm.wal(after(at), len));
        // When the kernel copies, the memory is free before the peer has read it.
        while done.len() < 2 {
            done.extend(arm.next());
        }
        assert!(done.iter().all(|done| done.token == Token(number as u64)));
        let (sent, copied) = outcomes(done);
        assert_eq!(sent.unwrap(), len);
        copies += u64::from(copied == Copied::Yes);
        assert_eq!(arm.ring().in_flight(), 0);
    }
    let expected = Counters { zerocopy_sends: 4, zerocopy_copied: copies, ..Counters::default() };
    assert_eq!(arm.ring().counters(), expected);
    every_chunk_can_be_held(&cache);
}

/// As many chunks as the limit allows can be held at one time.
fn every_chunk_can_be_held(cache: &Cache) {
    let pin = cache.reader.pin();
    let hold = |chunk| pin.hold(cache.cell, after(chunk * CHUNK_SIZE), 1);
    let holds = [hold(0), hold(1)];
    assert!(holds.iter().all(Option::is_some), "a hold was not given back");
    assert!(hold(2).is_none(), "one in four");
}

/// Sends without a copy until the socket is full; returns how much it took.
fn fill_up_without_copies(arm: &mut impl Arm, cache: &Cache, near: &Fd) -> usize {
    let mut at = 0;
    loop {
        arm.ring().send_zerocopy(near, cache.hold(after(at), 128 << 10), Token(1));
        match sent(arm) {
            Ok(more) => at += more,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return at;
            }
        }
    }
}

/// Turns until nothing is in flight.
fn settle(arm: &mut impl Arm) {
    while arm.ring().in_flight() > 0 {
        arm.next();
    }
    assert_eq!(arm.ring().counters().zerocopy_unreleased, 0);
}

pub(crate) fn a_chunk_that_a_peer_has_not_read_is_not_written_again<A: Arm>() {
    let mut arm = A::new();
    let mut cache = Cache::of(&arm);
    if !is_locked(arm.ring().register(&cache.reader)) {
        return;
    }
    let (near, mut far) = arm.connect();
    let sent = fill_up_without_copies(&mut arm, &cache, &near);
    arm.moment();
    let unreleased = arm.ring().counters().zerocopy_unreleased;
    assert!(unreleased > 0 && arm.ring().in_flight() as u64 >= unreleased);
    // The ring keeps no socket open for its memory, and keeps the memory without the socket.
    assert_eq!(Fd::strong_count(&near), 1);
    drop(near);
    for _ in 0..20 {
        assert_eq!(cache.writer.append(&[0xEE; CHUNK_SIZE]), CHUNK_SIZE);
        cache.writer.durable(cache.writer.filled());
    }
    assert!(arm.reads(&mut far, sent) == arm.wal(FROM, sent), "the peer got other bytes");
    settle(&mut arm);
}

pub(crate) fn a_send_without_a_copy_is_not_cancelled<A: Arm>() {
    let mut arm = A::new();
    let cache = Cache::of(&arm);
    if !is_locked(arm.ring().register(&cache.reader)) {
        return;
    }
    let (near, mut far) = arm.connect();
    let op = arm.ring().send_zerocopy(&near, cache.hold(FROM, 64 << 10), Token(1));
    arm.ring().cancel(op);
    assert_eq!(sent(&mut arm).unwrap(), 64 << 10);
    arm.ring().cancel(op);
    arm.moment();
    assert!(arm.reads(&mut far, 64 << 10) == arm.wal(FROM, 64 << 10));
    settle(&mut arm);
}

pub(crate) fn a_reset_releases_what_a_peer_never_reads<A: Arm>() {
    let mut arm = A::new();
    let cache = Cache::of(&arm);
    if !is_locked(arm.ring().register(&cache.reader)) {
        return;
    }
    let (near, _far) = arm.connect();
    fill_up_without_copies(&mut arm, &cache, &near);
    assert!(arm.ring().counters().zerocopy_unreleased > 0);
    arm.ring().reset(&near).unwrap();
    settle(&mut arm);
    assert_eq!(Fd::strong_count(&near), 1);
    every_chunk_can_be_held(&cache);
}

pub(crate) fn a_peer_that_resets_releases_all<A: Arm>() {
    let mut arm = A::new();
    let cache = Cache::of(&arm);
    if !is_locked(arm.ring().register(&cache.reader)) {
        return;
    }
    let (near, far) = arm.connect();
    fill_up_without_copies(&mut arm, &cache, &near);
    arm.resets(far);
    settle(&mut arm);
    arm.ring().send_zerocopy(&near, cache.hold(FROM, 8192), Token(2));
    let (sent, copied) = both(&mut arm);
    let refused = [Some(libc::ECONNRESET), Some(libc::EPIPE)];
    assert!(refused.contains(&code(&sent.unwrap_err())));
    assert_eq!(copied, Copied::No);
    every_chunk_can_be_held(&cache);
}

pub(crate) fn the_ends_of_a_connection_are_two_hosts<A: Arm>() {
    let mut arm = A::new();
    let (near, _far) = arm.connect();
    let ends = arm.ring().ends(&near).unwrap();
    assert_ne!(ends.peer, ends.own);
}

/// Runs every check on an arm.
macro_rules! conforms {
    ($arm:ty) => {
        conforms!($arm:
            a_send_is_over_when_it_returns,
            a_full_socket_takes_a_part_then_nothing,
            a_broken_connection_takes_nothing,
            completions_met_while_sending_are_kept,
            reply_buffers_run_out_and_return,
            a_large_reply_comes_in_pieces_and_then_the_end,
            a_receive_appends_to_what_is_there,
            a_cancelled_operation_completes_and_gives_back,
            a_side_that_is_shut_ends_what_waits_on_it,
            what_is_written_is_read_back,
            memory_that_is_not_registered_is_refused_and_free_again,
            sends_without_a_copy_are_the_bytes,
            a_chunk_that_a_peer_has_not_read_is_not_written_again,
            a_send_without_a_copy_is_not_cancelled,
            a_reset_releases_what_a_peer_never_reads,
            a_peer_that_resets_releases_all,
            the_ends_of_a_connection_are_two_hosts,
        );
    };
    ($arm:ty: $($check:ident,)+) => {
        $(#[test]
        fn $check() {
            $crate::ring::conformance::$check::<$arm>();
        })+
    };
}
pub(crate) use conforms;
