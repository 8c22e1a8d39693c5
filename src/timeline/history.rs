//! Timeline history files: `0000000N.history`, one line for each ancestor.
//!
//! The bytes are kept and passed on unchanged. Tools compare them, and PostgreSQL's own files hold
//! blank lines and reasons that no writer would reproduce.

use crate::wal::{Ancestor, Fork, Lsn, SegmentNo, SegmentSize, TimelineId};
use bytes::Bytes;

/// A timeline and the ancestors from which it descends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    tli: TimelineId,
    entries: Vec<Entry>,
    bytes: Bytes,
}

/// A line of a history file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The ancestor.
    pub tli: TimelineId,
    /// Its switchpoint: the first position that belongs to its child.
    pub end: Lsn,
    /// Why it ended, in the words of the server that left it.
    pub reason: String,
}

/// Where earlier timelines ended, oldest first: the lines of a history file.
pub type Forks = [(TimelineId, Lsn)];

/// Which later timelines' files of segment `no` begin with the bytes of timeline `tli` before its end,
/// nearest first: as long as each timeline ended inside this segment, its child's file begins with a
/// copy. `forks` lead to the timeline `last`.
pub fn heirs(
    forks: &Forks,
    last: TimelineId,
    tli: TimelineId,
    (no, size): (SegmentNo, SegmentSize),
) -> Vec<TimelineId> {
    let from = forks.iter().position(|(ancestor, _)| *ancestor == tli).unwrap_or(forks.len());
    let later = forks.get(from..).unwrap_or_default();
    let children = later.iter().skip(1).map(|(child, _)| *child).chain([last]);
    let inside = |end: Lsn| end.segment(size) == no && end.segment_offset(size) > 0;
    later.iter().take_while(|(_, end)| inside(*end)).zip(children).map(|(_, child)| child).collect()
}

impl History {
    /// Timeline 1: it has neither ancestors nor a file.
    pub const fn first() -> Self {
        Self { tli: TimelineId::FIRST, entries: Vec::new(), bytes: Bytes::new() }
    }

    /// Reads the history file of `tli` as `readTimeLineHistory` does.
    pub fn parse(tli: TimelineId, bytes: Bytes) -> Result<Self, HistoryFault> {
        let mut entries: Vec<Entry> = Vec::new();
        for line in bytes.split(|byte| *byte == b'\n') {
            let Some(entry) = parse_line(line)? else { continue };
            if entries.last().is_some_and(|last| entry.tli <= last.tli) {
                return Err(HistoryFault::NotIncreasing { line: quote(line) });
            }
            entries.push(entry);
        }
        if entries.last().is_some_and(|last| tli <= last.tli) {
            return Err(HistoryFault::NotBelowChild { child: tli });
        }
        Ok(Self { tli, entries, bytes })
    }

    /// The timeline to which this history belongs.
    pub const fn tli(&self) -> TimelineId {
        self.tli
    }

    /// The ancestors, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Where the earlier timelines ended, oldest first.
    pub fn forks(&self) -> Vec<(TimelineId, Lsn)> {
        self.entries.iter().map(|entry| (entry.tli, entry.end)).collect()
    }

    /// The file as it came; empty for timeline 1.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The timeline that this one left.
    pub fn parent(&self) -> Option<TimelineId> {
        self.entries.last().map(|entry| entry.tli)
    }

    /// Where this timeline starts: its parent's switchpoint, 0/0 without a parent.
    pub fn start(&self) -> Lsn {
        self.entries.last().map_or(Lsn::INVALID, |entry| entry.end)
    }

    /// Whether `tli` is this timeline or an ancestor.
    pub fn contains(&self, tli: TimelineId) -> bool {
        tli == self.tli || self.entries.iter().any(|entry| entry.tli == tli)
    }

    /// Whether this timeline descends from `ancestor` along the line that `ancestor` itself gives.
    pub fn begins_with(&self, ancestor: &Self) -> bool {
        let ends = |entries: &[Entry]| {
            entries.iter().map(|entry| (entry.tli, entry.end)).collect::<Vec<_>>()
        };
        let place = self.entries.iter().position(|entry| entry.tli == ancestor.tli);
        let before = place.and_then(|place| self.entries.get(..place));
        before.is_some_and(|before| ends(before) == ends(&ancestor.entries))
    }

