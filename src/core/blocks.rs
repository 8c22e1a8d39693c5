//! WAL that has left the cache, read back from segment files for standbys that catch
//! up: a small pool of blocks, each read once for all standbys of the core near it.
//!
//! Reads are the ring's own and asynchronous: a page that is not in the page cache
//! delays the standby that needs it, and nobody else. A block stays until somebody has
//! been sent from it: however many standbys want however many places, each read
//! brings one of them on.

use super::token::Purpose;
use crate::ring::{Buffer, Fd, Ring};
use crate::wal::Lsn;
use crate::wal::page::{PAGE_SIZE, PageFault, PageHeader, PageRules};
use crate::watermark::CellId;

/// Bytes of a block. A power of two, not above the smallest segment.
pub const BLOCK_SIZE: usize = 256 << 10;

/// Blocks in a core's pool: 4 MiB.
const BLOCKS: usize = 16;

/// A block that nobody used while so many others were loaded is free all the same:
/// whoever wanted it has gone.
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
    /// The block that holds a position.
    pub fn of(cell: CellId, at: Lsn) -> Self {
        Self { cell, number: at.raw() / BLOCK_SIZE as u64 }
    }

    /// Its first byte.
    pub const fn start(self) -> Lsn {
        Lsn::new(self.number * BLOCK_SIZE as u64)
    }
}

/// A read that came back wrong.
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

/// What is known of the bytes at a position.
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

/// Has somebody been sent from a block?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Used {
    NotYet,
    Yes,
}

/// The blocks of one core.
#[derive(Debug, Default)]
pub struct BlockPool {
    blocks: Vec<Option<Block>>,
    spare: Vec<Buffer>,
}

impl BlockPool {
    /// Bytes at `at`, at most `max` and not past the block; none when they are not
    /// loaded.
    pub fn bytes(&self, cell: CellId, at: Lsn, max: usize) -> Option<&[u8]> {
        let id = BlockId::of(cell, at);
        let block = self.blocks.iter().flatten().find(|block| block.id == id)?;
        let State::Loaded { buffer, .. } = &block.state else { return None };
        let from = at.bytes_since(id.start()) as usize;
        let to = (block.valid_to.bytes_since(id.start()) as usize).min(from.saturating_add(max));
        buffer.filled().get(from..to).filter(|bytes| !bytes.is_empty())
    }

    /// Are the bytes at `at` here, or on their way?
    pub fn at_hand(&self, cell: CellId, at: Lsn) -> AtHand {
        let id = BlockId::of(cell, at);
        match self.blocks.iter().flatten().find(|block| block.id == id) {
            Some(Block { state: State::Loading, .. }) => AtHand::Coming,
            Some(block) if block.valid_to > at => AtHand::Yes,
            _ => AtHand::No,
        }
    }

    /// Is there a place for one more block? When every block waits for somebody who
    /// does not come and none is being read, there is one all the same.
    pub fn has_place(&self) -> bool {
        let loading =
            |block: &Option<Block>| matches!(block, Some(Block { state: State::Loading, .. }));
        self.blocks.len() < BLOCKS
            || self.blocks.iter().any(is_free)
            || !self.blocks.iter().any(loading)
    }

    /// Reads a block whose WAL is valid up to `durable` from its segment's file at
    /// `offset`. Only when [`BlockPool::has_place`].
    pub fn load<R: Ring>(
        &mut self,
        ring: &mut R,
        id: BlockId,
        durable: Lsn,
        file: &Fd,
        offset: u64,
    ) {
        let Some((slot, buffer)) = self.take_place(id) else { return };
        for block in self.blocks.iter_mut().flatten() {
            if let State::Loaded { idle, .. } = &mut block.state {
                *idle = idle.saturating_add(1);
            }
        }
        let end = id.start().saturating_add(BLOCK_SIZE as u64);
        let block = Block { id, valid_to: durable.min(end), state: State::Loading };
        self.blocks[slot as usize] = Some(block);
        ring.read(file, offset, buffer, BLOCK_SIZE, Purpose::Block(slot).token());
    }

