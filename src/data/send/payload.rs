//! What is sent: composes the WAL at hand for all standbys at one position, in lists that are
//! reused.
//!
//! A payload is made once and sent to each standby that shares it. Anything that must differ per
//! socket (a cipher, say) belongs between [`SendScratch::lay_out`], which names the bytes, and the
//! batch, which names the sockets.

use super::sender::{Delivery, Sender};
use crate::data::readback::ReadBack;
use crate::data::table::Table;
use crate::fanout::message::{self, Message};
use crate::ring::{CHUNK_SIZE, ChunkHold, Outgoing, Pin, Then};
use crate::wal::Lsn;
use crate::watermark::CellId;
use crate::wire::copy::{XLOG_DATA_HEADER, xlog_data_header};
use crate::wire::time::PgTime;
use std::io::IoSlice;
use std::ops::Range;

/// Anything smaller is copied: pinning, and a notification for each send, cost about as much as
/// copying some tens of kilobytes.
pub(super) const LARGE: u64 = 64 << 10;

/// What one or several standbys are sent in one SENDMSG. Its ranges index the scratch's lists.
#[derive(Debug)]
pub(super) struct Payload {
    pub(super) cell: CellId,
    /// The start of the first new message: the position of every standby that shares it.
    from: Lsn,
    /// The first WAL byte, and the end of what is at hand.
    pub(super) wal_from: Lsn,
    pub(super) wal_to: Lsn,
    /// Where its standbys may not be sent any more.
    seam: Option<Lsn>,
    /// Only for the standby in this slot: it has something of its own to send before the WAL.
    private: Option<u32>,
    /// The shape for the standbys that share it.
    shape: Shape,
    /// Bytes of the rest of an unfinished message.
    pub(super) rest: usize,
    /// Bytes of the outbox.
    pub(super) outbox: usize,
    /// New messages, and their headers.
    pub(super) messages: Range<usize>,
    /// The WAL of the rest, then of the messages, in contiguous pieces.
    wal: Range<usize>,
    /// Whether only the header goes out and the message it announces is sent without a copy.
    pub(super) then: Then,
}

impl Payload {
    pub(super) const fn is_empty(&self) -> bool {
        self.rest == 0 && self.outbox == 0 && self.messages.start == self.messages.end
    }
}

/// How a standby is to be sent new WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// As many messages as fit into one send.
    Whole,
    /// The first message's header, so that its WAL can follow without a copy.
    HeaderFirst,
}

impl Shape {
    /// Depends on the positions alone, so that standbys at one position agree.
    pub(super) fn of(sender: &Sender) -> Self {
        let from = sender.cursor.next_message();
        let large = from.saturating_add(LARGE);
        let in_one_chunk = (large.raw() - 1) / CHUNK_SIZE as u64 == from.raw() / CHUNK_SIZE as u64;
        if sender.delivery == Delivery::Zerocopy
            && sender.state.sends_wal()
            && in_one_chunk
            && large <= sender.limit()
        {
            Self::HeaderFirst
        } else {
            Self::Whole
        }
    }
}

/// Where WAL comes from: first the cache, then blocks read from files.
pub(super) struct Source<'a> {
    pub(super) pin: &'a Pin<'a>,
    pub(super) readback: &'a ReadBack,
}

impl<'a> Source<'a> {
    /// Collects the part of `[from, to)` at hand, and returns its end.
    fn collect(&self, cell: CellId, from: Lsn, to: Lsn, pieces: &mut Vec<&'a [u8]>) -> Lsn {
        let mut at = from;
        while at < to {
            let max = to.bytes_since(at) as usize;
            let cached = self.pin.bytes(cell, at, max);
            let Some(piece) = cached.or_else(|| self.readback.bytes(cell, at, max)) else { break };
            #[cfg(walhub_flip)]
            let piece = super::flip::flipped(at, piece);
            pieces.push(piece);
            at = at.saturating_add(piece.len() as u64);
        }
        at
    }