    /// Where the ancestor `tli` was left (`tliSwitchPoint`); `None` for this timeline itself and
    /// for timelines outside its history.
    pub fn switchpoint_of(&self, tli: TimelineId) -> Option<Lsn> {
        self.entries.iter().find(|entry| entry.tli == tli).map(|entry| entry.end)
    }

    /// The timeline that continues where the ancestor `tli` was left.
    pub fn next_after(&self, tli: TimelineId) -> Option<TimelineId> {
        let at = self.entries.iter().position(|entry| entry.tli == tli)?;
        Some(self.entries.get(at + 1).map_or(self.tli, |child| child.tli))
    }

    /// The timeline that holds the byte at `lsn` (`tliOfPointInHistory`).
    pub fn tli_at(&self, lsn: Lsn) -> TimelineId {
        if lsn >= self.start() {
            return self.tli;
        }
        // An ancestor's range is empty after a point-in-time recovery that stopped before an older
        // fork, so the newest that holds the position counts.
        let begins = self.entries.iter().map(|entry| entry.end);
        let begins = std::iter::once(Lsn::INVALID).chain(begins);
        let ranges = self.entries.iter().zip(begins);
        let holder = ranges.filter(|(entry, begin)| *begin <= lsn && lsn < entry.end).last();
        holder.map_or(self.tli, |(entry, _)| entry.tli)
    }

    /// The fork, for the check of pages; `None` for timeline 1.
    pub fn fork(&self) -> Option<Fork> {
        let ancestor = |entry: &Entry| Ancestor { tli: entry.tli, end: entry.end };
        Fork::new(&self.entries.iter().map(ancestor).collect::<Vec<_>>())
    }

    /// Name of the history file of `tli` (`TLHistoryFileName`).
    pub fn file_name(tli: TimelineId) -> String {
        format!("{:08X}.history", tli.raw())
    }

    /// The timeline whose history file has this name.
    pub fn parse_file_name(name: &str) -> Option<TimelineId> {
        let digits = name.strip_suffix(".history")?;
        let tli = TimelineId::new(u32::from_str_radix(digits, 16).ok()?)?;
        (Self::file_name(tli) == name).then_some(tli)
    }
}

/// A history file that PostgreSQL would refuse, in its words: the first line is its message, the
/// second its hint.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HistoryFault {
    /// A line does not begin with a timeline.
    #[error("syntax error in history file: {line}\nExpected a numeric timeline ID.")]
    NoTimeline {
        /// The line.
        line: String,
    },
    /// A timeline without a switchpoint.
    #[error(
        "syntax error in history file: {line}\nExpected a write-ahead log switchpoint location."
    )]
    NoSwitchpoint {
        /// The line.
        line: String,
    },
    /// The ancestors are out of order.
    #[error("invalid data in history file: {line}\nTimeline IDs must be in increasing sequence.")]
    NotIncreasing {
        /// The line.
        line: String,
    },
    /// The parent is not older than the child.
    #[error(
        "invalid data in history file \"{}\"\nTimeline IDs must be less than child timeline's ID.",
        History::file_name(*child)
    )]
    NotBelowChild {
        /// The timeline to which the file belongs.
        child: TimelineId,
    },
}

/// `None` for blank lines and comments. PostgreSQL scans `%u\t%X/%X` and takes what follows as the
/// reason; white space between the fields is free there.
fn parse_line(line: &[u8]) -> Result<Option<Entry>, HistoryFault> {
    let text = skip_space(line);
    if matches!(text.first(), None | Some(b'#')) {
        return Ok(None);
    }
    let (tli, rest) = number(text, 10)
        .and_then(|(tli, rest)| Some((TimelineId::new(tli)?, rest)))
        .ok_or_else(|| HistoryFault::NoTimeline { line: quote(line) })?;
    let (end, reason) =
        switchpoint(rest).ok_or_else(|| HistoryFault::NoSwitchpoint { line: quote(line) })?;
    let reason = String::from_utf8_lossy(skip_space(reason)).into_owned();
    Ok(Some(Entry { tli, end, reason }))
}

fn switchpoint(text: &[u8]) -> Option<(Lsn, &[u8])> {
    let (high, rest) = number(skip_space(text), 16)?;
    let (low, rest) = number(skip_space(rest.strip_prefix(b"/")?), 16)?;
    Some((Lsn::new(u64::from(high) << 32 | u64::from(low)), rest))
}

