//! Makes the part of an open segment past a position look like no WAL.
//!
//! Past the last good record there may be pages of an attempt that was dropped or did not
//! survive whole. They have the right addresses. When the same records come again with other
//! content, they have the right prev-links too: a later walk could continue into them.

use super::disk::Disk;
use crate::store::durable::{read_full, write_full};
use crate::wal::page::{PAGE_SIZE, PageHeader};
use crate::wal::{Lsn, SegmentName};
use std::io;

/// Bytes read at a time.
pub(super) const PIECE: u64 = 1 << 20;

/// Zeros everything past `keep` that claims to be WAL of this segment. The bytes of a recycled
/// file that belong elsewhere may stay: their page addresses say so. The caller syncs.
pub async fn clear_past<D: Disk>(
    disk: &D,
    file: &D::File,
    name: SegmentName,
    keep: Lsn,
) -> io::Result<()> {
    let (start, end) = (name.no.start(name.size), name.no.end(name.size));
    let keep = keep.max(start);
    let mut at = keep;
    while at < end {
        let piece_end = Lsn::new(at.raw() - at.raw() % PIECE).saturating_add(PIECE).min(end);
        let want = piece_end.bytes_since(at) as usize;
        let offset = at.segment_offset(name.size);
        let mut bytes = read_full(disk, file, want, offset).await?;
        let read = bytes.len();
        bytes.resize(want, 0);
        if zero_own_pages(&mut bytes, at) || read < want {
            write_full(disk, file, bytes, offset).await?;
        }
        at = piece_end;
    }
    Ok(())
}

/// Zeros the rest of a page that begins before `at`, and every page with its own address.
/// Returns whether that changed anything.
fn zero_own_pages(bytes: &mut [u8], at: Lsn) -> bool {
    let mut changed = false;
    let first = at.page_ceil().bytes_since(at) as usize;
    let (head, pages) = bytes.split_at_mut(first.min(bytes.len()));
    changed |= zero(head);
    let mut address = at.page_ceil();
    for page in pages.chunks_mut(PAGE_SIZE) {
        let claimed = PageHeader::parse(page).is_ok_and(|header| header.addr == address);
        if claimed {
            changed |= zero(page);
        }
        address = address.saturating_add(PAGE_SIZE as u64);
    }
    changed
}

fn zero(bytes: &mut [u8]) -> bool {
    let dirty = bytes.iter().any(|byte| *byte != 0);
    bytes.fill(0);
    dirty
}
