//! Where everything lies in a hub's directory, and what each file name means.
//!
//! ```text
//! DIR/                     0700
//!   walhub.pid             the lock, holds the process ID
//!   walhub.control         who we are, whose WAL this is
//!   walhub.begun           how far the first bytes were durable before they were served
//!   walhub.fence           the hub is fenced (`walhub ctl fence`)
//!   walhub.auto            the upstream that `walhub ctl upstream` set
//!   walhub.evidence        where an upstream or the archive had other bytes than this hub
//!   walhub.abandoned       what was past a switchpoint, until `walhub ctl confirm`
//!   walhub.seams           where another history goes on, until `walhub ctl confirm`
//!   walhub.confirmed       what was set aside and nobody needs any more
//!   walhub.scrub           when all segments were read last, and which are damaged
//!   walhub.ctl             the socket for `walhub ctl`
//!   walhub.state           last known state of the upstream, for `inspect`
//!   slots.0, slots.1       the replication slots: two generations, each with all of them
//!   halted                 a sync failed; the next start distrusts the tail
//!   pg_wal/
//!     000000010000000A0000002F            complete and durable
//!     000000010000000A00000030.partial    the open segment, and the one ahead
//!     00000002.history                    complete and durable
//!     spare.7                             prepared or recycled, no WAL
//!     archive_status/                     with an archive_command: what is archived
//!       000000010000000A0000002E.done
//!       000000010000000A0000002F.ready
//!     digests/                            what the bytes of complete segments were
//!       000000010000000A0000002F.digest
//!       removed/                          those of segments that retention has removed
//!   diverged/
//!     1-0_3000060/         what we had of timeline 1 from its end, 0/3000060, on
//!   kept/                  segments in which a timeline was left that the hub may go back to
//!   damaged/               segments as they were before they were repaired, and bytes of segments
//!                          as they were before the hub mended a record
//! ```

use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::fmt;
use std::path::{Path, PathBuf};

/// The suffix of a segment that is not complete.
pub const PARTIAL: &str = ".partial";

/// The suffix of a file that is written under a temporary name first.
pub const TEMPORARY: &str = ".tmp";

/// The suffix of an open segment that was set aside.
const STRAY: &str = ".stray";

/// Files that `restore_command` writes have this before [`TEMPORARY`].
const RESTORE: &str = ".restore";

/// The directory inside `pg_wal` that records what is archived.
pub const ARCHIVE_STATUS: &str = "archive_status";

/// The directory inside `pg_wal` that holds the digests of complete segments.
const DIGESTS: &str = "digests";

/// The directory inside that one for segments that were removed.
const REMOVED: &str = "removed";

/// A hub's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    wal: PathBuf,
}

impl Layout {
    /// The names inside `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), wal: root.join("pg_wal") }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of segments.
    pub fn wal(&self) -> &Path {
        &self.wal
    }

    /// A complete segment.
    pub fn segment(&self, name: SegmentName) -> PathBuf {
        self.wal.join(name.to_string())
    }

    /// An open segment.
    pub fn partial(&self, name: SegmentName) -> PathBuf {
        self.wal.join(format!("{name}{PARTIAL}"))
    }

    /// A spare.
    pub fn spare(&self, number: u64) -> PathBuf {
        self.wal.join(format!("spare.{number}"))
    }

    /// A timeline's history file.
    pub fn history(&self, tli: TimelineId) -> PathBuf {
        self.wal.join(format!("{:08X}.history", tli.raw()))
    }

    /// A file that is archived.
    pub fn archived(&self, file: ArchiveFile) -> PathBuf {
        match file {
            ArchiveFile::History(tli) => self.history(tli),
            ArchiveFile::Segment(name) => self.segment(name),
        }
    }

    /// The directory of the marks that say what is archived.
    pub fn archive_status(&self) -> PathBuf {
        self.wal.join(ARCHIVE_STATUS)
    }

    /// The mark of a file.
    pub fn mark(&self, file: ArchiveFile, mark: Mark) -> PathBuf {
        self.archive_status().join(format!("{file}{mark}"))
    }

    /// The directory of the digests of complete segments.
    pub fn digests(&self) -> PathBuf {
        self.wal.join(DIGESTS)
    }

