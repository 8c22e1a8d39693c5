//! The real ring against real sockets and files.

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

/// Turns until exactly one thing completes.
fn one(ring: &mut Uring) -> Done {
    let mut done = next(ring);
    assert_eq!(done.len(), 1, "{done:?}");
    done.remove(0)
}

fn tcp_pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, client)
}

fn outgoing<'a>(socket: &'a Fd, parts: &'a [IoSlice<'a>]) -> Outgoing<'a> {
    Outgoing { socket, parts, then: Then::Nothing }
}

fn cell() -> CellId {
    Cell::new(TimelineId::FIRST, Lsn::INVALID, Lsn::INVALID).id()
}

#[test]
fn sends_to_two_hundred_sockets_at_once() {
    let mut ring = small();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut ours, mut theirs): (Vec<Fd>, Vec<Box<dyn Read>>) = (Vec::new(), Vec::new());
    for number in 0..200 {
        if number % 2 == 0 {
            let (near, far) = tcp_pair(&listener);
            ours.push(fd(near));
            theirs.push(Box::new(far));
        } else {
            let (near, far) = UnixStream::pair().unwrap();
            ours.push(fd(near));
            theirs.push(Box::new(far));
        }
    }
    let mut results = Vec::new();
    for round in 0..5u8 {
        let (mut header, mut body) = ([round; 30], vec![round ^ 0x55; 8192]);
        let parts = [IoSlice::new(&header), IoSlice::new(&body)];
        let batch: Vec<_> = ours.iter().map(|socket| outgoing(socket, &parts)).collect();
        ring.send_now(&batch, &mut results);
        drop(batch);
        // The memory is ours again at once.
        header.fill(0xEE);
        body.fill(0xEE);
        assert_eq!(results.len(), 200);
        for (result, peer) in results.iter().zip(&mut theirs) {
            assert_eq!(*result.as_ref().unwrap(), 30 + 8192);
            let mut got = vec![0; 30 + 8192];
            peer.read_exact(&mut got).unwrap();
            assert!(got[..30].iter().all(|byte| *byte == round));
            assert!(got[30..].iter().all(|byte| *byte == round ^ 0x55));
        }
    }
    assert_eq!((ring.in_flight(), ring.counters().late_sends), (0, 0));
}

