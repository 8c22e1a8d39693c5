//! The memory of the chunk cache: equal buffers in one anonymous mapping.
#![expect(
    unsafe_code,
    reason = "one thread fills bytes while others read earlier ones of the same buffer"
)]

use memmap2::{Advice, MmapMut, MmapRaw};
use std::io;

/// The kernel registers no more than this in one piece.
const REGION: usize = 1 << 30;

/// Only ever accessed through raw pointers: a reference to a whole buffer would claim bytes that
/// another thread is about to fill.
#[derive(Debug)]
pub(super) struct Memory {
    mapping: MmapRaw,
    buffer_size: usize,
}

impl Memory {
    /// Zeroed and present, in huge pages where the host has them: a page fault in the data path
    /// would stall a core.
    pub(super) fn new(buffers: usize, buffer_size: usize) -> io::Result<Self> {
        let size = buffers.checked_mul(buffer_size).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = MmapMut::map_anon(size)?;
        // It works without huge pages too, only at a higher cost.
        drop(mapping.advise(Advice::HugePage));
        mapping.advise(Advice::PopulateWrite)?;
        Ok(Self { mapping: mapping.into(), buffer_size })
    }

    /// The address of a range that is checked to lie inside one buffer.
    pub(super) fn pointer(&self, buffer: usize, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.buffer_size && len <= self.buffer_size - offset,
            "outside of a chunk"
        );
        let place = buffer * self.buffer_size + offset;
        assert!(place + len <= self.mapping.len(), "outside of the cache");
        // SAFETY: the range lies inside the mapping, checked above.
        unsafe { self.mapping.as_mut_ptr().add(place) }
    }

    /// The memory in pieces that can be registered; each buffer lies in exactly one.
    pub(super) fn regions(&self) -> impl Iterator<Item = (*mut u8, usize)> {
        let size = self.mapping.len();
        (0..size).step_by(self.region_size()).map(move |start| {
            // SAFETY: the offset lies inside the mapping.
            let piece = unsafe { self.mapping.as_mut_ptr().add(start) };
            (piece, self.region_size().min(size - start))
        })
    }

    /// The number of the piece that a buffer lies in.
    pub(super) fn region_of(&self, buffer: usize) -> u16 {
        let region = buffer * self.buffer_size / self.region_size();
        u16::try_from(region).expect("the cache is at most 1 TiB, which is 1024 pieces")
    }

    const fn region_size(&self) -> usize {
        REGION - REGION % self.buffer_size
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Safety
    /// No other thread accesses that range until it is handed over by an atomic store,
    /// and no slice of it exists.
    pub(super) unsafe fn copy_in(&self, buffer: usize, offset: usize, bytes: &[u8]) {
        let to = self.pointer(buffer, offset, bytes.len());
        // SAFETY: `to` is valid for the length, `bytes` cannot overlap a range of which
        // no slice exists, and the caller excludes other accesses.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Zeroes a range.
    ///
    /// # Safety
    /// The same as for [`Memory::copy_in`].
    pub(super) unsafe fn zero(&self, buffer: usize, offset: usize, len: usize) {
        let to = self.pointer(buffer, offset, len);
        // SAFETY: `to` is valid for the length, and the caller excludes other accesses.
        unsafe { to.write_bytes(0, len) }
    }

    /// A range that is filled.
    ///
    /// # Safety
    /// Nobody writes to that range while the slice lives, and its bytes were written
    /// before this call in the sense of the memory model.
    pub(super) unsafe fn slice(&self, buffer: usize, offset: usize, len: usize) -> &[u8] {
        let from = self.pointer(buffer, offset, len);
        // SAFETY: valid and initialised (the mapping began zeroed), not written while
        // the slice lives, as the caller promises.
        unsafe { std::slice::from_raw_parts(from, len) }
    }
}
