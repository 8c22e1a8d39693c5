//! The send role: rounds of sends, each submission shared by all standbys at one place.

use super::core::{DataCore, Seen};
use super::pg_now;
use super::sender::{Delivery, Farewell, Pace, Phase, Sender};
use super::table::{Key, Table};
use super::token::Purpose;
use super::zerocopy::{LARGE, Rest, large_rest};
use crate::fanout::due::Whom;
use crate::fanout::message::{self, Message};
use crate::fanout::round::{LAGGARD_BUDGET, SLICE};
use crate::ring::{CHUNK_SIZE, ChunkHold, Outgoing, Pin, Ring, Then};
use crate::wal::Lsn;
use crate::watermark::CellId;
use crate::wire::copy::{XLOG_DATA_HEADER, xlog_data_header};
use crate::wire::time::PgTime;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::time::Instant;
use tracing::{debug, info};

/// What one or several standbys are sent in one SENDMSG. Speaks of the bench's lists.
#[derive(Debug)]
struct Shot {
    cell: CellId,
    /// The first new message's start: where standbys have to be that share it.
    from: Lsn,
    /// The first WAL byte, and the end of what is at hand.
    wal_from: Lsn,
    wal_to: Lsn,
    /// Only for the standby of this slot: it has something of its own before the WAL.
    private: Option<u32>,
    /// As the standbys that share it want it.
    shape: Shape,
    /// Bytes of the rest of an unfinished message.
    rest: usize,
    /// Bytes of the outbox.
    outbox: usize,
    /// New messages, and their headers.
    messages: Range<usize>,
    /// The WAL of the rest, then of the messages, in pieces that lie together.
    wal: Range<usize>,
    /// Only the header goes out: the message behind it is sent without a copy.
    then: Then,
}

impl Shot {
    const fn is_empty(&self) -> bool {
        self.rest == 0 && self.outbox == 0 && self.messages.start == self.messages.end
    }
}

/// How a standby is to be sent what is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// As many messages as go into one send.
    Whole,
    /// The first message's header, so that its WAL can follow without a copy.
    HeaderFirst,
}

impl Shape {
    /// By the positions alone, so that standbys at one place agree.
    fn of(sender: &Sender) -> Self {
        let from = sender.cursor.next_message();
        let large = from.saturating_add(LARGE);
        let in_one_chunk = (large.raw() - 1) / CHUNK_SIZE as u64 == from.raw() / CHUNK_SIZE as u64;
        if sender.delivery == Delivery::Zerocopy
            && sender.sends_wal()
            && in_one_chunk
            && large <= sender.cell.limit()
        {
            Self::HeaderFirst
        } else {
            Self::Whole
        }
    }
}

/// The lists of a slice of sends, used over and over.
#[derive(Debug, Default)]
pub(super) struct Bench {
    shots: Vec<Shot>,
    messages: Vec<Message>,
    headers: Vec<[u8; XLOG_DATA_HEADER]>,
    /// Whom, and which shot.
    targets: Vec<(u32, usize)>,
    /// Those whose WAL has to be read first.
    missing: Vec<u32>,
    /// Those whose message goes on without a copy.
    held: Vec<(u32, ChunkHold)>,
    /// Parts of each shot.
    ranges: Vec<Range<usize>>,
    wal: Vec<&'static [u8]>,
    parts: Vec<IoSlice<'static>>,
    batch: Vec<Outgoing<'static>>,
}

impl Bench {
    fn clear(&mut self) {
        self.shots.clear();
        self.messages.clear();
        self.headers.clear();
        self.targets.clear();
        self.missing.clear();
        self.held.clear();
        self.ranges.clear();
    }

    /// Bytes that a shot offers to each of its standbys.
    fn offered(&self, shot: &Shot) -> usize {
        let wal = |message: &Message| match shot.then {
            Then::Nothing => message.wal_len(),
            Then::More => 0,
        };
        let messages = self.messages[shot.messages.clone()].iter();
        let messages: usize = messages.map(|message| XLOG_DATA_HEADER + wal(message)).sum();
        shot.rest + shot.outbox + messages
    }
}

/// An empty list of something else of the same size, in the same memory.
fn emptied<A, B>(mut list: Vec<A>) -> Vec<B> {
    list.clear();
    list.into_iter().filter_map(|_| None).collect()
}

/// Where WAL is read from: the cache first, then blocks read from files.
struct Source<'a> {
    pin: &'a Pin<'a>,
    blocks: &'a super::blocks::BlockPool,
}

