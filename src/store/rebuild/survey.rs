//! What the segments say of their cluster, without a control file: each begins with a page that
//! names the cluster, the segment size, the version and the position.

use super::RebuildFault;
use crate::store::disk::Disk;
use crate::store::durable::read_full;
use crate::store::fault::{StoreFault, failed};
use crate::store::layout::Layout;
use crate::store::recover::looks_like_wal;
use crate::wal::page::{LONG_HEADER, PageHeader, server_major_of_magic};
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// What all segments say.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) imprint: Imprint,
    pub(super) size: SegmentSize,
    /// Timelines in the names of segments.
    pub(super) timelines: BTreeMap<TimelineId, Segments>,
}

/// The segments of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segments {
    pub(super) oldest: SegmentNo,
    /// Complete ones.
    pub(super) complete: u64,
}

/// What the first page of every segment of a cluster has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Imprint {
    pub(super) system: SystemId,
    pub(super) segment_size: u32,
    pub(super) magic: u16,
}

impl Imprint {
    /// The major version that writes such pages.
    pub(super) const fn major(&self) -> Option<u16> {
        server_major_of_magic(self.magic)
    }
}

impl fmt::Display for Imprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { system, segment_size, magic } = self;
        write!(f, "system {system}, {segment_size} bytes per WAL segment, ")?;
        match self.major() {
            Some(major) => write!(f, "PostgreSQL {major}"),
            None => write!(f, "page magic {magic:04X}"),
        }
    }
}

/// A segment and its first page.
struct Witness {
    file: String,
    kind: Kind,
    header: PageHeader,
    imprint: Imprint,
    length: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Complete,
    Open,
}

impl Survey {
    /// Reads the first page's header of every segment.
    pub(super) async fn of<D: Disk>(disk: &D, layout: &Layout) -> Result<Self, RebuildFault> {
        let names = disk.list(layout.wal()).await;
        let names = names.map_err(failed("list directory", layout.wal()))?;
        let mut witnesses = Vec::new();
        for file in names {
            let kind = match file.strip_suffix(".partial") {
                Some(stem) if stem.len() == 24 && looks_like_wal(stem) => Kind::Open,
                None if file.len() == 24 && looks_like_wal(&file) => Kind::Complete,
                _ => continue,
            };
            witnesses.extend(witness(disk, &layout.wal().join(&file), file, kind).await?);
        }
        let imprint = agreed(&witnesses)?;
        let size = SegmentSize::new(u64::from(imprint.segment_size));
        let size = size.ok_or_else(|| {
            let size = imprint.segment_size;
            RebuildFault::Disagree(format!("{size} is no segment size"))
        })?;
        let mut timelines = BTreeMap::<_, Segments>::new();
        for witness in &witnesses {
            let name = witness.name(size)?;
            let one = u64::from(witness.kind == Kind::Complete);
            let known = timelines.entry(name.tli);
            let known = known.or_insert(Segments { oldest: name.no, complete: 0 });
            known.oldest = known.oldest.min(name.no);
            known.complete += one;
        }
        Ok(Self { imprint, size, timelines })
    }

    /// How many segments are complete.
    pub(super) fn complete(&self) -> u64 {
        self.timelines.values().map(|segments| segments.complete).sum()
    }

    /// Where the oldest segment of a timeline begins.
    pub(super) fn oldest(&self, tli: TimelineId) -> Option<Lsn> {
        self.timelines.get(&tli).map(|segments| segments.oldest.start(self.size))
    }
}

/// Reads a segment's first page. An open one may hold no WAL yet.
async fn witness<D: Disk>(
    disk: &D,
    path: &Path,
    file: String,
    kind: Kind,
) -> Result<Option<Witness>, RebuildFault> {
    let read = async {
        let opened = disk.open_read(path).await.map_err(failed("open file", path))?;
        let head = read_full(disk, &opened, LONG_HEADER, 0).await;
        let length = disk.len(&opened).await.map_err(failed("read the size of", path))?;
        Ok::<_, StoreFault>((head.map_err(failed("read file", path))?, length))
    };
    let (head, length) = read.await?;
    let header = PageHeader::parse(&head).ok();
    match header.and_then(|header| Some((header, header.long?))) {
        Some((header, long)) => {
            let (system, segment_size, magic) = (long.sysid, long.seg_size, header.magic);
            let imprint = Imprint { system, segment_size, magic };
            Ok(Some(Witness { file, kind, header, imprint, length }))
        }
        None if kind == Kind::Open => Ok(None),
        None => Err(RebuildFault::Disagree(format!("\"{file}\" does not begin like a segment"))),
    }
}

impl Witness {
    /// The segment that the file is, by its name and by its page alike.
    fn name(&self, size: SegmentSize) -> Result<SegmentName, RebuildFault> {
        let Self { file, header, length, .. } = self;
        let stem = file.get(..24).unwrap_or_default();
        let name = SegmentName::parse(stem, size)
            .filter(|name| name.no.start(size) == header.addr && name.tli.raw() >= header.tli);
        let name = name.ok_or_else(|| {
            let (addr, tli) = (header.addr, header.tli);
            format!("\"{file}\" begins with the page of {addr} on timeline {tli}")
        });
        match name {
            Ok(_) if *length != size.bytes() => {
                Err(RebuildFault::Disagree(format!("\"{file}\" has {length} bytes")))
            }
            name => name.map_err(RebuildFault::Disagree),
        }
    }
}

/// What all of them say.
fn agreed(witnesses: &[Witness]) -> Result<Imprint, RebuildFault> {
    let mut groups = BTreeMap::<Imprint, Vec<&str>>::new();
    for witness in witnesses {
        groups.entry(witness.imprint).or_default().push(&witness.file);
    }
    let mut all = groups.iter();
    match (all.next(), all.next()) {
        (None, _) => Err(RebuildFault::NoWal),
        (Some((imprint, _)), None) => Ok(*imprint),
        _ => {
            let said = groups.iter().map(|(imprint, files)| {
                let (first, count) = (files.iter().min().copied().unwrap_or_default(), files.len());
                format!("{count} of {imprint} (the first is \"{first}\")")
            });
            Err(RebuildFault::Disagree(said.collect::<Vec<_>>().join(", ")))
        }
    }
}