    /// The digest of a complete segment.
    pub fn digest(&self, name: SegmentName) -> PathBuf {
        Self::digest_of(&self.segment(name))
    }

    /// The directory of the digests of segments that retention has removed.
    pub fn removed_digests(&self) -> PathBuf {
        self.digests().join(REMOVED)
    }

    /// The digest of a segment that retention has removed.
    pub fn removed_digest(&self, name: SegmentName) -> PathBuf {
        Self::with_digest(&self.removed_digests().join(name.to_string()))
    }

    /// The digest of the segment at `path`, a file in `pg_wal`.
    pub fn digest_of(path: &Path) -> PathBuf {
        let digests = path.with_file_name(DIGESTS);
        Self::with_digest(&path.file_name().map_or_else(PathBuf::new, |name| digests.join(name)))
    }

    /// `path` with the ending of a digest.
    pub fn with_digest(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".digest");
        name.into()
    }

    /// The control file.
    pub fn control(&self) -> PathBuf {
        self.root.join("walhub.control")
    }

    /// A damaged control file that was replaced; a number follows when there are several.
    pub fn damaged_control(&self) -> PathBuf {
        self.root.join("walhub.control.damaged")
    }

    /// The note about the first bytes.
    pub fn begun(&self) -> PathBuf {
        self.root.join("walhub.begun")
    }

    /// The marker of a failed sync.
    pub fn halted(&self) -> PathBuf {
        self.root.join("halted")
    }

    /// The last known state of the upstream.
    pub fn state(&self) -> PathBuf {
        self.root.join("walhub.state")
    }

    /// The note of a fence.
    pub fn fence(&self) -> PathBuf {
        self.root.join("walhub.fence")
    }

    /// The upstream that was set while the hub ran.
    pub fn auto(&self) -> PathBuf {
        self.root.join("walhub.auto")
    }

    /// The note of a difference that was found.
    pub fn evidence(&self) -> PathBuf {
        self.root.join("walhub.evidence")
    }

    /// What was abandoned at switches and is not confirmed.
    pub fn abandoned(&self) -> PathBuf {
        self.root.join("walhub.abandoned")
    }

    /// Where another history continues on a timeline.
    pub fn seams(&self) -> PathBuf {
        self.root.join("walhub.seams")
    }

    /// What is confirmed of what was set aside.
    pub fn confirmed(&self) -> PathBuf {
        self.root.join("walhub.confirmed")
    }

    /// What scrubs have found.
    pub fn scrub(&self) -> PathBuf {
        self.root.join("walhub.scrub")
    }

    /// The socket for `walhub ctl`.
    pub fn ctl(&self) -> PathBuf {
        self.root.join("walhub.ctl")
    }

    /// The two files of the replication slots.
    pub fn slots(&self) -> [PathBuf; 2] {
        ["slots.0", "slots.1"].map(|name| self.root.join(name))
    }

    /// Where earlier versions had a file for each replication slot.
    pub fn former_slots(&self) -> PathBuf {
        self.root.join("slots")
    }

    /// The lock file.
    pub fn pid(&self) -> PathBuf {
        self.root.join("walhub.pid")
    }

    /// Where `--on-gap restart-at-current` moves WAL aside for the `n`th time.
    pub fn aside(&self, n: u32) -> PathBuf {
        self.root.join(format!("pg_wal.aside.{n}"))
    }

    /// Is this the name of a folder of WAL moved aside?
    pub fn is_aside(name: &str) -> bool {
        name.strip_prefix("pg_wal.aside.").and_then(canonical).is_some()
    }

    /// Where WAL goes that nobody follows: one folder for each end of a timeline.
    pub fn all_diverged(&self) -> PathBuf {
        self.root.join("diverged")
    }

    /// The folder for the WAL we had of `tli` from its end on.
    pub fn diverged(&self, tli: TimelineId, end: Lsn) -> PathBuf {
        let end = end.to_string().replace('/', "_");
        self.all_diverged().join(format!("{tli}-{end}"))
    }

    /// Where the segments of forks are kept over which the hub may go back.
    pub fn kept(&self) -> PathBuf {
        self.root.join("kept")
    }

    /// A timeline's segment in which it was left.
    pub fn kept_segment(&self, name: SegmentName) -> PathBuf {
        self.kept().join(format!("{name}{PARTIAL}"))
    }

    /// Where damaged segments are kept that were repaired.
    pub fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
    }

    /// Where bytes of a segment's file are kept that were damaged from `offset` on and are mended.
    pub fn damaged_bytes(&self, name: SegmentName, offset: u64) -> PathBuf {
        self.damaged().join(format!("{name}.at-{offset:x}"))
    }

    /// Where `restore_command` puts a file: not a WAL name until the file has been checked.
    pub fn restoring(&self, file: &str) -> PathBuf {
        self.wal.join(format!("{file}{RESTORE}{TEMPORARY}"))
    }

    /// Where the file is put that is to replace a damaged segment.
    pub fn mending(&self, name: SegmentName) -> PathBuf {
        // No other fetch has this number.
        self.restoring(&format!("{name}.{}", u64::MAX))
    }

    /// The name for an open segment that is set aside: not a WAL name, and one that is not removed
    /// before an operator has confirmed it.
    pub fn stray(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(STRAY);
        name.into()
    }

    /// Is this the name of an open segment that was set aside?
    pub fn is_stray(name: &str) -> bool {
        name.split_once(STRAY).is_some_and(|(stem, _)| stem.ends_with(PARTIAL))
    }

    /// `path` with a number, for when a file has that name.
    pub fn numbered(path: &Path, number: u32) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        name.into()
    }

    /// The name under which `path` is written before it is renamed.
    pub fn temporary(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(TEMPORARY);
        name.into()
    }
}

