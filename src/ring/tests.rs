//! The real ring with real sockets and files: what every ring has to do, and what only threads
//! and the kernel's queues can show.

use super::conformance::is_locked;
use super::conformance::{Arm, REPLIES, REPLY_SIZE, conforms};
use super::*;
use crate::wal::{Lsn, TimelineId};
use crate::watermark::{Cell, CellId};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn small() -> Uring {
    let setup = Setup { entries: 64, reply_buffers: 8, reply_size: 64, ..Setup::default() };
    Uring::new(setup).unwrap()
}

fn fd(end: impl Into<OwnedFd>) -> Fd {
    Fd::new(end.into())
}

fn soon() -> Wait {
    Wait::Until(Instant::now() + Duration::from_secs(10))
}

/// Turns until something completes.
fn next(ring: &mut Uring) -> Vec<Done> {
    let mut done = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while done.is_empty() {
        assert!(Instant::now() < deadline, "nothing completes");
        ring.turn(Wait::Until(deadline), &mut done).unwrap();
    }
    done
}

fn tcp_pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, client)
}

/// The real ring, TCP on loopback, and temporary files.
struct RealArm {
    ring: Uring,
    listener: TcpListener,
}

impl Arm for RealArm {
    type Ring = Uring;
    type Peer = TcpStream;

    fn new() -> Self {
        let setup = Setup { reply_buffers: REPLIES, reply_size: REPLY_SIZE, ..Setup::default() };
        Self {
            ring: Uring::new(setup).unwrap(),
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
        }
    }

    fn ring(&mut self) -> &mut Uring {
        &mut self.ring
    }

    fn connect(&mut self) -> (Fd, TcpStream) {
        let (near, far) = tcp_pair(&self.listener);
        narrow(&near);
        far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // tokio leaves sockets in this mode.
        near.set_nonblocking(true).unwrap();
        (fd(near), far)
    }

    fn says(&mut self, peer: &mut TcpStream, bytes: &[u8]) {
        peer.write_all(bytes).unwrap();
    }

    fn reads(&mut self, peer: &mut TcpStream, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        peer.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn falls_silent(&mut self, peer: &mut TcpStream) {
        peer.shutdown(Shutdown::Write).unwrap();
    }

    fn resets(&mut self, peer: TcpStream) {
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn wal(&self, at: Lsn, len: usize) -> Vec<u8> {
        let byte = |n: u64| (n.wrapping_mul(0x9E37_79B9) >> 24) as u8 | 1;
        (at.raw()..at.raw() + len as u64).map(byte).collect()
    }

    fn file(&mut self) -> Fd {
        let file = tempfile::tempfile().unwrap();
        file.set_len(CHUNK_SIZE as u64).unwrap();
        fd(file)
    }

    fn next(&mut self) -> Vec<Done> {
        next(&mut self.ring)
    }

    fn moment(&mut self) -> Vec<Done> {
        let (mut done, until) = (Vec::new(), Instant::now() + Duration::from_millis(20));
        while Instant::now() < until {
            self.ring.turn(Wait::Until(until), &mut done).unwrap();
        }
        done
    }
}

conforms!(RealArm);

fn outgoing<'a>(socket: &'a Fd, parts: &'a [IoSlice<'a>]) -> Outgoing<'a> {
    Outgoing { socket, parts, then: Then::Nothing }
}

fn cell() -> CellId {
    Cell::new(TimelineId::FIRST, Lsn::INVALID, Lsn::INVALID).id()
}

#[test]
fn a_turn_that_does_not_sleep_sees_completions_too() {
    let mut ring = small();
    let (near, mut far) = UnixStream::pair().unwrap();
    let near = fd(near);
    let file = fd(tempfile::tempfile().unwrap());
    let (mut done, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(10));
    for _ in 0..100 {
        ring.receive_reply(&near, Token(1));
        ring.sync_data(&file, Token(2));
        ring.turn(Wait::No, &mut done).unwrap();
        far.write_all(b"status").unwrap();
        while done.len() < 2 {
            assert!(Instant::now() < deadline, "{done:?}");
            ring.turn(Wait::No, &mut done).unwrap();
        }
        done.clear();
    }
}

#[test]
fn another_thread_wakes_a_sleeper() {
    let mut ring = small();
    let waker = ring.waker();
    let mut done = Vec::new();
    for _ in 0..3 {
        let waker = waker.clone();
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        ring.turn(Wait::Forever, &mut done).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(15));
        thread.join().unwrap();
    }
    // Fired before the sleep, so the sleep ends at once. Several count as one.
    for _ in 0..3 {
        waker.wake();
        waker.wake();
        ring.turn(Wait::Forever, &mut done).unwrap();
    }
    let start = Instant::now();
    ring.turn(Wait::Until(start + Duration::from_millis(30)), &mut done).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(30));
    ring.turn(Wait::Until(start), &mut done).unwrap();
    assert!(done.is_empty());
}

#[test]
fn a_wake_up_met_while_sending_is_not_slept_over() {
    let mut ring = small();
    let mut done = Vec::new();
    ring.turn(Wait::No, &mut done).unwrap();
    ring.waker().wake();
    let (near, _far) = UnixStream::pair().unwrap();
    let (near, parts) = (fd(near), [IoSlice::new(b"wal")]);
    for _ in 0..3 {
        ring.send_now(&[outgoing(&near, &parts)], &mut Vec::new());
    }
    ring.turn(Wait::Forever, &mut done).unwrap();
    assert!(done.is_empty());
}

