//! The walk: follows WAL from record to record and stops at the first byte that does
//! not belong.
//!
//! One walker serves the check of what upstream sends, recovery and `inspect`. It takes bytes in
//! pieces of any size and keeps no more of a record than its header (the CRC runs along). It comes
//! to the same end however the bytes were cut. It checks what PostgreSQL's `xlogreader.c` checks,
//! and also checks the timeline of each page and record against the history.
//!
//! ```text
//!  page header --+--> First --------+-- no contrecord ----------> Record <----------+
//!                |                  +-- contrecord --> Skip -----^   |              |
//!                +--> Skip, Partial: contrecord, rem_len as due      v              |
//!                +--> Skip, Partial: overwritten ----> Record     Partial --> complete
//!                +--> Record: no contrecord                                  |
//!                                                   Record <-- Zeros <-- XLOG_SWITCH
//! ```

mod fault;
mod partial;
mod tally;
#[cfg(test)]
mod tests;

pub use fault::{FaultKind, WalkFault};
pub use tally::{RecordNotes, Tally};

use super::lsn::Lsn;
use super::page::{
    LONG_HEADER, PAGE_SIZE, PageFault, PageHeader, PageRules, server_major_of_magic,
};
use super::record::{MAX_RECORD, RECORD_HEADER, RecordHeader, finish_crc};
use partial::{Partial, Skipped};

/// Walks WAL that arrives in pieces. Cheap to clone: a caller that must be able to take bytes back
/// walks them with a clone first. `N` says what it notes of the records.
#[derive(Clone, Debug)]
pub struct Walker<N = Tally> {
    rules: PageRules,
    at: Lsn,
    record_end: Lsn,
    last_record: Option<Lsn>,
    last_time_stamped: Option<Lsn>,
    proven_from: Option<Lsn>,
    next: Next,
    partial: Partial,
    /// A page header that arrives in pieces.
    page_head: [u8; LONG_HEADER],
    /// Start of the walked timeline; 0 without ancestors.
    fork: Lsn,
    /// The fork, while the current page holds it.
    fork_inside: Option<Lsn>,
    /// Whether a record past the fork has said that it is of the walked timeline.
    fork_named: bool,
    /// Whether the record skipped at the start may have been an XLOG_SWITCH.
    maybe_switch: bool,
    notes: N,
    fault: Option<WalkFault>,
}

/// What the next byte of page content belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Whatever the first page says.
    First,
    /// The rest of a record that started before the walk, and its padding.
    Skip(Skipped),
    /// A record, or nothing yet.
    Record,
    /// More of `partial`.
    Partial,
    /// The unused rest of a segment.
    Zeros { end: Lsn, after: ZerosAfter },
}

/// What the zeros follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ZerosAfter {
    /// An XLOG_SWITCH that was read.
    Switch,
    /// The end of a skipped record that may have been one. Only what follows in the next segment
    /// proves it, so `record_end` stays before the zeros.
    MaybeSwitch,
}

/// A fault inside the walk: where, and what.
type Found = (Lsn, FaultKind);

impl Walker {
    /// A walk that counts records. Starts at the page boundary `at`. When that page continues an earlier record, the rest of
    /// that record is skipped unchecked: see [`Walker::proven_from`]. The first record's prev-link
    /// is only known to point back, so `at` must lie before the first byte that may be left from an
    /// older use of the file.
    ///
    /// # Panics
    /// When `at` is not a page boundary.
    pub fn new(rules: PageRules, at: Lsn) -> Self {
        Self::noting(rules, at, Tally::default())
    }

    /// What was counted, and counts from zero again.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.notes)
    }
}

impl<N: RecordNotes> Walker<N> {
    /// A walk that notes what `N` says. It starts as one by [`Walker::new`].
    ///
    /// # Panics
    /// When `at` is not a page boundary.
    pub fn noting(rules: PageRules, at: Lsn, notes: N) -> Self {
        assert!(at.page_offset() == 0, "a walk starts at a page boundary, not at {at}");
        let fork = rules.fork.as_ref().map_or(Lsn::INVALID, |fork| fork.start());
        Self {
            rules,
            at,
            record_end: at,
            last_record: None,
            last_time_stamped: None,
            proven_from: None,
            next: Next::First,
            partial: Partial::start(at),
            page_head: [0; LONG_HEADER],
            fork,
            fork_inside: None,
            fork_named: false,
            maybe_switch: false,
            notes,
            fault: None,
        }
    }

