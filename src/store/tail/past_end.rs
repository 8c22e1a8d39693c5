//! Whole records past the end of the WAL on disk. A disk that has changed bytes of one record leaves all
//! that follow it as they were, and they may have been acknowledged. A loss of power in the middle
//! of a write may leave some, too. The next WAL would be written over them, so a start keeps them.

use super::{Tail, TailSearch};
use crate::store::disk::Disk;
use crate::store::durable::read_full;
use crate::store::fault::{StoreFault, failed};
use crate::wal::page::{PAGE_SIZE, PageHeader, PageInfo, PageRules};
use crate::wal::record::{MAX_RECORD, RECORD_HEADER, RecordHeader};
use crate::wal::{Lsn, WalkFault, Walker};
use std::fmt;
use std::ops::ControlFlow;

/// How far past the end they are looked for: whole pages.
const REACH: u64 = 16 << 20;

/// Bytes read at a time.
const PIECE: u64 = 1 << 20;

/// Records begin at multiples of this.
const ALIGNMENT: usize = 8;

/// Records whose checksums hold, past what ended the walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastEnd {
    /// Where our WAL ends.
    pub end: Lsn,
    /// What ended it.
    pub why: WalkFault,
    /// Start of the first of them.
    pub from: Lsn,
    /// The end of those that follow each other.
    pub to: Lsn,
}

impl fmt::Display for PastEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { end, why, from, to } = self;
        write!(
            f,
            "the WAL ends at {end} ({why}), and past that there are whole records, from {from} to {to} \
             at least: a disk has changed what is between, or the power failed during a write"
        )
    }
}

impl TailSearch<'_> {
    /// Looks for whole records past `tail`, which the walk has found.
    pub(super) async fn past_end<D: Disk>(
        &self,
        disk: &D,
        tail: &Tail,
    ) -> Result<Option<PastEnd>, StoreFault> {
        let Some(why) = tail.ended_by.filter(|_| self.limit == Lsn::MAX) else { return Ok(None) };
        let (size, end) = (self.cluster.segment_size, tail.durable());
        let stop = end.page_start().saturating_add(REACH);
        let mut scan = Scan { rules: self.rules(), walker: None };
        for no in self.open_segments(end.segment(size)) {
            let path = self.layout.partial(self.name(no));
            let file = disk.open_read(&path).await.map_err(failed("open file", &path))?;
            let mut at = no.start(size).max(end.page_start());
            let to = no.end(size).min(stop);
            while at < to {
                let want = to.bytes_since(at).min(PIECE) as usize;
                let read = read_full(disk, &file, want, at.segment_offset(size)).await;
                let read = read.map_err(failed("read file", &path))?;
                for page in read.chunks_exact(PAGE_SIZE) {
                    if at <= end {
                        scan.look_inside(at, page, end, tail.record_end);
                    } else if scan.take(at, page).is_break() {
                        return Ok(scan.found(end, why));
                    }
                    at = at.saturating_add(PAGE_SIZE as u64);
                }
                if read.len() < want {
                    return Ok(scan.found(end, why));
                }
            }
        }
        Ok(scan.found(end, why))
    }
}

/// Walks from page to page, and begins anew after each fault until there was a whole record.
struct Scan {
    rules: PageRules,
    walker: Option<Walker>,
}

impl Scan {
    fn take(&mut self, at: Lsn, page: &[u8]) -> ControlFlow<()> {
        if let Some(walker) = &mut self.walker {
            match walker.feed(page) {
                Ok(()) => return ControlFlow::Continue(()),
                Err(_) if walker.last_record().is_some() => return ControlFlow::Break(()),
                Err(_) => {}
            }
        }
        let mut walker = Walker::new(self.rules.clone(), at);
        let fed = walker.feed(page);
        let is_found = walker.last_record().is_some();
        self.walker = (fed.is_ok() || is_found).then_some(walker);
        match fed {
            Err(_) if is_found => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    /// Looks at what the page in which our WAL ends holds past that. `damaged` is where the record begins
    /// that ended the walk.
    fn look_inside(&mut self, at: Lsn, page: &[u8], end: Lsn, damaged: Lsn) {
        let Ok(header) = PageHeader::parse(page) else { return };
        let content = PageHeader::size_at(at, self.rules.size);
        let first = content.max(end.bytes_since(at) as usize);
        for n in (first..PAGE_SIZE).step_by(ALIGNMENT) {
            let record = page.get(n..).and_then(|rest| rest.first_chunk());
            let Some(record) = record.map(RecordHeader::parse) else { return };
            let lsn = at.saturating_add(n as u64);
            let is_likely = (RECORD_HEADER as u32..=MAX_RECORD).contains(&record.tot_len)
                && damaged <= record.prev
                && record.prev < lsn;
            if !is_likely {
                continue;
            }
            // A page that looks as if all before the record were the rest of another one.
            let info = header.info.raw() | PageInfo::FIRST_IS_CONTRECORD;
            let rem_len = u32::try_from(n.saturating_sub(content)).unwrap_or_default();
            if rem_len == 0 {
                continue;
            }
            let mut skipping = Vec::with_capacity(PAGE_SIZE);
            PageHeader { info: PageInfo::new(info), rem_len, ..header }.write(&mut skipping);
            skipping.extend_from_slice(page.get(skipping.len()..).unwrap_or_default());
            let mut walker = Walker::new(self.rules.clone(), at);
            let fed = walker.feed(&skipping);
            if fed.is_ok() || walker.last_record().is_some() {
                self.walker = Some(walker);
                return;
            }
        }
    }

    fn found(self, end: Lsn, why: WalkFault) -> Option<PastEnd> {
        let walker = self.walker.filter(|walker| walker.last_record().is_some())?;
        Some(PastEnd { end, why, from: walker.proven_from()?, to: walker.record_end() })
    }
}
