//! The send role: rounds of sends, each submission shared by all standbys at one place.

use super::data::{DataCore, Seen};
use super::pg_now;
use super::sender::{Farewell, Pace, Phase, Sender};
use super::table::Table;
use super::token::Purpose;
use crate::fanout::message::{self, Message};
use crate::fanout::round::{LAGGARD_BUDGET, SLICE};
use crate::ring::{Outgoing, Pin, Ring};
use crate::wal::Lsn;
use crate::watermark::CellId;
use crate::wire::copy::{XLOG_DATA_HEADER, xlog_data_header};
use crate::wire::time::PgTime;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::time::Instant;
use tracing::{debug, info};

/// What one or several standbys are sent in one SENDMSG.
struct Shot<'a> {
    cell: CellId,
    /// The first new message's start: where standbys have to be that share it.
    from: Lsn,
    /// The first WAL byte.
    wal_from: Lsn,
    /// Only for the standby of this slot: it has something of its own before the WAL.
    private: Option<u32>,
    /// Bytes of the rest of an unfinished message.
    rest: usize,
    /// Bytes of the outbox.
    outbox: usize,
    messages: Vec<Message>,
    headers: Vec<[u8; XLOG_DATA_HEADER]>,
    /// The WAL of the rest, then of the messages, in pieces that lie together.
    wal: Vec<&'a [u8]>,
}

impl Shot<'_> {
    const fn is_empty(&self) -> bool {
        self.rest == 0 && self.outbox == 0 && self.messages.is_empty()
    }
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
            pieces.push(piece);
            at = at.saturating_add(piece.len() as u64);
        }
        at
    }
}

/// What became of a slice.
#[derive(Debug, Default)]
pub(super) struct SliceResult {
    /// WAL bytes taken by sockets.
    pub wal_bytes: u64,
    /// Sends that took anything.
    pub sends: usize,
}

impl<R: Ring> DataCore<R> {
    /// One round: everybody who is due once, the live ones first. Returns whether
    /// anything was sent or asked for.
    pub(super) fn round(&mut self, now: Instant) -> bool {
        self.round.begin();
        self.seen.clear();
        let mut ended = Vec::new();
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
        // They have something to be sent in the next round.
        for &key in &ended {
            self.step(key, now);
        }
        if self.round.is_empty() {
            return !ended.is_empty();
        }
        self.order.clear();
        self.order.extend(self.round.live());
        let live = self.order.len();
        self.order.extend(self.round.laggards());
        let order = std::mem::take(&mut self.order);
        let mut caught_up = 0;
        for (n, slice) in order.chunks(SLICE).enumerate() {
            let result = self.send_slice(slice, now);
            if n * SLICE >= live {
                caught_up += result.wal_bytes;
            }
            if self.is_receiving() {
                self.look_at_receiver(now);
            }
            if caught_up >= LAGGARD_BUDGET {
                break;
            }
        }
        self.order = order;
        true
    }

    /// Sends to at most [`SLICE`] standbys in one submission.
    fn send_slice(&mut self, slots: &[u32], now: Instant) -> SliceResult {
        let pin = self.chunks.pin();
        let source = Source { pin: &pin, blocks: &self.blocks };
        let send_time = pg_now(&self.clock);
        let mut shots: Vec<Shot<'_>> = Vec::with_capacity(slots.len());
        let mut targets: Vec<(u32, usize)> = Vec::with_capacity(slots.len());
        let mut missing: Vec<u32> = Vec::new();
        for &slot in slots {
            let Some(sender) = self.senders.at(slot).filter(|sender| sender.is_due()) else {
                continue;
            };
            let shared = shots.iter().position(|shot| {
                shot.private.is_none()
                    && shot.cell == sender.cell.id()
                    && shot.from == sender.cursor.next_message()
            });
            if let Some(shot) = shared.filter(|_| !sender.is_owing()) {
                targets.push((slot, shot));
                continue;
            }
            let shot = compose(slot, sender, &source, self.max_send_size, send_time);
            if shot.is_empty() {
                missing.push(slot);
            } else {
                targets.push((slot, shots.len()));
                shots.push(shot);
            }
        }
        let (parts, ranges) = lay_out(&self.senders, &shots);
        let batch: Vec<Outgoing<'_>> = targets
            .iter()
            .filter_map(|&(slot, shot)| {
                let socket = &self.senders.at(slot)?.socket;
                Some(Outgoing { socket, parts: &parts[ranges[shot].clone()] })
            })
            .collect();
        let mut results = std::mem::take(&mut self.results);
        results.clear();
        if !batch.is_empty() {
            self.ring.send_now(&batch, &mut results);
        }
        drop(batch);
        drop(parts);
        // The sockets have copied what they took; only lengths matter from here on.
        let shots: Vec<_> = shots
            .into_iter()
            .map(|shot| Sent {
                cell: shot.cell,
                at: shot.wal_from,
                rest: shot.rest,
                outbox: shot.outbox,
                messages: shot.messages,
                headers: shot.headers,
            })
            .collect();
        drop(pin);
        let mut total = SliceResult::default();
        for (&(slot, shot), result) in targets.iter().zip(results.drain(..)) {
            total.wal_bytes += self.after_send(slot, &shots[shot], result, now);
            total.sends += 1;
        }
        self.results = results;
        for slot in missing {
            self.wait_for_block(slot);
        }
        total
    }

