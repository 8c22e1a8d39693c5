//! The cache of the newest WAL: filled by the receive role, read by all cores without a lock,
//! and written to the segment files in place.
//!
//! A chunk holds one aligned MiB of one cell's WAL, from its first byte. Three rules apply, all
//! enforced here: filled bytes never change (I7); a chunk of the current cell that is not durable
//! is not reused; a chunk that is pinned by a reader or used by a write in flight is not reused.
//! [`super::chunk_index`] decides who may read what; this file moves the bytes.
#![expect(
    unsafe_code,
    reason = "bytes are filled and read in place, ordered by the index's atomics"
)]

use super::chunk_index::{ChunkIndex, ChunkKey, IndexReader, Seq};
use super::memory::Memory;
use crate::wal::Lsn;
use crate::wal::page::PAGE_SIZE;
use crate::watermark::CellId;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes in a chunk.
pub const CHUNK_SIZE: usize = 1 << 20;
const CHUNK_BYTES: u64 = CHUNK_SIZE as u64;

/// Buffers beyond `--wal-buffers`. They put that many chunks between retirement and reuse, so
/// that the pins of a send are gone by then.
const SPARE_BUFFERS: usize = 4;
/// Half of the buffers may hold unsynced WAL, and a batch may straddle a boundary.
const MIN_BUFFERS: usize = 4;

/// One in this many chunks may be held by sends without a copy. A peer that does not acknowledge
/// keeps their memory for minutes; the rest of the cache keeps working (I10).
const HELD_SHARE: usize = 4;

/// No chunk is reusable at the moment: no durable one is left to drop, or readers hold those
/// that are. Try again after the next completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the WAL buffers are full")]
pub struct Full;

#[derive(Debug)]
struct Shared {
    memory: Memory,
    index: Arc<ChunkIndex>,
    /// Per buffer: the number of its ranges that writes in flight use.
    ranges: Box<[AtomicU32]>,
}

/// The memory that a cache of `bytes` bytes takes.
pub fn cache_memory(bytes: usize) -> usize {
    (chunks_kept(bytes) + SPARE_BUFFERS) * CHUNK_SIZE
}

fn chunks_kept(bytes: usize) -> usize {
    (bytes / CHUNK_SIZE).max(MIN_BUFFERS)
}

/// Makes the cache, for one writer and one reader per core. `bytes` is rounded down to whole
/// chunks, with a minimum of four. All memory is allocated now.
pub fn chunks(bytes: usize, cores: usize) -> io::Result<(ChunkWriter, Vec<ChunkReader>)> {
    let keep = chunks_kept(bytes);
    let buffers = keep + SPARE_BUFFERS;
    let index = Arc::new(ChunkIndex::new(buffers, cores, keep / HELD_SHARE));
    let shared = Arc::new(Shared {
        memory: Memory::new(buffers, CHUNK_SIZE)?,
        index: Arc::clone(&index),
        ranges: (0..buffers).map(|_| AtomicU32::new(0)).collect(),
    });
    let reader = |core| ChunkReader {
        shared: Arc::clone(&shared),
        index_reader: IndexReader::new(Arc::clone(&index), core),
        pins: Cell::new(0),
    };
    let readers = (0..cores).map(reader).collect();
    let free = (0..buffers).map(|buffer| (buffer, Seq::NONE)).collect();
    let live = VecDeque::with_capacity(buffers);
    let writer = ChunkWriter {
        shared,
        keep,
        live,
        retired: free,
        last: Seq::NONE,
        at: None,
        durable: Lsn::INVALID,
        cut: None,
    };
    Ok((writer, readers))
}

/// A chunk that readers can find.
#[derive(Debug, Clone, Copy)]
struct Live {
    key: ChunkKey,
    buffer: usize,
    seq: Seq,
    /// Bytes filled.
    fill: usize,
    /// From `fill` to here the buffer is zero: always the end of a page.
    zeroed: usize,
}

/// The writer's position: everything before `filled` is in the cache or was.
#[derive(Debug, Clone, Copy)]
struct Position {
    cell: CellId,
    filled: Lsn,
}

