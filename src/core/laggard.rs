//! Standbys whose WAL has left the cache: who waits for which block, and what is read
//! next. First come, first served.

use super::blocks::{AtHand, BlockId};
use super::data::DataCore;
use super::files::FileAnswer;
use super::table::Key;
use crate::ring::Ring;
use crate::wal::{SegmentNo, TimelineId};

/// What came of an attempt to have a standby's block read.
enum Fed {
    /// It is read, or being read.
    Yes,
    /// The keeper is opening the file.
    FileComing,
    /// No place in the pool, or in the keeper's queue.
    Later,
}

impl<R: Ring> DataCore<R> {
    /// A standby has nothing at hand: it waits until the block it needs is read.
    pub(super) fn wait_for_block(&mut self, slot: u32) {
        let Some(key) = self.senders.key_at(slot) else { return };
        let Some(sender) = self.senders.get_mut(key) else { return };
        sender.waiting_block = Some(BlockId::of(sender.cell.id(), sender.cursor.next()));
        self.hungry.push_back(key);
    }

    /// Starts reads for those who have waited longest, while there is place. After a
    /// round, so that blocks that have arrived were used by those who waited for them.
    pub(super) fn feed_hungry(&mut self) {
        while let Some(key) = self.hungry.pop_front() {
            match self.feed(key) {
                Fed::Yes | Fed::FileComing => {}
                Fed::Later => return self.hungry.push_front(key),
            }
        }
    }

    fn feed(&mut self, key: Key) -> Fed {
        let Some(sender) = self.senders.get_mut(key) else { return Fed::Yes };
        let Some(id) = sender.waiting_block else { return Fed::Yes };
        let (cell, at) = (sender.cell.clone(), sender.cursor.next());
        match self.blocks.at_hand(cell.id(), at) {
            AtHand::Coming => return Fed::Yes,
            AtHand::Yes => {
                sender.waiting_block = None;
                self.due.note(key.index);
                return Fed::Yes;
            }
            AtHand::No if !self.blocks.has_place() => return Fed::Later,
            AtHand::No => {}
        }
        let Some(identity) = self.hub.identity() else { return Fed::Later };
        let size = identity.segment_size;
        match self.files.file(cell.tli(), at.segment(size), &self.keeper) {
            FileAnswer::Open(file) => {
                let offset = id.start().segment_offset(size);
                self.blocks.load(&mut self.ring, id, cell.limit(), &file, offset);
                Fed::Yes
            }
            FileAnswer::Coming => Fed::FileComing,
            FileAnswer::Busy => Fed::Later,
        }
    }

    /// A block is here: those who waited for it are due again.
    pub(super) fn block_arrived(&mut self, id: BlockId) {
        for key in self.senders.keys() {
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
