//! How far a restored segment is proved. A record that crosses into the next segment is proved by
//! the file of that one, and the rest of a record at the segment's start by the file before.

use super::check::{ReadAt, read_some, walk_on};
use crate::wal::page::{LONG_HEADER, PAGE_SIZE, PageHeader, PageRules};
use crate::wal::walk::{WalkFault, Walker};
use crate::wal::{Lsn, SegmentName, TimelineId};
use std::fmt;
use std::io;

/// Pages read at a time from a file of which only the beginning may be needed.
const PIECE: usize = 8 * PAGE_SIZE;

/// A segment's file.
#[derive(Debug)]
pub struct SegmentFile<F> {
    /// Its name.
    pub name: SegmentName,
    /// Its bytes.
    pub file: F,
    /// Where its WAL ends at the latest: the segment's end, unless it is still being written.
    pub upto: Lsn,
}

/// The segments before and after one, wherever their files are.
pub trait Neighbours {
    /// A file.
    type File: ReadAt;

    /// What the pages of a timeline have to look like.
    ///
    /// # Errors
    /// Nothing is known of the timeline.
    fn rules(&self, tli: TimelineId) -> io::Result<PageRules>;

    /// The segment before this one. Returns `None` when there is none.
    fn before(&self, name: SegmentName) -> Option<SegmentName>;

    /// The segment after this one.
    fn after(&self, name: SegmentName) -> SegmentName;

    /// Opens a segment's file, and fetches it first if necessary. Returns `None` when it is nowhere.
    ///
    /// # Errors
    /// It is not known whether there is one, or it cannot be read.
    fn open(&self, name: SegmentName) -> io::Result<Option<SegmentFile<Self::File>>>;
}

/// Whether the bytes that continue a record of the segment before are proved already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// With the segment before.
    Proved,
    /// Not yet.
    Unknown,
}

/// What a check has shown.
#[derive(Debug, PartialEq, Eq)]
pub struct SegmentProof {
    /// Where the proved WAL ends, and why there; `None` when all of the segment is proved.
    pub unproved: Option<Unproved>,
    /// Segments after this one whose [`Head`] is proved now.
    pub continued: Vec<SegmentName>,
}

/// WAL of a segment that is not proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproved {
    /// Where it begins.
    pub from: Lsn,
    /// Why it is not proved.
    pub why: Reason,
}

/// Why WAL is not proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is damaged, or not the WAL that belongs there.
    Damaged {
        /// The segment, or the first of those in which the record has a part: any may be damaged.
        first: SegmentName,
        /// The last of those.
        last: SegmentName,
        /// Where, and what.
        fault: WalkFault,
    },
    /// The rest of the record is in a segment that is nowhere.
    Missing(SegmentName),
    /// The rest of the record is in the segment that is being written, and not all here yet.
    NotWritten(SegmentName),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { first, last, fault } if first == last => {
                write!(f, "archive file \"{first}\" is not the WAL that belongs there: {fault}")
            }
            Self::Damaged { first, last, fault } => write!(
                f,
                "one of the archive files \"{first}\" to \"{last}\" is not the WAL that belongs \
                 there: {fault}"
            ),
            Self::Missing(name) => {
                write!(f, "the rest of the record is in \"{name}\", which does not exist")
            }
            Self::NotWritten(name) => {
                write!(f, "the rest of the record in \"{name}\" has not been received yet")
            }
        }
    }
}

/// Checks every page and record of a segment, those that it shares with others, too.
///
/// Bytes at its start that continue a record from a segment that is nowhere are not checked, as at
/// the beginning of a directory: whoever could use them has the record's beginning.
///
/// # Errors
/// A file cannot be read, or it is not known whether there is one.
pub fn prove<N: Neighbours>(
    near: &N,
    segment: &SegmentFile<N::File>,
    head: Head,
) -> io::Result<SegmentProof> {
    let mut tli = segment.name.tli;
    loop {
        match attempt(near, segment, head, tli)? {
            Attempt::Done(proof) => return Ok(proof),
            Attempt::WalkAs(child) => tli = child,
        }
    }
}