    /// A free place: a stale block of the same bytes, an empty one, a new one, or the
    /// one that was not used for longest.
    fn take_place(&mut self, id: BlockId) -> Option<(u32, Buffer)> {
        let stale = |block: &Option<Block>| block.as_ref().is_some_and(|block| block.id == id);
        let slot = match self.blocks.iter().position(stale) {
            Some(slot) => slot,
            None => match self.blocks.iter().position(Option::is_none) {
                Some(slot) => slot,
                None if self.blocks.len() < BLOCKS => {
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

    fn longest_unused(&self) -> Option<usize> {
        let idle = |(slot, block): (usize, &Option<Block>)| match block {
            Some(Block { state: State::Loaded { idle, .. }, .. }) => {
                Some((is_free(block), *idle, slot))
            }
            _ => None,
        };
        self.blocks.iter().enumerate().filter_map(idle).max().map(|(_, _, slot)| slot)
    }

    /// Somebody has been sent bytes at `at`.
    pub fn touch(&mut self, cell: CellId, at: Lsn) {
        let id = BlockId::of(cell, at);
        if let Some(block) = self.blocks.iter_mut().flatten().find(|block| block.id == id)
            && let State::Loaded { idle, used, .. } = &mut block.state
        {
            *idle = 0;
            *used = Used::Yes;
        }
    }

    /// A read came back. Every page of the block is checked before any of it can be
    /// sent. Returns which block it is.
    pub fn loaded(
        &mut self,
        slot: u32,
        result: std::io::Result<usize>,
        mut buffer: Buffer,
        rules: &PageRules,
    ) -> (Option<BlockId>, Result<(), BlockFault>) {
        let Some(Some(block)) = self.blocks.get_mut(slot as usize) else {
            return (None, Ok(()));
        };
        let id = block.id;
        match check(id, block.valid_to, result, &buffer, rules) {
            Ok(()) => {
                block.state = State::Loaded { buffer, idle: 0, used: Used::NotYet };
                (Some(id), Ok(()))
            }
            Err(fault) => {
                buffer.clear();
                self.spare.push(buffer);
                self.blocks[slot as usize] = None;
                (Some(id), Err(fault))
            }
        }
    }

    /// A read came back that nobody can judge any more: its place is free again.
    pub fn forget(&mut self, slot: u32, mut buffer: Buffer) {
        buffer.clear();
        self.spare.push(buffer);
        if let Some(block) = self.blocks.get_mut(slot as usize) {
            *block = None;
        }
    }

    /// Blocks that are being read.
    #[cfg(all(test, not(walhub_loom)))]
    pub(super) fn loading(&self) -> usize {
        let loading = |block: &&Block| matches!(block.state, State::Loading);
        self.blocks.iter().flatten().filter(loading).count()
    }

    /// Which cell a block that is being read belongs to.
    pub fn cell_of(&self, slot: u32) -> Option<CellId> {
        Some(self.blocks.get(slot as usize)?.as_ref()?.id.cell)
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
    // What lies behind may be left from an older use of the file.
    let valid = &bytes[..bytes.len().min(valid_to.bytes_since(id.start()) as usize)];
    for (n, page) in bytes.chunks(PAGE_SIZE).enumerate() {
        let at = id.start().saturating_add((n * PAGE_SIZE) as u64);
        if at >= valid_to {
            break;
        }
        // Behind an XLOG_SWITCH the rest of the segment is zeros, headers included.
        if page.first() == Some(&0) && valid[n * PAGE_SIZE..].iter().all(|byte| *byte == 0) {
            break;
        }
        // The watermark may rest inside a page's header; such a piece of a header has
        // passed the check when it was received.
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

    fn end(id: BlockId) -> Lsn {
        id.start().saturating_add(BLOCK_SIZE as u64)
    }

    #[test]
    fn the_zeros_behind_a_switch_are_wal() {
        for pages in [0, 1, 31, 32] {
            let (id, buffer) = block(pages);
            check(id, end(id), Ok(BLOCK_SIZE), &buffer, &rules()).unwrap();
        }
    }

    #[test]
    fn what_lies_behind_the_watermark_does_not_matter() {
        for pages in [3, 31] {
            let (id, zeros) = block(pages);
            let mut bytes = zeros.filled().to_vec();
            // The watermark rests in the zeros behind a switch.
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
        let (id, buffer) = block(32);
        let elsewhere = BlockId { number: id.number + 1, ..id };
        let checked = check(elsewhere, end(elsewhere), Ok(BLOCK_SIZE), &buffer, &rules());
        assert!(matches!(checked, Err(BlockFault::Page(_))), "{checked:?}");
    }

    #[test]
    fn a_hole_in_the_middle_is_not_served() {
        let (id, full) = block(32);
        let mut bytes = full.filled().to_vec();
        bytes[PAGE_SIZE..2 * PAGE_SIZE].fill(0);
        let mut buffer = Buffer::with_capacity(BLOCK_SIZE);
        buffer.append(&bytes);
        let checked = check(id, end(id), Ok(BLOCK_SIZE), &buffer, &rules());
        assert!(matches!(checked, Err(BlockFault::Page(_))), "{checked:?}");
    }

    #[test]
    fn a_short_file_is_not_served() {
        let (id, buffer) = block(32);
        let checked = check(id, end(id), Ok(PAGE_SIZE), &buffer, &rules());
        assert!(matches!(checked, Err(BlockFault::Short { .. })), "{checked:?}");
        let valid = id.start().saturating_add(100);
        check(id, valid, Ok(PAGE_SIZE), &buffer, &rules()).unwrap();
    }
}
