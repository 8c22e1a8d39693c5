//! A deliberate fault: builds with `--cfg walhub_flip` send one wrong byte in every segment, to
//! prove that the checks notice it.

use crate::wal::Lsn;

/// The wrong byte's offset in its 16 MiB segment.
const PLACE: u64 = 0x30_0123;
const SEGMENT: u64 = 16 << 20;

/// `piece` of the WAL at `from`, with the wrong byte if it falls in there.
pub(super) fn flipped(from: Lsn, piece: &[u8]) -> &[u8] {
    let before = (PLACE + SEGMENT - from.raw() % SEGMENT) % SEGMENT;
    let Some(place) = usize::try_from(before).ok().filter(|place| *place < piece.len()) else {
        return piece;
    };
    // Such a build does not run for long.
    let copy: &'static mut [u8] = Box::leak(piece.into());
    if let Some(byte) = copy.get_mut(place) {
        *byte ^= 0x80;
    }
    copy
}
