//! The file side of the receive role, as a pure state machine: which bytes are written
//! when, when a segment is synced, and how far the watermark may go.
//!
//! One write-and-sync batch is in flight while the next one gathers. A batch is durable when
//! every segment it touched is synced. Writes are widened to whole pages: bytes below the
//! durable mark are written again with the same content. The tail of the last page is zeros, or
//! what has been received since.
//!
//! Keeps: durable <= written <= received. What is reported upstream as flushed is durable, and
//! stays short of a segment's end until that segment has its final name. After a failed sync, or
//! a write that failed for a reason other than lack of space, nothing more is published (I2, I5,
//! I9).

mod action;
mod durable;
#[cfg(test)]
mod tests;

pub use action::{Action, AppendOperation, HaltReason, WriteId};
pub use durable::Durable;

use crate::wal::page::PAGE_SIZE;
use crate::wal::{Lsn, SegmentNo, SegmentSize, TimelineId};
use std::collections::BTreeSet;
use std::io;

/// No write crosses such a boundary: it is the size of a cache chunk.
pub const WRITE_ALIGN: u64 = 1 << 20;

/// At most this many segments are asked for at the same time.
const MAX_ASKED: usize = 4;

/// Does the WAL of this directory begin here, or does a verified record come before?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beginning {
    /// Recovery found a complete record at or before the start position.
    Past,
    /// The stream's first record is still to come. The rest of a record that began before our
    /// first byte has no checksum here, so its durability is noted in a separate file before it
    /// is published.
    Ahead,
}

/// The keeper's answer to [`Action::Begin`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// The first whole record begins past the noted position: note again.
    Partly,
    /// The first whole record begins at or before the noted position.
    Wholly,
}

/// Is this the kind of failure that goes away when space returns?
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The state machine. Inputs are methods; the resulting actions are pushed to `out`.
#[derive(Debug)]
pub struct Appender {
    tli: TimelineId,
    size: SegmentSize,
    phase: Phase,
    received: Lsn,
    durable: Lsn,
    reportable: Lsn,
    beginning: Beginning,
    batch: Option<Batch>,
    /// Files that may be written.
    ready: BTreeSet<SegmentNo>,
    /// Files that the keeper is preparing.
    asked: BTreeSet<SegmentNo>,
    /// There was no space to prepare them; not asked for again until they are needed.
    refused: BTreeSet<SegmentNo>,
    /// Durable to their end, but without their final name; oldest first.
    finalizing: BTreeSet<SegmentNo>,
    /// A final name could not be given for lack of space; tried again on resume.
    unnamed: BTreeSet<SegmentNo>,
    next_write: u64,
    max_batch: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Running,
    OutOfSpace,
    Halted,
}

/// What lies between the durable mark and `to`, on its way to the disk.
#[derive(Debug)]
struct Batch {
    to: Lsn,
    writes: Vec<Pending>,
    unsynced: BTreeSet<SegmentNo>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Writing,
    /// A write found no space: the others are awaited, then everything is dropped.
    Failing,
    Syncing,
    Beginning,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    id: WriteId,
    segment: SegmentNo,
    from: Lsn,
    to: Lsn,
}

impl Appender {
    /// An appender that continues at `durable`. At most `max_batch` bytes are in flight.
    pub fn new(
        tli: TimelineId,
        size: SegmentSize,
        durable: Lsn,
        beginning: Beginning,
        max_batch: u64,
    ) -> Self {
        assert!(max_batch >= PAGE_SIZE as u64, "a batch holds at least one page");
        Self {
            tli,
            size,
            phase: Phase::Running,
            received: durable,
            durable,
            reportable: durable,
            beginning,
            batch: None,
            ready: BTreeSet::new(),
            asked: BTreeSet::new(),
            refused: BTreeSet::new(),
            finalizing: BTreeSet::new(),
            unnamed: BTreeSet::new(),
            next_write: 0,
            max_batch,
        }
    }