/// The number at the front of `text`, and what follows it.
fn number(text: &[u8], radix: u32) -> Option<(u32, &[u8])> {
    let digit = |byte: &u8| char::from(*byte).is_digit(radix);
    let len = text.iter().take_while(|byte| digit(byte)).count();
    let (digits, rest) = text.split_at_checked(len)?;
    let value = u32::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()?;
    Some((value, rest))
}

/// What C's `isspace` skips.
fn skip_space(text: &[u8]) -> &[u8] {
    let space = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'\x0B';
    let len = text.iter().take_while(|byte| space(byte)).count();
    text.get(len..).unwrap_or_default()
}

/// A line as it may stand in a message: bounded in length, and on one line.
fn quote(line: &[u8]) -> String {
    let head = line.get(..100).unwrap_or(line);
    String::from_utf8_lossy(head).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tli(raw: u32) -> TimelineId {
        TimelineId::new(raw).unwrap()
    }

    fn parse(own: u32, text: &str) -> Result<History, HistoryFault> {
        History::parse(tli(own), Bytes::copy_from_slice(text.as_bytes()))
    }

    const SECOND_GENERATION: &str =
        "1\t0/6E25B8\tno recovery target specified\n\n2\t0/6E63B0\tno recovery target specified\n";

    #[test]
    fn reads_a_file_of_postgres_and_keeps_its_bytes() {
        let history = parse(3, SECOND_GENERATION).unwrap();
        assert_eq!(history.bytes(), SECOND_GENERATION.as_bytes());
        let ends: Vec<_> = history.entries().iter().map(|e| (e.tli.raw(), e.end.raw())).collect();
        assert_eq!(ends, [(1, 0x6E_25B8), (2, 0x6E_63B0)]);
        assert_eq!(history.entries()[0].reason, "no recovery target specified");
        assert_eq!(history.start(), Lsn::new(0x6E_63B0));
        assert_eq!(history.parent(), Some(tli(2)));
        assert_eq!(history.switchpoint_of(tli(1)), Some(Lsn::new(0x6E_25B8)));
        assert_eq!(history.switchpoint_of(tli(3)), None);
        assert_eq!(history.next_after(tli(1)), Some(tli(2)));
        assert_eq!(history.next_after(tli(2)), Some(tli(3)));
        assert_eq!(history.next_after(tli(3)), None);
        assert!(history.contains(tli(1)) && history.contains(tli(3)) && !history.contains(tli(4)));
        for (lsn, holder) in
            [(0, 1), (0x6E_25B7, 1), (0x6E_25B8, 2), (0x6E_63AF, 2), (0x6E_63B0, 3)]
        {
            assert_eq!(history.tli_at(Lsn::new(lsn)), tli(holder), "{lsn:X}");
        }
        assert_eq!(history.fork().map(|fork| fork.start()), Some(history.start()));
    }

    #[test]
    fn children_begin_with_what_their_parents_had_of_the_segment() {
        let size = SegmentSize::new(1 << 20).unwrap();
        // Timelines 2 and 3 begin in segment 3, timeline 4 with segment 5.
        let forks =
            [(1, 0x30_8000), (2, 0x30_9000), (3, 0x50_0000)].map(|(t, at)| (tli(t), Lsn::new(at)));
        let of = |t: u32, no: u64| -> Vec<u32> {
            let segment = (SegmentNo::new(no), size);
            heirs(&forks, tli(4), tli(t), segment).into_iter().map(TimelineId::raw).collect()
        };
        assert_eq!([of(1, 3), of(2, 3), of(3, 3), of(4, 3)], [vec![2, 3], vec![3], vec![], vec![]]);
        for (t, no) in [(1, 2), (1, 4), (3, 5), (7, 3)] {
            assert!(of(t, no).is_empty(), "timeline {t}, segment {no}");
        }
    }

    #[test]
    fn ancestors_came_the_same_way() {
        let third = parse(3, SECOND_GENERATION).unwrap();
        let second = |text| parse(2, text).unwrap();
        assert!(third.begins_with(&second("1\t0/6E25B8\tanother reason\n")));
        assert!(!third.begins_with(&second("1\t0/6E25B0\tno recovery target specified\n")));
        assert!(third.begins_with(&History::first()));
        assert!(!third.begins_with(&parse(4, SECOND_GENERATION).unwrap()));
    }

    #[test]
    fn the_first_timeline_has_no_file() {
        let first = History::first();
        assert_eq!(first.start(), Lsn::INVALID);
        assert_eq!(first.tli_at(Lsn::new(77)), TimelineId::FIRST);
        assert_eq!(first.fork(), None);
        assert_eq!(first.parent(), None);
        assert!(first.contains(TimelineId::FIRST));
    }

    #[test]
    fn comments_blanks_and_free_white_space_are_read() {
        let text = "# note\n \t\n  7 1/A because of\tthis\r\n   # more\n9\tB/ 2";
        let history = parse(10, text).unwrap();
        assert_eq!(history.entries()[0].reason, "because of\tthis\r");
        assert_eq!(history.entries()[0].end, Lsn::new(0x1_0000_000A));
        assert_eq!(history.entries()[1].end, Lsn::new(0xB_0000_0002));
        assert_eq!(history.entries()[1].reason, "");
        assert_eq!(parse(2, "").unwrap().entries(), []);
    }

    #[test]
    fn faults_are_those_of_postgres() {
        let fault = |own, text| parse(own, text).unwrap_err();
        for text in ["x\t0/1", "-1\t0/1", "0\t0/1", "4294967296\t0/1"] {
            assert!(matches!(fault(9, text), HistoryFault::NoTimeline { .. }), "{text}");
        }
        for text in ["1", "10/5", "1\tx", "1\t5", "1\t5/", "1\t5 /6", "1\t123456789/1"] {
            assert!(matches!(fault(9, text), HistoryFault::NoSwitchpoint { .. }), "{text}");
        }
        for text in ["2\t0/1\n1\t0/2", "2\t0/1\n2\t0/2"] {
            assert!(matches!(fault(9, text), HistoryFault::NotIncreasing { .. }), "{text}");
        }
        assert_eq!(fault(2, "2\t0/1\n"), HistoryFault::NotBelowChild { child: tli(2) });
        assert_eq!(
            fault(2, "3\t0/1\n").to_string(),
            "invalid data in history file \"00000002.history\"\n\
             Timeline IDs must be less than child timeline's ID."
        );
    }

    #[test]
    fn recovery_that_stopped_before_an_older_fork_leaves_an_empty_range() {
        // Recovery along timeline 2 stopped at 0/50, before 2 forked at 0/100.
        let history = parse(3, "1\t0/100\ta\n\n2\t0/50\tb\n").unwrap();
        assert_eq!(history.tli_at(Lsn::new(0x4F)), tli(1));
        assert_eq!(history.tli_at(Lsn::new(0x50)), tli(3));
        assert_eq!(history.tli_at(Lsn::new(0x180)), tli(3));
    }

    #[test]
    fn file_names_round_trip() {
        assert_eq!(History::file_name(tli(0x4D)), "0000004D.history");
        assert_eq!(History::parse_file_name("0000004D.history"), Some(tli(0x4D)));
        let bad = ["0000004d.history", "4D.history", "00000000.history", "+000004D.history", "x"];
        for name in bad {
            assert_eq!(History::parse_file_name(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn written_entries_are_read(
            steps in proptest::collection::vec((1u32..5, any::<u64>(), "[ -~]{0,20}"), 0..8)
        ) {
            let mut id = 0;
            let mut text = String::new();
            for (step, end, reason) in &steps {
                id += step;
                text += &format!("{id}\t{}\t{reason}\n\n", Lsn::new(*end));
            }
            let history = parse(id + 1, &text).unwrap();
            prop_assert_eq!(history.entries().len(), steps.len());
            for (entry, (_, end, reason)) in history.entries().iter().zip(&steps) {
                prop_assert_eq!(entry.end.raw(), *end);
                prop_assert_eq!(&entry.reason, reason.trim_start());
            }
        }

        #[test]
        fn any_bytes_are_refused_or_consistent(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), lsn in any::<u64>()
        ) {
            if let Ok(history) = History::parse(tli(9), bytes.into()) {
                prop_assert!(history.contains(history.tli_at(Lsn::new(lsn))));
            }
        }
    }
}