    /// Feeds the next bytes. The first fault ends the walk: `position` falls back to `record_end`,
    /// and every later call returns the same fault.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), WalkFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.feed_all(bytes).map_err(|(at, kind)| {
            let fault = WalkFault { at, kind };
            self.fault = Some(fault);
            self.at = self.record_end;
            fault
        })
    }

    /// The next byte expected; after a fault, where the good records end.
    pub const fn position(&self) -> Lsn {
        self.at
    }

    /// End of the last complete record (`EndRecPtr`), rounded up to 8 bytes; after an XLOG_SWITCH,
    /// the end of the segment once its zeros were seen. Before the first record: the start of the
    /// walk. It never passes what was fed.
    pub const fn record_end(&self) -> Lsn {
        self.record_end
    }

    /// Start of the last complete record, which the next one's prev-link must name.
    pub const fn last_record(&self) -> Option<Lsn> {
        self.last_record
    }

    /// Start of the last complete record that says when it was written.
    pub const fn last_time_stamped(&self) -> Option<Lsn> {
        self.last_time_stamped
    }

    /// Where checking began: every byte from here to `record_end` was checked. Before it lies the
    /// rest of an earlier record, which was only counted and may be torn. `None` while there is
    /// nothing else: a walk that must prove what it passes has then started too late.
    pub const fn proven_from(&self) -> Option<Lsn> {
        self.proven_from
    }

    /// What was noted.
    pub fn into_notes(self) -> N {
        self.notes
    }

    /// The rules, with the magic learned.
    pub const fn rules(&self) -> &PageRules {
        &self.rules
    }

    /// The magic of the pages when it is not that of PostgreSQL 13 to 18: worth a warning, once.
    pub fn unknown_magic(&self) -> Option<u16> {
        self.rules.magic.filter(|magic| server_major_of_magic(*magic).is_none())
    }

    fn feed_all(&mut self, bytes: &[u8]) -> Result<(), Found> {
        // The positions below are sums of what was fed. Only here could they leave the number
        // space.
        let room = Lsn::MAX.bytes_since(self.at);
        if bytes.len() as u64 > room.saturating_sub(PAGE_SIZE as u64) {
            return Err((self.at, FaultKind::EndOfNumbers));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = self.step(rest)?;
        }
        Ok(())
    }

    /// Takes what belongs together from the front of `rest`; always takes something.
    fn step<'b>(&mut self, rest: &'b [u8]) -> Result<&'b [u8], Found> {
        if let Next::Zeros { end, after } = self.next {
            return self.zeros(rest, end, after);
        }
        let offset = self.at.page_offset();
        if offset < LONG_HEADER {
            let due = PageHeader::size_at(self.at.page_start(), self.rules.size);
            if offset < due {
                return self.page_header(rest, offset, due);
            }
        }
        let (content, after) = cut(rest, PAGE_SIZE.saturating_sub(offset));
        let left = match self.next {
            Next::Skip(skipped) => self.skip(content, skipped),
            Next::Record if self.fork_inside.is_none() => self.records(content)?,
            Next::Partial => self.partial_record(content)?,
            // `First` ends with the page header, and `Zeros` have returned above.
            Next::Record | Next::First | Next::Zeros { .. } => self.begin_partial(content)?,
        };
        let taken = content.len().saturating_sub(left.len());
        Ok(if left.is_empty() { after } else { cut(rest, taken).1 })
    }

    /// The header of the current page, of which `offset` bytes are already here.
    fn page_header<'b>(
        &mut self,
        rest: &'b [u8],
        offset: usize,
        due: usize,
    ) -> Result<&'b [u8], Found> {
        let page = self.at.page_start();
        let (piece, after) = cut(rest, due.saturating_sub(offset));
        for (to, from) in self.page_head.iter_mut().skip(offset).zip(piece) {
            *to = *from;
        }
        if offset + piece.len() == due {
            // The rules catch a short header whose flags announce a long one, so it does not matter
            // what is parsed as its tail.
            let header =
                PageHeader::parse(&self.page_head).map_err(|fault| page_fault(page, fault))?;
            self.rules.check(page, &header).map_err(|fault| page_fault(page, fault))?;
            self.enter_page(page, page.saturating_add(due as u64), &header)?;
        }
        self.at = self.at.saturating_add(piece.len() as u64);
        Ok(after)
    }

    /// Whether the page continues where the one before it stopped.
    fn enter_page(&mut self, page: Lsn, content: Lsn, header: &PageHeader) -> Result<(), Found> {
        self.fork_inside = self.rules.fork_inside(page);
        let contrecord = header.info.first_is_contrecord();
        let given_up = header.info.overwrite_contrecord();
        let (of, expected) = match self.next {
            Next::Skip(skipped) if !given_up => (page, skipped.left()),
            Next::Partial if !given_up => (self.partial.start, self.partial.left()),
            Next::First if contrecord && header.rem_len > 0 => {
                self.next = Next::Skip(Skipped::new(header.rem_len));
                return Ok(());
            }
            _ if contrecord => return Err((content, FaultKind::ContrecordRequested)),
            _ => {
                self.begin_records(content);
                return Ok(());
            }
        };
        if !contrecord {
            return Err((of, FaultKind::NoContrecordFlag));
        }
        if header.rem_len != expected {
            let found = header.rem_len;
            return Err((of, FaultKind::ContrecordLength { found, expected }));
        }
        Ok(())
    }

    /// From `at` on, nothing is skipped any more.
    fn begin_records(&mut self, at: Lsn) {
        self.next = Next::Record;
        self.proven_from.get_or_insert(at);
    }

    /// The fast path: records that lie whole in `content`, which ends with the page at the latest.
    /// Anything odd takes the slow path, where faults are found.
    fn records<'b>(&mut self, content: &'b [u8]) -> Result<&'b [u8], Found> {
        let mut rest = content;
        while let Some((head, after_head)) = rest.split_first_chunk::<RECORD_HEADER>() {
            let header = RecordHeader::parse(head);
            let len = header.tot_len as usize;
            let padded = len.saturating_add(7) & !7;
            if len < RECORD_HEADER || padded > rest.len() {
                break;
            }
            self.check_prev(self.at, header.prev)?;
            let (body, _) = cut(after_head, len.saturating_sub(RECORD_HEADER));
            if finish_crc(crc32c::crc32c(body), head) != header.crc {
                return Err((self.at, FaultKind::Checksum));
            }
            self.notes.note(self.at, &header, body);
            self.complete(self.at, self.at.saturating_add(padded as u64), &header)?;
            rest = cut(rest, padded).1;
            if self.next != Next::Record {
                return Ok(rest);
            }
        }
        if rest.is_empty() { Ok(rest) } else { self.begin_partial(rest) }
    }

    fn begin_partial<'b>(&mut self, content: &'b [u8]) -> Result<&'b [u8], Found> {
        self.partial = Partial::start(self.at);
        self.next = Next::Partial;
        self.partial_record(content)
    }

    /// More of a record that does not lie whole in what was fed, or in its page. Every
    /// check is made at one certain byte, so that the cuts do not matter.
    fn partial_record<'b>(&mut self, content: &'b [u8]) -> Result<&'b [u8], Found> {
        let mut rest = content;
        loop {
            let due = self.partial.next_check();
            let (piece, after) = cut(rest, due.saturating_sub(self.partial.have()) as usize);
            self.partial.take(piece);
            self.at = self.at.saturating_add(piece.len() as u64);
            rest = after;
            if self.partial.have() < due {
                return Ok(rest);
            }
            self.check_partial(due)?;
            if self.next != Next::Partial {
                return Ok(rest);
            }
        }
    }

    /// Called when `have` bytes of the partial record are here.
    fn check_partial(&mut self, have: u32) -> Result<(), Found> {
        let start = self.partial.start;
        let header = self.partial.header();
        if have == Partial::LENGTH_KNOWN {
            if self.maybe_switch && self.partial.is_zero() {
                let end = start.segment(self.rules.size).end(self.rules.size);
                self.next = Next::Zeros { end, after: ZerosAfter::MaybeSwitch };
                return Ok(());
            }
            return check_length(start, header.tot_len);
        }
        if have == RECORD_HEADER as u32 {
            self.check_prev(start, header.prev)?;
            self.check_fork_record(start, &header)?;
        }
        if have == header.tot_len {
            if self.partial.crc() != header.crc {
                return Err((start, FaultKind::Checksum));
            }
            self.check_fork_name(start, &header)?;
        }
        if have == self.partial.padded_len() {
            self.notes.note(start, &header, self.partial.opening());
            self.complete(start, self.at, &header)?;
        }
        Ok(())
    }

    /// A record is proven and ends, including its padding, at `end`.
    fn complete(&mut self, start: Lsn, end: Lsn, header: &RecordHeader) -> Result<(), Found> {
        if start < self.fork && self.fork < end {
            // The parent's last record ends where the child starts.
            return Err((start, FaultKind::AcrossFork { fork: self.fork }));
        }
        self.last_record = Some(start);
        if header.is_time_stamped() {
            self.last_time_stamped = Some(start);
        }
        self.record_end = end;
        self.at = end;
        self.maybe_switch = false;
        self.next = Next::Record;
        let size = self.rules.size;
        if header.is_switch() && end.segment_offset(size) != 0 {
            let end = end.segment(size).end(size);
            self.next = Next::Zeros { end, after: ZerosAfter::Switch };
        }
        Ok(())
    }

    /// After an XLOG_SWITCH the rest of the segment is zeros, without even page headers.
    fn zeros<'b>(
        &mut self,
        rest: &'b [u8],
        end: Lsn,
        after: ZerosAfter,
    ) -> Result<&'b [u8], Found> {
        let due = usize::try_from(end.bytes_since(self.at)).unwrap_or(usize::MAX);
        let (piece, left) = cut(rest, due);
        if piece.iter().fold(0, |all, byte| all | byte) != 0 {
            return Err(match after {
                ZerosAfter::Switch => (self.record_end, FaultKind::DataAfterSwitch),
                ZerosAfter::MaybeSwitch => (self.record_end, FaultKind::RecordLength { found: 0 }),
            });
        }
        self.at = self.at.saturating_add(piece.len() as u64);
        if self.at == end {
            self.next = Next::Record;
            if after == ZerosAfter::Switch {
                self.record_end = end;
            }
        }
        Ok(left)
    }

    /// The end of a record that started before the walk.
    fn skip<'b>(&mut self, content: &'b [u8], mut skipped: Skipped) -> &'b [u8] {
        let (piece, rest) = cut(content, skipped.left() as usize);
        skipped.take(piece);
        self.at = self.at.saturating_add(piece.len() as u64);
        self.next = Next::Skip(skipped);
        if skipped.left() > 0 {
            return rest;
        }
        let (padding, rest) = cut(rest, self.at.align8().bytes_since(self.at) as usize);
        self.at = self.at.saturating_add(padding.len() as u64);
        if self.at == self.at.align8() {
            self.begin_records(self.at);
            self.maybe_switch = skipped.may_be_switch();
        }
        rest
    }

    /// The prev-link names the previous record exactly. The first record's is only known to point
    /// back.
    #[inline]
    /// I1: a record names the one before it.
    fn check_prev(&self, start: Lsn, found: Lsn) -> Result<(), Found> {
        let good = match self.last_record {
            Some(previous) => found == previous,
            None => found < start,
        };
        if good { Ok(()) } else { Err((start, FaultKind::PrevLink { found })) }
    }

    /// Whether `start` is past the fork on the page that holds it. That page carries the parent's
    /// number, so it cannot tell a record of the child from what the parent wrote there. But a
    /// server that opens a timeline says so first, so no other record is accepted before that.
    /// (Unknown servers may begin otherwise.)
    fn on_fork_page(&self, start: Lsn) -> bool {
        !self.fork_named
            && start >= self.fork
            && self.rules.fork_inside(start.page_start()).is_some()
            && self.unknown_magic().is_none()
    }

    fn check_fork_record(&self, start: Lsn, header: &RecordHeader) -> Result<(), Found> {
        if self.on_fork_page(start) && !header.may_precede_timeline() && !header.names_timeline() {
            return Err((start, FaultKind::OtherBranch { fork: self.fork }));
        }
        Ok(())
    }

    fn check_fork_name(&mut self, start: Lsn, header: &RecordHeader) -> Result<(), Found> {
        if self.on_fork_page(start) && header.names_timeline() {
            if self.partial.timeline() != self.rules.tli.raw() {
                return Err((start, FaultKind::OtherBranch { fork: self.fork }));
            }
            self.fork_named = true;
        }
        Ok(())
    }
}

fn check_length(start: Lsn, found: u32) -> Result<(), Found> {
    match found {
        0..24 => Err((start, FaultKind::RecordLength { found })),
        24..=MAX_RECORD => Ok(()),
        _ => Err((start, FaultKind::RecordTooLong { found })),
    }
}

fn page_fault(page: Lsn, fault: PageFault) -> Found {
    (page, FaultKind::Page(fault))
}

/// The first `len` bytes, or all when there are fewer, and the rest.
#[inline]
fn cut(bytes: &[u8], len: usize) -> (&[u8], &[u8]) {
    bytes.split_at_checked(len).unwrap_or((bytes, &[]))
}
