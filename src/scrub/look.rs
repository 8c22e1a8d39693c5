//! One look at a segment.

use super::pace::Pace;
use crate::archive::prove::{Head, Neighbours, Reason, SegmentFile, prove};
use crate::hub::Hub;
use crate::hub::chain::{segment_after, segment_before};
use crate::hub::page_rules::page_rules;
use crate::store::digest::{DigestComparison, compare, hash_file};
use crate::store::disk::{Disk, run_ready};
use crate::store::layout::Layout;
use crate::store::plain_disk::PlainDisk;
use crate::wal::page::PageRules;
use crate::wal::{Lsn, SegmentName, TimelineId};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

/// What was seen of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It is not there any more.
    Gone,
    /// It is what its digest says.
    Whole,
    /// It is what its digest says, which an earlier version wrote: that says less.
    Unindexed,
    /// It has no digest, and all records in it are whole.
    Proved,
    /// It is not to be used.
    Damaged {
        /// From here on.
        from: Lsn,
        what: String,
        /// The segments of which one is damaged: more when that is in a record with parts in them.
        parts: Vec<SegmentName>,
    },
}

/// Looks at one segment after another.
pub(super) struct Looker<'a> {
    hub: &'a Hub,
    layout: &'a Layout,
    pace: Pace,
    /// Bytes in a second, unless the scrub has another rate.
    rate: u64,
    /// Segments whose first bytes were proved with those before.
    proved: BTreeSet<SegmentName>,
}

impl<'a> Looker<'a> {
    pub(super) fn new(hub: &'a Hub, layout: &'a Layout, rate: u64) -> Self {
        Self { hub, layout, pace: Pace::new(), rate, proved: BTreeSet::new() }
    }

    /// The hub's own files.
    pub(super) fn own(&self) -> OwnFiles<'a> {
        OwnFiles { hub: self.hub, layout: self.layout }
    }

    /// Reads a segment. Returns `None` when the hub shuts down.
    pub(super) fn look_at(&mut self, name: SegmentName) -> Option<Finding> {
        let path = self.layout.segment(name);
        let start = name.no.start(name.size);
        let damaged = |error: io::Error| {
            let what = format!("it cannot be read: {error}");
            Some(Finding::Damaged { from: start, what, parts: vec![name] })
        };
        let opened = run_ready(PlainDisk.open_read(&path));
        let opened = opened.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()));
        let shared = match opened {
            Ok(shared) => shared,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(Finding::Gone),
            Err(error) => return damaged(error),
        };
        // Reads have to come from the disk. One from the cache would find nothing that is wrong
        // there.
        drop(run_ready(PlainDisk.drop_cache(&shared)));
        let file = match shared.try_clone() {
            Ok(file) => File::from(file),
            Err(error) => return damaged(error),
        };
        let finding = match self.read(&file, name) {
            Ok(finding) => finding,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return None,
            Err(error) => return damaged(error),
        };
        // A file that was removed may have been written over.
        let is_there = std::fs::metadata(&path).is_ok_and(|now| {
            file.metadata().is_ok_and(|then| (now.dev(), now.ino()) == (then.dev(), then.ino()))
        });
        Some(if is_there { finding } else { Finding::Gone })
    }

    fn read(&mut self, file: &File, name: SegmentName) -> io::Result<Finding> {
        let length = file.metadata()?.len();
        if length != name.size.bytes() {
            let what = format!("it has {length} bytes, should be {}", name.size.bytes());
            let from = name.no.start(name.size);
            return Ok(Finding::Damaged { from, what, parts: vec![name] });
        }
        let (hub, pace, usual) = (self.hub, &mut self.pace, self.rate);
        let found = hash_file(file, name, |bytes| {
            let rate = hub.holds.scrub.rate().unwrap_or(usual);
            match hub.holds.scrub.pause(pace.read(bytes, rate, Instant::now())) {
                true => Err(io::ErrorKind::Interrupted.into()),
                false => Ok(()),
            }
        })?;
        match compare(self.layout, name, &found)? {
            DigestComparison::Same(digest) => Ok(match digest.contents {
                Some(_) => Finding::Whole,
                None => Finding::Unindexed,
            }),
            DigestComparison::Differs(blocks) => {
                let (from, what) = (blocks.from(), blocks.to_string());
                Ok(Finding::Damaged { from, what, parts: vec![name] })
            }
            DigestComparison::Unknown => self.walk(file, name),
        }
    }

    /// Walks a segment that has just been read.
    fn walk(&mut self, file: &File, name: SegmentName) -> io::Result<Finding> {
        let own = self.own();
        let segment = SegmentFile { name, file: file.try_clone()?, upto: name.no.end(name.size) };
        let head = match self.proved.remove(&name) {
            true => Head::Proved,
            false => Head::Unknown,
        };
        let proof = prove(&own, &segment, head)?;
        self.proved.extend(proof.continued);
        let Some(unproved) = proof.unproved else { return Ok(Finding::Proved) };
        Ok(match unproved.why {
            Reason::Damaged { first, last, fault } => {
                // What the record has in the next ones is not damage of theirs once more.
                let (mut next, mut parts) = (name, Vec::new());
                if first != name {
                    parts.push(first);
                }
                while next.no <= last.no {
                    parts.push(next);
                    next = own.after(next);
                    self.proved.insert(next);
                }
                let what = match first == last {
                    true => fault.to_string(),
                    false => format!("{fault}, in a record with parts in {first} to {last}"),
                };
                Finding::Damaged { from: unproved.from, what, parts }
            }
            // Whatever continues its last record is not here.
            Reason::Missing(_) | Reason::NotWritten(_) => Finding::Proved,
        })
    }
}

/// The hub's own files.
pub(super) struct OwnFiles<'a> {
    hub: &'a Hub,
    layout: &'a Layout,
}

impl Neighbours for OwnFiles<'_> {
    type File = File;

    fn rules(&self, tli: TimelineId) -> io::Result<PageRules> {
        page_rules(self.hub, tli).map_err(io::Error::other)
    }

    fn before(&self, name: SegmentName) -> Option<SegmentName> {
        segment_before(self.hub, name)
    }

    fn after(&self, name: SegmentName) -> SegmentName {
        segment_after(self.hub, name)
    }

    fn open(&self, name: SegmentName) -> io::Result<Option<SegmentFile<File>>> {
        let (start, end) = (name.no.start(name.size), name.no.end(name.size));
        // It may get its final name at any time, so that one is looked for after it.
        let durable = self.hub.cell_of(name.tli).map_or(start, |cell| cell.durable());
        let places =
            [(self.layout.partial(name), durable.min(end)), (self.layout.segment(name), end)];
        for (path, upto) in places {
            if upto <= start {
                continue;
            }
            match File::open(&path) {
                Ok(file) => return Ok(Some(SegmentFile { name, file, upto })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
