//! Rounds of sends: each standby that is due once, the live ones first, in slices of one submission
//! each. Between two slices the core may handle other events. A standby that has gone or changed
//! since is treated according to its new state.

use super::payload::{Composition, Payload, SendScratch, Source, emptied};
use super::sender::Delivery;
use super::senders::Senders;
use super::zerocopy::{LargeRest, large_rest};
use crate::data::context::Context;
use crate::data::readback::{ReadBack, Want};
use crate::fanout::due::Whom;
use crate::fanout::round::{LAGGARD_BUDGET, Round, SLICE};
use crate::ring::{ChunkReader, Outgoing, Ring, Then};
use crate::wal::Lsn;
use crate::watermark::Cell;
use std::io;
use std::sync::Arc;

/// The outcome of asking for one more slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slice {
    /// It was sent; there may be another.
    Sent,
    /// The round is over.
    Over,
}

/// The round in progress, and its scratch memory.
#[derive(Debug)]
pub(super) struct Rounds {
    core: usize,
    max_send_size: usize,
    round: Round,
    plan: Plan,
    scratch: SendScratch,
    results: Vec<io::Result<usize>>,
    /// The cells of this core's senders, as the last round saw them.
    seen: Vec<Seen>,
}

/// The standbys that the round in progress serves, and its progress.
#[derive(Debug, Default)]
struct Plan {
    /// The live standbys first.
    order: Vec<u32>,
    live: usize,
    served: usize,
    /// WAL bytes sent, and the part of them sent to standbys that catch up.
    sent: u64,
    caught_up: u64,
}

/// What a round saw of a cell.
#[derive(Debug)]
struct Seen {
    cell: Arc<Cell>,
    limit: Lsn,
    followed: Followed,
}

/// Has a cell's timeline ended, and is the next one ready?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Followed {
    NotYet,
    Yes,
}

impl Followed {
    fn of(cell: &Cell) -> Self {
        if cell.next().is_some() { Self::Yes } else { Self::NotYet }
    }
}

impl Seen {
    /// The cell's current values.
    fn new(cell: &Arc<Cell>) -> Self {
        Self { limit: cell.limit(), followed: Followed::of(cell), cell: Arc::clone(cell) }
    }

    fn is_of(&self, cell: &Cell) -> bool {
        self.cell.id() == cell.id()
    }

    /// Has the cell changed since?
    fn is_outdated(&self) -> bool {
        self.cell.limit() != self.limit || Followed::of(&self.cell) != self.followed
    }
}