#[test]
fn a_full_peer_gives_a_short_count_then_would_block_then_is_writable() {
    let mut ring = small();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (near, mut far) = tcp_pair(&listener);
    let (near, ok) = (fd(near), UnixStream::pair().unwrap());
    let ok_near = fd(ok.0);
    let big = vec![7u8; 16 << 20];
    let (parts, few) = ([IoSlice::new(&big)], [IoSlice::new(b"few")]);
    let mut results = Vec::new();
    let batch = [outgoing(&near, &parts), outgoing(&ok_near, &few)];
    ring.send_now(&batch, &mut results);
    let mut sent = *results[0].as_ref().unwrap();
    assert!(sent > 0 && sent < big.len(), "{sent}");
    assert_eq!(*results[1].as_ref().unwrap(), 3);

    // Loopback may still move bytes from our queue to the peer's.
    loop {
        ring.send_now(&batch[..1], &mut results);
        match &results[0] {
            Ok(more) => sent += more,
            Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    ring.poll_writable(&near, Token(9));
    let mut done = Vec::new();
    ring.turn(Wait::Until(Instant::now() + Duration::from_millis(20)), &mut done).unwrap();
    assert!(done.is_empty(), "{done:?}");
    assert_eq!(ring.in_flight(), 1);

    let mut got = vec![0; sent];
    far.read_exact(&mut got).unwrap();
    let done = one(&mut ring);
    assert_eq!(done.token, Token(9));
    assert!(matches!(done.outcome, Outcome::Writable(Ok(()))));

    // Armed again, and again at once true.
    ring.poll_writable(&near, Token(10));
    assert!(matches!(one(&mut ring).outcome, Outcome::Writable(Ok(()))));
    ring.send_now(&batch[1..], &mut results);
    drop(ok.1);
    ring.send_now(&batch[1..], &mut results);
    assert_eq!(results[0].as_ref().unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(ring.counters().late_sends, 0);
}

#[test]
fn completions_met_while_sending_are_kept() {
    let mut ring = small();
    let (near, mut far) = UnixStream::pair().unwrap();
    let near = fd(near);
    far.write_all(b"status").unwrap();
    ring.receive_reply(&near, Token(1));
    let parts = [IoSlice::new(b"wal")];
    let mut results = Vec::new();
    ring.send_now(&[outgoing(&near, &parts)], &mut results);
    assert_eq!(*results[0].as_ref().unwrap(), 3);
    assert_eq!(ring.in_flight(), 1);
    let Done { token: Token(1), outcome: Outcome::Reply(Ok(reply)) } = one(&mut ring) else {
        panic!("the reply");
    };
    assert_eq!(ring.with_reply(reply, <[u8]>::to_vec), b"status");
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn replies_come_from_lent_buffers_that_run_out_and_return() {
    let mut ring = small();
    let mut pairs: Vec<_> = (0..12).map(|_| UnixStream::pair().unwrap()).collect();
    let sockets: Vec<Fd> = pairs.iter().map(|(near, _)| fd(near.try_clone().unwrap())).collect();
    for _ in 0..20 {
        for (number, (socket, (_, far))) in sockets.iter().zip(&mut pairs).enumerate() {
            far.write_all(&[number as u8; 39]).unwrap();
            ring.receive_reply(socket, Token(number as u64));
        }
        let mut done = Vec::new();
        while done.len() < 12 {
            ring.turn(soon(), &mut done).unwrap();
        }
        let (mut held, mut refused) = (Vec::new(), Vec::new());
        for Done { token, outcome } in done {
            match outcome {
                Outcome::Reply(Ok(reply)) => held.push((token, reply)),
                Outcome::Reply(Err(error)) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
                    refused.push(token);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((held.len(), refused.len()), (8, 4));
        // Half are read, half are dropped unread: both give the buffer back.
        for (place, (token, reply)) in held.into_iter().enumerate() {
            if place % 2 == 0 {
                let bytes = ring.with_reply(reply, <[u8]>::to_vec);
                assert_eq!(bytes, [token.0 as u8; 39]);
            }
        }
        for token in refused {
            ring.receive_reply(&sockets[token.0 as usize], token);
            let Outcome::Reply(Ok(reply)) = one(&mut ring).outcome else { panic!("a reply") };
            assert_eq!(ring.with_reply(reply, <[u8]>::to_vec), [token.0 as u8; 39]);
        }
    }
}

#[test]
fn a_reply_larger_than_a_buffer_comes_in_pieces_and_then_the_end() {
    let mut ring = small();
    let (near, mut far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let near = fd(near);
    far.write_all(&[3; 100]).unwrap();
    drop(far);
    let mut sizes = Vec::new();
    loop {
        ring.receive_reply(&near, Token(0));
        let Outcome::Reply(Ok(reply)) = one(&mut ring).outcome else { panic!("a reply") };
        sizes.push(reply.len());
        assert_eq!(ring.with_reply(reply, <[u8]>::len), sizes[sizes.len() - 1]);
        if sizes[sizes.len() - 1] == 0 {
            break;
        }
    }
    assert_eq!(sizes, [64, 36, 0]);
    // The end of the stream used no buffer up.
    for _ in 0..20 {
        ring.receive_reply(&near, Token(0));
        assert!(matches!(one(&mut ring).outcome, Outcome::Reply(Ok(reply)) if reply.is_empty()));
    }
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
fn receives_behind_what_is_there() {
    let mut ring = small();
    let (near, mut far) = UnixStream::pair().unwrap();
    // A descriptor that tokio had: waits all the same.
    near.set_nonblocking(true).unwrap();
    let near = fd(near);
    let mut buffer = Buffer::with_capacity(16);
    assert_eq!(buffer.append(b"0123456789"), 10);
    buffer.consume(8);
    ring.receive(&near, buffer, Token(4));
    let mut done = Vec::new();
    ring.turn(Wait::Until(Instant::now() + Duration::from_millis(10)), &mut done).unwrap();
    assert!(done.is_empty(), "{done:?}");
    far.write_all(b"abc").unwrap();
    let Outcome::Received(Ok(3), buffer) = one(&mut ring).outcome else { panic!("three bytes") };
    assert_eq!(buffer.filled(), b"89abc");
    drop(far);
    ring.receive(&near, buffer, Token(5));
    let Outcome::Received(Ok(0), buffer) = one(&mut ring).outcome else { panic!("the end") };
    assert_eq!(buffer.filled(), b"89abc");
}

#[test]
fn a_cancelled_operation_completes_and_gives_back() {
    let mut ring = small();
    let (near, mut far) = UnixStream::pair().unwrap();
    let near = fd(near);
    let receive = ring.receive(&near, Buffer::with_capacity(32), Token(1));
    let reply = ring.receive_reply(&near, Token(2));
    let mut done = Vec::new();
    ring.turn(Wait::No, &mut done).unwrap();
    assert!(done.is_empty());
    for (op, token) in [(receive, Token(1)), (reply, Token(2))] {
        ring.cancel(op);
        let done = one(&mut ring);
        assert_eq!(done.token, token);
        let error = match done.outcome {
            Outcome::Received(Err(error), buffer) => {
                assert!(buffer.is_empty());
                error
            }
            Outcome::Reply(Err(error)) => error,
            other => panic!("{other:?}"),
        };
        assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
        // A stale name does nothing.
        ring.cancel(op);
    }
    // Nothing was swallowed.
    far.write_all(b"next command").unwrap();
    ring.receive_reply(&near, Token(3));
    let Outcome::Reply(Ok(reply)) = one(&mut ring).outcome else { panic!("a reply") };
    assert_eq!(ring.with_reply(reply, <[u8]>::to_vec), b"next command");
}

#[test]
fn writes_syncs_and_reads_back() {
    let mut ring = small();
    let (mut writer, _) = chunks(0, 0).unwrap();
    let at = Lsn::new(5 * CHUNK_SIZE as u64);
    writer.open(cell(), at, &[]).unwrap();
    let wal: Vec<u8> = (0..20_000u32).map(|n| n as u8 | 1).collect();
    assert_eq!(writer.append(&wal), wal.len());
    let file = fd(tempfile::tempfile().unwrap());
    // Widened to pages: the tail is zero.
    let (from, to) = (at, at.saturating_add(20_000).page_ceil());
    ring.write(&file, 8192, writer.range(from, to), Token(1));
    let Outcome::Written(Ok(24_576)) = one(&mut ring).outcome else { panic!("written") };
    ring.sync_data(&file, Token(2));
    assert!(matches!(one(&mut ring).outcome, Outcome::Synced(Ok(()))));
    ring.read(&file, 8192, Buffer::with_capacity(32_768), 32_768, Token(3));
    let Outcome::Read(Ok(24_576), mut buffer) = one(&mut ring).outcome else { panic!("read") };
    assert_eq!(buffer.filled()[..20_000], wal);
    assert!(buffer.filled()[20_000..].iter().all(|byte| *byte == 0));
    buffer.clear();
    ring.read(&file, 8192 + 24_576, buffer, 10, Token(4));
    assert!(matches!(one(&mut ring).outcome, Outcome::Read(Ok(0), _)));
    ring.sync_data(&fd(UnixStream::pair().unwrap().0), Token(5));
    assert!(matches!(one(&mut ring).outcome, Outcome::Synced(Err(_))));
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
    // Fired before the sleep: the sleep is over at once. Several are one.
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

/// A registered cache of eight chunks of one cell, four of them full, and its bytes.
fn registered(ring: &mut Uring) -> (ChunkWriter, ChunkReader, CellId, Vec<u8>) {
    let (mut writer, mut readers) = chunks(8 * CHUNK_SIZE, 1).unwrap();
    let (cell, reader) = (cell(), readers.remove(0));
    writer.open(cell, Lsn::new(0), &[]).unwrap();
    let wal: Vec<u8> =
        (0..4 * CHUNK_SIZE as u64).map(|n| (n.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect();
    assert_eq!(writer.append(&wal), wal.len());
    writer.durable(writer.filled());
    ring.register(&reader).unwrap();
    (writer, reader, cell, wal)
}

/// Both completions of a send without a copy.
fn both(ring: &mut Uring) -> (io::Result<usize>, Copied) {
    let mut done = Vec::new();
    while done.len() < 2 {
        done.extend(next(ring));
    }
    let outcomes: Vec<_> = done.into_iter().map(|done| done.outcome).collect();
    let Ok([Outcome::ZeroCopySent(sent), Outcome::ZeroCopyReleased(copied)]) =
        <[_; 2]>::try_from(outcomes)
    else {
        panic!("sent, then released");
    };
    (sent, copied)
}

#[test]
fn sends_without_a_copy_are_the_bytes_and_are_copied_here() {
    let mut ring = small();
    let (_writer, reader, cell, wal) = registered(&mut ring);
    let (near, mut far) = tcp_pair(&TcpListener::bind("127.0.0.1:0").unwrap());
    let near = fd(near);
    for (number, at) in [0, 8192, CHUNK_SIZE - 100, 3 * CHUNK_SIZE + 5].into_iter().enumerate() {
        let hold = reader.pin().hold(cell, Lsn::new(at as u64), 128 << 10).unwrap();
        let len = hold.len();
        // A header and a body, as one piece for the network.
        let header = [number as u8; 30];
        let parts = [IoSlice::new(&header)];
        let mut results = Vec::new();
        let message = Outgoing { socket: &near, parts: &parts, then: Then::More };
        ring.send_now(&[message], &mut results);
        assert_eq!(*results[0].as_ref().unwrap(), 30);
        ring.send_zerocopy(&near, hold, Token(number as u64));
        assert_eq!(ring.in_flight(), 1);
        let mut got = vec![0; 30 + len];
        // The peer reads while it is sent.
        let (sent, copied) = std::thread::scope(|scope| {
            let peer = scope.spawn(|| far.read_exact(&mut got).unwrap());
            let completed = both(&mut ring);
            peer.join().unwrap();
            completed
        });
        assert_eq!((sent.unwrap(), copied), (len, Copied::Yes));
        assert!(got[..30] == header && got[30..] == wal[at..at + len]);
    }
    let counters = ring.counters();
    assert_eq!((counters.zerocopy_sends, counters.zerocopy_copied), (4, 4));
    assert_eq!((ring.in_flight(), counters.zerocopy_unreleased), (0, 0));
}

/// Sends from `at` on without a copy until the socket is full; where that was.
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
fn a_chunk_that_a_peer_has_not_read_is_not_written_again() {
    let mut ring = small();
    let (mut writer, reader, cell, wal) = registered(&mut ring);
    let (near, mut far) = tcp_pair(&TcpListener::bind("127.0.0.1:0").unwrap());
    narrow(&near);
    let near = fd(near);
    let sent = fill_up(&mut ring, &reader, cell, &near);
    let unreleased = ring.counters().zerocopy_unreleased;
    assert!(unreleased > 0 && ring.in_flight() as u64 >= unreleased);
    // The socket is closed here; the kernel still reads the chunk.
    drop(near);
    for _ in 0..20 {
        assert_eq!(writer.append(&[0xEE; CHUNK_SIZE]), CHUNK_SIZE);
        writer.durable(writer.filled());
    }
    let mut got = vec![0; sent];
    far.read_exact(&mut got).unwrap();
    assert!(got == wal[..sent], "the peer got other bytes");
    drop(far);
    let deadline = Instant::now() + Duration::from_secs(10);
    while ring.in_flight() > 0 {
        assert!(Instant::now() < deadline, "what was read is released");
        ring.turn(soon(), &mut Vec::new()).unwrap();
    }
}

#[test]
fn a_reset_releases_what_a_peer_never_reads() {
    let mut ring = small();
    let (_writer, reader, cell, _wal) = registered(&mut ring);
    let (near, far) = tcp_pair(&TcpListener::bind("127.0.0.1:0").unwrap());
    narrow(&near);
    let near = fd(near);
    fill_up(&mut ring, &reader, cell, &near);
    assert!(ring.counters().zerocopy_unreleased > 0);
    ring.reset(&near).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while ring.in_flight() > 0 {
        assert!(Instant::now() < deadline, "a reset connection holds nothing");
        ring.turn(soon(), &mut Vec::new()).unwrap();
    }
    // Nobody but us holds the socket after a send's first completion.
    assert_eq!(Fd::strong_count(&near), 1);
    drop(far);
}

#[test]
fn a_ring_ends_although_a_peer_never_reads() {
    let mut ring = small();
    let (writer, reader, cell, _wal) = registered(&mut ring);
    let (near, far) = tcp_pair(&TcpListener::bind("127.0.0.1:0").unwrap());
    narrow(&near);
    let near = fd(near);
    fill_up(&mut ring, &reader, cell, &near);
    let begun = Instant::now();
    drop(ring);
    assert!(begun.elapsed() < Duration::from_secs(5));
    // All holds are given back: every chunk can be held again.
    let pin = reader.pin();
    let holds: Vec<_> =
        (0..2).map(|n| pin.hold(cell, Lsn::new(n * CHUNK_SIZE as u64), 1).unwrap()).collect();
    assert!(pin.hold(cell, Lsn::new(2 * CHUNK_SIZE as u64), 1).is_none(), "one in four");
    drop((holds, far, writer));
}

#[test]
fn memory_that_is_not_registered_is_an_error_and_free_again() {
    let mut ring = small();
    let (mut writer, mut readers) = chunks(0, 1).unwrap();
    let (cell, reader) = (cell(), readers.remove(0));
    writer.open(cell, Lsn::new(0), &[]).unwrap();
    writer.append(&[1; 8192]);
    let (near, _far) = tcp_pair(&TcpListener::bind("127.0.0.1:0").unwrap());
    let hold = reader.pin().hold(cell, Lsn::new(0), 8192).unwrap();
    ring.send_zerocopy(&fd(near), hold, Token(1));
    let (sent, copied) = both(&mut ring);
    assert_eq!((sent.unwrap_err().raw_os_error(), copied), (Some(libc::EFAULT), Copied::No));
    assert_eq!(ring.in_flight(), 0);
}