/// What a name in `pg_wal` stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A complete segment.
    Segment(SegmentName),
    /// An open segment.
    Partial(SegmentName),
    /// A spare.
    Spare(u64),
    /// A history file.
    History(TimelineId),
    /// The directory that records what is archived.
    ArchiveStatus,
    /// The directory of digests.
    DigestFolder,
    /// Left over from a write that did not finish.
    Temporary,
    /// Not one of ours.
    Other,
}

impl FileKind {
    /// Classifies a name in `pg_wal` of a cluster with this segment size.
    pub fn of(name: &str, size: SegmentSize) -> Self {
        if let Some(segment) = SegmentName::parse(name, size) {
            return Self::Segment(segment);
        }
        match name {
            ARCHIVE_STATUS => return Self::ArchiveStatus,
            DIGESTS => return Self::DigestFolder,
            _ => {}
        }
        if let Some((stem, "history")) = name.split_once('.') {
            return match parse_history_stem(stem) {
                Some(tli) => Self::History(tli),
                None => Self::Other,
            };
        }
        if let Some(number) = name.strip_prefix("spare.").and_then(canonical) {
            return Self::Spare(number);
        }
        match name.strip_suffix(PARTIAL).and_then(|stem| SegmentName::parse(stem, size)) {
            Some(segment) => Self::Partial(segment),
            None if is_temporary(name, size) => Self::Temporary,
            None => Self::Other,
        }
    }
}

/// Is this the temporary name of one of our files? Other names with this suffix are not removed.
fn is_temporary(name: &str, size: SegmentSize) -> bool {
    let Some(stem) = name.strip_suffix(TEMPORARY) else { return false };
    let of_ours = |stem: &str| {
        matches!(
            FileKind::of(stem, size),
            FileKind::Segment(_) | FileKind::Partial(_) | FileKind::Spare(_) | FileKind::History(_)
        )
    };
    match stem.strip_suffix(RESTORE) {
        // The name of a fetch may contain a number.
        Some(file) => {
            of_ours(file)
                || file
                    .rsplit_once('.')
                    .is_some_and(|(file, fetch)| canonical(fetch).is_some() && of_ours(file))
        }
        None => of_ours(stem),
    }
}

/// Parses a number only in the form in which we write it.
fn canonical(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

fn parse_history_stem(stem: &str) -> Option<TimelineId> {
    let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    if stem.len() != 8 || !stem.bytes().all(upper) {
        return None;
    }
    TimelineId::new(u32::from_str_radix(stem, 16).ok()?)
}

/// Complete segments of one timeline without a hole, as ordinals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentRange {
    /// The timeline.
    pub tli: TimelineId,
    /// The oldest.
    pub oldest: SegmentNo,
    /// The newest.
    pub newest: SegmentNo,
}

impl SegmentRange {
    /// How many.
    pub fn count(&self) -> u64 {
        self.newest.raw() - self.oldest.raw() + 1
    }
}

