//! Finds the end of the WAL on disk: what can be proven to have been written whole.
//!
//! Complete segments are durable by their name. The open ones after them hold what the walk can
//! prove: records whose checksum, prev-link and pages are right. A record may straddle the
//! boundary, so the walk starts in a complete segment, at a place where a record begins: in the
//! newest one, or further back when that one holds nothing but the middle of a long record.
//!
//! One part has no checksum: the rest of a record that began before our first byte. It counts as
//! far as it lies in complete segments, or as far as a note says that it was synced before it
//! was published.

mod past_end;

pub use past_end::PastEnd;

use super::append::Beginning;
use super::control_file::Cluster;
use super::course::FenceNote;
use super::disk::Disk;
use super::fault::{DAMAGED, StoreFault, failed};
use super::layout::{Layout, SegmentRange};
use crate::store::durable::read_full;
use crate::wal::page::{LONG_HEADER, PAGE_SIZE, PageHeader, PageRules};
use crate::wal::{Fork, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalkFault, Walker};
use std::path::{Path, PathBuf};

/// Bytes read at a time.
const PIECE: u64 = 1 << 20;

/// Where to look.
#[derive(Debug)]
pub struct TailSearch<'a> {
    /// The names of files.
    pub layout: &'a Layout,
    /// The cluster whose WAL it is.
    pub cluster: &'a Cluster,
    /// Where the timeline left its ancestors.
    pub fork: Option<Fork>,
    /// Complete segments without a hole, up to the newest.
    pub complete: Option<SegmentRange>,
    /// Open segments of the timeline, sorted.
    pub partials: &'a [SegmentNo],
    /// Bytes before this position are known to be durable, record or not.
    pub trusted: Lsn,
    /// Nothing from this position on is believed.
    pub limit: Lsn,
}

/// The end of the WAL on disk.
#[derive(Debug, Clone)]
pub struct Tail {
    /// Where the walk started: a record begins in that segment, or no older segment is there.
    pub walked_from: Lsn,
    /// End of the last record that is whole.
    pub record_end: Lsn,
    /// Start of that record.
    pub last_record: Option<Lsn>,
    /// Durable according to the note, though no whole record proves it; never past the end of
    /// the record rest with which the WAL begins.
    pub noted: Lsn,
    /// End of the newest complete segment: the start of the open one.
    pub resume: Lsn,
    /// Has the walk passed the stream's first record?
    pub beginning: Beginning,
    /// The magic of its pages.
    pub magic: Option<u16>,
    /// What ended the walk, when it was not the end of the files.
    pub ended_by: Option<WalkFault>,
    /// Whole records past that, which an unfinished write alone does not leave.
    pub past_end: Option<PastEnd>,
}

impl Tail {
    /// The position that is published and continued from. It is never before the newest complete
    /// segment's end, though a record may straddle that. What the note covers is kept; otherwise
    /// the next start would believe a note about bytes that were given up.
    pub fn durable(&self) -> Lsn {
        self.record_end.max(self.resume).max(self.noted)
    }
}

/// What was durable when the hub was fenced and is not found any more, in words: the open segment was
/// damaged or lost. Whatever a crash cuts off comes after a fence that was printed.
pub(super) fn lost_before_fence(
    fence: Option<FenceNote>,
    tli: TimelineId,
    tail: &Tail,
) -> Option<String> {
    let fence = fence.filter(|fence| fence.tli == tli && fence.record_end > tail.durable())?;
    let why = match tail.ended_by {
        Some(fault) => fault.to_string(),
        None => "no more is here".to_owned(),
    };
    Some(format!(
        "the WAL ends at {}, before the fence at {}, up to which it was durable: {why}; {DAMAGED}",
        tail.durable(),
        fence.record_end
    ))
}

/// What a segment's first page says about the bytes after its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leading {
    /// Not one of our pages.
    Unwritten(WalkEnd),
    /// A record begins there.
    Record,
    /// The rest of a record, which ends (padded) at this position.
    Rest(Lsn),
}

type WalkEnd = Option<WalkFault>;