impl<'a> Source<'a> {
    /// Collects what is at hand of `[from, to)` and returns its end.
    fn collect(&self, cell: CellId, from: Lsn, to: Lsn, pieces: &mut Vec<&'a [u8]>) -> Lsn {
        let mut at = from;
        while at < to {
            let max = to.bytes_since(at) as usize;
            let piece = self.pin.bytes(cell, at, max).or_else(|| self.blocks.bytes(cell, at, max));
            let Some(piece) = piece else { break };
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

impl<R: Ring> DataCore<R> {
    /// One round: everybody who is due once, the live ones first. Returns whether
    /// anything was sent or asked for.
    pub(super) fn round(&mut self, now: Instant) -> bool {
        self.round.begin();
        let mut order = std::mem::take(&mut self.order);
        let whom = self.due.take(&mut order);
        let mut ended = Vec::new();
        if whom == Whom::All || self.seen.iter().any(Seen::is_outdated) {
            self.seen.clear();
            for (slot, sender) in self.senders.iter() {
                if !self.seen.iter().any(|seen| seen.is_of(&sender.cell)) {
                    self.seen.push(Seen::new(&sender.cell));
                }
                if sender.is_due() {
                    self.round.note(slot, sender.cursor.next(), sender.cell.limit());
                } else if sender.is_at_end() {
                    ended.extend(self.senders.key_at(slot));
                }
            }
        } else {
            for &slot in &order {
                let Some(sender) = self.senders.at(slot) else { continue };
                if sender.is_due() {
                    self.round.note(slot, sender.cursor.next(), sender.cell.limit());
                } else if sender.is_at_end() {
                    ended.extend(self.senders.key_at(slot));
                }
            }
        }
        order.clear();
        // They have something to be sent in the next round.
        for &key in &ended {
            self.step(key, now);
            self.due.note(key.index);
        }
        if self.round.is_empty() {
            self.order = order;
            return !ended.is_empty();
        }
        order.extend(self.round.live());
        let live = order.len();
        order.extend(self.round.laggards());
        let (mut sent, mut caught_up, mut served) = (0, 0, 0);
        for slice in order.chunks(SLICE) {
            let wal = self.send_slice(slice, now);
            sent += wal;
            if served >= live {
                caught_up += wal;
            }
            served += slice.len();
            if self.is_receiving() {
                self.look_at_receiver(now);
            }
            if caught_up >= LAGGARD_BUDGET {
                break;
            }
        }
        // The others have their turn when the live ones have had theirs.
        for &slot in order.get(served..).unwrap_or_default() {
            self.due.note(slot);
        }
        self.hub.note_sent(self.index, sent);
        self.order = order;
        true
    }

    /// Sends to at most [`SLICE`] standbys in one submission; returns the WAL bytes that
    /// their sockets took.
    fn send_slice(&mut self, slots: &[u32], now: Instant) -> u64 {
        let mut bench = std::mem::take(&mut self.bench);
        bench.clear();
        self.offer(&mut bench, slots);
        let mut results = std::mem::take(&mut self.results);
        let mut total = 0;
        for (&(slot, shot), result) in bench.targets.iter().zip(results.drain(..)) {
            total += self.after_send(slot, &bench, &bench.shots[shot], result, now);
        }
        self.results = results;
        for (slot, hold) in bench.held.drain(..) {
            if let Some(key) = self.senders.key_at(slot) {
                total += self.start_zerocopy(key, hold);
            }
        }
        for slot in bench.missing.drain(..) {
            self.wait_for_block(slot);
        }
        self.bench = bench;
        total
    }

    /// Puts together what each is sent, and sends it. The sockets have copied what they
    /// took when this returns; only lengths matter from here on.
    fn offer(&mut self, bench: &mut Bench, slots: &[u32]) {
        let pin = self.chunks.pin();
        let source = Source { pin: &pin, blocks: &self.blocks };
        let send_time = pg_now(&self.clock);
        let mut wal = emptied(std::mem::take(&mut bench.wal));
        for &slot in slots {
            let Some(sender) = self.senders.at(slot).filter(|sender| sender.is_due()) else {
                continue;
            };
            if sender.delivery == Delivery::Zerocopy && sender.cursor.unfinished().is_some() {
                match large_rest(sender, &pin) {
                    Rest::Held(hold) => {
                        bench.held.push((slot, hold));
                        continue;
                    }
                    Rest::Refused => self.zerocopy.refused += 1,
                    Rest::Small => {}
                }
            }
            let shape = Shape::of(sender);
            let shared = bench.shots.iter().position(|shot| {
                shot.private.is_none()
                    && shot.from == sender.cursor.next_message()
                    && shot.cell == sender.cell.id()
                    && shot.shape == shape
            });
            if let Some(shot) = shared.filter(|_| !sender.is_owing()) {
                bench.targets.push((slot, shot));
                continue;
            }
            let menu = Menu { source: &source, budget: self.max_send_size, send_time, shape };
            let shot = compose(slot, sender, &menu, bench, &mut wal);
            if shot.is_empty() {
                bench.missing.push(slot);
            } else {
                bench.targets.push((slot, bench.shots.len()));
                bench.shots.push(shot);
            }
        }
        self.results.clear();
        if bench.targets.is_empty() {
            bench.wal = emptied(wal);
            return;
        }
        let mut parts = emptied(std::mem::take(&mut bench.parts));
        let mut batch = emptied(std::mem::take(&mut bench.batch));
        let mut ranges = std::mem::take(&mut bench.ranges);
        lay_out(&self.senders, bench, &wal, &mut parts, &mut ranges);
        for &(slot, shot) in &bench.targets {
            let sender = self.senders.at(slot).expect("a target was at this slot a moment ago");
            let (parts, then) = (&parts[ranges[shot].clone()], bench.shots[shot].then);
            batch.push(Outgoing { socket: &sender.socket, parts, then });
        }
        self.ring.send_now(&batch, &mut self.results);
        let batch = emptied(batch);
        let parts = emptied(parts);
        (bench.batch, bench.parts) = (batch, parts);
        bench.wal = emptied(wal);
        bench.ranges = ranges;
    }

    fn after_send(
        &mut self,
        slot: u32,
        bench: &Bench,
        shot: &Shot,
        result: io::Result<usize>,
        now: Instant,
    ) -> u64 {
        let Some(key) = self.senders.key_at(slot) else { return 0 };
        let Some(sender) = self.senders.get_mut(key) else { return 0 };
        let sent = match result {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.due.note(slot);
                return 0;
            }
            Err(error) => {
                self.disconnected(key, &error);
                return 0;
            }
        };
        let rest = sent.min(shot.rest);
        let outbox = (sent - rest).min(shot.outbox);
        let mut wal = sender.cursor.advance(rest, &[], &[]);
        sender.outbox.drain(..outbox);
        let places = shot.messages.clone();
        let (messages, headers) = (&bench.messages[places.clone()], &bench.headers[places]);
        wal += sender.cursor.advance(sent - rest - outbox, messages, headers);
        sender.hold.advance(sender.cursor.next());
        // Offered is enough: a socket that is full must not keep the block from others.
        if self.blocks.touch(shot.cell, shot.wal_from, shot.wal_to) {
            self.ahead.push(key);
        }
        if sent < bench.offered(shot) {
            self.wait_for_room(key);
        } else if shot.then == Then::More {
            wal += self.follow_header(key);
        }
        self.sent_on(key, now);
        wal
    }

    /// The socket is full: it says when it is not.
    pub(super) fn wait_for_room(&mut self, key: Key) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        let op = self.ring.poll_writable(&sender.socket, Purpose::Room(key).token());
        sender.waiting_room = Some(op);
    }

    /// A standby has been sent something, or could have been.
    pub(super) fn sent_on(&mut self, key: Key, now: Instant) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        if sender.pace == Pace::Catchup
            && sender.cursor.unfinished().is_none()
            && sender.cursor.next() >= sender.cell.limit()
        {
            sender.pace = Pace::Streaming;
            debug!(
                pid = sender.session.pid,
                application_name = %sender.session.application_name,
                at = %sender.cursor.next(), "standby has caught up"
            );
        }
        self.step(key, now);
        self.due.note(key.index);
    }

