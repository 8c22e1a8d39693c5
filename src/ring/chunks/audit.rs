//! An outside view of the cache, for the simulation of a core: what is sent from the cache has
//! to be pinned.

use super::{CHUNK_SIZE, ChunkHold, ChunkReader, Shared};
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
        buffer < buffers && !self.shared.index.is_kept_by(self.reader, buffer)
    }

    /// Makes the mistake that [`Audit::is_unpinned`] detects.
    pub(crate) fn unpin(&self) {
        self.shared.index.forget_hazard(self.reader);
    }
}

/// The memory that a send without a copy reads, no matter who holds it.
#[derive(Debug)]
pub(crate) struct Watched {
    shared: Arc<Shared>,
    buffer: usize,
    offset: usize,
    len: usize,
}

impl Watched {
    pub(crate) fn of(hold: &ChunkHold) -> Self {
        let ChunkHold { shared, buffer, offset, len } = hold;
        Self { shared: Arc::clone(shared), buffer: *buffer, offset: *offset, len: *len }
    }

    /// The bytes that the network would read now.
    #[expect(unsafe_code, reason = "the simulation looks at memory as the network does")]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        // SAFETY: inside the cache's memory, as the hold was; a simulated world has one
        // thread, so nobody writes meanwhile.
        unsafe { self.shared.memory.slice(self.buffer, self.offset, self.len) }.to_vec()
    }
}