#[test]
fn more_operations_than_either_queue_holds() {
    let setup = Setup { entries: 4, reply_buffers: 512, reply_size: 16, ..Setup::default() };
    let mut ring = Uring::new(setup).unwrap();
    let mut pairs: Vec<_> = (0..300).map(|_| UnixStream::pair().unwrap()).collect();
    let sockets: Vec<Fd> = pairs.iter().map(|(near, _)| fd(near.try_clone().unwrap())).collect();
    for _ in 0..3 {
        for (number, socket) in sockets.iter().enumerate() {
            ring.receive_reply(socket, Token(number as u64));
        }
        let mut done = Vec::new();
        ring.turn(Wait::No, &mut done).unwrap();
        assert_eq!(ring.in_flight(), 300);
        for (number, (_, far)) in pairs.iter_mut().enumerate() {
            far.write_all(&(number as u64).to_ne_bytes()).unwrap();
        }
        // The completion queue is full while the sends complete.
        let parts = [IoSlice::new(b"w")];
        let batch: Vec<_> = sockets.iter().map(|socket| outgoing(socket, &parts)).collect();
        let mut results = Vec::new();
        ring.send_now(&batch, &mut results);
        assert!(results.iter().all(|sent| matches!(sent, Ok(1))), "{results:?}");
        while done.len() < 300 {
            ring.turn(soon(), &mut done).unwrap();
        }
        done.sort_by_key(|done| done.token.0);
        for (number, Done { token, outcome }) in done.into_iter().enumerate() {
            assert_eq!(token, Token(number as u64));
            let Outcome::Reply(Ok(reply)) = outcome else { panic!("a reply") };
            assert_eq!(ring.with_reply(reply, <[u8]>::to_vec), token.0.to_ne_bytes());
        }
        assert_eq!(ring.in_flight(), 0);
    }
}

#[test]
fn dropping_waits_for_what_is_in_flight() {
    let mut ring = small();
    let (near, far) = UnixStream::pair().unwrap();
    let near = fd(near);
    let (mut writer, _) = chunks(0, 0).unwrap();
    writer.open(cell(), Lsn::new(0), &[]).unwrap();
    writer.append(&[1; 8192]);
    let path = tempfile::NamedTempFile::new().unwrap();
    let file = fd(path.reopen().unwrap());
    ring.receive(&near, Buffer::with_capacity(32), Token(1));
    ring.receive_reply(&near, Token(2));
    ring.poll_writable(&near, Token(3));
    ring.write(&file, 0, writer.range(Lsn::new(0), Lsn::new(8192)), Token(4));
    ring.sync_data(&file, Token(5));
    ring.turn(Wait::No, &mut Vec::new()).unwrap();
    ring.read(&file, 0, Buffer::with_capacity(32), 32, Token(6));
    drop(ring);
    assert!(std::fs::read(path.path()).unwrap() == [1; 8192]);
    // No operation holds the descriptor any more.
    assert_eq!((Fd::strong_count(&near), Fd::strong_count(&file)), (1, 1));
    drop(far);
}

/// A registered cache of eight chunks of one cell, four of them full, and its bytes. Returns
/// `None` when that much memory may not be locked.
fn registered(ring: &mut Uring) -> Option<(ChunkWriter, ChunkReader, CellId, Vec<u8>)> {
    let (mut writer, mut readers) = chunks(8 * CHUNK_SIZE, 1).unwrap();
    let (cell, reader) = (cell(), readers.remove(0));
    writer.open(cell, Lsn::new(0), &[]).unwrap();
    let wal: Vec<u8> =
        (0..4 * CHUNK_SIZE as u64).map(|n| (n.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect();
    assert_eq!(writer.append(&wal), wal.len());
    writer.durable(writer.filled());
    is_locked(ring.register(&reader)).then_some((writer, reader, cell, wal))
}

/// Sends from `at` on without a copy until the socket is full; returns where that was.
fn fill_up(ring: &mut Uring, reader: &ChunkReader, cell: CellId, near: &Fd) -> usize {
    let mut at = 0;
    loop {
        let hold = reader.pin().hold(cell, Lsn::new(at as u64), 128 << 10).unwrap();
        ring.send_zerocopy(near, hold, Token(1));
        let sent = loop {
            let first = next(ring).into_iter().find_map(|done| match done.outcome {
                Outcome::ZeroCopySent(sent) => Some(sent),
                _ => None,
            });
            if let Some(sent) = first {
                break sent;
            }
        };
        match sent {
            Ok(more) => at += more,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return at;
            }
        }
    }
}

fn narrow(near: &TcpStream) {
    let socket = socket2::SockRef::from(near);
    socket.set_tcp_notsent_lowat(128 << 10).unwrap();
    socket.set_send_buffer_size(512 << 10).unwrap();
}

#[test]
fn a_ring_ends_although_a_peer_never_reads() {
    let mut ring = small();
    let Some((writer, reader, cell, _wal)) = registered(&mut ring) else { return };
    let (near, far) = tcp_pair(&TcpListener::bind("127.0.0.1:0").unwrap());
    narrow(&near);
    let near = fd(near);
    fill_up(&mut ring, &reader, cell, &near);
    let begun = Instant::now();
    drop(ring);
    assert!(begun.elapsed() < Duration::from_secs(5));
    // All holds are released: every chunk can be held again.
    let pin = reader.pin();
    let holds: Vec<_> =
        (0..2).map(|n| pin.hold(cell, Lsn::new(n * CHUNK_SIZE as u64), 1).unwrap()).collect();
    assert!(pin.hold(cell, Lsn::new(2 * CHUNK_SIZE as u64), 1).is_none(), "one in four");
    drop((holds, far, writer));
}