    /// A send found the connection broken.
    pub(super) fn disconnected(&mut self, key: Key, error: &io::Error) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        let session = &sender.session;
        info!(
            pid = session.pid, application_name = %session.application_name,
            peer = %session.peer, at = %sender.cursor.next(), "standby disconnected: {error}"
        );
        self.close(key);
    }

    /// What follows when a standby's socket took what it was offered: the next step of
    /// an end that is under way.
    pub(super) fn step(&mut self, key: Key, now: Instant) {
        let Some(sender) = self.senders.get_mut(key) else { return };
        if !sender.sends_wal() && sender.cursor.unfinished().is_none() {
            sender.waiting_block = None;
        }
        if sender.is_owing() {
            return;
        }
        match &sender.phase {
            Phase::Streaming => self.end_of_timeline(key),
            Phase::Stopping if sender.cursor.next_message() >= sender.cell.limit() => {
                let mut farewell = bytes::BytesMut::new();
                crate::wire::backend::command_complete(&mut farewell, "COPY 0");
                sender.outbox.extend_from_slice(&farewell);
                sender.phase = Phase::Leaving(Farewell::Close);
            }
            Phase::Leaving(_) => self.leave(key, now),
            _ => {}
        }
    }
}

/// What a shot is put together from.
struct Menu<'s, 'a> {
    source: &'s Source<'a>,
    /// The most WAL in one send.
    budget: usize,
    send_time: PgTime,
    shape: Shape,
}