    fn after_send(
        &mut self,
        slot: u32,
        shot: &Sent,
        result: io::Result<usize>,
        now: Instant,
    ) -> u64 {
        let Some(key) = self.senders.key_at(slot) else { return 0 };
        let Some(sender) = self.senders.get_mut(key) else { return 0 };
        let offered = shot.len();
        let sent = match result {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return 0,
            Err(error) => {
                let session = &sender.session;
                info!(
                    pid = session.pid, application_name = %session.application_name,
                    peer = %session.peer, at = %sender.cursor.next(), "standby disconnected: {error}"
                );
                self.close(key);
                return 0;
            }
        };
        let rest = sent.min(shot.rest);
        let outbox = (sent - rest).min(shot.outbox);
        let mut wal = sender.cursor.advance(rest, &[], &[]);
        sender.outbox.drain(..outbox);
        wal += sender.cursor.advance(sent - rest - outbox, &shot.messages, &shot.headers);
        sender.hold.advance(sender.cursor.next());
        // Offered is enough: a socket that is full must not keep the block from others.
        self.blocks.touch(shot.cell, shot.at);
        if sent < offered {
            let op = self.ring.poll_writable(&sender.socket, Purpose::Room(key).token());
            sender.waiting_room = Some(op);
        } else if sender.pace == Pace::Catchup && sender.cursor.next() >= sender.cell.limit() {
            sender.pace = Pace::Streaming;
            debug!(
                pid = sender.session.pid,
                application_name = %sender.session.application_name,
                at = %sender.cursor.next(), "standby has caught up"
            );
        }
        self.step(key, now);
        wal
    }

    /// What follows when a standby's socket took what it was offered: the next step of
    /// an end that is under way.
    pub(super) fn step(&mut self, key: super::table::Key, now: Instant) {
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

/// What is left to know of a shot when its memory is gone.
struct Sent {
    cell: CellId,
    /// The first WAL byte.
    at: Lsn,
    rest: usize,
    outbox: usize,
    messages: Vec<Message>,
    headers: Vec<[u8; XLOG_DATA_HEADER]>,
}

impl Sent {
    fn len(&self) -> usize {
        let messages: usize = self.messages.iter().map(|m| XLOG_DATA_HEADER + m.wal_len()).sum();
        self.rest + self.outbox + messages
    }
}

/// Everything that a standby can be sent at once: the rest of its unfinished message,
/// its outbox, and new messages of at most `budget` bytes, as far as the WAL is at hand.
fn compose<'a>(
    slot: u32,
    sender: &Sender,
    source: &Source<'a>,
    budget: usize,
    send_time: PgTime,
) -> Shot<'a> {
    let cell = sender.cell.id();
    let from = sender.cursor.next_message();
    let mut shot = Shot {
        cell,
        from,
        wal_from: sender.cursor.next(),
        private: sender.is_owing().then_some(slot),
        rest: 0,
        outbox: 0,
        messages: Vec::new(),
        headers: Vec::new(),
        wal: Vec::new(),
    };
    if let Some(rest) = sender.cursor.unfinished() {
        let end = source.collect(cell, rest.next, rest.end, &mut shot.wal);
        if end > rest.next || rest.next == rest.end {
            shot.rest = XLOG_DATA_HEADER - rest.header_sent + end.bytes_since(rest.next) as usize;
        }
        if end < rest.end {
            return shot;
        }
    }
    shot.outbox = sender.outbox.len();
    if !sender.sends_wal() {
        return shot;
    }
    let limit = sender.cell.limit();
    let to = limit.min(from.saturating_add(budget as u64));
    let end = if from < to { source.collect(cell, from, to, &mut shot.wal) } else { from };
    // Cut at a page boundary unless this is all there is.
    let end = if end < limit && end.page_start() > from { end.page_start() } else { end };
    for message in message::cut(from, end, budget as u64) {
        shot.headers.push(xlog_data_header(message.start, limit, send_time, message.wal_len()));
        shot.messages.push(message);
    }
    shot
}

/// The iovecs of all shots, one after the other, and which belong to which.
fn lay_out<'a>(
    senders: &'a Table<Sender>,
    shots: &'a [Shot<'a>],
) -> (Vec<IoSlice<'a>>, Vec<Range<usize>>) {
    let mut parts = Vec::with_capacity(shots.len() * 4);
    let mut ranges = Vec::with_capacity(shots.len());
    for shot in shots {
        let begin = parts.len();
        let mut wal = shot.wal.iter().copied();
        let mut piece: &[u8] = &[];
        let mut take = |mut bytes: usize, parts: &mut Vec<IoSlice<'a>>| {
            while bytes > 0 {
                if piece.is_empty() {
                    piece = wal.next().unwrap_or_default();
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
                take(shot.rest - header.len(), &mut parts);
            }
            if shot.outbox > 0 {
                parts.push(IoSlice::new(&sender.outbox));
            }
        }
        for (message, header) in shot.messages.iter().zip(&shot.headers) {
            parts.push(IoSlice::new(header));
            take(message.wal_len(), &mut parts);
        }
        ranges.push(begin..parts.len());
    }
    (parts, ranges)
}