    /// Asks for the files of the next bytes before the bytes arrive.
    pub fn warm_up(&mut self, out: &mut Vec<Action>) {
        self.ask_ahead(out);
    }

    /// Bytes up to `upto` are received, checked and in the cache. Ignored while there
    /// is no space or after a halt: the caller was told to drop them.
    pub fn received(&mut self, upto: Lsn, out: &mut Vec<Action>) {
        if self.phase != Phase::Running {
            return;
        }
        assert!(upto >= self.received, "I2: received goes back from {} to {upto}", self.received);
        self.received = upto;
        self.start_batch(out);
        self.ask_ahead(out);
    }

    /// The keeper handed over the segment's file.
    pub fn segment_ready(&mut self, segment: SegmentNo, out: &mut Vec<Action>) {
        self.asked.remove(&segment);
        // A file that was asked for before the space ran out may be older than the drop, so ask
        // again.
        if self.phase == Phase::Running {
            self.ready.insert(segment);
            self.start_batch(out);
            self.ask_ahead(out);
        }
    }

    /// The keeper could not make the segment's file ready.
    pub fn prepare_failed(&mut self, segment: SegmentNo, error: &io::Error, out: &mut Vec<Action>) {
        self.asked.remove(&segment);
        match self.phase {
            Phase::Halted | Phase::OutOfSpace => {}
            Phase::Running if is_no_space(error) => {
                // The batch in flight does not need it.
                self.refused.insert(segment);
                if self.batch.is_none() && self.waiting_for() == Some(segment) {
                    self.drop_to_durable(out);
                }
            }
            Phase::Running => self.halt(AppendOperation::Prepare, segment, error, out),
        }
    }

    /// A write completed.
    pub fn written(&mut self, id: WriteId, result: io::Result<usize>, out: &mut Vec<Action>) {
        if self.phase == Phase::Halted {
            return;
        }
        let batch = self.batch.as_mut().expect("I2: a completion belongs to the batch in flight");
        let index = batch.writes.iter().position(|write| write.id == id);
        let write = batch.writes.swap_remove(index.expect("I2: a write that nobody asked for"));
        match result {
            Ok(count) => {
                let done = write.from.saturating_add(count as u64);
                assert!(done <= write.to, "I2: a write took more than it was given");
                if done < write.to {
                    if count == 0 {
                        batch.stage = Stage::Failing;
                    } else if batch.stage == Stage::Writing {
                        self.next_write += 1;
                        let rest = Pending { id: WriteId(self.next_write), from: done, ..write };
                        batch.writes.push(rest);
                        out.push(rest.action(self.size));
                    }
                }
            }
            Err(error) if is_no_space(&error) => batch.stage = Stage::Failing,
            Err(error) => return self.halt(AppendOperation::Write, write.segment, &error, out),
        }
        let batch = self.batch.as_mut().expect("I2: a completion belongs to the batch in flight");
        if batch.writes.is_empty() {
            match batch.stage {
                Stage::Failing => self.drop_to_durable(out),
                Stage::Writing => {
                    batch.stage = Stage::Syncing;
                    out.extend(batch.unsynced.iter().copied().map(Action::Sync));
                }
                Stage::Syncing | Stage::Beginning => {}
            }
        }
    }

    /// A sync completed. A failed one is never retried: Linux has marked the pages clean.
    pub fn synced(&mut self, segment: SegmentNo, result: io::Result<()>, out: &mut Vec<Action>) {
        if self.phase == Phase::Halted {
            return;
        }
        if let Err(error) = result {
            return self.halt(AppendOperation::Sync, segment, &error, out);
        }
        let beginning = self.beginning;
        let batch = self.batch.as_mut().expect("I2: a completion belongs to the batch in flight");
        let known = batch.stage == Stage::Syncing && batch.unsynced.remove(&segment);
        assert!(known, "I2: a sync of segment {} that nobody asked for", segment.raw());
        if batch.unsynced.is_empty() {
            match beginning {
                Beginning::Past => self.finish_batch(out),
                Beginning::Ahead => {
                    batch.stage = Stage::Beginning;
                    out.push(Action::Begin(batch.to));
                }
            }
        }
    }

