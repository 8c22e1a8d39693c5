//! The upstream: sends its WAL in messages, wants flush positions, and breaks.

use super::kernel::{Kernel, MICROSECOND, MILLISECOND, Peer, SECOND, Socket, SocketId};
use super::truth::Truth;
use crate::data::handoff::UpstreamHandoff;
use crate::store::evidence::WalSource;
use crate::upstream::position::Position;
use crate::wal::{Lsn, TimelineId};
use crate::wire::copy::{FromReceiver, ReplyRequest, keepalive, xlog_data_header};
use crate::wire::frame::next_frame;
use crate::wire::time::PgTime;
use bytes::BytesMut;
use std::collections::BTreeSet;
use std::time::Duration;

/// The most bytes in transit to the hub.
const WINDOW: usize = 200 << 10;

pub(super) struct Primary {
    truth: &'static Truth,
    pub(super) goal: Lsn,
    /// The end of its WAL so far.
    pub(super) written: Lsn,
    link: Option<Link>,
    pub(super) next_at: Duration,
    /// Approximate bytes of WAL per write.
    pace: u64,
    /// Statuses received from the hub.
    pub(super) statuses: u64,
    pub(super) stopped: bool,
}

struct Link {
    socket: SocketId,
    sent: Lsn,
    /// Bytes to send.
    words: Vec<u8>,
    flush: Lsn,
    stalled_until: Duration,
    /// A byte was corrupted: the stream must end.
    corrupt: bool,
    asked_at: Option<Duration>,
}

impl Primary {
    pub(super) fn new(truth: &'static Truth, written: Lsn, goal: Lsn, pace: u64) -> Self {
        Self {
            truth,
            goal,
            written,
            link: None,
            next_at: SECOND,
            pace,
            statuses: 0,
            stopped: false,
        }
    }

    pub(super) fn is_corrupt(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.corrupt)
    }

    /// The hub has reported the end of the stream.
    pub(super) fn disconnected(&mut self, kernel: &mut Kernel) {
        self.link = None;
        self.next_at = kernel.now + kernel.delay(20 * MILLISECOND);
    }

    /// Is it connected, and waiting for nothing?
    pub(super) fn is_content(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.asked_at.is_none())
    }

    /// Acts once. Returns a hand-over for the hub when a connection is made.
    pub(super) fn act(
        &mut self,
        kernel: &mut Kernel,
        position: Position,
        seen: &mut BTreeSet<&'static str>,
    ) -> Option<UpstreamHandoff> {
        self.next_at = kernel.now + kernel.delay(300 * MICROSECOND);
        if self.written < self.goal {
            let length = kernel.random.below(2 * self.pace);
            self.written = self.truth.message_end(self.written, length, self.goal);
        }
        if self.link.is_some() {
            self.stream(kernel, seen);
            return None;
        }
        if self.stopped {
            return None;
        }
        let start = match position {
            Position::Empty => kernel.disk.oldest(),
            Position::At { start, .. } => start,
        };
        self.written = self.written.max(start);
        let capacity = 50 + kernel.random.below(4000) as usize;
        let (id, socket) = kernel.connect(Socket::new(Peer::Upstream(Vec::new()), capacity));
        let mut link = Link {
            socket: id,
            sent: start,
            words: Vec::new(),
            flush: Lsn::INVALID,
            stalled_until: Duration::ZERO,
            corrupt: false,
            asked_at: None,
        };
        self.speak(&mut link, kernel, seen);
        let early = kernel.random.below(60_000).min(link.words.len() as u64) as usize;
        let unread = BytesMut::from(&link.words[..early]);
        link.words.drain(..early);
        self.link = Some(link);
        Some(UpstreamHandoff {
            socket,
            unread,
            start,
            tli: TimelineId::FIRST,
            source: WalSource { name: "primary".to_owned(), server: None },
        })
    }

    /// Composes the next messages.
    fn speak(&self, link: &mut Link, kernel: &mut Kernel, seen: &mut BTreeSet<&'static str>) {
        let time = PgTime::new(kernel.now.as_micros() as i64);
        if kernel.faults.peers > 0 && kernel.random.chance(50) && link.asked_at.is_none() {
            link.words.extend_from_slice(&keepalive(link.sent, time, ReplyRequest::Yes));
            link.asked_at = Some(kernel.now);
        }
        while link.words.len() < WINDOW && link.sent < self.written {
            let length = kernel.random.below(3 * self.pace);
            let end = self.truth.message_end(link.sent, length, self.written);
            let wal_len = end.bytes_since(link.sent) as usize;
            let header = xlog_data_header(link.sent, self.written, time, wal_len);
            link.words.extend_from_slice(&header);
            let begin = link.words.len();
            link.words.extend_from_slice(self.truth.bytes(link.sent, wal_len));
            if kernel.random.chance(kernel.faults.peers / 8) {
                // In the header of a record that is wholly in this message, so that the hub can
                // detect it.
                let record = self.truth.record_start(link.sent);
                let whole = self.truth.record_end(end) > record && record < end;
                if whole && record.page_offset() + 24 <= 8192 {
                    let at = begin + record.bytes_since(link.sent) as usize;
                    link.words[at + 4 + kernel.random.below(16) as usize] ^= 0x10;
                    link.corrupt = true;
                    seen.insert("a falsified byte");
                }
            }
            link.sent = end;
        }
    }

    fn stream(&mut self, kernel: &mut Kernel, seen: &mut BTreeSet<&'static str>) {
        let Some(mut link) = self.link.take() else { return };
        self.listen(&mut link, kernel);
        let calm = kernel.faults.peers == 0;
        if link.stalled_until <= kernel.now || calm {
            self.speak(&mut link, kernel, seen);
            let fragment = match kernel.random.below(10) {
                0..5 if !calm => kernel.random.below(5000),
                _ => 200_000,
            };
            let fault =
                kernel.random.chance(kernel.faults.peers / 4).then(|| kernel.random.below(4));
            let stall = kernel.random.below(100);
            let now = kernel.now;
            let socket = kernel.socket(link.socket);
            if !socket.is_broken() && socket.said.len() < WINDOW {
                let count = link.words.len().min(fragment as usize);
                socket.said.extend(link.words.drain(..count));
            }
            match fault {
                Some(0) => {
                    seen.insert("a reset by the upstream");
                    socket.reset = true;
                    socket.said.clear();
                }
                Some(1) => socket.said_all = true,
                Some(_) => link.stalled_until = now + SECOND * stall as u32,
                None => {}
            }
        }
        self.link = Some(link);
    }

    /// The positions that the hub reports must be true.
    fn listen(&mut self, link: &mut Link, kernel: &mut Kernel) {
        let (durable, flushed) = (kernel.disk.durable(), kernel.disk.flushed());
        let socket = kernel.socket(link.socket);
        socket.unread = 0;
        let Peer::Upstream(told) = &mut socket.peer else { return };
        let mut used = 0;
        while let Ok(Some(frame)) = next_frame(&told[used..], 100) {
            if let (b'd', Ok(FromReceiver::Status(status))) =
                (frame.tag, FromReceiver::parse(frame.body))
            {
                assert!(status.write <= durable, "I5: write {} > {durable}", status.write);
                assert!(status.flush <= flushed, "I5: flush {} > {flushed}", status.flush);
                assert!(link.flush <= status.flush, "I2: flush goes back");
                link.flush = status.flush;
                link.asked_at = None;
                self.statuses += 1;
            }
            assert!(b"dX".contains(&frame.tag), "framing: the hub says {}", frame.tag);
            used += frame.len;
        }
        told.drain(..used);
    }
}
