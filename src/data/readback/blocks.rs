//! WAL that has left the cache, read back from segment files for standbys that catch
//! up: a small pool of blocks, each read once for all standbys of the core near it.
//!
//! Reads go through the ring and are asynchronous: a page that is not in the page cache delays only
//! the standby that needs it. A block stays until a standby has been sent from it: however many
//! standbys want however many places, each read advances at least one of them.
//!
//! The pool is as small as the disk allows. Reads from the page cache complete on submission, so
//! [`HOT`] blocks are reused within the CPU's own cache, and what was just read is sent from there.
//! The pool grows only while the disk is slow, so that many reads are in flight at once.

use crate::data::table::Key;
use crate::data::token::Purpose;
use crate::ring::{Buffer, Fd, Ring};
use crate::wal::Lsn;
use crate::wal::page::{PAGE_SIZE, PageFault, PageHeader, PageRules};
use crate::watermark::CellId;

/// Bytes of a block. A power of two, not above the smallest segment. It is as much as a socket
/// takes at once while `TCP_NOTSENT_LOWAT` bounds it.
pub const BLOCK_SIZE: usize = 128 << 10;

/// Blocks of a pool whose reads do not wait: 1 MiB, half of a CPU's second-level cache. One pass of
/// a core's loop reads at most this many.
pub const HOT: usize = 8;

/// Blocks in a core's pool: 16 MiB.
const BLOCKS: usize = 128;

/// A block that was not used while this many others were loaded counts as free: the standby that
/// wanted it has gone.
const FORGOTTEN: u32 = 4 * BLOCKS as u32;

/// Which bytes a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockId {
    /// The timeline's cell.
    pub cell: CellId,
    /// Ordinal: LSN divided by [`BLOCK_SIZE`].
    pub number: u64,
}

impl BlockId {
    /// The block that holds `at`.
    pub fn of(cell: CellId, at: Lsn) -> Self {
        Self { cell, number: at.raw() / BLOCK_SIZE as u64 }
    }

    /// Its first byte.
    pub const fn start(self) -> Lsn {
        Lsn::new(self.number * BLOCK_SIZE as u64)
    }

    /// The byte after its last.
    pub fn end(self) -> Lsn {
        self.start().saturating_add(BLOCK_SIZE as u64)
    }
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum BlockFault {
    /// The operating system's error.
    #[error("could not read WAL: {0}")]
    Io(#[from] std::io::Error),
    /// The file is shorter than its WAL.
    #[error("WAL file ends at {at}, before the end of its WAL")]
    Short {
        /// Where it ends.
        at: Lsn,
    },
    /// A page is not the page that belongs there.
    #[error("{0}")]
    Page(#[from] PageFault),
}

/// Whether the bytes at a position are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtHand {
    /// They are loaded.
    Yes,
    /// They are being read.
    Coming,
    /// Neither.
    No,
}

#[derive(Debug)]
struct Block {
    id: BlockId,
    /// Bytes before this are valid once the block is loaded.
    valid_to: Lsn,
    state: State,
    /// The standbys to tell when it is loaded.
    waiting: Vec<Key>,
}

#[derive(Debug)]
enum State {
    Loading,
    Loaded {
        buffer: Buffer,
        /// Loads of other blocks since the last use.
        idle: u32,
        used: Used,
    },
}

/// Has a standby been sent from a block?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Used {
    NotYet,
    Yes,
}

/// The blocks of one core.
#[derive(Debug, Default)]
pub struct BlockPool {
    blocks: Vec<Option<Block>>,
    /// No block of any cell reaches past this position.
    end: Lsn,
    spare: Vec<Buffer>,
}

impl BlockPool {
    /// Bytes at `at`, at most `max` and not past the block; `None` when they are not loaded.
    pub fn bytes(&self, cell: CellId, at: Lsn, max: usize) -> Option<&[u8]> {
        let id = BlockId::of(cell, at);
        let block = self.blocks.iter().flatten().find(|block| block.id == id)?;
        let State::Loaded { buffer, .. } = &block.state else { return None };
        let from = at.bytes_since(id.start()) as usize;
        let to = (block.valid_to.bytes_since(id.start()) as usize).min(from.saturating_add(max));
        buffer.filled().get(from..to).filter(|bytes| !bytes.is_empty())
    }

