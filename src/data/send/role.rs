//! The role as its core sees it.

use super::round::{Rounds, Slice};
use super::sender::Sender;
use super::senders::Senders;
use super::zerocopy::ZerocopySends;
use crate::data::context::Context;
use crate::data::figures::StandbyFigures;
use crate::data::handoff::StandbyHandoff;
use crate::data::readback::{Arrival, ReadBack, ReadFault, Want};
use crate::data::table::Key;
use crate::hub::Hub;
use crate::ring::{ChunkReader, Copied, ReplyBuffer, Ring};
use crate::standby::refusals;
use crate::store::slots::SlotToken;
use crate::wal::SegmentName;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Entries of the table of standbys that one answer covers.
const PLACES: u32 = 128;

/// The standbys of one core, and the rounds in which they are sent WAL.
pub struct SendRole {
    cache: ChunkReader,
    senders: Senders,
    rounds: Rounds,
    zerocopy: ZerocopySends,
    notice: StopNotice,
}

/// Have this core's streams been told to end?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopNotice {
    /// No: received WAL may still become durable.
    NotYet,
    /// Yes.
    Given,
}

impl SendRole {
    /// A role without standbys, on core `core`.
    pub fn new(core: usize, hub: Arc<Hub>, cache: ChunkReader) -> Self {
        Self {
            cache,
            rounds: Rounds::new(core, hub.config.max_send_size),
            zerocopy: ZerocopySends::new(core, hub.config.zerocopy),
            senders: Senders::new(hub),
            notice: StopNotice::NotYet,
        }
    }

    /// The newest WAL.
    pub const fn cache(&self) -> &ChunkReader {
        &self.cache
    }

    /// Are there no standbys?
    pub fn is_empty(&self) -> bool {
        self.senders.table.is_empty()
    }

    /// Is there something for the next round to do?
    pub fn is_due(&self) -> bool {
        !self.senders.due.is_empty() || self.rounds.has_missed()
    }

    /// Something happened that may concern every standby.
    pub const fn note_all(&mut self) {
        self.senders.due.note_all();
    }

    /// When the next timer expires.
    pub fn deadline(&self) -> Option<Instant> {
        self.senders.deadline()
    }

    /// The figures of some standbys for `walhub ctl`, from table index `from` on, and the index of
    /// the next ones.
    pub fn figures(&self, from: u32) -> (Vec<StandbyFigures>, Option<u32>) {
        let table = &self.senders.table;
        let end = from.saturating_add(PLACES).min(table.places());
        let senders = (from..end).filter_map(|place| table.at(place));
        (senders.map(Sender::figures).collect(), (end < table.places()).then_some(end))
    }

    /// The control thread hands over a standby.
    pub fn adopt<R: Ring>(&mut self, handoff: StandbyHandoff, cx: &mut Context<'_, R>) {
        let member = self.senders.hub.fleet.join();
        let (mut sender, unread) = Sender::begin(handoff, member, cx.now);
        sender.delivery = self.zerocopy.delivery_to(&sender.socket, &self.cache, cx.ring);
        let key = self.senders.adopt(sender, &unread, cx);
        if self.notice == StopNotice::Given {
            self.senders.stop(key, cx);
        }
    }

    /// A standby's receive completed.
    pub fn on_reply<R: Ring>(
        &mut self,
        key: Key,
        result: io::Result<ReplyBuffer>,
        cx: &mut Context<'_, R>,
    ) {
        self.senders.on_reply(key, result, cx);
    }