enum Attempt {
    Done(SegmentProof),
    /// The record goes on in the file of a later timeline, whose history has to be known.
    WalkAs(TimelineId),
}

fn attempt<N: Neighbours>(
    near: &N,
    segment: &SegmentFile<N::File>,
    head: Head,
    tli: TimelineId,
) -> io::Result<Attempt> {
    let name = segment.name;
    let (start, end) = (name.no.start(name.size), name.no.end(name.size));
    let mut continued = Vec::new();
    let doubt = |walker: &Walker, why, continued| {
        let from = walker.record_end().max(start).min(end);
        Ok(Attempt::Done(SegmentProof { unproved: Some(Unproved { from, why }), continued }))
    };
    let damaged = |first, last, fault| Reason::Damaged { first, last, fault };
    let rules = near.rules(tli)?;
    let started = match head == Head::Unknown && continues_a_record(&segment.file)? {
        true => walk_up_to(near, name, &rules)?,
        false => WalkStart::Ready(Box::new(Walker::new(rules, start))),
    };
    let mut walker = match started {
        WalkStart::Ready(walker) => *walker,
        WalkStart::Fault { name: first, fault } => {
            let why = damaged(first, name, fault);
            let unproved = Some(Unproved { from: start, why });
            return Ok(Attempt::Done(SegmentProof { unproved, continued }));
        }
    };
    if let Some(fault) = walk_on(&mut walker, &segment.file, name, segment.upto)? {
        let first = near.before(name).filter(|_| fault.at < start).unwrap_or(name);
        return doubt(&walker, damaged(first, name, fault), Vec::new());
    }
    // All of it is the rest of a record that begins before anything that is here.
    if walker.proven_from().is_none_or(|from| from >= end) {
        return Ok(Attempt::Done(SegmentProof { unproved: None, continued }));
    }
    let mut last = name;
    while walker.record_end() < end {
        last = near.after(last);
        if last.tli > tli {
            return Ok(Attempt::WalkAs(last.tli));
        }
        let Some(next) = near.open(last)? else {
            return doubt(&walker, Reason::Missing(last), Vec::new());
        };
        if let Some(fault) = walk_until(&mut walker, &next, end)? {
            return doubt(&walker, damaged(name, last, fault), Vec::new());
        }
        if walker.record_end() < end && walker.position() < last.no.end(last.size) {
            return doubt(&walker, Reason::NotWritten(last), Vec::new());
        }
        continued.push(last);
    }
    Ok(Attempt::Done(SegmentProof { unproved: None, continued }))
}

/// A way to the start of a segment that begins with the rest of a record.
#[derive(Debug)]
pub enum WalkStart {
    /// A walk that stands there and knows the record, if the segments before it are here.
    Ready(Box<Walker>),
    /// A segment before it is damaged.
    Fault {
        /// Which one.
        name: SegmentName,
        /// Where, and what.
        fault: WalkFault,
    },
}

/// Walks to the start of a segment from the last one before it in which a record begins.
///
/// # Errors
/// A file cannot be read, or it is not known whether there is one.
pub fn walk_up_to<N: Neighbours>(
    near: &N,
    name: SegmentName,
    rules: &PageRules,
) -> io::Result<WalkStart> {
    let begin = |name: SegmentName| Walker::new(rules.clone(), name.no.start(name.size));
    let mut names: Vec<SegmentName> = Vec::new();
    let mut first = name;
    let mut walker = loop {
        let Some(name) = near.before(first) else { break begin(first) };
        let Some(file) = near.open(name)? else { break begin(first) };
        let mut walker = begin(name);
        if let Some(fault) = walk_on(&mut walker, &file.file, name, file.upto)? {
            return Ok(WalkStart::Fault { name, fault });
        }
        if walker.proven_from().is_some() {
            break walker;
        }
        first = name;
        names.push(name);
    };
    for name in names.into_iter().rev() {
        let file = near.open(name)?.ok_or(io::ErrorKind::NotFound)?;
        if let Some(fault) = walk_on(&mut walker, &file.file, name, file.upto)? {
            return Ok(WalkStart::Fault { name, fault });
        }
    }
    Ok(WalkStart::Ready(Box::new(walker)))
}