    /// Are the bytes at `at` loaded, or being read?
    pub fn at_hand(&self, cell: CellId, at: Lsn) -> AtHand {
        let id = BlockId::of(cell, at);
        match self.blocks.iter().flatten().find(|block| block.id == id) {
            Some(Block { state: State::Loading, .. }) => AtHand::Coming,
            Some(block) if block.valid_to > at => AtHand::Yes,
            _ => AtHand::No,
        }
    }

    /// Has this standby to be told when the block that is being read for others comes?
    pub fn join(&mut self, id: BlockId, standby: Key) {
        if let Some(block) = self.blocks.iter_mut().flatten().find(|block| block.id == id) {
            block.waiting.push(standby);
        }
    }

    /// Is there a place for one more block? There is always one when no block is being read, even
    /// if every block waits for a standby that does not come.
    pub fn has_place(&self) -> bool {
        let loading =
            |block: &Option<Block>| matches!(block, Some(Block { state: State::Loading, .. }));
        self.has_free_place() || self.blocks.len() < BLOCKS || !self.blocks.iter().any(loading)
    }

    /// Is there a place without growing the pool, for a block that no standby waits for yet?
    pub fn has_free_place(&self) -> bool {
        self.blocks.len() < HOT || self.blocks.iter().any(is_free)
    }

    /// Reads a block whose WAL is valid up to `durable` from its segment's file at `offset`.
    /// Requires [`BlockPool::has_place`].
    pub fn load<R: Ring>(
        &mut self,
        ring: &mut R,
        id: BlockId,
        durable: Lsn,
        (file, offset): (&Fd, u64),
    ) {
        let Some((slot, buffer)) = self.take_place(id) else { return };
        for block in self.blocks.iter_mut().flatten() {
            if let State::Loaded { idle, .. } = &mut block.state {
                *idle = idle.saturating_add(1);
            }
        }
        self.fill_place(slot, id, durable);
        ring.read(file, offset, buffer, BLOCK_SIZE, Purpose::Block(slot).token());
    }

    fn fill_place(&mut self, slot: u32, id: BlockId, durable: Lsn) {
        self.end = self.end.max(id.end());
        let valid_to = durable.min(id.end());
        let block = Block { id, valid_to, state: State::Loading, waiting: Vec::new() };
        self.blocks[slot as usize] = Some(block);
    }

    /// A free place: a stale block of the same bytes, an empty one, the least recently used one, or
    /// a new one.
    fn take_place(&mut self, id: BlockId) -> Option<(u32, Buffer)> {
        let stale = |block: &Option<Block>| block.as_ref().is_some_and(|block| block.id == id);
        let slot = match self.blocks.iter().position(stale) {
            Some(slot) => slot,
            None => match self.blocks.iter().position(Option::is_none) {
                Some(slot) => slot,
                None if !self.has_free_place() && self.blocks.len() < BLOCKS
                    || self.blocks.len() < HOT =>
                {
                    self.blocks.push(None);
                    self.blocks.len() - 1
                }
                None => self.longest_unused()?,
            },
        };
        let buffer = match self.blocks[slot].take() {
            Some(Block { state: State::Loaded { mut buffer, .. }, .. }) => {
                buffer.clear();
                buffer
            }
            _ => self.spare.pop().unwrap_or_else(|| Buffer::with_capacity(BLOCK_SIZE)),
        };
        Some((slot as u32, buffer))
    }

    /// Forgets what is loaded, and what is being read when it comes. A standby that needs it waits
    /// for it once more.
    pub fn forget_bytes(&mut self) {
        for place in &mut self.blocks {
            match place {
                Some(Block { state: State::Loading, valid_to, id, .. }) => *valid_to = id.start(),
                _ => *place = None,
            }
        }
    }