    /// A standby's socket has room again.
    pub fn on_room<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        self.senders.on_room(key, cx);
    }

    /// A standby's socket took some or all of a send without a copy.
    pub fn on_zerocopy_sent<R: Ring>(
        &mut self,
        key: Key,
        result: io::Result<usize>,
        cx: &mut Context<'_, R>,
    ) {
        self.senders.on_zerocopy_sent(key, result, cx);
    }

    /// The memory of a send without a copy is no longer read.
    pub fn on_zerocopy_released(&mut self, key: Key, copied: Copied) {
        self.zerocopy.on_released(&mut self.senders, key, copied);
    }

    /// Does a standby still wait for this?
    pub fn awaits(&self, want: &Want) -> bool {
        let sender = self.senders.table.get(want.standby);
        sender.is_some_and(|sender| sender.awaiting_block == Some(want.block()))
    }

    /// What a standby waited for is loaded, or cannot be read.
    pub fn on_arrival<R: Ring>(&mut self, arrival: Arrival, cx: &mut Context<'_, R>) {
        let table = &mut self.senders.table;
        match arrival {
            Arrival::Here(key, block) => {
                if let Some(sender) = table.get_mut(key)
                    && sender.awaiting_block.take_if(|awaited| *awaited == block).is_some()
                {
                    self.senders.due.note(key.index);
                }
            }
            Arrival::Failed(key, block, fault) => {
                let Some(sender) = table.get_mut(key) else { return };
                if sender.awaiting_block != Some(block) {
                    return;
                }
                let refusal = match fault {
                    ReadFault::Removed(name) => refusals::segment_removed(named_for(sender, name)),
                    ReadFault::Unreadable(refusal) => refusal,
                };
                self.senders.fail(key, refusal, cx);
            }
        }
    }

    /// Plans a round. Returns whether there is anything to do.
    pub fn begin_round<R: Ring>(&mut self, cx: &mut Context<'_, R>) -> bool {
        self.rounds.begin(&mut self.senders, cx)
    }

    /// Sends the next slice of the round.
    pub fn send_slice<R: Ring>(
        &mut self,
        readback: &mut ReadBack,
        cx: &mut Context<'_, R>,
    ) -> Slice {
        self.rounds.send_slice(&mut self.senders, (&self.cache, readback), cx)
    }

    /// Handles the standbys whose timers have expired, and restarts receives that found no buffer.
    /// Returns whether there was anything to do.
    pub fn run_timers<R: Ring>(&mut self, cx: &mut Context<'_, R>) -> bool {
        let any = self.senders.run_timers(cx);
        self.senders.retry_receives(cx) || any
    }

    /// A CancelRequest with the right key.
    pub fn cancel<R: Ring>(&mut self, pid: u32, cx: &mut Context<'_, R>) {
        self.senders.cancel(pid, cx);
    }

    /// The slot of a stream lost its WAL. The standby must see that before it continues.
    pub fn terminate<R: Ring>(&mut self, slot: SlotToken, cx: &mut Context<'_, R>) {
        self.senders.terminate(slot, cx);
    }

    /// The path above us changed: hubs below must check whether they are in it.
    pub fn end_hub_streams<R: Ring>(&mut self, cx: &mut Context<'_, R>) {
        self.senders.end_hub_streams(cx);
    }

    /// Our WAL was moved aside: what its streams wait for will never come.
    pub fn end_set_aside<R: Ring>(&mut self, cx: &mut Context<'_, R>) {
        self.senders.end_set_aside(cx);
    }

    /// The hub is shutting down and no more WAL becomes durable: tells the streams to end.
    pub fn stop<R: Ring>(&mut self, cx: &mut Context<'_, R>) {
        self.notice = StopNotice::Given;
        self.note_all();
        for key in self.senders.table.keys() {
            self.senders.stop(key, cx);
        }
    }

    /// Have the streams been told to end?
    pub fn is_stopping(&self) -> bool {
        self.notice == StopNotice::Given
    }

    /// The standbys, for inspection.
    #[cfg(all(test, not(walhub_loom)))]
    pub fn senders(&self) -> impl Iterator<Item = (Key, &Sender)> {
        let table = &self.senders.table;
        table.iter().filter_map(|(slot, sender)| Some((table.key_at(slot)?, sender)))
    }

    /// A standby, for inspection.
    #[cfg(all(test, not(walhub_loom)))]
    pub fn sender(&self, key: Key) -> Option<&Sender> {
        self.senders.table.get(key)
    }
}

/// The file that PostgreSQL looks for: in the segment where the timeline ends, the next timeline's.
fn named_for(sender: &Sender, name: SegmentName) -> SegmentName {
    let ends_inside = sender.cell.end().is_some_and(|end| end.segment(name.size) == name.no);
    match sender.cell.next() {
        Some(next) if ends_inside => SegmentName { tli: next.tli(), ..name },
        _ => name,
    }
}