/// The writing end, owned by the receive role.
#[derive(Debug)]
pub struct ChunkWriter {
    shared: Arc<Shared>,
    /// More chunks than this are retired ahead of need.
    keep: usize,
    /// In allocation order; those of the current cell are consecutive at the back.
    live: VecDeque<Live>,
    /// Buffers that readers can no longer find, some perhaps still being read.
    retired: VecDeque<(usize, Seq)>,
    /// The youngest chunk's number.
    last: Seq,
    at: Option<Position>,
    durable: Lsn,
    /// After a rewind into the middle of a chunk: that chunk, retired. Its beginning is
    /// copied to a fresh one as soon as bytes follow.
    cut: Option<Live>,
}

fn number_of(lsn: Lsn) -> u64 {
    lsn.raw() / CHUNK_BYTES
}

fn offset_of(lsn: Lsn) -> usize {
    (lsn.raw() % CHUNK_BYTES) as usize
}

impl ChunkWriter {
    /// Begins at `at` of `cell`, in a new chunk whose beginning is `prefix`: all bytes from the
    /// chunk's start to `at` (empty if `at` is on a chunk boundary).
    ///
    /// Chunks of other cells stay readable until they are reused; chunks of this cell
    /// at and after `at` are forgotten. After [`Full`] the cache is closed: open again.
    pub fn open(&mut self, cell: CellId, at: Lsn, prefix: &[u8]) -> Result<(), Full> {
        assert_eq!(
            prefix.len(),
            offset_of(at),
            "the prefix reaches from the chunk's start to {at}"
        );
        let key = ChunkKey { cell, number: number_of(at) };
        // Closed first: nothing received before needs its chunk any more.
        self.at = None;
        self.release_cut();
        self.retire_from(key);
        if !prefix.is_empty() {
            let buffer = self.take().ok_or(Full)?;
            self.begin(buffer, key, prefix);
        }
        self.at = Some(Position { cell, filled: at });
        self.durable = at;
        Ok(())
    }

