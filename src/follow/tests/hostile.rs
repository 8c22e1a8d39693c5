//! An upstream that differs, is asked for the records around the difference, and answers with whatever
//! costs this hub time, memory or work. The difference is kept all the same, and soon.

use super::{Scene, receiving_as};
use crate::store::retention::Holds;
use crate::wal::Lsn;
use crate::wire::backend;
use crate::wire::copy::xlog_data_header;
use crate::wire::time::PgTime;
use bytes::BytesMut;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What it does, and how much it could send.
#[derive(Clone)]
pub(super) struct Hostility {
    kind: Kind,
    sent: Arc<AtomicU64>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Bytes that are no messages.
    Garbage,
    /// A message whose length is out of all measure.
    Giant,
    /// WAL without end, whatever it is told.
    Flood,
    /// WAL of another position.
    Elsewhere,
    /// Keepalives without end that want an answer.
    Keepalives,
    /// A byte now and then.
    Trickle,
    /// Nothing.
    Hangs,
}

const KINDS: [Kind; 7] = [
    Kind::Garbage,
    Kind::Giant,
    Kind::Flood,
    Kind::Elsewhere,
    Kind::Keepalives,
    Kind::Trickle,
    Kind::Hangs,
];

impl Hostility {
    /// Answers the command until the connection breaks.
    pub(super) fn show(&self, socket: &mut TcpStream, asked: &str) -> std::io::Result<()> {
        let start = asked.split(' ').nth(1).unwrap().parse::<Lsn>().unwrap();
        let mut out = BytesMut::new();
        backend::copy_both(&mut out);
        socket.write_all(&out)?;
        let wal = |at: Lsn| {
            let mut message =
                BytesMut::from(&xlog_data_header(at, at, PgTime::new(0), 64 << 10)[..]);
            message.resize(message.len() + (64 << 10), 0xBB);
            message
        };
        let mut at = start;
        loop {
            let piece = match self.kind {
                Kind::Garbage => BytesMut::from(&[0xC3; 4096][..]),
                Kind::Giant => BytesMut::from(&b"d\x7f\xff\xff\xffw"[..]),
                Kind::Flood => wal(at),
                Kind::Elsewhere => wal(start.saturating_add(8)),
                Kind::Keepalives => {
                    let mut one = b"d\0\0\0\x16k".to_vec();
                    one.extend_from_slice(&[0; 16]);
                    one.push(1);
                    BytesMut::from(&one.repeat(1000)[..])
                }
                Kind::Trickle => BytesMut::from(&b"d"[..]),
                Kind::Hangs => BytesMut::new(),
            };
            match self.kind {
                Kind::Trickle | Kind::Hangs => std::thread::sleep(Duration::from_millis(50)),
                _ => at = at.saturating_add(64 << 10),
            }
            socket.write_all(&piece)?;
            self.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if matches!(self.kind, Kind::Hangs) && is_closed(socket) {
                return Ok(());
            }
        }
    }
}

fn is_closed(socket: &TcpStream) -> bool {
    socket.set_nonblocking(true).unwrap();
    let closed = matches!(socket.peek(&mut [0]), Ok(0));
    socket.set_nonblocking(false).unwrap();
    closed
}

/// The hub differs from this upstream, which shows `kind` when it is asked once more.
fn differing_from(directory: &std::path::Path, kind: Kind, limit: Duration) -> (Scene, Hostility) {
    let scene = receiving_as(directory, 0xAA, Holds::new(Lsn::INVALID), |config| {
        config.wal_receiver_timeout = limit;
        // One attempt is looked at.
        config.wal_retrieve_retry_interval = Duration::from_secs(3600);
    });
    let hostility = Hostility { kind, sent: Arc::default() };
    {
        let mut server = scene.server.lock().unwrap();
        server.wal = Some(0xBB);
        server.hostility = Some(hostility.clone());
    }
    (scene, hostility)
}

#[test]
fn a_closer_look_ends_in_time_whatever_the_upstream_does() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let limit = Duration::from_millis(500);
        let (scene, hostility) = differing_from(directory.path(), kind, limit);
        let began = Instant::now();
        scene.end(crate::upstream::end::UpstreamEnd::TimedOut);
        scene.wait_for("evidence 1 0/5000000");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{kind:?}: {took:?}");
        let sent = hostility.sent.load(Ordering::Relaxed);
        assert!(sent < 200 << 20, "{kind:?}: {sent} bytes");
        assert!(scene.inbox.is_empty(), "{kind:?}: it has a stream");
    }
}

/// With all the time that it may take, a flood ends when it is more than any server has on its way.
#[test]
fn a_flood_ends_long_before_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let limit = Duration::from_secs(3600);
    let (scene, hostility) = differing_from(directory.path(), Kind::Flood, limit);
    scene.end(crate::upstream::end::UpstreamEnd::TimedOut);
    let end = Instant::now() + Duration::from_secs(60);
    while !scene.saved().urgent.contains(&"evidence 1 0/5000000".to_owned()) {
        assert!(Instant::now() < end, "{:?}", scene.saved());
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = hostility.sent.load(Ordering::Relaxed);
    assert!(sent < 200 << 20, "{sent} bytes");
}