    /// Frees what the pool grew by, as far as it is unused.
    pub fn shrink(&mut self) {
        while self.blocks.len() > HOT && self.blocks.last().is_some_and(is_free) {
            self.blocks.pop();
        }
        self.end =
            self.blocks.iter().flatten().map(|block| block.id.end()).max().unwrap_or_default();
        self.spare.clear();
    }

    fn longest_unused(&self) -> Option<usize> {
        let idle = |(slot, block): (usize, &Option<Block>)| match block {
            Some(Block { state: State::Loaded { idle, .. }, .. }) => {
                Some((is_free(block), *idle, slot))
            }
            _ => None,
        };
        self.blocks.iter().enumerate().filter_map(idle).max().map(|(_, _, slot)| slot)
    }

    /// Notes that a standby was sent, or offered, the bytes `[from, to)`. Returns whether any of
    /// them are in a block.
    pub fn touch(&mut self, cell: CellId, from: Lsn, to: Lsn) -> bool {
        // A standby that is sent new WAL from the cache is past all blocks. This is called for each
        // send.
        if from >= self.end {
            return false;
        }
        let mut touched = false;
        for block in self.blocks.iter_mut().flatten() {
            if block.id.cell == cell
                && block.id.start() < to
                && from < block.id.end()
                && let State::Loaded { idle, used, .. } = &mut block.state
            {
                (*idle, *used) = (0, Used::Yes);
                touched = true;
            }
        }
        touched
    }

    /// A read completed. Every page of the block is checked before any of it can be sent. The
    /// standbys that wait for it are put into `waiting`.
    pub fn loaded(
        &mut self,
        slot: u32,
        result: std::io::Result<usize>,
        mut buffer: Buffer,
        rules: &PageRules,
        waiting: &mut Vec<Key>,
    ) -> Result<(), BlockFault> {
        let Some(Some(block)) = self.blocks.get_mut(slot as usize) else { return Ok(()) };
        waiting.append(&mut block.waiting);
        let checked = check(block.id, block.valid_to, result, &buffer, rules);
        match checked {
            Ok(()) => block.state = State::Loaded { buffer, idle: 0, used: Used::NotYet },
            Err(_) => {
                buffer.clear();
                self.spare.push(buffer);
                self.blocks[slot as usize] = None;
            }
        }
        checked
    }

    /// A read completed that can no longer be checked: its place is free again. Returns the
    /// standbys that waited for it.
    pub fn forget(&mut self, slot: u32, mut buffer: Buffer) -> Vec<Key> {
        buffer.clear();
        self.spare.push(buffer);
        let block = self.blocks.get_mut(slot as usize).and_then(Option::take);
        block.map_or_else(Vec::new, |block| block.waiting)
    }

    /// Blocks that are being read.
    #[cfg(all(test, not(walhub_loom)))]
    pub fn loading(&self) -> usize {
        let loading = |block: &&Block| matches!(block.state, State::Loading);
        self.blocks.iter().flatten().filter(loading).count()
    }

