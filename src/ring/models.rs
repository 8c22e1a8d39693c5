//! Every interleaving of pinning and reusing a chunk, using the index that the cache ships
//! with: `RUSTFLAGS="--cfg walhub_loom" cargo test --lib models`.
//!
//! The checker follows each access to the bytes and fails on two that nothing orders. Without
//! either fence it must fail.

use super::chunk_index::{ChunkIndex, ChunkKey, IndexReader, Seq};
use crate::wal::{Lsn, TimelineId};
use crate::watermark::sync::Fence;
use crate::watermark::sync::planted::plant;
use crate::watermark::{Cell, CellId};
use loom::cell::UnsafeCell;
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One byte of a buffer. The checker watches `access`; `edition` says which chunk it belongs to
/// and needs no ordering of its own.
#[derive(Default)]
struct Byte {
    access: UnsafeCell<()>,
    edition: AtomicU64,
}

impl Byte {
    fn write(&self, edition: u64) {
        self.access.with_mut(|_| self.edition.store(edition, Ordering::Relaxed));
    }

    fn read(&self) -> u64 {
        self.access.with(|_| self.edition.load(Ordering::Relaxed))
    }
}

struct Cache {
    index: Arc<ChunkIndex>,
    cell: CellId,
    /// One buffer of two bytes.
    buffer: [Byte; 2],
}

impl Cache {
    fn key(&self, number: u64) -> ChunkKey {
        ChunkKey { cell: self.cell, number }
    }

    /// A reader's visit: all bytes that it finds are those of the chunk it asked for.
    fn visit(&self, index_reader: &IndexReader, number: u64) {
        if let Some(found) = index_reader.find(self.key(number)) {
            for byte in self.buffer.iter().take(found.fill) {
                assert_eq!(byte.read(), number);
            }
        }
        index_reader.leave();
    }
}

#[expect(clippy::arc_with_non_send_sync, reason = "the checker runs all threads of a model on one")]
fn shared(readers: usize) -> Arc<Cache> {
    let cell = Cell::new(TimelineId::FIRST, Lsn::INVALID, Lsn::INVALID).id();
    let index = Arc::new(ChunkIndex::new(1, readers, 1));
    Arc::new(Cache { index, cell, buffer: Default::default() })
}

/// The writer fills a chunk while it is read, then wants its buffer for the next chunk, which a
/// reader may look for as well.
fn fill_read_reuse() {
    loom::model(|| {
        let cache = shared(1);
        let (index, buffer) = (&cache.index, &cache.buffer);
        let first = Seq::NONE.next();
        buffer[0].write(1);
        index.publish(0, first, cache.key(1), 1);
        let reader = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || {
                let index_reader = IndexReader::new(Arc::clone(&cache.index), 0);
                cache.visit(&index_reader, 1);
                cache.visit(&index_reader, 2);
            })
        };
        buffer[1].write(1);
        index.fill(0, 2);
        index.retire(0);
        if !index.is_pinned(first) {
            buffer[0].write(2);
            index.publish(0, first.next(), cache.key(2), 1);
            buffer[1].write(2);
            index.fill(0, 2);
        }
        reader.join().expect("the reader");
    });
}

/// A send without a copy: found, held, left, and read later by the kernel, while the writer
/// wants the buffer and asks `is_free`.
fn hold_read_reuse(is_free: fn(&ChunkIndex, Seq) -> bool) {
    loom::model(move || {
        let cache = shared(1);
        let (index, buffer) = (&cache.index, &cache.buffer);
        let first = Seq::NONE.next();
        buffer[0].write(1);
        index.publish(0, first, cache.key(1), 1);
        let reader = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || {
                let index_reader = IndexReader::new(Arc::clone(&cache.index), 0);
                let found = index_reader.find(cache.key(1));
                let held = found.is_some() && cache.index.hold(0);
                index_reader.leave();
                if held {
                    assert_eq!(cache.buffer[0].read(), 1);
                    cache.index.release(0);
                }
            })
        };
        index.retire(0);
        if is_free(index, first) {
            buffer[0].write(2);
            index.publish(0, first.next(), cache.key(2), 1);
        }
        reader.join().expect("the reader");
    });
}

#[test]
fn a_held_chunk_is_never_reused() {
    let _all_fences = plant(None);
    hold_read_reuse(|index, seq| index.is_free(0, seq));
}

#[test]
#[should_panic(expected = "ausality violation")]
fn a_writer_that_looks_at_the_holds_first_reuses_a_held_chunk() {
    let _all_fences = plant(None);
    hold_read_reuse(|index, seq| !index.is_held(0) && !index.is_pinned(seq));
}

#[test]
fn a_pinned_chunk_is_never_reused() {
    let _all_fences = plant(None);
    fill_read_reuse();
}

#[test]
#[should_panic(expected = "ausality violation")]
fn without_the_readers_fence_a_pinned_chunk_is_reused() {
    let _planted = plant(Some(Fence::Pin));
    fill_read_reuse();
}

#[test]
#[should_panic(expected = "ausality violation")]
fn without_the_writers_fence_a_pinned_chunk_is_reused() {
    let _planted = plant(Some(Fence::Retire));
    fill_read_reuse();
}