    /// Is all of it in the cache?
    fn is_cached(&self, cell: CellId, from: Lsn, bytes: u64) -> bool {
        let found = self.pin.bytes(cell, from, bytes as usize);
        found.is_some_and(|found| found.len() as u64 == bytes)
    }
}

/// What a payload is composed from.
pub(super) struct Composition<'s, 'a> {
    pub(super) source: &'s Source<'a>,
    /// The most WAL in one send.
    pub(super) budget: usize,
    pub(super) send_time: PgTime,
}

/// The lists of a slice of sends, which are reused.
#[derive(Debug, Default)]
pub(super) struct SendScratch {
    pub(super) payloads: Vec<Payload>,
    pub(super) messages: Vec<Message>,
    pub(super) headers: Vec<[u8; XLOG_DATA_HEADER]>,
    /// Slots, and the payload for each.
    pub(super) targets: Vec<(u32, usize)>,
    /// Standbys whose WAL must be read first.
    pub(super) missing: Vec<u32>,
    /// Standbys whose message continues without a copy.
    pub(super) held: Vec<(u32, ChunkHold)>,
    /// Parts of each payload.
    pub(super) ranges: Vec<Range<usize>>,
    pub(super) wal: Vec<&'static [u8]>,
    pub(super) parts: Vec<IoSlice<'static>>,
    pub(super) batch: Vec<Outgoing<'static>>,
}

impl SendScratch {
    pub(super) fn clear(&mut self) {
        self.payloads.clear();
        self.messages.clear();
        self.headers.clear();
        self.targets.clear();
        self.missing.clear();
        self.held.clear();
        self.ranges.clear();
    }

    /// Bytes that a payload offers to each of its standbys.
    pub(super) fn offered(&self, payload: &Payload) -> usize {
        let wal = |message: &Message| match payload.then {
            Then::Nothing => message.wal_len(),
            Then::More => 0,
        };
        let messages = self.messages[payload.messages.clone()].iter();
        let messages: usize = messages.map(|message| XLOG_DATA_HEADER + wal(message)).sum();
        payload.rest + payload.outbox + messages
    }

