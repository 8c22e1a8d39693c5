//! Which chunk is in which buffer, how far it is filled, and who reads it: the
//! lock-free part of the chunk cache, without the memory.
//!
//! One writer, one [`Desk`] per reader. A chunk's *sequence number* is its identity: numbers are
//! given in the order of allocation and never reused. Before a reader touches bytes, its hazard
//! word says "nothing from this sequence number on may be reused":
//!
//! ```text
//! reader: hazard = seq    fence   seq still there?  -> read the bytes
//! writer: seq = none      fence   any hazard <= seq? -> leave the buffer alone
//! ```
//!
//! With both fences at least one of them sees the other (`loom` fails without either).
//!
//! A send without a copy outlives the visit: it takes a *hold* on the buffer while the hazard
//! word protects it. The writer reads the words first and the holds after them, so a reader
//! whose word is gone has its hold counted already. Bytes below the fill mark are never written
//! again while the chunk lives (F3).

use crate::watermark::CellId;
use crate::watermark::sync::{AtomicU32, AtomicU64, Fence, Ordering, full_fence};
use crossbeam::utils::CachePadded;
use std::cell::Cell;
use std::sync::Arc;

/// A chunk's key: timeline cell and ordinal in it. After a switch, the LSN alone could name
/// another branch's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ChunkKey {
    pub(super) cell: CellId,
    pub(super) number: u64,
}

/// Allocation order of chunks, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Seq(u64);

impl Seq {
    /// For buffers that never held a chunk: smaller than every hazard.
    pub(super) const NONE: Self = Self(0);

    /// The number of the next chunk.
    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A hazard word that protects nothing.
const IDLE: u64 = u64::MAX;

#[derive(Debug)]
struct Slot {
    seq: AtomicU64,
    cell: AtomicU32,
    number: AtomicU64,
    fill: AtomicU32,
}

#[derive(Debug)]
pub(super) struct Directory {
    slots: Box<[CachePadded<Slot>]>,
    /// Key hash to buffer. Chunks of one cell never collide (there are more entries than
    /// buffers, and numbers are consecutive). Those of two cells may: then the older one is not
    /// found, which only costs a file read.
    index: Box<[AtomicU32]>,
    hazards: Box<[CachePadded<AtomicU64>]>,
    /// Per buffer: sends in flight that read it.
    holds: Box<[AtomicU32]>,
    /// How many buffers are held, at most `max_held` (I10).
    held: AtomicU32,
    max_held: u32,
}

/// What a reader found: `fill` bytes of `buffer` may be read until [`Desk::leave`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) buffer: usize,
    pub(super) fill: usize,
}

impl Directory {
    /// At most `max_held` buffers are held at one time.
    pub(super) fn new(buffers: usize, readers: usize, max_held: usize) -> Self {
        let slot = || Slot {
            seq: AtomicU64::new(Seq::NONE.0),
            cell: AtomicU32::new(0),
            number: AtomicU64::new(0),
            fill: AtomicU32::new(0),
        };
        let entries = (2 * buffers).next_power_of_two();
        Self {
            slots: (0..buffers).map(|_| CachePadded::new(slot())).collect(),
            index: (0..entries).map(|_| AtomicU32::new(0)).collect(),
            hazards: (0..readers).map(|_| CachePadded::new(AtomicU64::new(IDLE))).collect(),
            holds: (0..buffers).map(|_| AtomicU32::new(0)).collect(),
            held: AtomicU32::new(0),
            max_held: max_held as u32,
        }
    }

    fn entry(&self, key: ChunkKey) -> &AtomicU32 {
        // Two cells share numbers around a switchpoint, so keep them apart.
        let place = key.number.wrapping_add(u64::from(key.cell.raw()) * 0x9E37);
        &self.index[place as usize & (self.index.len() - 1)]
    }

    /// Writer: the chunk `key` is now in `buffer`, with `fill` bytes already there.
    /// [`Directory::is_pinned`] has released the buffer, and `seq` was never used.
    pub(super) fn publish(&self, buffer: usize, seq: Seq, key: ChunkKey, fill: usize) {
        let slot = &self.slots[buffer];
        slot.cell.store(key.cell.raw(), Ordering::Relaxed);
        slot.number.store(key.number, Ordering::Relaxed);
        slot.fill.store(fill as u32, Ordering::Relaxed);
        slot.seq.store(seq.0, Ordering::Release);
        self.entry(key).store(buffer as u32, Ordering::Release);
    }