    /// Which block is being read into a place.
    pub fn id_of(&self, slot: u32) -> Option<BlockId> {
        Some(self.blocks.get(slot as usize)?.as_ref()?.id)
    }
}

fn is_free(block: &Option<Block>) -> bool {
    match block {
        None => true,
        Some(Block { state: State::Loading, .. }) => false,
        Some(Block { state: State::Loaded { idle, used, .. }, .. }) => {
            *used == Used::Yes || *idle >= FORGOTTEN
        }
    }
}

fn check(
    id: BlockId,
    valid_to: Lsn,
    result: std::io::Result<usize>,
    buffer: &Buffer,
    rules: &PageRules,
) -> Result<(), BlockFault> {
    let read = result?;
    let bytes = buffer.filled();
    let end = id.start().saturating_add(read.min(bytes.len()) as u64);
    if end < valid_to {
        return Err(BlockFault::Short { at: end });
    }
    let mut rules = rules.clone();
    // What comes after may be left from an older use of the file.
    let valid = &bytes[..bytes.len().min(valid_to.bytes_since(id.start()) as usize)];
    for (n, page) in bytes.chunks(PAGE_SIZE).enumerate() {
        let at = id.start().saturating_add((n * PAGE_SIZE) as u64);
        if at >= valid_to {
            break;
        }
        // After an XLOG_SWITCH the rest of the segment is zeros, headers included.
        if page.first() == Some(&0) && valid[n * PAGE_SIZE..].iter().all(|byte| *byte == 0) {
            break;
        }
        // The watermark may be inside a page's header. Such a partial header passed the check when
        // it was received.
        if valid_to.bytes_since(at) >= crate::wal::page::LONG_HEADER as u64 {
            rules.check(at, &PageHeader::parse(page)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{SegmentSize, SystemId, TimelineId};
    use crate::watermark::Cell;

    fn rules() -> PageRules {
        PageRules {
            system: SystemId::new(7),
            size: SegmentSize::new(1 << 20).unwrap(),
            tli: TimelineId::FIRST,
            magic: None,
            fork: None,
        }
    }

    /// A block in the middle of a segment, `pages` of it written, the rest zeros.
    fn block(pages: usize) -> (BlockId, Buffer) {
        let cell = Cell::new(TimelineId::FIRST, Lsn::INVALID, Lsn::INVALID);
        let id = BlockId::of(cell.id(), Lsn::new((5 << 20) + BLOCK_SIZE as u64));
        let mut buffer = Buffer::with_capacity(BLOCK_SIZE);
        for n in 0..BLOCK_SIZE / PAGE_SIZE {
            let mut page = vec![0; PAGE_SIZE];
            if n < pages {
                let addr = id.start().raw() + (n * PAGE_SIZE) as u64;
                page[0..2].copy_from_slice(&0xD110u16.to_ne_bytes());
                page[4..8].copy_from_slice(&1u32.to_ne_bytes());
                page[8..16].copy_from_slice(&addr.to_ne_bytes());
            }
            assert_eq!(buffer.append(&page), PAGE_SIZE);
        }
        (id, buffer)
    }

    #[test]
    fn the_zeros_after_a_switch_are_wal() {
        for pages in [0, 1, 15, 16] {
            let (id, buffer) = block(pages);
            check(id, id.end(), Ok(BLOCK_SIZE), &buffer, &rules()).unwrap();
        }
    }

    #[test]
    fn what_lies_past_the_watermark_does_not_matter() {
        for pages in [3, 15] {
            let (id, zeros) = block(pages);
            let mut bytes = zeros.filled().to_vec();
            // The watermark is in the zeros after a switch.
            let valid = (pages * PAGE_SIZE + 100).max(bytes.len() / 2);
            bytes[valid..].fill(0xE7);
            let mut buffer = Buffer::with_capacity(BLOCK_SIZE);
            buffer.append(&bytes);
            let valid_to = id.start().saturating_add(valid as u64);
            check(id, valid_to, Ok(BLOCK_SIZE), &buffer, &rules()).unwrap();
        }
    }

    #[test]
    fn a_page_of_another_place_is_not_served() {
        let (id, buffer) = block(16);
        let elsewhere = BlockId { number: id.number + 1, ..id };
        let checked = check(elsewhere, elsewhere.end(), Ok(BLOCK_SIZE), &buffer, &rules());
        assert!(matches!(checked, Err(BlockFault::Page(_))), "{checked:?}");
    }

    #[test]
    fn a_hole_in_the_middle_is_not_served() {
        let (id, full) = block(16);
        let mut bytes = full.filled().to_vec();
        bytes[PAGE_SIZE..2 * PAGE_SIZE].fill(0);
        let mut buffer = Buffer::with_capacity(BLOCK_SIZE);
        buffer.append(&bytes);
        let checked = check(id, id.end(), Ok(BLOCK_SIZE), &buffer, &rules());
        assert!(matches!(checked, Err(BlockFault::Page(_))), "{checked:?}");
    }

    /// A pool with `count` reads started.
    fn pool(count: usize) -> (BlockPool, Vec<BlockId>) {
        let cell = Cell::new(TimelineId::FIRST, Lsn::INVALID, Lsn::INVALID).id();
        let (mut pool, mut ids) = (BlockPool::default(), Vec::new());
        for number in 0..count as u64 {
            let id = BlockId { cell, number };
            ids.push(id);
            assert!(pool.has_place(), "{number}");
            let (slot, _) = pool.take_place(id).unwrap();
            pool.fill_place(slot, id, Lsn::MAX);
            pool.join(id, Key { index: slot, generation: 7 });
        }
        (pool, ids)
    }

    fn come(pool: &mut BlockPool, slot: usize) {
        let mut buffer = Buffer::with_capacity(BLOCK_SIZE);
        buffer.append(&[0; BLOCK_SIZE]);
        let mut waiting = Vec::new();
        pool.loaded(slot as u32, Ok(BLOCK_SIZE), buffer, &rules(), &mut waiting).unwrap();
        assert_eq!(waiting, [Key { index: slot as u32, generation: 7 }]);
    }

    #[test]
    fn a_pool_grows_only_while_reads_take_their_time() {
        let (mut pool, ids) = pool(HOT);
        assert!(!pool.has_free_place() && pool.has_place());
        // They are loaded and used: their places are reused.
        for slot in 0..HOT {
            come(&mut pool, slot);
            assert!(!pool.has_free_place(), "nobody has used it");
        }
        assert!(pool.touch(ids[0].cell, ids[2].start(), ids[3].end()));
        assert!(pool.has_free_place());
        let next = |number| BlockId { cell: ids[0].cell, number };
        let (slot, _) = pool.take_place(next(100)).unwrap();
        assert!(slot == 2 || slot == 3);
        assert_eq!(pool.blocks.len(), HOT);
        // Reads that never complete take all places one by one.
        let (mut cold, _) = self::pool(BLOCKS);
        assert!(!cold.has_place());
        assert!(cold.take_place(next(BLOCKS as u64)).is_none());
        for slot in HOT / 2..BLOCKS {
            come(&mut cold, slot);
        }
        cold.touch(cold.id_of(0).unwrap().cell, Lsn::INVALID, Lsn::MAX);
        cold.shrink();
        assert_eq!(cold.blocks.len(), HOT);
    }

    #[test]
    fn what_is_forgotten_is_read_again() {
        let (mut pool, ids) = pool(2);
        come(&mut pool, 0);
        assert!(pool.bytes(ids[0].cell, ids[0].start(), 1).is_some());
        pool.forget_bytes();
        // The second one comes after that.
        come(&mut pool, 1);
        for id in &ids {
            assert!(pool.bytes(id.cell, id.start(), 1).is_none());
            assert_eq!(pool.at_hand(id.cell, id.start()), AtHand::No);
            let (slot, _) = pool.take_place(*id).unwrap();
            pool.fill_place(slot, *id, Lsn::MAX);
            pool.join(*id, Key { index: slot, generation: 7 });
            come(&mut pool, slot as usize);
            assert!(pool.bytes(id.cell, id.start(), 1).is_some());
        }
    }

    #[test]
    fn what_is_past_all_blocks_touches_none() {
        let (mut pool, ids) = pool(3);
        let (cell, last) = (ids[0].cell, ids[2]);
        come(&mut pool, 2);
        assert!(!pool.touch(cell, last.end(), Lsn::MAX));
        assert!(pool.touch(cell, last.end().saturating_sub(1), last.end()));
        // One more block reaches further.
        let next = BlockId { cell, number: 9 };
        let (slot, _) = pool.take_place(next).unwrap();
        pool.fill_place(slot, next, Lsn::MAX);
        pool.join(next, Key { index: slot, generation: 7 });
        come(&mut pool, slot as usize);
        pool.shrink();
        assert!(pool.touch(cell, next.start(), next.end()));
        assert!(!pool.touch(cell, next.end(), Lsn::MAX));
    }

    #[test]
    fn a_short_file_is_not_served() {
        let (id, buffer) = block(16);
        let checked = check(id, id.end(), Ok(PAGE_SIZE), &buffer, &rules());
        assert!(matches!(checked, Err(BlockFault::Short { .. })), "{checked:?}");
        let valid = id.start().saturating_add(100);
        check(id, valid, Ok(PAGE_SIZE), &buffer, &rules()).unwrap();
    }
}
