//! What the receive role knows about the WAL it holds: the walk's position, the files it is written
//! to, and what the cache still has of it.

use super::effect::Effect;
use super::fault::CacheFault;
use crate::hub::Hub;
use crate::hub::page_rules::page_rules;
use crate::keeper::Job;
use crate::ring::{CHUNK_SIZE, ChunkWriter, Fd};
use crate::store::RecoveredWal;
use crate::store::append::{Action, Appender, Beginning, Durable, HaltReason};
use crate::store::recover::EndedWal;
use crate::upstream::end::UpstreamEnd;
use crate::wal::walk::{FaultKind, WalkFault, Walker};
use crate::wal::{Lsn, SegmentNo, TimelineId};
use crate::watermark::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A snapshot of the walk is kept for each stretch of this many bytes that are not durable yet.
const SNAPSHOT_EVERY: u64 = 256 << 10;

/// The WAL of the timeline being received. `F` is an open file.
#[derive(Debug)]
pub struct Store<F = Fd> {
    /// Its watermark.
    pub cell: Arc<Cell>,
    /// Its way to the disk.
    pub appender: Appender,
    /// Where the WAL of this directory begins, for the note of the beginning.
    pub begins: Lsn,
    /// Open files that are written to.
    pub files: BTreeMap<SegmentNo, F>,
    /// At the end of the received WAL.
    walker: Walker,
    /// The walk at earlier positions, oldest first; the first is at or before the durable mark.
    /// After ENOSPC the walk resumes from one of them.
    snapshots: VecDeque<Walker>,
}

/// The cells of timelines that have ended and of the one that goes on, each linked to the next.
pub fn line(ended: &[EndedWal], current: Arc<Cell>) -> Vec<Arc<Cell>> {
    let cell = |ended: &EndedWal| {
        let cell = Arc::new(Cell::new(ended.tli, ended.oldest, ended.end));
        cell.seal(ended.end);
        cell
    };
    let cells: Vec<_> = ended.iter().map(cell).chain([current]).collect();
    for (cell, next) in cells.iter().zip(cells.iter().skip(1)) {
        cell.link(Arc::clone(next));
    }
    cells
}

/// The outcome of handing WAL to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is in the cache.
    Taken,
    /// The cache has no room for it yet, and nothing has changed.
    NoRoom,
}

/// A failure on the store's way to the disk that concerns the whole role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Setback {
    /// There is no space: received WAL past this durable mark is dropped.
    NoSpace(Lsn),
    /// WAL could not be made durable: nothing past this mark is acknowledged any more.
    Halted { durable: Lsn, reason: HaltReason },
}

impl<F> Store<F> {
    /// A store that continues where recovery left it, or starts empty: `walker` and the cache are
    /// at `cell`'s durable mark.
    pub fn new(
        cell: Arc<Cell>,
        walker: Walker,
        beginning: Beginning,
        begins: Lsn,
        wal_buffers: usize,
    ) -> Self {
        let rules = walker.rules();
        // Two batches fit into the part of the buffers that may be unsynced.
        let max_batch = (wal_buffers / 4) as u64;
        Self {
            appender: Appender::new(cell.tli(), rules.size, cell.durable(), beginning, max_batch),
            cell,
            begins,
            files: BTreeMap::new(),
            snapshots: VecDeque::from([walker.clone()]),
            walker,
        }
    }

    /// Puts what recovery found into the cache. The caller makes the cell known.
    pub fn resume(
        wal: RecoveredWal,
        writer: &mut ChunkWriter,
        wal_buffers: usize,
    ) -> Result<Self, CacheFault> {
        let cell = Arc::new(Cell::new(wal.walker.rules().tli, wal.oldest, wal.durable));
        writer.open(cell.id(), wal.prefix_from, &[])?;
        if writer.append(&wal.prefix) < wal.prefix.len() {
            return Err(CacheFault::Held);
        }
        writer.durable(wal.durable);
        Ok(Self::new(cell, wal.walker, wal.beginning, wal.begins, wal_buffers))
    }

    /// The first WAL of an empty directory, from `start`, which begins a segment.
    pub fn begin(
        hub: &Hub,
        tli: TimelineId,
        start: Lsn,
        writer: &mut ChunkWriter,
        wal_buffers: usize,
    ) -> Result<Self, UpstreamEnd> {
        let lost = |error: &str| UpstreamEnd::Lost { error: error.to_owned(), at: start };
        let rules = page_rules(hub, tli).map_err(|error| lost(&error))?;
        let cell = Arc::new(Cell::new(tli, start, start));
        writer.open(cell.id(), start, &[]).map_err(|e| lost(&e.to_string()))?;
        hub.push_cell(Arc::clone(&cell));
        Ok(Self::new(cell, Walker::new(rules, start), Beginning::Ahead, start, wal_buffers))
    }

    /// The end of the received WAL, checked and in the cache.
    pub const fn received(&self) -> Lsn {
        self.walker.position()
    }

    /// The end of the last whole record received.
    pub const fn record_end(&self) -> Lsn {
        self.walker.record_end()
    }