/// Everything that a standby can be sent at once: the rest of its unfinished message,
/// its outbox, and new messages, as far as the WAL is at hand.
fn compose<'a>(
    slot: u32,
    sender: &Sender,
    menu: &Menu<'_, 'a>,
    bench: &mut Bench,
    wal: &mut Vec<&'a [u8]>,
) -> Shot {
    let Menu { source, budget, send_time, shape } = menu;
    let cell = sender.cell.id();
    let from = sender.cursor.next_message();
    let first = wal.len();
    let mut shot = Shot {
        cell,
        from,
        wal_from: sender.cursor.next(),
        wal_to: sender.cursor.next(),
        private: sender.is_owing().then_some(slot),
        shape: *shape,
        rest: 0,
        outbox: 0,
        messages: bench.messages.len()..bench.messages.len(),
        wal: first..first,
        then: Then::Nothing,
    };
    if let Some(rest) = sender.cursor.unfinished() {
        let end = source.collect(cell, rest.next, rest.end, wal);
        (shot.wal.end, shot.wal_to) = (wal.len(), end);
        if end > rest.next || rest.next == rest.end {
            shot.rest = XLOG_DATA_HEADER - rest.header_sent + end.bytes_since(rest.next) as usize;
        }
        if end < rest.end {
            return shot;
        }
    }
    shot.outbox = sender.outbox.len();
    if !sender.sends_wal() || sender.waiting_block.is_some() {
        return shot;
    }
    let limit = sender.cell.limit();
    if *shape == Shape::HeaderFirst && source.is_cached(cell, from, LARGE) {
        let first = message::cut(from, limit, 0).next();
        let message = first.expect("a standby whose next message is large has one");
        bench.headers.push(xlog_data_header(message.start, limit, *send_time, message.wal_len()));
        bench.messages.push(message);
        shot.messages.end = bench.messages.len();
        shot.then = Then::More;
        return shot;
    }
    let to = limit.min(from.saturating_add(*budget as u64));
    let end = if from < to { source.collect(cell, from, to, wal) } else { from };
    (shot.wal.end, shot.wal_to) = (wal.len(), end);
    // Cut at a page boundary unless this is all there is.
    let end = if end < limit && end.page_start() > from { end.page_start() } else { end };
    for message in message::cut(from, end, *budget as u64) {
        bench.headers.push(xlog_data_header(message.start, limit, *send_time, message.wal_len()));
        bench.messages.push(message);
    }
    shot.messages.end = bench.messages.len();
    shot
}

/// The iovecs of all shots, one after the other, and which belong to which.
fn lay_out<'a>(
    senders: &'a Table<Sender>,
    bench: &'a Bench,
    wal: &[&'a [u8]],
    parts: &mut Vec<IoSlice<'a>>,
    ranges: &mut Vec<Range<usize>>,
) {
    for shot in &bench.shots {
        let begin = parts.len();
        let mut pieces = wal[shot.wal.clone()].iter().copied();
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
        if let Some(sender) = shot.private.and_then(|slot| senders.at(slot)) {
            if let Some(rest) = sender.cursor.unfinished() {
                let header = &rest.header[rest.header_sent..];
                if !header.is_empty() {
                    parts.push(IoSlice::new(header));
                }
                take(shot.rest - header.len(), parts);
            }
            if shot.outbox > 0 {
                parts.push(IoSlice::new(&sender.outbox));
            }
        }
        let places = shot.messages.clone();
        for (message, header) in bench.messages[places.clone()].iter().zip(&bench.headers[places]) {
            parts.push(IoSlice::new(header));
            if shot.then == Then::Nothing {
                take(message.wal_len(), parts);
            }
        }
        ranges.push(begin..parts.len());
    }
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