    /// Writer: the first `fill` bytes of the chunk in `buffer` are there, and final.
    pub(super) fn fill(&self, buffer: usize, fill: usize) {
        let slot = &self.slots[buffer];
        assert!(slot.fill.load(Ordering::Relaxed) <= fill as u32, "a fill mark only grows");
        slot.fill.store(fill as u32, Ordering::Release);
    }

    /// Writer: no reader finds the chunk in `buffer` from now on. Readers that have found it may
    /// still read: see [`Directory::is_pinned`].
    pub(super) fn retire(&self, buffer: usize) {
        self.slots[buffer].seq.store(Seq::NONE.0, Ordering::Relaxed);
        full_fence(Fence::Retire);
    }

    /// Does this reader keep the chunk in `buffer`?
    #[cfg(all(test, not(walhub_loom)))]
    pub(super) fn is_kept_by(&self, reader: usize, buffer: usize) -> bool {
        let seq = self.slots[buffer].seq.load(Ordering::Acquire);
        self.hazards[reader].load(Ordering::Acquire) <= seq
    }

    /// The mistake of a reader that leaves while it still reads.
    #[cfg(all(test, not(walhub_loom)))]
    pub(super) fn forget_hazard(&self, reader: usize) {
        self.hazards[reader].store(IDLE, Ordering::Release);
    }

    /// Writer, after retiring the chunk `seq`: may a reader still read it? Once the answer is
    /// no, it stays no, and all reads have happened.
    pub(super) fn is_pinned(&self, seq: Seq) -> bool {
        self.hazards.iter().any(|hazard| hazard.load(Ordering::Acquire) <= seq.0)
    }

    /// Does a send in flight read the buffer?
    pub(super) fn is_held(&self, buffer: usize) -> bool {
        // Acquire: the send's reads happen before the buffer gets other bytes.
        self.holds[buffer].load(Ordering::Acquire) > 0
    }

    /// Writer, after retiring the chunk `seq` of `buffer`: is there nobody left who may read it?
    /// The order matters: a hold is taken under a hazard word.
    pub(super) fn is_free(&self, buffer: usize, seq: Seq) -> bool {
        !self.is_pinned(seq) && !self.is_held(buffer)
    }

    /// Reader, between [`Desk::find`] and [`Desk::leave`]: keeps what was found from being
    /// reused until [`Directory::release`]. Returns false when too many buffers are held.
    pub(super) fn hold(&self, buffer: usize) -> bool {
        let holds = &self.holds[buffer];
        let mut count = holds.load(Ordering::Relaxed);
        loop {
            // The first hold of a buffer takes one of the places.
            let first = count == 0;
            if first && !self.take_place() {
                return false;
            }
            let next = count + 1;
            // Relaxed: the hazard word's release orders it before the writer's check.
            match holds.compare_exchange(count, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => {
                    if first {
                        self.held.fetch_sub(1, Ordering::Relaxed);
                    }
                    count = now;
                }
            }
        }
    }

    fn take_place(&self) -> bool {
        let mut held = self.held.load(Ordering::Relaxed);
        while held < self.max_held {
            let taken =
                self.held.compare_exchange(held, held + 1, Ordering::Relaxed, Ordering::Relaxed);
            match taken {
                Ok(_) => return true,
                Err(now) => held = now,
            }
        }
        false
    }