    /// The keeper noted the beginning, or could not.
    pub fn begun(&mut self, result: Result<Begun, &io::Error>, out: &mut Vec<Action>) {
        if self.phase == Phase::Halted {
            return;
        }
        let batch = self.batch.as_ref().expect("I2: a completion belongs to the batch in flight");
        assert!(batch.stage == Stage::Beginning, "I2: a beginning that nobody asked for");
        match result {
            Ok(begun) => {
                if begun == Begun::Wholly {
                    self.beginning = Beginning::Past;
                }
                self.finish_batch(out);
            }
            Err(error) if is_no_space(error) => self.drop_to_durable(out),
            Err(error) => {
                let segment = self.durable.segment(self.size);
                self.halt(AppendOperation::Begin, segment, error, out);
            }
        }
    }

    /// The segment has its final name, durably.
    pub fn finalized(&mut self, segment: SegmentNo) {
        self.finalizing.remove(&segment);
        self.advance_reportable();
    }

    /// The segment could not be given its final name.
    pub fn finalize_failed(
        &mut self,
        segment: SegmentNo,
        error: &io::Error,
        out: &mut Vec<Action>,
    ) {
        match self.phase {
            Phase::Halted => {}
            Phase::Running | Phase::OutOfSpace if is_no_space(error) => {
                self.unnamed.insert(segment);
                // A batch in flight decides when it ends; see `finish_batch`.
                if self.batch.is_none() && self.phase == Phase::Running {
                    self.drop_to_durable(out);
                }
            }
            Phase::Running | Phase::OutOfSpace => {
                self.halt(AppendOperation::Finalize, segment, error, out);
            }
        }
    }

    /// Tries again after [`Action::DropToDurable`]. The next bytes received are those
    /// at the durable mark.
    pub fn resume(&mut self, out: &mut Vec<Action>) {
        if self.phase == Phase::OutOfSpace {
            self.phase = Phase::Running;
            out.extend(self.unnamed.iter().copied().map(Action::Finalize));
            self.unnamed.clear();
        }
    }

    /// The timeline this appender writes.
    pub fn tli(&self) -> TimelineId {
        self.tli
    }

    /// Everything below is on disk and may be published.
    pub fn durable(&self) -> Durable {
        Durable::new(self.durable)
    }

    /// Everything below is in its file, durable or not.
    pub fn written_upto(&self) -> Lsn {
        match &self.batch {
            Some(Batch { to, stage: Stage::Syncing | Stage::Beginning, .. }) => *to,
            _ => self.durable,
        }
    }

    /// Everything below was handed in and not dropped since.
    pub fn received_upto(&self) -> Lsn {
        self.received
    }

    /// What may be reported upstream as flushed: durable, and short of the end of the first
    /// segment without its final name. An upstream that was told a segment's end may remove that
    /// segment, and a start would still ask for it.
    pub fn flush_reportable(&self) -> Durable {
        Durable::new(self.reportable)
    }

    /// Is no write, sync or rename in flight? (Segments asked for do not count.)
    pub fn idle(&self) -> bool {
        self.batch.is_none() && self.finalizing.len() == self.unnamed.len()
    }

    /// Is everything received durable and named?
    pub fn settled(&self) -> bool {
        self.idle() && self.unnamed.is_empty() && self.durable == self.received
    }

    /// Did the store run out of space? Cleared by [`Appender::resume`].
    pub fn out_of_space(&self) -> bool {
        self.phase == Phase::OutOfSpace
    }

    /// Has the store stopped for good?
    pub fn halted(&self) -> bool {
        self.phase == Phase::Halted
    }

    /// The first segment whose file the next batch needs and does not have.
    fn waiting_for(&self) -> Option<SegmentNo> {
        let first = self.durable.segment(self.size);
        (self.received > self.durable && !self.ready.contains(&first)).then_some(first)
    }