/// Where the rest of a record ends, padded, when the page at `page` (the first of a segment)
/// begins with `rem_len` bytes of it.
pub fn leading_rest_end(page: Lsn, rem_len: u32, size: SegmentSize) -> Lsn {
    let (mut page, mut left) = (page, u64::from(rem_len));
    loop {
        let header = PageHeader::size_at(page, size) as u64;
        let room = PAGE_SIZE as u64 - header;
        if left <= room {
            return page.saturating_add(header).saturating_add(left).align8();
        }
        left -= room;
        page = page.saturating_add(PAGE_SIZE as u64);
    }
}

/// The end of the record rest that the segment at `start` begins with, judged by the bytes of
/// its first page. Returns `start` itself when a record begins there, and `None` when the bytes
/// are not a page of that position.
pub fn leading_rest(start: Lsn, first_page: &[u8], size: SegmentSize) -> Option<Lsn> {
    let header = PageHeader::parse(first_page).ok().filter(|header| header.addr == start)?;
    if header.info.first_is_contrecord() {
        Some(leading_rest_end(start, header.rem_len, size))
    } else {
        Some(start)
    }
}

impl TailSearch<'_> {
    /// Reads and walks. Nothing is written.
    pub async fn find<D: Disk>(&self, disk: &D) -> Result<Tail, StoreFault> {
        let tail = self.walk(disk).await?;
        Ok(Tail { past_end: self.past_end(disk, &tail).await?, ..tail })
    }

    async fn walk<D: Disk>(&self, disk: &D) -> Result<Tail, StoreFault> {
        let size = self.cluster.segment_size;
        let resume = self.complete.map_or(self.cluster.start, |range| range.newest.end(size));
        let open = self.open_segments(resume.segment(size));
        let (first, leading) = self.first_segment(disk, resume, &open).await?;
        let mut tail = Tail {
            walked_from: first.start(size),
            record_end: resume,
            last_record: None,
            noted: Lsn::INVALID,
            resume,
            beginning: Beginning::Past,
            magic: None,
            ended_by: None,
            past_end: None,
        };
        let proven = match leading {
            Leading::Unwritten(fault) => {
                tail.beginning = Beginning::Ahead;
                tail.ended_by = fault;
                return Ok(tail);
            }
            Leading::Rest(end) => {
                tail.noted = end.min(self.trusted).min(self.limit);
                if end > resume.max(self.trusted) {
                    tail.beginning = Beginning::Ahead;
                    resume.max(self.trusted)
                } else {
                    Lsn::MAX
                }
            }
            Leading::Record => Lsn::MAX,
        };
        let limit = self.limit.min(proven);
        let mut walker = Walker::new(self.rules(), tail.walked_from);
        if let Some(range) = self.complete {
            let mut no = first;
            while no <= range.newest {
                let path = self.layout.segment(self.name(no));
                let walked = walk_file(disk, &mut walker, &path, self.name(no), limit).await?;
                if let Some(fault) = walked {
                    return Err(self.damaged(path, fault));
                }
                no = no.next();
            }
        }
        for no in open {
            let path = self.layout.partial(self.name(no));
            tail.ended_by = walk_file(disk, &mut walker, &path, self.name(no), limit).await?;
            if tail.ended_by.is_some() || walker.position() < no.end(size) {
                break;
            }
        }
        tail.last_record = walker.last_record();
        tail.magic = walker.rules().magic;
        tail.record_end = walker.record_end();
        Ok(tail)
    }

    /// Walks again, from where `tail` began up to exactly its durable mark: the receive role
    /// continues with this walker. A stream that ends inside a record is taken back to the
    /// record's start, and so is the walk.
    pub async fn walk_again<D: Disk>(&self, disk: &D, tail: &Tail) -> Result<Walker, StoreFault> {
        let size = self.cluster.segment_size;
        let (mut walker, to) = (Walker::new(self.rules(), tail.walked_from), tail.durable());
        while walker.position() < to {
            let no = walker.position().segment(size);
            let complete = self.complete.is_some_and(|range| no <= range.newest);
            let path = match complete {
                true => self.layout.segment(self.name(no)),
                false => self.layout.partial(self.name(no)),
            };
            let at = walker.position();
            if let Some(fault) = walk_file(disk, &mut walker, &path, self.name(no), to).await? {
                return Err(self.damaged(path, fault));
            }
            if walker.position() == at {
                let error = std::io::ErrorKind::UnexpectedEof.into();
                return Err(failed("read file", &path)(error));
            }
        }
        Ok(walker)
    }

    /// Open segments that follow each other from `first` on.
    fn open_segments(&self, first: SegmentNo) -> Vec<SegmentNo> {
        let mut due = first;
        let mut open = Vec::new();
        for no in self.partials.iter().filter(|no| **no >= first) {
            if *no != due {
                break;
            }
            open.push(due);
            due = due.next();
        }
        open
    }

    /// The newest segment in which a record is known to begin.
    async fn first_segment<D: Disk>(
        &self,
        disk: &D,
        resume: Lsn,
        open: &[SegmentNo],
    ) -> Result<(SegmentNo, Leading), StoreFault> {
        let size = self.cluster.segment_size;
        let Some(range) = self.complete else {
            let no = resume.segment(size);
            let leading = match open.first() {
                Some(first) if *first == no => {
                    self.leading(disk, &self.layout.partial(self.name(no)), no).await?
                }
                _ => Leading::Unwritten(None),
            };
            return Ok((no, leading));
        };
        let mut no = range.newest;
        loop {
            let path = self.layout.segment(self.name(no));
            let leading = self.leading(disk, &path, no).await?;
            match leading {
                Leading::Unwritten(Some(fault)) => return Err(self.damaged(path, fault)),
                Leading::Rest(end) if end >= no.end(size) && no > range.oldest => {
                    no = no.previous().unwrap_or(range.oldest);
                }
                _ => return Ok((no, leading)),
            }
        }
    }

    async fn leading<D: Disk>(
        &self,
        disk: &D,
        path: &Path,
        no: SegmentNo,
    ) -> Result<Leading, StoreFault> {
        let size = self.cluster.segment_size;
        let start = no.start(size);
        let file = disk.open_read(path).await.map_err(failed("open file", path))?;
        let header = read_full(disk, &file, LONG_HEADER, 0).await;
        let header = header.map_err(failed("read file", path))?;
        // The walker decides whether a page is valid.
        let mut walker = Walker::new(self.rules(), start);
        if let Err(fault) = walker.feed(&header) {
            return Ok(Leading::Unwritten(Some(fault)));
        }
        match leading_rest(start, &header, size) {
            Some(end) if end > start => Ok(Leading::Rest(end)),
            Some(_) => Ok(Leading::Record),
            None => Ok(Leading::Unwritten(None)),
        }
    }

    fn rules(&self) -> PageRules {
        PageRules {
            system: self.cluster.system_id,
            size: self.cluster.segment_size,
            tli: self.cluster.timeline,
            magic: None,
            fork: self.fork.clone(),
        }
    }

    fn name(&self, no: SegmentNo) -> SegmentName {
        SegmentName { tli: self.cluster.timeline, no, size: self.cluster.segment_size }
    }

    fn damaged(&self, path: PathBuf, fault: WalkFault) -> StoreFault {
        StoreFault::Damaged { path, system: self.cluster.system_id, fault }
    }
}

/// Feeds one segment's file up to `limit`; returns what ended the walk inside it.
pub(super) async fn walk_file<D: Disk>(
    disk: &D,
    walker: &mut Walker,
    path: &Path,
    name: SegmentName,
    limit: Lsn,
) -> Result<Option<WalkFault>, StoreFault> {
    let file = disk.open_read(path).await.map_err(failed("open file", path))?;
    let end = name.no.end(name.size).min(limit);
    while walker.position() < end {
        let at = walker.position();
        let want = end.bytes_since(at).min(PIECE) as usize;
        let offset = at.segment_offset(name.size);
        let read = read_full(disk, &file, want, offset).await;
        let bytes = read.map_err(failed("read file", path))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        if let Err(fault) = walker.feed(&bytes) {
            return Ok(Some(fault));
        }
    }
    Ok(None)
}
