//! Which chunk is in which buffer, how far it is filled, and who reads it: the
//! lock-free part of the chunk cache, without the memory.
//!
//! One writer, one [`IndexReader`] per reader. A chunk's *sequence number* is its identity: numbers are
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
pub(super) struct ChunkIndex {
    slots: Box<[CachePadded<Slot>]>,
    /// Key hash to buffer. Chunks of one cell never collide (there are more entries than
    /// buffers, and numbers are consecutive). Those of two cells may: then the older one is not
    /// found, which only costs a file read.
    buckets: Box<[AtomicU32]>,
    hazards: Box<[CachePadded<AtomicU64>]>,
    /// Per buffer: sends in flight that read it.
    holds: Box<[AtomicU32]>,
    /// How many buffers are held, at most `max_held` (I10).
    held: AtomicU32,
    max_held: u32,
}

/// What a reader found: `fill` bytes of `buffer` may be read until [`IndexReader::leave`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) buffer: usize,
    pub(super) fill: usize,
}

impl ChunkIndex {
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
            buckets: (0..entries).map(|_| AtomicU32::new(0)).collect(),
            hazards: (0..readers).map(|_| CachePadded::new(AtomicU64::new(IDLE))).collect(),
            holds: (0..buffers).map(|_| AtomicU32::new(0)).collect(),
            held: AtomicU32::new(0),
            max_held: max_held as u32,
        }
    }

    fn entry(&self, key: ChunkKey) -> &AtomicU32 {
        // Two cells share numbers around a switchpoint, so keep them apart.
        let place = key.number.wrapping_add(u64::from(key.cell.raw()) * 0x9E37);
        &self.buckets[place as usize & (self.buckets.len() - 1)]
    }

    /// Writer: the chunk `key` is now in `buffer`, with `fill` bytes already there.
    /// [`ChunkIndex::is_pinned`] has released the buffer, and `seq` was never used.
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
    /// still read: see [`ChunkIndex::is_pinned`].
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

    /// Reader, between [`IndexReader::find`] and [`IndexReader::leave`]: keeps what was found from being
    /// reused until [`ChunkIndex::release`]. Returns false when too many buffers are held.
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

/// One reader of the index, with its hazard word.
#[derive(Debug)]
pub(super) struct IndexReader {
    index: Arc<ChunkIndex>,
    reader: usize,
    /// The value of the hazard word; only this reader writes it.
    oldest: Cell<u64>,
}

impl IndexReader {
    /// The number `reader` belongs to this reader alone.
    pub(super) fn new(index: Arc<ChunkIndex>, reader: usize) -> Self {
        Self { index, reader, oldest: Cell::new(IDLE) }
    }

    /// Finds a chunk and keeps it, and all younger ones, from being reused until
    /// [`IndexReader::leave`].
    pub(super) fn find(&self, key: ChunkKey) -> Option<Found> {
        let index = &*self.index;
        let buffer = index.entry(key).load(Ordering::Acquire) as usize;
        let slot = &index.slots[buffer];
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
            index.hazards[self.reader].store(seq, Ordering::Release);
            full_fence(Fence::Pin);
        }
        if slot.seq.load(Ordering::Acquire) != seq || !holds_key() {
            return None;
        }
        Some(Found { buffer, fill: slot.fill.load(Ordering::Acquire) as usize })
    }

    /// Ends all reading that [`IndexReader::find`] allowed.
    pub(super) fn leave(&self) {
        if self.oldest.replace(IDLE) != IDLE {
            self.index.hazards[self.reader].store(IDLE, Ordering::Release);
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
        let index = Arc::new(ChunkIndex::new(4, 2, 0));
        let (first, second) =
            (IndexReader::new(index.clone(), 0), IndexReader::new(index.clone(), 1));
        let cell = cell();
        let key = |number| ChunkKey { cell, number };
        let seqs = [Seq(1), Seq(2), Seq(3)];
        for (buffer, seq) in seqs.into_iter().enumerate() {
            index.publish(buffer, seq, key(buffer as u64), 10);
        }
        assert_eq!(second.find(key(1)), Some(Found { buffer: 1, fill: 10 }));
        index.fill(1, 20);
        assert_eq!(first.find(key(1)), Some(Found { buffer: 1, fill: 20 }));
        first.leave();
        assert_eq!(seqs.map(|seq| index.is_pinned(seq)), [false, true, true]);
        index.retire(1);
        assert_eq!(first.find(key(1)), None);
        assert!(index.is_pinned(seqs[1]));
        second.leave();
        assert!(!index.is_pinned(seqs[1]) && !index.is_pinned(Seq::NONE));
    }

    #[test]
    fn a_hold_outlives_the_visit_and_few_buffers_are_held() {
        let index = Arc::new(ChunkIndex::new(3, 1, 2));
        let index_reader = IndexReader::new(index.clone(), 0);
        let key = ChunkKey { cell: cell(), number: 0 };
        index.publish(0, Seq(1), key, 10);
        assert!(index_reader.find(key).is_some());
        assert!(index.hold(0) && index.hold(0) && index.hold(1));
        // Two buffers are held, which is the limit; a held one may be held again.
        assert!(!index.hold(2) && index.hold(1));
        index_reader.leave();
        index.retire(0);
        index.release(0);
        assert!(!index.is_pinned(Seq(1)) && !index.is_free(0, Seq(1)));
        index.release(0);
        assert!(index.is_free(0, Seq(1)) && index.hold(2));
    }

    #[test]
    fn the_same_number_of_another_cell_is_another_chunk() {
        let index = Arc::new(ChunkIndex::new(2, 1, 0));
        let index_reader = IndexReader::new(index.clone(), 0);
        let (old, new) = (cell(), cell());
        index.publish(0, Seq(1), ChunkKey { cell: old, number: 7 }, 1);
        assert_eq!(index_reader.find(ChunkKey { cell: new, number: 7 }), None);
        index.publish(1, Seq(2), ChunkKey { cell: new, number: 7 }, 2);
        assert_eq!(
            index_reader.find(ChunkKey { cell: new, number: 7 }).map(|found| found.fill),
            Some(2)
        );
    }
}