    /// Copies `bytes` after what is filled, continuing in further chunks. Returns how many were
    /// taken: fewer than all when no chunk is reusable.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let mut at = self.at.expect("append to an open cache");
        let mut rest = bytes;
        while !rest.is_empty() {
            if !self.has_room_at(at) {
                break;
            }
            let chunk = self.live.back_mut().expect("the chunk being filled");
            let (now, later) = rest.split_at(rest.len().min(CHUNK_SIZE - chunk.fill));
            // SAFETY: above the fill mark; readers stay below it, this is the only
            // writer, and a write in flight that covers the tail of this page is the
            // kernel's: it may see either bytes there, and a later write repeats them.
            unsafe { self.shared.memory.copy_in(chunk.buffer, chunk.fill, now) };
            chunk.fill += now.len();
            if chunk.zeroed < chunk.fill {
                chunk.zeroed = chunk.fill.next_multiple_of(PAGE_SIZE);
                // SAFETY: as above.
                unsafe {
                    self.shared.memory.zero(chunk.buffer, chunk.fill, chunk.zeroed - chunk.fill)
                };
            }
            self.shared.index.fill(chunk.buffer, chunk.fill);
            at.filled = at.filled.saturating_add(now.len() as u64);
            rest = later;
        }
        self.at = Some(at);
        bytes.len() - rest.len()
    }

    /// The end of what is filled; 0/0 before the first [`ChunkWriter::open`].
    pub fn filled(&self) -> Lsn {
        self.at.map_or(Lsn::INVALID, |at| at.filled)
    }

    /// WAL up to here is in the files, durably: chunks wholly before it may be reused.
    pub fn durable(&mut self, upto: Lsn) {
        assert!(upto <= self.filled(), "{upto} is durable before it is here");
        self.durable = self.durable.max(upto);
    }

    /// The bytes `[from, to)` for a write. They lie in one chunk; `to` may reach past what is
    /// filled, up to the end of the page, where all bytes are zero. The remainder of a short
    /// write may begin there too.
    pub fn range(&self, from: Lsn, to: Lsn) -> ChunkRange {
        assert!(from < to, "an empty range: {from} to {to}");
        let chunk = self.find(from.page_start()).expect("the range is in the cache");
        let (offset, len) = (offset_of(from), to.bytes_since(from) as usize);
        let is_cut = self.cut.is_some_and(|cut| cut.buffer == chunk.buffer);
        // After a cut the buffer still holds the forgotten bytes.
        let end = if is_cut { chunk.fill } else { chunk.zeroed };
        assert!(len <= end - offset, "{from} to {to} reaches out of its chunk");
        // Relaxed: only this thread's reuse reads the count, and the release in drop orders the
        // kernel's reads before it.
        self.shared.ranges[chunk.buffer].fetch_add(1, Ordering::Relaxed);
        let filled = chunk.fill.saturating_sub(offset).min(len);
        ChunkRange { shared: Arc::clone(&self.shared), buffer: chunk.buffer, offset, len, filled }
    }

    /// What was received from `from` on: at most `len` bytes, limited to those that are filled
    /// and contiguous in one chunk. Returns `None` when they are not in the cache.
    pub fn peek(&self, from: Lsn, len: usize) -> Option<&[u8]> {
        let chunk = self.find(from)?;
        let offset = offset_of(from);
        let len = len.min(chunk.fill - offset);
        // SAFETY: below the fill mark, so written by this thread and never again while
        // the chunk lives; reusing it needs `&mut self`.
        Some(unsafe { self.shared.memory.slice(chunk.buffer, offset, len) })
    }

    /// Forgets everything from `to` on, which must not have been published. Later bytes go to
    /// new chunks; until then the chunk of `to` is not readable.
    pub fn rewind(&mut self, to: Lsn) {
        let mut at = self.at.expect("rewind of an open cache");
        assert!(self.durable <= to && to <= at.filled, "rewind from {} to {to}", at.filled);
        if to == at.filled {
            return;
        }
        at.filled = to;
        self.at = Some(at);
        let key = ChunkKey { cell: at.cell, number: number_of(to) };
        let fill = offset_of(to);
        if let Some(cut) = self.cut.as_mut().filter(|cut| cut.key == key && fill > 0) {
            cut.fill = fill;
            return;
        }
        self.release_cut();
        if fill > 0 {
            let place = self.live.iter().rposition(|chunk| chunk.key == key);
            let chunk = place.and_then(|place| self.live.remove(place));
            let chunk = chunk.expect("a chunk that is not wholly durable is here");
            self.shared.index.retire(chunk.buffer);
            self.cut = Some(Live { fill, ..chunk });
        }
        self.retire_from(key);
    }

    /// The chunk of the current cell that holds the filled byte `at`.
    fn find(&self, at: Lsn) -> Option<&Live> {
        let here = self.at?;
        if at >= here.filled {
            return None;
        }
        let number = number_of(at);
        if let Some(cut) = self.cut.as_ref().filter(|cut| cut.key.number == number) {
            return Some(cut);
        }
        let last = self.live.back()?;
        let back = usize::try_from(last.key.number.checked_sub(number)?).ok()?;
        let chunk = self.live.get(self.live.len().checked_sub(1 + back)?)?;
        (chunk.key == ChunkKey { cell: here.cell, number }).then_some(chunk)
    }

    /// Is there a chunk with room for the byte at the writer's position?
    fn has_room_at(&mut self, at: Position) -> bool {
        let key = ChunkKey { cell: at.cell, number: number_of(at.filled) };
        if self.cut.is_none() && self.live.back().is_some_and(|chunk| chunk.key == key) {
            return true;
        }
        let Some(buffer) = self.take() else { return false };
        let Some(cut) = self.cut.take() else {
            self.begin(buffer, key, &[]);
            return true;
        };
        let shared = Arc::clone(&self.shared);
        // SAFETY: below what was filled before the cut; the buffer is retired but not
        // yet on the list that reuse takes from.
        let prefix = unsafe { shared.memory.slice(cut.buffer, 0, cut.fill) };
        self.begin(buffer, key, prefix);
        self.retired.push_back((cut.buffer, cut.seq));
        true
    }

    /// Starts a chunk in a buffer that nobody uses.
    fn begin(&mut self, buffer: usize, key: ChunkKey, prefix: &[u8]) {
        let zeroed = prefix.len().next_multiple_of(PAGE_SIZE);
        // SAFETY: `take` found no reader that could still look at this buffer and no
        // write that uses it; the prefix lies in another one, or outside.
        unsafe { self.shared.memory.copy_in(buffer, 0, prefix) };
        // SAFETY: as above.
        unsafe { self.shared.memory.zero(buffer, prefix.len(), zeroed - prefix.len()) };
        let seq = self.last.next();
        self.last = seq;
        self.shared.index.publish(buffer, seq, key, prefix.len());
        self.live.push_back(Live { key, buffer, seq, fill: prefix.len(), zeroed });
    }

    /// A buffer that no reader and no write uses.
    fn take(&mut self) -> Option<usize> {
        while self.live.len() + self.retired_held() >= self.keep && self.retire_oldest() {}
        let free = |(buffer, seq): &(usize, Seq)| {
            self.shared.ranges[*buffer].load(Ordering::Acquire) == 0
                && self.shared.index.is_free(*buffer, *seq)
        };
        let place = self.retired.iter().position(free)?;
        self.retired.remove(place).map(|(buffer, _)| buffer)
    }

    /// Buffers that only a send without a copy keeps from being reused.
    fn retired_held(&self) -> usize {
        self.retired.iter().filter(|(buffer, _)| self.shared.index.is_held(*buffer)).count()
    }

    /// Retires the oldest chunk, unless it is the current cell's and not yet durable.
    fn retire_oldest(&mut self) -> bool {
        let Some(oldest) = self.live.front() else { return false };
        let current = self.at.is_some_and(|at| at.cell == oldest.key.cell);
        let end = (oldest.key.number + 1).saturating_mul(CHUNK_BYTES);
        if current && self.durable.raw() < end {
            return false;
        }
        self.shared.index.retire(oldest.buffer);
        self.retired.push_back((oldest.buffer, oldest.seq));
        self.live.pop_front();
        true
    }

    /// Retires the chunks of `key`'s cell from `key`'s number on.
    fn retire_from(&mut self, key: ChunkKey) {
        let Self { live, retired, shared, .. } = self;
        live.retain(|chunk| {
            let stays = chunk.key.cell != key.cell || chunk.key.number < key.number;
            if !stays {
                shared.index.retire(chunk.buffer);
                retired.push_back((chunk.buffer, chunk.seq));
            }
            stays
        });
    }

    fn release_cut(&mut self) {
        if let Some(cut) = self.cut.take() {
            self.retired.push_back((cut.buffer, cut.seq));
        }
    }
}

