//! One synthetic standby: what it says, and what it makes of the bytes that come.
//!
//! Message headers are read and checked for continuity; the WAL itself is thrown away,
//! big pieces of it in the kernel.

use super::Nanos;
use crate::fault::{During, Fault, Outcome};
use bytes::BytesMut;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::time::SystemTime;
use walhub::wal::Lsn;
use walhub::wire::copy::{
    FromSender, KEEPALIVE_FRAME, ReplyRequest, StatusReply, XLOG_DATA_HEADER,
};
use walhub::wire::frame::next_frame;
use walhub::wire::frontend;
use walhub::wire::time::PgTime;

/// Longer rests of messages are thrown away in the kernel.
const DISCARD_FROM: usize = 16 << 10;
/// The longest message before the stream begins.
const MAX_GREETING: usize = 64 << 10;

/// When a standby reports its positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Replies {
    /// Every 10 s (`wal_receiver_status_interval`), and when asked.
    Interval,
    /// Also twice for whatever came together, as a walreceiver does: written, flushed.
    Flush,
}

/// How a standby reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Temper {
    /// At once.
    Good,
    /// So many bytes a second.
    Slow(f64),
    /// Not at all, once the stream has begun.
    Stalled,
}

/// What reading came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Nothing is left in the socket, or enough was read for now.
    Enough,
    /// The stream has begun.
    Began,
}

/// A standby and its connection.
#[derive(Debug)]
pub(super) struct Standby {
    pub(super) socket: OwnedFd,
    replies: Replies,
    /// Bytes of the greeting that are no whole message yet; none once it streams.
    greeting: Option<BytesMut>,
    /// The beginning of a message's header.
    header: [u8; XLOG_DATA_HEADER],
    header_len: usize,
    /// WAL of the current message that is still to come.
    left: usize,
    /// First byte of WAL that has not come.
    next: Lsn,
    pub(super) receipts: Vec<(Lsn, Nanos)>,
}

impl Standby {
    /// Over a socket on which nothing was said yet.
    pub(super) fn new(socket: OwnedFd, start: Lsn, replies: Replies) -> Self {
        Self {
            socket,
            replies,
            greeting: Some(BytesMut::new()),
            header: [0; XLOG_DATA_HEADER],
            header_len: 0,
            left: 0,
            next: start,
            receipts: Vec::new(),
        }
    }

    /// Asks for the stream, all in one: nothing of it depends on an answer.
    pub(super) fn ask(&self, name: &str) -> Outcome {
        let mut out = BytesMut::new();
        let parameters =
            [("user", crate::servers::USER), ("replication", "true"), ("application_name", name)];
        frontend::startup(&mut out, &parameters);
        frontend::query(&mut out, &format!("START_REPLICATION {} TIMELINE 1", self.next));
        let sent = send(&self.socket, &out, SendFlags::NOSIGNAL).during("send")?;
        if sent == out.len() { Ok(()) } else { Err(Fault::new("a socket full at once")) }
    }

    pub(super) fn is_streaming(&self) -> bool {
        self.greeting.is_none()
    }

    /// First byte of WAL that has not come.
    pub(super) fn received(&self) -> Lsn {
        self.next
    }