    /// Ends a hold: nothing reads the buffer for it any more.
    pub(super) fn release(&self, buffer: usize) {
        if self.holds[buffer].fetch_sub(1, Ordering::Release) == 1 {
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One reader's desk at the directory, with its hazard word.
#[derive(Debug)]
pub(super) struct Desk {
    directory: Arc<Directory>,
    reader: usize,
    /// The value of the hazard word; only this reader writes it.
    oldest: Cell<u64>,
}

impl Desk {
    /// Takes the desk of `reader`, which nobody else may take.
    pub(super) fn new(directory: Arc<Directory>, reader: usize) -> Self {
        Self { directory, reader, oldest: Cell::new(IDLE) }
    }

    /// Finds a chunk and keeps it, and all younger ones, from being reused until
    /// [`Desk::leave`].
    pub(super) fn find(&self, key: ChunkKey) -> Option<Found> {
        let directory = &*self.directory;
        let buffer = directory.entry(key).load(Ordering::Acquire) as usize;
        let slot = &directory.slots[buffer];
        let holds_key = || {
            slot.cell.load(Ordering::Relaxed) == key.cell.raw()
                && slot.number.load(Ordering::Relaxed) == key.number
        };
        let seq = slot.seq.load(Ordering::Acquire);
        // A first check, so that a miss costs no fence.
        if seq == Seq::NONE.0 || !holds_key() {
            return None;
        }
        if seq < self.oldest.get() {
            self.oldest.set(seq);
            // Release: an earlier visit's reads happen before this word replaces the one that
            // protected them.
            directory.hazards[self.reader].store(seq, Ordering::Release);
            full_fence(Fence::Pin);
        }
        if slot.seq.load(Ordering::Acquire) != seq || !holds_key() {
            return None;
        }
        Some(Found { buffer, fill: slot.fill.load(Ordering::Acquire) as usize })
    }

    /// Ends all reading that [`Desk::find`] allowed.
    pub(super) fn leave(&self) {
        if self.oldest.replace(IDLE) != IDLE {
            self.directory.hazards[self.reader].store(IDLE, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{Lsn, TimelineId};
    use crate::watermark;

    fn cell() -> CellId {
        watermark::Cell::new(TimelineId::FIRST, Lsn::INVALID, Lsn::INVALID).id()
    }

    #[test]
    fn a_pin_covers_its_chunk_and_the_younger_ones() {
        let directory = Arc::new(Directory::new(4, 2, 0));
        let (first, second) = (Desk::new(directory.clone(), 0), Desk::new(directory.clone(), 1));
        let cell = cell();
        let key = |number| ChunkKey { cell, number };
        let seqs = [Seq(1), Seq(2), Seq(3)];
        for (buffer, seq) in seqs.into_iter().enumerate() {
            directory.publish(buffer, seq, key(buffer as u64), 10);
        }
        assert_eq!(second.find(key(1)), Some(Found { buffer: 1, fill: 10 }));
        directory.fill(1, 20);
        assert_eq!(first.find(key(1)), Some(Found { buffer: 1, fill: 20 }));
        first.leave();
        assert_eq!(seqs.map(|seq| directory.is_pinned(seq)), [false, true, true]);
        directory.retire(1);
        assert_eq!(first.find(key(1)), None);
        assert!(directory.is_pinned(seqs[1]));
        second.leave();
        assert!(!directory.is_pinned(seqs[1]) && !directory.is_pinned(Seq::NONE));
    }

    #[test]
    fn a_hold_outlives_the_visit_and_few_buffers_are_held() {
        let directory = Arc::new(Directory::new(3, 1, 2));
        let desk = Desk::new(directory.clone(), 0);
        let key = ChunkKey { cell: cell(), number: 0 };
        directory.publish(0, Seq(1), key, 10);
        assert!(desk.find(key).is_some());
        assert!(directory.hold(0) && directory.hold(0) && directory.hold(1));
        // Two buffers are held, which is the limit; a held one may be held again.
        assert!(!directory.hold(2) && directory.hold(1));
        desk.leave();
        directory.retire(0);
        directory.release(0);
        assert!(!directory.is_pinned(Seq(1)) && !directory.is_free(0, Seq(1)));
        directory.release(0);
        assert!(directory.is_free(0, Seq(1)) && directory.hold(2));
    }

    #[test]
    fn the_same_number_of_another_cell_is_another_chunk() {
        let directory = Arc::new(Directory::new(2, 1, 0));
        let desk = Desk::new(directory.clone(), 0);
        let (old, new) = (cell(), cell());
        directory.publish(0, Seq(1), ChunkKey { cell: old, number: 7 }, 1);
        assert_eq!(desk.find(ChunkKey { cell: new, number: 7 }), None);
        directory.publish(1, Seq(2), ChunkKey { cell: new, number: 7 }, 2);
        assert_eq!(desk.find(ChunkKey { cell: new, number: 7 }).map(|found| found.fill), Some(2));
    }
}