/// Bytes of one chunk on their way to a file. The chunk is not reused while this lives.
#[derive(Debug)]
pub struct ChunkRange {
    shared: Arc<Shared>,
    buffer: usize,
    offset: usize,
    len: usize,
    /// How many of the bytes were filled when the range was made.
    filled: usize,
}

impl ChunkRange {
    /// How many bytes, zeros past the fill mark included.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// For the kernel, which reads them later. It is not a slice, because the writer may
    /// continue past the fill mark.
    pub(super) fn pointer(&self) -> *const u8 {
        self.shared.memory.pointer(self.buffer, self.offset, self.len)
    }

    /// What a simulated disk writes: the bytes that were filled when the range was made, then
    /// zeros.
    pub fn filled(&self) -> Vec<u8> {
        // SAFETY: below the fill mark, where nothing is written while the chunk lives; the range
        // keeps it alive.
        let filled = unsafe { self.shared.memory.slice(self.buffer, self.offset, self.filled) };
        let mut bytes = filled.to_vec();
        bytes.resize(self.len, 0);
        bytes
    }

    /// What a write would put into the file now.
    #[cfg(test)]
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        // SAFETY: the tests that call this do not append meanwhile.
        unsafe { self.shared.memory.slice(self.buffer, self.offset, self.len) }.to_vec()
    }
}

