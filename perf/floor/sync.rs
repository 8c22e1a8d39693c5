//! The bare loop of write and fdatasync into files that were written before.

use crate::fault::{During, Fault, Outcome};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use walhub::ring::{CHUNK_SIZE, ChunkWriter, Fd, Outcome as Came, Ring, Setup, Token, Uring};
use walhub::ring::{Wait, chunks};
use walhub::wal::{Lsn, TimelineId};
use walhub::watermark::Cell;

const SEGMENT: u64 = 16 << 20;
/// Files in turn; all are written before the clock starts.
const FILES: usize = 8;
const CACHE: usize = 64 << 20;
/// A byte that a file written with zeros does not have.
const FILLING: u8 = 0x5a;

/// So many bytes, synced every `batch`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SyncFloor {
    pub(crate) batch: usize,
    pub(crate) total: u64,
}

/// How long it took.
pub(crate) fn write_and_sync(folder: &Path, plan: SyncFloor) -> Outcome<Duration> {
    let files: Vec<Fd> = (0..FILES).map(|n| prepared(folder, n)).collect::<Outcome<_>>()?;
    let mut ring = Uring::new(Setup::default()).during("a ring")?;
    let (mut writer, _readers) = chunks(CACHE, 1).during("the cache")?;
    let at = Lsn::new(SEGMENT);
    let cell = Cell::new(TimelineId::FIRST, at, at);
    writer.open(cell.id(), at, &[]).during("the cache")?;
    let bytes = vec![FILLING; plan.batch];
    let begun = Instant::now();
    let mut written = 0;
    while written < plan.total {
        let from = writer.filled();
        if writer.append(&bytes) != bytes.len() {
            return Err(Fault::new("the cache is full"));
        }
        let file = &files[(from.raw() / SEGMENT) as usize % FILES];
        write(&mut ring, &writer, file, from)?;
        ring.sync_data(file, Token(0));
        finish(&mut ring, 1)?;
        writer.durable(writer.filled());
        written += plan.batch as u64;
    }
    Ok(begun.elapsed())
}

/// Writes everything from `from` on; a batch divides a segment, so it is in one file.
fn write(ring: &mut Uring, writer: &ChunkWriter, file: &Fd, from: Lsn) -> Outcome {
    let (mut at, mut writes) = (from, 0);
    while at < writer.filled() {
        let chunk_end = Lsn::new((at.raw() / CHUNK_SIZE as u64 + 1) * CHUNK_SIZE as u64);
        let to = chunk_end.min(writer.filled());
        ring.write(file, at.raw() % SEGMENT, writer.range(at, to), Token(0));
        writes += 1;
        at = to;
    }
    finish(ring, writes)
}

/// Waits for so many operations.
fn finish(ring: &mut Uring, mut count: usize) -> Outcome {
    let mut done = Vec::new();
    while count > 0 {
        ring.turn(Wait::Forever, &mut done).during("a turn")?;
        for done in done.drain(..) {
            match done.outcome {
                Came::Written(result) => drop(result.during("write")?),
                Came::Synced(result) => result.during("fdatasync")?,
                other => return Err(Fault::new(format!("unexpected {other:?}"))),
            }
            count -= 1;
        }
    }
    Ok(())
}

/// A file of a segment's length, written and synced.
fn prepared(folder: &Path, number: usize) -> Outcome<Fd> {
    let path = folder.join(format!("floor-{number}"));
    let mut file = File::create(&path).during(path.display())?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..SEGMENT >> 20 {
        file.write_all(&zeros).during(path.display())?;
    }
    file.sync_all().during(path.display())?;
    Ok(Arc::new(file.into()))
}
