//! A look at the cache from outside, for the simulation of a core: what is sent from
//! here has to be pinned.

use super::{CHUNK_SIZE, ChunkReader, Shared};
use std::sync::Arc;

/// Watches one reader.
pub(crate) struct Audit {
    shared: Arc<Shared>,
    reader: usize,
}

impl Audit {
    pub(crate) fn of(reader: &ChunkReader, place: usize) -> Self {
        Self { shared: Arc::clone(&reader.shared), reader: place }
    }

    /// Do these bytes lie in a chunk that the reader has not pinned?
    pub(crate) fn is_unpinned(&self, bytes: &[u8]) -> bool {
        let start = self.shared.memory.pointer(0, 0, 0).addr();
        let buffers = self.shared.ranges.len();
        let Some(offset) = bytes.as_ptr().addr().checked_sub(start) else { return false };
        let buffer = offset / CHUNK_SIZE;
        buffer < buffers && !self.shared.directory.is_kept_by(self.reader, buffer)
    }

    /// The mistake that [`Audit::is_unpinned`] is for.
    pub(crate) fn unpin(&self) {
        self.shared.directory.forget_hazard(self.reader);
    }
}