impl Drop for ChunkRange {
    fn drop(&mut self) {
        self.shared.ranges[self.buffer].fetch_sub(1, Ordering::Release);
    }
}

/// Bytes of one chunk on their way to a socket that does not copy them. The chunk is not
/// reused while this lives.
#[derive(Debug)]
pub struct ChunkHold {
    shared: Arc<Shared>,
    buffer: usize,
    offset: usize,
    len: usize,
}

impl ChunkHold {
    /// How many bytes.
    #[expect(clippy::len_without_is_empty, reason = "a hold is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// For the kernel, which reads them later.
    pub(super) fn pointer(&self) -> *const u8 {
        self.shared.memory.pointer(self.buffer, self.offset, self.len)
    }

    /// The registered region of the cache's memory that the bytes lie in.
    pub(super) fn region(&self) -> u16 {
        self.shared.memory.region_of(self.buffer)
    }

    /// The bytes, for a simulated ring.
    pub fn to_vec(&self) -> Vec<u8> {
        // SAFETY: below the fill mark, where nothing is written while the chunk lives;
        // the hold keeps it alive.
        unsafe { self.shared.memory.slice(self.buffer, self.offset, self.len) }.to_vec()
    }
}

impl Drop for ChunkHold {
    fn drop(&mut self) {
        self.shared.index.release(self.buffer);
    }
}

/// The reading end of one core.
#[derive(Debug)]
pub struct ChunkReader {
    shared: Arc<Shared>,
    index_reader: IndexReader,
    pins: Cell<usize>,
}

impl ChunkReader {
    /// Begins to read. Keep the pin for one submission, not longer: until the last pin is
    /// dropped, the writer cannot reuse what was looked up, nor anything younger.
    pub fn pin(&self) -> Pin<'_> {
        self.pins.set(self.pins.get() + 1);
        Pin { reader: self }
    }

    /// The cache's memory in regions, to be registered.
    pub(super) fn regions(&self) -> impl Iterator<Item = (*mut u8, usize)> {
        self.shared.memory.regions()
    }
}

/// Permission to read chunks in place.
#[derive(Debug)]
pub struct Pin<'a> {
    reader: &'a ChunkReader,
}

impl Pin<'_> {
    /// The WAL of `cell` from `at` on: at most `max` bytes, limited to those that are filled and
    /// contiguous in one chunk. Returns `None` when it is not cached: read the files. The cell's
    /// limit, not the fill mark, decides how much of it may be *sent*.
    pub fn bytes(&self, cell: CellId, at: Lsn, max: usize) -> Option<&[u8]> {
        let found = self.reader.index_reader.find(ChunkKey { cell, number: number_of(at) })?;
        let offset = offset_of(at);
        let len = found.fill.checked_sub(offset).filter(|len| *len > 0)?.min(max);
        // SAFETY: below the fill mark, which was loaded with acquire and below which
        // nothing is written while the chunk lives; the index reader keeps the chunk alive
        // until the last pin is dropped, and the slice borrows this one.
        Some(unsafe { self.reader.shared.memory.slice(found.buffer, offset, len) })
    }

    /// The same bytes for a send without a copy, which needs them for longer than the pin lives.
    /// Also returns `None` when unacknowledged sends hold too many chunks.
    pub fn hold(&self, cell: CellId, at: Lsn, max: usize) -> Option<ChunkHold> {
        let shared = &self.reader.shared;
        let found = self.reader.index_reader.find(ChunkKey { cell, number: number_of(at) })?;
        let offset = offset_of(at);
        let len = found.fill.checked_sub(offset).filter(|len| *len > 0)?.min(max);
        let held = shared.index.hold(found.buffer);
        held.then(|| ChunkHold { shared: Arc::clone(shared), buffer: found.buffer, offset, len })
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let left = self.reader.pins.get() - 1;
        self.reader.pins.set(left);
        if left == 0 {
            self.reader.index_reader.leave();
        }
    }
}

#[cfg(all(test, not(walhub_loom)))]
pub(crate) mod audit;
#[cfg(test)]
mod tests;
