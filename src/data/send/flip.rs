//! A fault on purpose: builds with `--cfg walhub_flip` send one wrong byte in every
//! segment, so that it can be seen that somebody notices.

use crate::wal::Lsn;

/// The wrong byte's place in its segment of 16 MiB.
const PLACE: u64 = 0x30_0123;
const SEGMENT: u64 = 16 << 20;

/// `piece` of the WAL at `from`, with the wrong byte if it is in there.
pub(super) fn flipped(from: Lsn, piece: &[u8]) -> &[u8] {
    let before = (PLACE + SEGMENT - from.raw() % SEGMENT) % SEGMENT;
    let Some(place) = usize::try_from(before).ok().filter(|place| *place < piece.len()) else {
        return piece;
    };
    // Whoever asks for such a build does not run it for long.
    let copy: &'static mut [u8] = Box::leak(piece.into());
    if let Some(byte) = copy.get_mut(place) {
        *byte ^= 0x80;
    }
    copy
}