    /// Adds a standby to the others at its position, or makes a payload for it. A standby with
    /// nothing at hand goes to `missing`.
    pub(super) fn add<'a>(
        &mut self,
        slot: u32,
        sender: &Sender,
        composition: &Composition<'_, 'a>,
        wal: &mut Vec<&'a [u8]>,
    ) {
        let shape = Shape::of(sender);
        let shared = self.payloads.iter().position(|payload| {
            payload.private.is_none()
                && payload.from == sender.cursor.next_message()
                && payload.cell == sender.cell.id()
                && payload.seam == sender.seam.map(|seam| seam.at)
                && payload.shape == shape
        });
        if let Some(shared) = shared.filter(|_| !sender.is_owing()) {
            return self.targets.push((slot, shared));
        }
        let payload = self.compose(slot, sender, shape, composition, wal);
        if payload.is_empty() {
            self.missing.push(slot);
        } else {
            self.targets.push((slot, self.payloads.len()));
            self.payloads.push(payload);
        }
    }

    /// Composes everything that a standby can be sent at once: the rest of its unfinished message,
    /// its outbox, and new messages, as far as the WAL is at hand (I3).
    fn compose<'a>(
        &mut self,
        slot: u32,
        sender: &Sender,
        shape: Shape,
        composition: &Composition<'_, 'a>,
        wal: &mut Vec<&'a [u8]>,
    ) -> Payload {
        let Composition { source, budget, send_time } = composition;
        let cell = sender.cell.id();
        let from = sender.cursor.next_message();
        let first = wal.len();
        let mut payload = Payload {
            cell,
            from,
            wal_from: sender.cursor.next(),
            wal_to: sender.cursor.next(),
            seam: sender.seam.map(|seam| seam.at),
            private: sender.is_owing().then_some(slot),
            shape,
            rest: 0,
            outbox: 0,
            messages: self.messages.len()..self.messages.len(),
            wal: first..first,
            then: Then::Nothing,
        };
        if let Some(rest) = sender.cursor.unfinished() {
            let end = source.collect(cell, rest.next, rest.end, wal);
            (payload.wal.end, payload.wal_to) = (wal.len(), end);
            if end > rest.next || rest.next == rest.end {
                payload.rest =
                    XLOG_DATA_HEADER - rest.header_sent + end.bytes_since(rest.next) as usize;
            }
            if end < rest.end {
                return payload;
            }
        }
        payload.outbox = sender.outbox.len();
        if !sender.state.sends_wal() || sender.awaiting_block.is_some() {
            return payload;
        }
        let limit = sender.limit();
        if shape == Shape::HeaderFirst && source.is_cached(cell, from, LARGE) {
            let first = message::cut(from, limit, 0).next();
            let message = first.expect("a standby whose next message is large has one");
            self.announce(message, limit, *send_time);
            payload.messages.end = self.messages.len();
            payload.then = Then::More;
            return payload;
        }
        let to = limit.min(from.saturating_add(*budget as u64));
        let end = if from < to { source.collect(cell, from, to, wal) } else { from };
        (payload.wal.end, payload.wal_to) = (wal.len(), end);
        // Cut at a page boundary unless this is all there is.
        let end = if end < limit && end.page_start() > from { end.page_start() } else { end };
        for message in message::cut(from, end, *budget as u64) {
            self.announce(message, limit, *send_time);
        }
        payload.messages.end = self.messages.len();
        payload
    }

    fn announce(&mut self, message: Message, limit: Lsn, send_time: PgTime) {
        self.headers.push(xlog_data_header(message.start, limit, send_time, message.wal_len()));
        self.messages.push(message);
    }

    /// The iovecs of all payloads, one after the other, and the range of each payload.
    pub(super) fn lay_out<'a>(
        &'a self,
        senders: &'a Table<Sender>,
        wal: &[&'a [u8]],
        parts: &mut Vec<IoSlice<'a>>,
        ranges: &mut Vec<Range<usize>>,
    ) {
        for payload in &self.payloads {
            let begin = parts.len();
            let mut pieces = wal[payload.wal.clone()].iter().copied();
            let mut piece: &[u8] = &[];
            let mut take = |mut bytes: usize, parts: &mut Vec<IoSlice<'a>>| {
                while bytes > 0 {
                    if piece.is_empty() {
                        piece = pieces.next().unwrap_or_default();
                        assert!(!piece.is_empty(), "a message announces WAL that is not at hand");
                    }
                    let (head, tail) = piece.split_at(bytes.min(piece.len()));
                    parts.push(IoSlice::new(head));
                    piece = tail;
                    bytes -= head.len();
                }
            };
            if let Some(sender) = payload.private.and_then(|slot| senders.at(slot)) {
                if let Some(rest) = sender.cursor.unfinished() {
                    let header = &rest.header[rest.header_sent..];
                    if !header.is_empty() {
                        parts.push(IoSlice::new(header));
                    }
                    take(payload.rest - header.len(), parts);
                }
                if payload.outbox > 0 {
                    parts.push(IoSlice::new(&sender.outbox));
                }
            }
            let places = payload.messages.clone();
            let messages = self.messages[places.clone()].iter();
            for (message, header) in messages.zip(&self.headers[places]) {
                parts.push(IoSlice::new(header));
                if payload.then == Then::Nothing {
                    take(message.wal_len(), parts);
                }
            }
            ranges.push(begin..parts.len());
        }
    }
}

/// An empty list of another type of the same size, in the same allocation.
pub(super) fn emptied<A, B>(mut list: Vec<A>) -> Vec<B> {
    list.clear();
    list.into_iter().filter_map(|_| None).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emptied_list_keeps_its_memory() {
        let mut list: Vec<IoSlice<'_>> = Vec::with_capacity(100);
        list.push(IoSlice::new(b"wal"));
        let memory = list.as_ptr() as usize;
        let list: Vec<IoSlice<'static>> = emptied(list);
        assert_eq!((list.len(), list.capacity(), list.as_ptr() as usize), (0, 100, memory));
    }
}