/// Whether the segment begins with the rest of a record.
fn continues_a_record(file: &impl ReadAt) -> io::Result<bool> {
    let mut head = [0; LONG_HEADER];
    let header = PageHeader::parse(read_some(file, &mut head, 0)?);
    Ok(header.is_ok_and(|header| header.info.first_is_contrecord() && header.rem_len > 0))
}

/// Feeds a file page by page until all before `goal` is proved. What comes after that may be
/// anything. A file that is too short counts as zeros from there on.
fn walk_until<F: ReadAt>(
    walker: &mut Walker,
    segment: &SegmentFile<F>,
    goal: Lsn,
) -> io::Result<Option<WalkFault>> {
    let name = segment.name;
    let end = name.no.end(name.size).min(segment.upto);
    let mut piece = vec![0; PIECE];
    while walker.record_end() < goal && walker.position() < end {
        let at = walker.position();
        let want = (end.bytes_since(at) as usize).min(PIECE);
        let buffer = piece.get_mut(..want).unwrap_or_default();
        let read = read_some(&segment.file, buffer, at.segment_offset(name.size))?.len();
        buffer.get_mut(read..).unwrap_or_default().fill(0);
        for page in buffer.chunks(PAGE_SIZE) {
            let fed = walker.feed(page);
            if walker.record_end() >= goal {
                return Ok(None);
            }
            if let Err(fault) = fed {
                return Ok(Some(fault));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::fork::Ancestor;
    use crate::wal::synth::Synth;
    use crate::wal::{Fork, SegmentNo, SegmentSize, SystemId};
    use std::collections::BTreeMap;

    const MIB: u64 = 1 << 20;
    const SYSTEM: SystemId = SystemId::new(7);
    const FIRST: u64 = 4;

    impl ReadAt for Vec<u8> {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let from = self.get(offset as usize..).unwrap_or_default();
            let len = from.len().min(buffer.len());
            buffer[..len].copy_from_slice(&from[..len]);
            Ok(len)
        }
    }

    fn size() -> SegmentSize {
        SegmentSize::new(MIB).unwrap()
    }

    fn tli(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    /// Segments by number, and the timelines in their names.
    struct World {
        files: BTreeMap<u64, Vec<u8>>,
        /// Segments from this one on are of timeline 2, which begins at the position.
        fork: Option<(u64, Lsn)>,
        /// The last file is still being written, up to here.
        written: Lsn,
    }

    impl World {
        fn of(synth: &mut Synth) -> Self {
            let (_, mut bytes) = synth.take_bytes();
            bytes.resize(bytes.len().next_multiple_of(MIB as usize), 0);
            let files = bytes.chunks(MIB as usize).map(<[u8]>::to_vec);
            Self { files: (FIRST..).zip(files).collect(), fork: None, written: Lsn::MAX }
        }

        /// A page of another timeline may be in the middle of a file, but a file has one name.
        fn name(&self, no: u64) -> SegmentName {
            let child = self.fork.is_some_and(|(first, _)| no >= first);
            SegmentName { tli: tli(1 + u32::from(child)), no: SegmentNo::new(no), size: size() }
        }

        fn flip(&mut self, at: Lsn) {
            let file = self.files.get_mut(&(at.raw() / MIB)).unwrap();
            file[(at.raw() % MIB) as usize] ^= 1;
        }

        fn prove(&self, no: u64, head: Head) -> SegmentProof {
            let segment = self.open(self.name(no)).unwrap().unwrap();
            prove(self, &segment, head).unwrap()
        }

        /// Where the unproved WAL of a segment begins, and why.
        fn doubt(&self, no: u64) -> Option<(Lsn, String)> {
            let unproved = self.prove(no, Head::Unknown).unproved?;
            Some((unproved.from, unproved.why.to_string()))
        }
    }

    impl Neighbours for World {
        type File = Vec<u8>;

        fn rules(&self, tli: TimelineId) -> io::Result<PageRules> {
            let parent = |(_, end)| Fork::new(&[Ancestor { tli: TimelineId::FIRST, end }]);
            let fork = self.fork.filter(|_| tli.raw() == 2).and_then(parent);
            Ok(PageRules { system: SYSTEM, size: size(), tli, magic: None, fork })
        }

        fn before(&self, name: SegmentName) -> Option<SegmentName> {
            Some(self.name(name.no.raw() - 1))
        }

        fn after(&self, name: SegmentName) -> SegmentName {
            self.name(name.no.raw() + 1)
        }

        fn open(&self, name: SegmentName) -> io::Result<Option<SegmentFile<Vec<u8>>>> {
            let file = self.files.get(&name.no.raw()).cloned();
            let upto = self.written.min(name.no.end(name.size));
            Ok(file.map(|file| SegmentFile { name, file, upto }))
        }
    }

    fn synth() -> Synth {
        Synth::new(SYSTEM, size(), TimelineId::FIRST, 0xD110, Lsn::new(FIRST * MIB))
    }

    /// Rows that fill four segments, and the start of the record that crosses each boundary.
    fn rows() -> (World, Vec<Lsn>) {
        let mut synth = synth();
        let mut crossing = Vec::new();
        while synth.position() < Lsn::new((FIRST + 4) * MIB) {
            let start = synth.record(&[7; 20_000]);
            if start.segment(size()) != synth.position().segment(size()) {
                crossing.push(start);
            }
        }
        (World::of(&mut synth), crossing)
    }

    fn file_name(no: u64) -> String {
        format!("\"0000000100000000000000{no:02X}\"")
    }

    #[test]
    fn whole_segments_are_proved_with_their_neighbours() {
        let (world, crossing) = rows();
        assert_eq!(crossing.len(), 4);
        for no in FIRST..FIRST + 4 {
            let proof = world.prove(no, Head::Unknown);
            let continued = vec![world.name(no + 1)];
            assert_eq!(proof, SegmentProof { unproved: None, continued }, "{no}");
        }
    }

    #[test]
    fn a_bit_in_a_crossing_record_is_found_on_either_side() {
        for side in [-3000, -30, 40, 1500] {
            let (mut world, crossing) = rows();
            let boundary = Lsn::new((FIRST + 2) * MIB);
            let at = Lsn::new(boundary.raw().checked_add_signed(side).unwrap());
            assert!(crossing[1].raw() + 24 < at.raw(), "in the record");
            world.flip(at);
            let (from, why) = world.doubt(FIRST + 1).unwrap();
            assert_eq!(from, crossing[1], "{side}");
            for no in [FIRST + 1, FIRST + 2] {
                assert!(why.contains(&file_name(no)) && why.contains("checksum"), "{why}");
            }
            assert_eq!(world.doubt(FIRST), None);
            // Whoever begins with the next segment gets nothing of it either.
            assert_eq!(world.doubt(FIRST + 2).unwrap().0, boundary);
            assert_eq!(world.doubt(FIRST + 3), None);
            // Its first bytes were proved with the segment before.
            assert_eq!(world.prove(FIRST + 2, Head::Proved).unproved, None);
        }
    }

    #[test]
    fn a_bit_in_the_middle_is_named_and_what_is_before_it_is_proved() {
        let (mut world, _) = rows();
        let at = Lsn::new((FIRST + 1) * MIB + 700_000);
        world.flip(at);
        let (from, why) = world.doubt(FIRST + 1).unwrap();
        assert!(from < at && at.bytes_since(from) < 25_000);
        assert!(why.contains(&file_name(FIRST + 1)) && !why.contains(&file_name(FIRST)), "{why}");
        for bytes in [vec![0; MIB as usize], vec![7; 100], Vec::new()] {
            world.files.insert(FIRST + 1, bytes);
            let (from, why) = world.doubt(FIRST + 1).unwrap();
            assert_eq!(from, Lsn::new((FIRST + 1) * MIB));
            assert!(why.contains(&file_name(FIRST + 1)), "{why}");
        }
    }

    /// 4 MiB in segments of 1 MiB.
    #[test]
    fn a_long_record_is_proved_as_a_whole() {
        let mut synth = synth();
        synth.record(&[1; 300_000]);
        let long = synth.record(&[2; 4 << 20]);
        synth.record(&[3; 2_000_000]);
        let mut world = World::of(&mut synth);
        for no in FIRST..FIRST + 5 {
            assert_eq!(world.doubt(no), None, "{no}");
        }
        let continued = world.prove(FIRST, Head::Unknown).continued;
        assert_eq!(continued, [1, 2, 3, 4].map(|n| world.name(FIRST + n)));
        world.flip(Lsn::new((FIRST + 2) * MIB + 500_000));
        assert_eq!(world.doubt(FIRST).unwrap().0, long);
        for no in FIRST + 1..FIRST + 5 {
            assert_eq!(world.doubt(no).unwrap().0, Lsn::new(no * MIB), "{no}");
        }
    }

    #[test]
    fn without_its_rest_a_record_is_not_proved() {
        let (mut world, crossing) = rows();
        world.files.remove(&(FIRST + 2));
        let unproved = world.prove(FIRST + 1, Head::Unknown).unproved.unwrap();
        let missing = Reason::Missing(world.name(FIRST + 2));
        assert_eq!(unproved, Unproved { from: crossing[1], why: missing });
        // Nothing before it is here: as at the beginning of a directory.
        assert_eq!(world.doubt(FIRST + 3), None);
    }

    #[test]
    fn the_segment_that_is_being_written_counts_as_far_as_it_is_written() {
        let (mut world, crossing) = rows();
        let boundary = Lsn::new((FIRST + 2) * MIB);
        world.written = boundary.saturating_add(40);
        let unproved = world.prove(FIRST + 1, Head::Unknown).unproved.unwrap();
        let why = Reason::NotWritten(world.name(FIRST + 2));
        assert_eq!(unproved, Unproved { from: crossing[1], why });
        world.written = boundary.saturating_add(32_768);
        assert_eq!(world.doubt(FIRST + 1), None);
    }

    #[test]
    fn a_segment_that_ends_with_a_switch_needs_no_neighbour() {
        let mut synth = synth();
        synth.record(&[1; 3000]);
        synth.switch_segment();
        let world = World::of(&mut synth);
        let proof = world.prove(FIRST, Head::Unknown);
        assert_eq!(proof, SegmentProof { unproved: None, continued: Vec::new() });
    }

    /// The parent's last segments are followed by the child's, which gives up a record that
    /// crosses into it or was promoted inside it.
    #[test]
    fn a_record_goes_on_or_ends_in_the_childs_file() {
        for lost in [false, true] {
            let mut synth = synth();
            synth.record(&[1; 1_500_000]);
            if lost {
                synth.record(&[2; 400_000]);
                // The crash: two pages before the boundary, or on it.
                let at = synth.position();
                let pages = Lsn::new((FIRST + 2) * MIB).bytes_since(at.page_start()) / 8192;
                synth.lose_record(&[3; 600_000], pages);
            } else {
                synth.record(&[2; 600_000]);
            }
            let at = synth.promote(tli(2));
            synth.record(&[4; 3_000_000]);
            let mut world = World::of(&mut synth);
            world.fork = Some((FIRST + 2, at));
            for no in FIRST..FIRST + 4 {
                assert_eq!(world.doubt(no), None, "{no} {lost}");
            }
        }
    }
}
