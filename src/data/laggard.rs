//! Standbys whose WAL has left the cache: who waits for which block, and what is read
//! next. First come, first served.

use super::blocks::{AtHand, BLOCK_SIZE, BlockId, HOT};
use super::core::DataCore;
use super::files::FileAnswer;
use super::table::Key;
use crate::ring::Ring;
use crate::wal::{Lsn, SegmentNo, TimelineId};
use crate::watermark::Cell;

/// What came of an attempt to have a standby's block read.
enum Fed {
    /// A read was started.
    Read,
    /// It is here, or being read already, or wanted no more.
    Yes,
    /// The keeper is opening the file.
    FileComing,
    /// No place in the pool, or in the keeper's queue.
    Later,
}

/// Blocks that are read before a standby needs them: as many as one send takes.
const AHEAD: u64 = 2;

impl<R: Ring> DataCore<R> {
    /// A standby has nothing at hand: it waits until the block it needs is read.
    pub(super) fn wait_for_block(&mut self, slot: u32) {
        let Some(key) = self.senders.key_at(slot) else { return };
        let Some(sender) = self.senders.get_mut(key) else { return };
        sender.waiting_block = Some(BlockId::of(sender.cell.id(), sender.cursor.next()));
        self.hungry.push_back(key);
    }

    /// Starts reads for those who have waited longest, while there is place, and no more
    /// than fit the CPU's cache. After a round, so that blocks that have arrived were
    /// used by those who waited for them. With nobody waiting it reads ahead. Returns
    /// whether more can be read in another pass.
    pub(super) fn feed_hungry(&mut self) -> bool {
        let mut reads = 0;
        while reads < HOT {
            let Some(key) = self.hungry.pop_front() else { break };
            match self.feed(key) {
                Fed::Read => reads += 1,
                Fed::Yes | Fed::FileComing => {}
                Fed::Later => {
                    self.hungry.push_front(key);
                    break;
                }
            }
        }
        let mut ahead = std::mem::take(&mut self.ahead);
        for key in ahead.drain(..) {
            if reads < HOT && self.hungry.is_empty() {
                reads += self.read_ahead(key);
            }
        }
        self.ahead = ahead;
        reads >= HOT && !self.hungry.is_empty()
    }

    fn feed(&mut self, key: Key) -> Fed {
        let Some(sender) = self.senders.get_mut(key) else { return Fed::Yes };
        let Some(id) = sender.waiting_block else { return Fed::Yes };
        let (cell, at) = (sender.cell.clone(), sender.cursor.next());
        // A message that was begun before its timeline's end was known is finished from
        // behind that end.
        let rest = sender.cursor.unfinished().map_or(Lsn::INVALID, |rest| rest.end);
        let valid_to = cell.limit().max(rest);
        match self.blocks.at_hand(cell.id(), at) {
            AtHand::Coming => {
                self.blocks.join(id, key);
                return Fed::Yes;
            }
            AtHand::Yes => {
                sender.waiting_block = None;
                self.due.note(key.index);
                return Fed::Yes;
            }
            AtHand::No if !self.blocks.has_place() => return Fed::Later,
            AtHand::No => {}
        }
        let fed = self.load(&cell, id, (at, valid_to));
        if matches!(fed, Fed::Read) {
            self.blocks.join(id, key);
        }
        fed
    }

    /// Has a block read from the file that holds `at`; its WAL is good up to `valid_to`.
    fn load(&mut self, cell: &Cell, id: BlockId, (at, valid_to): (Lsn, Lsn)) -> Fed {
        let Some(identity) = self.hub.identity() else { return Fed::Later };
        let size = identity.segment_size;
        match self.files.file(cell.tli(), at.segment(size), &self.keeper) {
            FileAnswer::Open(file) => {
                let place = (&file, id.start().segment_offset(size));
                self.blocks.load(&mut self.ring, id, valid_to, place);
                Fed::Read
            }
            FileAnswer::Coming => Fed::FileComing,
            FileAnswer::Busy => Fed::Later,
        }
    }

    /// Has the next blocks of a standby read that was just sent from one, unless its
    /// socket is full. Returns how many reads that made.
    fn read_ahead(&mut self, key: Key) -> usize {
        let Some(sender) = self.senders.get_mut(key) else { return 0 };
        if sender.waiting_room.is_some() || !sender.sends_wal() {
            return 0;
        }
        let (cell, next) = (sender.cell.clone(), sender.cursor.next());
        let mut reads = 0;
        for at in (0..AHEAD).map(|n| next.saturating_add(n * BLOCK_SIZE as u64)) {
            if at >= cell.limit()
                || !self.blocks.has_free_place()
                || self.blocks.at_hand(cell.id(), at) != AtHand::No
                || self.chunks.pin().bytes(cell.id(), at, 1).is_some()
            {
                continue;
            }
            let good = (at, cell.limit());
            if matches!(self.load(&cell, BlockId::of(cell.id(), at), good), Fed::Read) {
                reads += 1;
            }
        }
        reads
    }

    /// A block is here: those who waited for it are due again.
    pub(super) fn block_arrived(&mut self, id: BlockId, waiting: &mut Vec<Key>) {
        for key in waiting.drain(..) {
            if let Some(sender) = self.senders.get_mut(key)
                && sender.waiting_block == Some(id)
            {
                sender.waiting_block = None;
                self.due.note(key.index);
            }
        }
    }

    /// A file is open: those who waited for it get in line for its blocks.
    pub(super) fn file_arrived(&mut self, tli: TimelineId, no: SegmentNo) {
        let Some(size) = self.hub.identity().map(|identity| identity.segment_size) else { return };
        for key in self.senders.keys() {
            if let Some(sender) = self.senders.get_mut(key)
                && sender.waiting_block.is_some()
                && sender.cell.tli() == tli
                && sender.cursor.next().segment(size) == no
            {
                self.hungry.push_back(key);
            }
        }
    }
}