impl Rounds {
    pub(super) fn new(core: usize, max_send_size: usize) -> Self {
        Self {
            core,
            max_send_size,
            round: Round::default(),
            plan: Plan::default(),
            scratch: SendScratch::default(),
            results: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// Has a watermark moved, or a timeline ended, since the last round?
    pub(super) fn has_missed(&self) -> bool {
        self.seen.iter().any(Seen::is_outdated)
    }

    /// Plans a round. Returns whether there is anything to do.
    pub(super) fn begin<R: Ring>(
        &mut self,
        senders: &mut Senders,
        cx: &mut Context<'_, R>,
    ) -> bool {
        self.round.begin();
        let mut order = std::mem::take(&mut self.plan.order);
        let whom = senders.due.take(&mut order);
        let mut ended = Vec::new();
        if whom == Whom::All || self.has_missed() {
            self.seen.clear();
            for (slot, sender) in senders.table.iter() {
                if !self.seen.iter().any(|seen| seen.is_of(&sender.cell)) {
                    self.seen.push(Seen::new(&sender.cell));
                }
                if sender.is_due() {
                    self.round.note(slot, sender.cursor.next(), sender.limit());
                } else if sender.is_at_end() {
                    ended.extend(senders.table.key_at(slot));
                }
            }
        } else {
            for &slot in &order {
                let Some(sender) = senders.table.at(slot) else { continue };
                if sender.is_due() {
                    self.round.note(slot, sender.cursor.next(), sender.limit());
                } else if sender.is_at_end() {
                    ended.extend(senders.table.key_at(slot));
                }
            }
        }
        // They have something to send in the next round.
        for &key in &ended {
            senders.step(key, cx);
            senders.due.note(key.index);
        }
        order.clear();
        order.extend(self.round.live());
        let live = order.len();
        order.extend(self.round.laggards());
        self.plan = Plan { order, live, ..Plan::default() };
        !self.plan.order.is_empty() || !ended.is_empty()
    }

    /// Sends the next slice of the round.
    pub(super) fn send_slice<R: Ring>(
        &mut self,
        senders: &mut Senders,
        (cache, readback): (&ChunkReader, &mut ReadBack),
        cx: &mut Context<'_, R>,
    ) -> Slice {
        let Plan { ref order, live, served, caught_up, .. } = self.plan;
        let rest = order.get(served..).unwrap_or_default();
        if rest.is_empty() || caught_up >= LAGGARD_BUDGET {
            self.finish(senders);
            return Slice::Over;
        }
        let mut slots = [0; SLICE];
        let count = rest.len().min(SLICE);
        slots[..count].copy_from_slice(&rest[..count]);
        let sent = self.send_to(&slots[..count], senders, (cache, readback), cx);
        self.plan.sent += sent;
        if served >= live {
            self.plan.caught_up += sent;
        }
        self.plan.served += count;
        Slice::Sent
    }

    /// Ends the round. Standbys that were not served have their turn after the live ones have had
    /// theirs again.
    fn finish(&mut self, senders: &mut Senders) {
        for &slot in self.plan.order.get(self.plan.served..).unwrap_or_default() {
            senders.due.note(slot);
        }
        if self.plan.served > 0 {
            senders.hub.note_sent(self.core, self.plan.sent);
        }
        self.plan.order.clear();
        self.plan = Plan { order: std::mem::take(&mut self.plan.order), ..Plan::default() };
    }

    /// Sends to at most [`SLICE`] standbys in one submission; returns the WAL bytes that
    /// their sockets took.
    fn send_to<R: Ring>(
        &mut self,
        slots: &[u32],
        senders: &mut Senders,
        (cache, readback): (&ChunkReader, &mut ReadBack),
        cx: &mut Context<'_, R>,
    ) -> u64 {
        self.scratch.clear();
        self.offer(slots, senders, (cache, readback), cx);
        let Self { scratch, results, .. } = self;
        let mut total = 0;
        for (&(slot, payload), result) in scratch.targets.iter().zip(results.drain(..)) {
            let payload = &scratch.payloads[payload];
            let sent = Sent { scratch, payload, result };
            total += after_send(slot, sent, senders, (cache, readback), cx);
        }
        for (slot, hold) in scratch.held.drain(..) {
            if let Some(key) = senders.table.key_at(slot) {
                total += senders.start_zerocopy(key, hold, cx);
            }
        }
        for slot in scratch.missing.drain(..) {
            wait_for_block(slot, senders, readback);
        }
        total
    }

    /// Composes what each standby is sent, and sends it. When this returns, the sockets have copied
    /// what they took (I7); only lengths matter from there on.
    fn offer<R: Ring>(
        &mut self,
        slots: &[u32],
        senders: &mut Senders,
        (cache, readback): (&ChunkReader, &ReadBack),
        cx: &mut Context<'_, R>,
    ) {
        let pin = cache.pin();
        let source = Source { pin: &pin, readback };
        let (budget, send_time) = (self.max_send_size, cx.pg_time());
        let composition = Composition { source: &source, budget, send_time };
        let scratch = &mut self.scratch;
        let mut wal = emptied(std::mem::take(&mut scratch.wal));
        for &slot in slots {
            let Some(sender) = senders.table.at(slot).filter(|sender| sender.is_due()) else {
                continue;
            };
            if sender.delivery == Delivery::Zerocopy && sender.cursor.unfinished().is_some() {
                match large_rest(sender, &pin) {
                    LargeRest::Held(hold) => {
                        scratch.held.push((slot, hold));
                        continue;
                    }
                    LargeRest::Refused => senders.refused_holds += 1,
                    LargeRest::Small => {}
                }
            }
            scratch.add(slot, sender, &composition, &mut wal);
        }
        self.results.clear();
        if scratch.targets.is_empty() {
            scratch.wal = emptied(wal);
            return;
        }
        let mut parts = emptied(std::mem::take(&mut scratch.parts));
        let mut batch = emptied(std::mem::take(&mut scratch.batch));
        let mut ranges = std::mem::take(&mut scratch.ranges);
        scratch.lay_out(&senders.table, &wal, &mut parts, &mut ranges);
        for &(slot, payload) in &scratch.targets {
            let sender = senders.table.at(slot);
            let sender = sender.expect("a target was at this slot a moment ago");
            let (parts, then) = (&parts[ranges[payload].clone()], scratch.payloads[payload].then);
            batch.push(Outgoing { socket: &sender.socket, parts, then });
        }
        cx.ring.send_now(&batch, &mut self.results);
        let batch = emptied(batch);
        let parts = emptied(parts);
        (scratch.batch, scratch.parts) = (batch, parts);
        scratch.wal = emptied(wal);
        scratch.ranges = ranges;
    }
}

/// A payload that was offered to a socket, and the outcome.
struct Sent<'a> {
    scratch: &'a SendScratch,
    payload: &'a Payload,
    result: io::Result<usize>,
}

/// Accounts for what a standby's socket took. Returns how much of it was WAL.
fn after_send<R: Ring>(
    slot: u32,
    Sent { scratch, payload, result }: Sent<'_>,
    senders: &mut Senders,
    (cache, readback): (&ChunkReader, &mut ReadBack),
    cx: &mut Context<'_, R>,
) -> u64 {
    let Some(key) = senders.table.key_at(slot) else { return 0 };
    let Some(sender) = senders.table.get_mut(key) else { return 0 };
    let sent = match result {
        Ok(sent) => sent,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            senders.due.note(slot);
            return 0;
        }
        Err(error) => {
            senders.disconnected(key, &error, cx);
            return 0;
        }
    };
    let rest = sent.min(payload.rest);
    let outbox = (sent - rest).min(payload.outbox);
    let mut wal = sender.cursor.advance(rest, &[], &[]);
    sender.outbox.drain(..outbox);
    let places = payload.messages.clone();
    let (messages, headers) = (&scratch.messages[places.clone()], &scratch.headers[places]);
    wal += sender.cursor.advance(sent - rest - outbox, messages, headers);
    sender.hold.sent(sender.cursor.next());
    let is_full = sent < scratch.offered(payload);
    // An offer is enough: a full socket must not keep the block from others.
    if readback.touch(payload.cell, payload.wal_from, payload.wal_to)
        && !is_full
        && sender.state.sends_wal()
    {
        readback.note_ahead(&sender.cell, sender.cursor.next());
    }
    if is_full {
        senders.wait_for_room(key, cx);
    } else if payload.then == Then::More {
        wal += senders.follow_header(key, cache, cx);
    }
    senders.sent_on(key, cx);
    wal
}

/// A standby has nothing at hand: it waits until the block it needs is loaded.
fn wait_for_block(slot: u32, senders: &mut Senders, readback: &mut ReadBack) {
    let Some(key) = senders.table.key_at(slot) else { return };
    let Some(sender) = senders.table.get_mut(key) else { return };
    let message_end = sender.cursor.unfinished().map_or(Lsn::INVALID, |rest| rest.end);
    let want = Want {
        standby: key,
        cell: Arc::clone(&sender.cell),
        at: sender.cursor.next(),
        message_end,
    };
    sender.awaiting_block = Some(want.block());
    readback.wait(want);
}