/// The contents of a listing of `pg_wal`, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Complete segments: ranges without a hole, by timeline, then by position. Two
    /// ranges of one timeline have a gap between them.
    pub segments: Vec<SegmentRange>,
    /// Open segments, by timeline, then by position.
    pub partials: Vec<(TimelineId, SegmentNo)>,
    /// Numbers of spares.
    pub spares: Vec<u64>,
    /// Timelines with a history file.
    pub histories: Vec<TimelineId>,
    /// Left over from writes that did not finish.
    pub temporary: Vec<String>,
    /// Not ours.
    pub other: Vec<String>,
}

impl Listing {
    /// Sorts the names of one listing of `pg_wal`.
    pub fn of(names: Vec<String>, size: SegmentSize) -> Self {
        let mut listing = Self::default();
        let mut complete = Vec::with_capacity(names.len());
        for name in names {
            match FileKind::of(&name, size) {
                FileKind::Segment(segment) => complete.push((segment.tli, segment.no)),
                FileKind::Partial(segment) => listing.partials.push((segment.tli, segment.no)),
                FileKind::Spare(number) => listing.spares.push(number),
                FileKind::History(tli) => listing.histories.push(tli),
                FileKind::ArchiveStatus | FileKind::DigestFolder => {}
                FileKind::Temporary => listing.temporary.push(name),
                FileKind::Other => listing.other.push(name),
            }
        }
        complete.sort_unstable();
        for (tli, no) in complete {
            match listing.segments.last_mut() {
                Some(range) if range.tli == tli && range.newest.next() == no => range.newest = no,
                _ => listing.segments.push(SegmentRange { tli, oldest: no, newest: no }),
            }
        }
        listing.partials.sort_unstable();
        listing.spares.sort_unstable();
        listing.histories.sort_unstable();
        listing.temporary.sort_unstable();
        listing.other.sort_unstable();
        listing
    }

    /// Is this segment here and complete?
    pub fn has_complete(&self, tli: TimelineId, no: SegmentNo) -> bool {
        let within = |range: &SegmentRange| (range.oldest..=range.newest).contains(&no);
        self.segments.iter().any(|range| range.tli == tli && within(range))
    }

    /// The newest range of a timeline's complete segments.
    pub fn newest_of(&self, tli: TimelineId) -> Option<SegmentRange> {
        self.segments.iter().rev().find(|range| range.tli == tli).copied()
    }
}

/// A file that is archived. The order is that of archiving (`ready_file_comparator`): history
/// files first, then by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ArchiveFile {
    /// A timeline's history.
    History(TimelineId),
    /// A complete segment.
    Segment(SegmentName),
}

impl ArchiveFile {
    /// Parses a name in `pg_wal`; returns `None` when such files are not archived.
    pub fn parse(name: &str, size: SegmentSize) -> Option<Self> {
        match FileKind::of(name, size) {
            FileKind::Segment(segment) => Some(Self::Segment(segment)),
            FileKind::History(tli) => Some(Self::History(tli)),
            _ => None,
        }
    }
}

impl fmt::Display for ArchiveFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::History(tli) => write!(f, "{:08X}.history", tli.raw()),
            Self::Segment(name) => name.fmt(f),
        }
    }
}

/// What a file in `archive_status` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The file waits for the archive.
    Ready,
    /// The archive has it.
    Done,
}

impl Mark {
    /// Parses a name in `archive_status`.
    pub fn parse(name: &str, size: SegmentSize) -> Option<(ArchiveFile, Self)> {
        let marks = [Self::Ready, Self::Done].into_iter();
        let mut read = marks.filter_map(|mark| {
            let file = name.strip_suffix(mark.ending())?;
            Some((ArchiveFile::parse(file, size)?, mark))
        });
        read.next()
    }

    const fn ending(self) -> &'static str {
        match self {
            Self::Ready => ".ready",
            Self::Done => ".done",
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.ending())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> SegmentSize {
        SegmentSize::new(16 << 20).unwrap()
    }