    fn start_batch(&mut self, out: &mut Vec<Action>) {
        if self.phase != Phase::Running || self.batch.is_some() {
            return;
        }
        let from = self.durable;
        // The mark is either where the caller set it or on a page boundary.
        let most = match from.saturating_add(self.max_batch) {
            limit if limit < self.received => limit.page_start(),
            _ => self.received,
        };
        // Only as far as files are ready.
        let mut to = from;
        while to < most && self.ready.contains(&to.segment(self.size)) {
            to = to.segment(self.size).end(self.size).min(most);
        }
        if to == from {
            return;
        }
        let mut batch =
            Batch { to, writes: Vec::new(), unsynced: BTreeSet::new(), stage: Stage::Writing };
        let (mut at, end) = (from.page_start(), to.page_ceil());
        while at < end {
            let stop = Lsn::new(at.raw() - at.raw() % WRITE_ALIGN).saturating_add(WRITE_ALIGN);
            let segment = at.segment(self.size);
            self.next_write += 1;
            let id = WriteId(self.next_write);
            let write = Pending { id, segment, from: at, to: stop.min(end) };
            batch.unsynced.insert(segment);
            batch.writes.push(write);
            out.push(write.action(self.size));
            at = write.to;
        }
        self.batch = Some(batch);
    }

    /// Asks for the files that hold what is received, and for one more ahead.
    fn ask_ahead(&mut self, out: &mut Vec<Action>) {
        if self.phase != Phase::Running {
            return;
        }
        let mut segment = self.durable.segment(self.size);
        let last = self.received.segment(self.size).next();
        while segment <= last && self.asked.len() < MAX_ASKED {
            let needed = self.received > segment.start(self.size);
            let wanted = needed || !self.refused.contains(&segment);
            if wanted && !self.ready.contains(&segment) && self.asked.insert(segment) {
                self.refused.remove(&segment);
                let keep = self.durable.max(segment.start(self.size));
                out.push(Action::Prepare { segment, keep });
            }
            segment = segment.next();
        }
    }

    fn finish_batch(&mut self, out: &mut Vec<Action>) {
        let Some(batch) = self.batch.take() else { return };
        assert!(batch.to > self.durable, "I2: durable only grows");
        let mut full = self.durable.segment(self.size);
        self.durable = batch.to;
        out.push(Action::Durable(Durable::new(batch.to)));
        while full.end(self.size) <= batch.to {
            self.ready.remove(&full);
            self.finalizing.insert(full);
            out.push(Action::Finalize(full));
            full = full.next();
        }
        self.advance_reportable();
        if self.unnamed.is_empty() {
            self.start_batch(out);
            self.ask_ahead(out);
        } else {
            self.drop_to_durable(out);
        }
    }

    fn advance_reportable(&mut self) {
        let upto = match self.finalizing.first() {
            None => self.durable,
            Some(unnamed) => unnamed.start(self.size),
        };
        self.reportable = self.reportable.max(upto);
        assert!(self.reportable <= self.durable, "I5: flush is reported past the durable mark");
    }

    fn drop_to_durable(&mut self, out: &mut Vec<Action>) {
        self.batch = None;
        self.received = self.durable;
        self.ready.clear();
        self.refused.clear();
        self.phase = Phase::OutOfSpace;
        out.push(Action::DropToDurable(self.durable));
    }

    fn halt(
        &mut self,
        operation: AppendOperation,
        segment: SegmentNo,
        error: &io::Error,
        out: &mut Vec<Action>,
    ) {
        self.phase = Phase::Halted;
        self.batch = None;
        out.push(Action::Halt(HaltReason { operation, segment, error: error.to_string() }));
    }
}

impl Pending {
    fn action(&self, size: SegmentSize) -> Action {
        Action::Write {
            id: self.id,
            segment: self.segment,
            offset: self.from.segment_offset(size),
            from: self.from,
            to: self.to,
        }
    }
}