    /// Compares WAL that the upstream sends again with ours. The stream begins no earlier than the
    /// cache reaches back.
    pub fn compare(
        &self,
        writer: &ChunkWriter,
        start: Lsn,
        theirs: &[u8],
    ) -> Result<(), UpstreamEnd> {
        let mut at = start;
        let mut rest = theirs;
        while !rest.is_empty() {
            let chunk_left = CHUNK_SIZE - (at.raw() as usize & (CHUNK_SIZE - 1));
            let (piece, tail) = rest.split_at(rest.len().min(chunk_left));
            let Some(ours) = writer.peek(at, piece.len()) else {
                return Err(UpstreamEnd::Lost {
                    error: "upstream sent WAL from before the requested position".to_owned(),
                    at,
                });
            };
            if let Some(n) = ours.iter().zip(piece).position(|(ours, theirs)| ours != theirs) {
                let at = at.saturating_add(n as u64);
                return Err(UpstreamEnd::Diverged {
                    at,
                    detail: "the upstream has other WAL under positions that are stored here"
                        .to_owned(),
                });
            }
            at = at.saturating_add(piece.len() as u64);
            rest = tail;
        }
        Ok(())
    }

    /// Checks new WAL and puts it into the cache. It begins where the store ends and
    /// continues its last record (I1).
    pub fn append(
        &mut self,
        writer: &mut ChunkWriter,
        new: &[u8],
    ) -> Result<Appended, UpstreamEnd> {
        let received = self.received();
        let mut walker = self.walker.clone();
        walker.feed(new).map_err(|fault| self.blame(&fault))?;
        let taken = writer.append(new);
        if taken < new.len() {
            writer.rewind(received);
            return Ok(Appended::NoRoom);
        }
        self.walker = walker;
        let last = self.snapshots.back().map_or(Lsn::INVALID, Walker::position);
        if self.received().bytes_since(last) >= SNAPSHOT_EVERY {
            self.snapshots.push_back(self.walker.clone());
        }
        Ok(Appended::Taken)
    }

    /// Carries out an action of the appender, or has it carried out.
    pub(super) fn carry_out(
        &mut self,
        action: Action,
        writer: &mut ChunkWriter,
        out: &mut Vec<Effect<F>>,
    ) -> Option<Setback>
    where
        F: Clone,
    {
        let tli = self.cell.tli();
        match action {
            Action::Prepare { segment, keep } => {
                out.push(Effect::Job(Job::Prepare { tli, no: segment, keep }));
            }
            Action::Write { id, segment, offset, from, to } => {
                let file = self.files[&segment].clone();
                out.push(Effect::Write { id, file, offset, bytes: writer.range(from, to) });
            }
            Action::Sync(segment) => {
                out.push(Effect::Sync { segment, file: self.files[&segment].clone() });
            }
            Action::Begin(upto) => {
                out.push(Effect::Job(Job::Begin { tli, start: self.begins, upto }));
            }
            Action::Durable(durable) => {
                self.publish(durable, writer);
                out.push(Effect::Published);
            }
            Action::Finalize(segment) => {
                self.files.remove(&segment);
                out.push(Effect::Job(Job::Finalize { tli, no: segment }));
            }
            Action::DropToDurable(lsn) => {
                self.rewind(lsn, writer);
                return Some(Setback::NoSpace(lsn));
            }
            Action::Halt(reason) => {
                let durable = self.appender.durable().lsn();
                return Some(Setback::Halted { durable, reason });
            }
        }
        None
    }

    /// A record that does not continue our last one belongs to another history, which lacks that
    /// one. Any other fault may be gone the next time.
    fn blame(&self, fault: &WalkFault) -> UpstreamEnd {
        let at = fault.at;
        match fault.kind {
            FaultKind::PrevLink { .. } => UpstreamEnd::Diverged {
                at: self.walker.last_record().unwrap_or(at),
                detail: format!("the upstream's WAL does not continue ours: {fault}"),
            },
            _ => UpstreamEnd::Lost { error: format!("upstream sent invalid WAL: {fault}"), at },
        }
    }

    /// Makes everything that is durable visible to the senders. The caller wakes them.
    pub fn publish(&mut self, durable: Durable, writer: &mut ChunkWriter) {
        let lsn = durable.lsn();
        self.cell.publish(lsn);
        writer.durable(lsn);
        while self.snapshots.get(1).is_some_and(|walker| walker.position() <= lsn) {
            self.snapshots.pop_front();
        }
    }

    /// Takes back everything from `lsn` on, which is the durable mark.
    pub fn rewind(&mut self, lsn: Lsn, writer: &mut ChunkWriter) {
        self.files.clear();
        while self.snapshots.back().is_some_and(|walker| walker.position() > lsn) {
            self.snapshots.pop_back();
        }
        let mut walker = self.snapshots.back().cloned().unwrap_or_else(|| self.walker.clone());
        let mut at = walker.position();
        while at < lsn {
            let chunk_left = CHUNK_SIZE - (at.raw() as usize & (CHUNK_SIZE - 1));
            let len = chunk_left.min(lsn.bytes_since(at) as usize);
            let bytes = writer.peek(at, len).unwrap_or_default();
            let walked = !bytes.is_empty() && walker.feed(bytes).is_ok();
            assert!(walked, "I4: WAL that was published at {at} has left the cache unsynced");
            at = at.saturating_add(len as u64);
        }
        writer.rewind(lsn);
        self.walker = walker.clone();
        self.snapshots = VecDeque::from([walker]);
    }

    /// Where the next stream must begin: at the page of our last complete record, so that the
    /// overlap proves that the upstream has our history, but no earlier than the cache can compare.
    pub fn start_of_next(&self, writer: &ChunkWriter) -> Lsn {
        let received = self.received();
        let record = self.walker.last_record().map(Lsn::page_start);
        let chunk = Lsn::new(received.raw() & !(CHUNK_SIZE as u64 - 1));
        let candidates = [record, Some(chunk)];
        let cached = |at: &Lsn| *at < received && writer.peek(*at, 1).is_some();
        candidates.into_iter().flatten().find(cached).unwrap_or(received)
    }
}