    #[test]
    fn names_mean_what_they_say() {
        let name =
            |no| SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size: size() };
        let layout = Layout::new(Path::new("/hub"));
        let classify =
            |path: PathBuf| FileKind::of(path.file_name().unwrap().to_str().unwrap(), size());
        assert_eq!(classify(layout.segment(name(47))), FileKind::Segment(name(47)));
        assert_eq!(classify(layout.partial(name(47))), FileKind::Partial(name(47)));
        assert_eq!(classify(layout.spare(12)), FileKind::Spare(12));
        assert_eq!(classify(layout.archive_status()), FileKind::ArchiveStatus);
        assert_eq!(classify(layout.digests()), FileKind::DigestFolder);
        let digest = layout.digest(name(47));
        assert_eq!(digest, layout.digests().join("00000001000000000000002F.digest"));
        let second = TimelineId::new(2).unwrap();
        assert_eq!(classify(layout.history(second)), FileKind::History(second));
        let writing = Layout::temporary(&layout.history(second));
        assert_eq!(classify(writing), FileKind::Temporary);
        assert_eq!(classify(Layout::temporary(&layout.spare(3))), FileKind::Temporary);
        assert_eq!(classify(layout.restoring(&name(47).to_string())), FileKind::Temporary);
        assert_eq!(classify(layout.restoring("00000002.history")), FileKind::Temporary);
        assert_eq!(classify(layout.mending(name(47))), FileKind::Temporary);
        let numbered = layout.restoring(&format!("{}.12", name(47)));
        assert_eq!(classify(numbered), FileKind::Temporary);
        assert_eq!(classify(Layout::temporary(&layout.partial(name(47)))), FileKind::Temporary);
        assert_eq!(classify(Layout::stray(&layout.partial(name(47)))), FileKind::Other);
        for other in [
            "",
            "spare.",
            "spare.07",
            "spare.+7",
            "00000000.history",
            "2.history",
            "00000001000000000000002f",
            "00000001000000000000002F.partial.gz",
            "00000001000000000000002F.00000028.backup",
            "notes.tmp",
            "xlogtemp.17",
            "backup.restore.tmp",
            "00000001000000000000002F.07.restore.tmp",
            "00000001000000000000002F.tmp.tmp",
        ] {
            assert_eq!(FileKind::of(other, size()), FileKind::Other, "{other}");
        }
    }

    #[test]
    fn a_listing_shows_ranges_and_holes() {
        let name = |tli, no| SegmentName {
            tli: TimelineId::new(tli).unwrap(),
            no: SegmentNo::new(no),
            size: size(),
        };
        let mut names: Vec<String> =
            [9, 7, 8, 3, 4].iter().map(|no| name(1, *no).to_string()).collect();
        names.push(name(2, 10).to_string());
        names.push(format!("{}{PARTIAL}", name(2, 11)));
        names.push("lost+found".to_owned());
        let listing = Listing::of(names, size());
        let range = |tli, oldest, newest| SegmentRange {
            tli: TimelineId::new(tli).unwrap(),
            oldest: SegmentNo::new(oldest),
            newest: SegmentNo::new(newest),
        };
        assert_eq!(listing.segments, [range(1, 3, 4), range(1, 7, 9), range(2, 10, 10)]);
        assert_eq!(listing.newest_of(TimelineId::FIRST), Some(range(1, 7, 9)));
        assert_eq!(listing.segments[1].count(), 3);
        assert_eq!(listing.partials, [(TimelineId::new(2).unwrap(), SegmentNo::new(11))]);
        assert_eq!(listing.other, ["lost+found"]);
    }

    #[test]
    fn names_of_archived_files_and_their_order() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let names = [
            "00000002.history",
            "00000003.history",
            "00000001000000000000000A",
            "000000010000000100000000",
            "000000020000000000000001",
        ];
        let files: Vec<_> =
            names.iter().map(|name| ArchiveFile::parse(name, size).unwrap()).collect();
        assert!(files.is_sorted());
        for (file, name) in files.iter().zip(names) {
            assert_eq!(file.to_string(), name);
            for mark in [Mark::Ready, Mark::Done] {
                assert_eq!(Mark::parse(&format!("{name}{mark}"), size), Some((*file, mark)));
            }
        }
        for other in ["spare.1.ready", "00000001000000000000000A", "x.done", "1.history.ready"] {
            assert_eq!(Mark::parse(other, size), None, "{other}");
        }
        assert_eq!(ArchiveFile::parse("00000001000000000000000A.partial", size), None);
    }
}