    /// Reads what there is, at most `budget` bytes or a little more.
    pub(super) fn read(&mut self, block: &mut [u8], budget: usize) -> Outcome<Read> {
        let (mut read, mut outcome) = (0, Read::Enough);
        while read < budget {
            let discards = self.left >= DISCARD_FROM;
            let wanted = if discards { self.left.min(block.len()) } else { DISCARD_FROM };
            let flags = if discards { RecvFlags::TRUNC } else { RecvFlags::empty() };
            let room = block.get_mut(..wanted.min(budget.max(64))).unwrap_or_default();
            let asked = room.len();
            let count = match recv(&self.socket, room, flags | RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Fault::new("the server has closed the connection")),
                Ok((_, count)) => count,
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => return Err(error).during("receive"),
            };
            read += count;
            if discards {
                self.left -= count;
                self.next = self.next.saturating_add(count as u64);
            } else {
                let bytes = block.get(..count).unwrap_or_default();
                if self.take(bytes)? == Read::Began {
                    outcome = Read::Began;
                }
            }
            if count < asked {
                break;
            }
        }
        Ok(outcome)
    }

    fn take(&mut self, bytes: &[u8]) -> Outcome<Read> {
        let Some(mut greeting) = self.greeting.take() else {
            self.stream(bytes)?;
            return Ok(Read::Enough);
        };
        greeting.extend_from_slice(bytes);
        while let Some(frame) = next_frame(&greeting, MAX_GREETING).during("a greeting")? {
            let (tag, len) = (frame.tag, frame.len);
            if tag == b'E' {
                let text = String::from_utf8_lossy(frame.body).replace('\0', " ");
                return Err(Fault::new(text));
            }
            drop(greeting.split_to(len));
            if tag == b'W' {
                self.stream(&greeting)?;
                return Ok(Read::Began);
            }
        }
        self.greeting = Some(greeting);
        Ok(Read::Enough)
    }

    /// Bytes of the stream, which may begin and end anywhere.
    fn stream(&mut self, mut bytes: &[u8]) -> Outcome {
        while !bytes.is_empty() {
            if self.left > 0 {
                let wal = self.left.min(bytes.len());
                self.left -= wal;
                self.next = self.next.saturating_add(wal as u64);
                bytes = bytes.get(wal..).unwrap_or_default();
                continue;
            }
            let whole = header_len(self.header.get(..self.header_len).unwrap_or_default());
            let missing = (whole - self.header_len).min(bytes.len());
            let (head, rest) = bytes.split_at(missing);
            let place = self.header_len..self.header_len + missing;
            if let Some(place) = self.header.get_mut(place) {
                place.copy_from_slice(head);
            }
            self.header_len += missing;
            bytes = rest;
            let known = self.header.get(..self.header_len).unwrap_or_default();
            if self.header_len == header_len(known) && self.header_len > UNKNOWN {
                self.header_len = 0;
                self.begin_message()?;
            }
        }
        Ok(())
    }

    /// The header is complete.
    fn begin_message(&mut self) -> Outcome {
        if self.header[0] != b'd' {
            let tag = char::from(self.header[0]).escape_default();
            return Err(Fault::new(format!("a message \"{tag}\" in the stream")));
        }
        let length =
            u32::from_be_bytes([self.header[1], self.header[2], self.header[3], self.header[4]])
                as usize;
        let keepalive = self.header[5] == b'k';
        let end = if keepalive { KEEPALIVE_FRAME } else { XLOG_DATA_HEADER };
        let payload = self.header.get(5..end).unwrap_or_default();
        match FromSender::parse(payload).during("a message")? {
            FromSender::XLogData { start, .. } => {
                if start != self.next {
                    return Err(Fault::new(format!("WAL at {start} came behind {}", self.next)));
                }
                self.left = (length + 1).saturating_sub(XLOG_DATA_HEADER);
                Ok(())
            }
            FromSender::Keepalive { reply: ReplyRequest::Yes, .. } => self.report(),
            FromSender::Keepalive { .. } => Ok(()),
        }
    }

    /// What a walreceiver says when it has taken all there was.
    pub(super) fn answer(&self) -> Outcome {
        match self.replies {
            Replies::Interval => Ok(()),
            Replies::Flush => self.report().and_then(|()| self.report()),
        }
    }

    /// Reports that everything is written, flushed and replayed.
    pub(super) fn report(&self) -> Outcome {
        let reply = StatusReply {
            write: self.next,
            flush: self.next,
            apply: self.next,
            client_time: PgTime::from(SystemTime::now()),
            reply: ReplyRequest::No,
        };
        match send(&self.socket, &reply.encode(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            // The next report says it all.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error).during("reply"),
        }
    }
}

/// Bytes of a header after which its length is known.
const UNKNOWN: usize = 6;

/// How long the header is that begins so.
fn header_len(known: &[u8]) -> usize {
    match known.get(5) {
        None => UNKNOWN,
        Some(b'k') => KEEPALIVE_FRAME,
        Some(_) => XLOG_DATA_HEADER,
    }
}
