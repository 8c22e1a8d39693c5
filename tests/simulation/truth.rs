//! The cluster's WAL: every timeline that any server ever wrote, byte by byte.

use crate::random::Random;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use walhub::timeline::History;
use walhub::wal::synth::Synth;
use walhub::wal::{Lsn, SegmentSize, SystemId, TimelineId};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SYSTEM: SystemId = SystemId::new(0x7777_0002);
pub(crate) const MAGIC: u16 = 0xD110;

/// A history of a timeline from a snapshot on, to which its servers were rolled back.
struct Left {
    tli: TimelineId,
    at: Lsn,
    bytes: Vec<u8>,
}

impl Left {
    fn holds(&self, from: Lsn, found: &[u8]) -> bool {
        let offset = from.bytes_since(self.at) as usize;
        self.bytes.get(offset..offset + found.len()) == Some(found)
    }
}

/// One of the two histories of a timeline whose servers were rolled back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Branch {
    /// That which was rolled back.
    Left,
    /// That which is written on.
    Current,
}

/// One timeline, from its switchpoint on.
struct Line {
    parent: Option<(TimelineId, Lsn)>,
    start: Lsn,
    bytes: Vec<u8>,
    /// After each record: its end, and the writer as it was.
    ends: Vec<(Lsn, Synth)>,
    /// Where the commits begin, which say when they were written.
    commits: BTreeSet<Lsn>,
    history: Bytes,
}

impl Line {
    fn end(&self) -> Lsn {
        self.start.saturating_add(self.bytes.len() as u64)
    }

    /// The last record that ends at or before `lsn`, and the writer behind it.
    fn last(&self, lsn: Lsn) -> Option<&(Lsn, Synth)> {
        let index = self.ends.partition_point(|(end, _)| *end <= lsn);
        self.ends.get(index.checked_sub(1)?)
    }
}

/// All timelines.
pub(crate) struct Truth {
    pub(crate) size: SegmentSize,
    /// Where the log begins: a segment's start.
    pub(crate) start: Lsn,
    lines: BTreeMap<TimelineId, Line>,
    left: Option<Left>,
    /// The time, which no two commits have in common.
    now: i64,
}

/// One record in so many is a commit.
const COMMIT_EVERY: usize = 4;

impl Truth {
    pub(crate) fn new(random: &mut Random) -> Self {
        let size = SegmentSize::new(MIB).unwrap();
        let start = Lsn::new((5 + random.below(3)) * MIB);
        let synth = Synth::new(SYSTEM, size, TimelineId::FIRST, MAGIC, start);
        let ends = vec![(start, synth)];
        let line = Line {
            parent: None,
            start,
            bytes: Vec::new(),
            ends,
            commits: BTreeSet::new(),
            history: Bytes::new(),
        };
        let lines = BTreeMap::from([(TimelineId::FIRST, line)]);
        let mut truth = Self { size, start, lines, left: None, now: 0 };
        truth.write(TimelineId::FIRST, random.below(3 * MIB / 2), random);
        truth
    }

    fn line(&self, tli: TimelineId) -> &Line {
        &self.lines[&tli]
    }

    /// The servers of `tli` return to what they had at `at`, a record's end, and the same
    /// job runs again: records of the same lengths, a fifth of them with other content, and all
    /// commits at other times. Returns where the first of those begins; `None` when all are the same.
    pub(crate) fn roll_back(
        &mut self,
        tli: TimelineId,
        at: Lsn,
        random: &mut Random,
    ) -> Option<Lsn> {
        let line = self.lines.get_mut(&tli).unwrap();
        let offset = |lsn: Lsn| lsn.bytes_since(line.start) as usize;
        let before = line.bytes[offset(at)..].to_vec();
        let mut first = None;
        for pair in line.ends.windows(2) {
            let [(from, synth), (to, _)] = pair else { continue };
            let is_commit = line.commits.contains(from);
            if *from < at || !(is_commit || random.chance(200)) {
                continue;
            }
            let again = match is_commit {
                true => {
                    self.now += 1;
                    let mut again = synth.clone();
                    again.commit(1, self.now);
                    Some(again)
                }
                false => record_up_to(synth, *to, random),
            };
            let Some(mut again) = again else { continue };
            line.bytes[offset(*from)..offset(*to)].copy_from_slice(&again.take_bytes().1);
            first = first.or(Some(*from));
        }
        self.left = Some(Left { tli, at, bytes: before });
        first
    }

    /// Which of two histories of a timeline do these bytes belong to? `None` when both have
    /// them, or neither.
    pub(crate) fn branch_of(&self, tli: TimelineId, from: Lsn, found: &[u8]) -> Option<Branch> {
        let left = self.left.as_ref().filter(|left| left.tli == tli)?;
        let shared = (left.at.bytes_since(from) as usize).min(found.len());
        let (start, own) = (from.max(left.at), &found[shared..]);
        let is_old = left.holds(start, own);
        let is_new = self.first_written(tli, start, own).is_none();
        match (is_old, is_new) {
            (true, false) => Some(Branch::Left),
            (false, true) => Some(Branch::Current),
            _ => None,
        }
    }

    /// Does a timeline go on with what was written after the rollback?
    pub(crate) fn follows_the_rollback(&self, tli: TimelineId) -> bool {
        self.left.as_ref().is_some_and(|left| tli > left.tli)
    }

    /// Timelines so far.
    pub(crate) fn newest(&self) -> TimelineId {
        *self.lines.keys().next_back().unwrap()
    }

    /// The end of everything that was written on a timeline.
    pub(crate) fn end(&self, tli: TimelineId) -> Lsn {
        self.line(tli).end()
    }

    /// The history file of a timeline; empty for the first.
    pub(crate) fn history_file(&self, tli: TimelineId) -> Bytes {
        self.line(tli).history.clone()
    }

    pub(crate) fn history(&self, tli: TimelineId) -> History {
        if tli == TimelineId::FIRST {
            return History::first();
        }
        History::parse(tli, self.history_file(tli)).unwrap()
    }

    /// Is `older` this timeline or an ancestor of it, with all WAL before `at` in common?
    pub(crate) fn descends(&self, tli: TimelineId, older: TimelineId, at: Lsn) -> bool {
        tli == older || self.history(tli).switchpoint_of(older).is_some_and(|end| at <= end)
    }

    /// Writes about so many bytes more on a timeline.
    pub(crate) fn write(&mut self, tli: TimelineId, about: u64, random: &mut Random) {
        let line = self.lines.get_mut(&tli).unwrap();
        let mut synth = line.ends.last().unwrap().1.clone();
        let target = synth.position().saturating_add(about);
        while synth.position() < target {
            if line.ends.len().is_multiple_of(COMMIT_EVERY) {
                line.commits.insert(synth.position());
                self.now += 1;
                synth.commit(1, self.now);
            } else if random.chance(15) {
                synth.switch_segment();
            } else {
                synth.record(&payload(random));
            }
            let (_, bytes) = synth.take_bytes();
            line.bytes.extend_from_slice(&bytes);
            line.ends.push((synth.position(), synth.clone()));
        }
    }

    /// The log goes on in a new segment (`pg_switch_wal`).
    pub(crate) fn switch_segment(&mut self, tli: TimelineId) {
        let line = self.lines.get_mut(&tli).unwrap();
        let mut synth = line.ends.last().unwrap().1.clone();
        synth.switch_segment();
        let (_, bytes) = synth.take_bytes();
        line.bytes.extend_from_slice(&bytes);
        line.ends.push((synth.position(), synth));
    }

    /// A server on `parent` that has replayed everything before `at`, a record's end,
    /// is promoted.
    pub(crate) fn promote(&mut self, parent: TimelineId, at: Lsn) -> TimelineId {
        let tli = TimelineId::new(self.newest().raw() + 1).unwrap();
        let (end, synth) = self.writer_at(parent, at);
        assert_eq!(end, at, "timeline {parent} is left inside a record");
        let mut synth = synth.clone();
        synth.promote(tli);
        let (start, bytes) = synth.take_bytes();
        let mut history = self.history_file(parent).to_vec();
        let line = format!("{parent}\t{at}\tno recovery target specified\n");
        history.extend_from_slice(line.as_bytes());
        let line = Line {
            parent: Some((parent, at)),
            start,
            bytes,
            ends: vec![(synth.position(), synth)],
            commits: BTreeSet::new(),
            history: history.into(),
        };
        assert_eq!(line.start, at);
        self.lines.insert(tli, line);
        tli
    }

    fn writer_at(&self, tli: TimelineId, at: Lsn) -> (Lsn, &Synth) {
        let line = self.line(tli);
        match (line.last(at), line.parent) {
            (Some((end, synth)), _) => (*end, synth),
            (None, Some((parent, switchpoint))) => self.writer_at(parent, at.min(switchpoint)),
            (None, None) => panic!("{at} is before the beginning"),
        }
    }

    /// The end of the last record that ends at or before `lsn`; the beginning of the log
    /// when there is none.
    pub(crate) fn last_end(&self, tli: TimelineId, lsn: Lsn) -> Lsn {
        if lsn <= self.start { self.start } else { self.writer_at(tli, lsn).0 }
    }

    /// As [`Truth::last_end`], for somebody who may hold the history that was left: no
    /// record of either that ends later is known to be whole.
    pub(crate) fn surely_ended(&self, tli: TimelineId, lsn: Lsn) -> Lsn {
        self.last_end(tli, self.surely_kept(tli, lsn))
    }

    /// What of the WAL before `lsn` nobody has a reason to give up: that before a rollback.
    pub(crate) fn surely_kept(&self, tli: TimelineId, lsn: Lsn) -> Lsn {
        let left = self.left.as_ref().filter(|left| left.tli == tli);
        left.map_or(lsn, |left| left.at.min(lsn))
    }

    /// Calls back with `[from, to)` of a timeline in pieces; false when it has not got all
    /// of that.
    fn pieces(&self, tli: TimelineId, from: Lsn, to: Lsn, take: &mut dyn FnMut(&[u8])) -> bool {
        let line = self.line(tli);
        let own = line.start.max(from).min(to);
        if from < own {
            let Some((parent, _)) = line.parent else { return false };
            if !self.pieces(parent, from, own, take) {
                return false;
            }
        }
        let offset = |lsn: Lsn| lsn.bytes_since(line.start) as usize;
        match line.bytes.get(offset(own)..offset(to)) {
            Some(bytes) => {
                if own < to {
                    take(bytes);
                }
                true
            }
            None => own >= to,
        }
    }

    /// The bytes `[from, to)`, which are there.
    pub(crate) fn bytes(&self, tli: TimelineId, from: Lsn, to: Lsn) -> Vec<u8> {
        let mut all = Vec::with_capacity(to.bytes_since(from) as usize);
        let whole = self.pieces(tli, from, to, &mut |bytes| all.extend_from_slice(bytes));
        assert!(whole, "{from} .. {to} of timeline {tli} was never written");
        all
    }

    /// The first position at which `found`, from `from` on, is not what was written on
    /// the timeline.
    pub(crate) fn first_false(&self, tli: TimelineId, from: Lsn, found: &[u8]) -> Option<Lsn> {
        let wrong = self.first_written(tli, from, found)?;
        let Some(left) = self.left.as_ref().filter(|left| left.tli == tli) else {
            return Some(wrong);
        };
        // Those who have it from before a rollback have what was written then.
        let shared = (left.at.bytes_since(from) as usize).min(found.len());
        let (before, own) = found.split_at(shared);
        match self.first_written(tli, from, before) {
            None if left.holds(from.max(left.at), own) => None,
            _ => Some(wrong),
        }
    }

    /// As [`Truth::first_false`], of the history that is written on.
    fn first_written(&self, tli: TimelineId, from: Lsn, found: &[u8]) -> Option<Lsn> {
        let to = from.saturating_add(found.len() as u64);
        let (mut at, mut rest, mut wrong) = (from, found, None);
        let whole = self.pieces(tli, from, to, &mut |bytes| {
            let (head, tail) = rest.split_at(bytes.len());
            if wrong.is_none() && head != bytes {
                let n = head.iter().zip(bytes).position(|(found, due)| found != due);
                wrong = n.map(|n| at.saturating_add(n as u64));
            }
            rest = tail;
            at = at.saturating_add(bytes.len() as u64);
        });
        if whole { wrong } else { Some(wrong.unwrap_or(at)) }
    }

    /// Did the servers on `tli` themselves write into `[from, to)`? A segment before that is
    /// archived under an ancestor's name.
    pub(crate) fn wrote_any(&self, tli: TimelineId, from: Lsn, to: Lsn) -> bool {
        let line = self.line(tli);
        line.start < to && from < line.end()
    }

    /// The segment `[from, to)` as another history has it, which parts from this one at a
    /// record's end before `held`; laid out the same up to there, so that it continues what
    /// somebody holds by every link.
    pub(crate) fn foreign_segment(
        &self,
        tli: TimelineId,
        (from, to): (Lsn, Lsn),
        held: Lsn,
        random: &mut Random,
    ) -> Option<Vec<u8>> {
        let ends = &self.line(tli).ends;
        let first = ends.partition_point(|(end, _)| *end < from);
        let last = ends.partition_point(|(end, _)| *end < held.min(to));
        if first >= last {
            return None;
        }
        let index = first + random.below((last - first) as u64) as usize;
        let (leave, mut synth) = ends[index].clone();
        let mut file = self.bytes(tli, from, leave);
        for (end, _) in ends.iter().skip(index + 1).take_while(|(end, _)| *end <= held) {
            synth = record_up_to(&synth, *end, random)?;
            file.extend_from_slice(&synth.take_bytes().1);
        }
        while synth.position() < to {
            synth.record(&payload(random));
            file.extend_from_slice(&synth.take_bytes().1);
        }
        file.truncate(to.bytes_since(from) as usize);
        Some(file)
    }

    /// A place inside some record in `[from, to)`: a byte changed there makes its checksum
    /// wrong.
    pub(crate) fn inside_a_record(
        &self,
        tli: TimelineId,
        (from, to): (Lsn, Lsn),
        random: &mut Random,
    ) -> Option<Lsn> {
        let ends = &self.line(tli).ends;
        let first = ends.partition_point(|(end, _)| *end < from);
        let last = ends.partition_point(|(end, _)| *end < to);
        let begin = first + random.below((last - first) as u64) as usize;
        let past = (last + 1).min(ends.len());
        let pairs = ends.get(begin..past)?.windows(2).map(|pair| (pair[0].0, pair[1].0));
        // Behind the header, before the padding, and not in the header of a page. The last record
        // may go on past `to`.
        let places = pairs.map(|(start, end)| (start, end.min(to).saturating_sub(12)));
        let is_inside = |(start, at): &(Lsn, Lsn)| {
            at.bytes_since(*start) > 100 && at.page_offset() > 100 && *at < to
        };
        places.filter(is_inside).map(|(_, at)| at).next()
    }
}

/// Every record has other content: what an older use of a file left must not fit.
fn payload(random: &mut Random) -> Vec<u8> {
    let payload = match random.below(40) {
        0..20 => 20 + random.below(300),
        20..34 => 1000 + random.below(9000),
        34..39 => random.below(40_000),
        _ if random.chance(60) => MIB + random.below(MIB / 2),
        _ => 8192,
    };
    content(payload as usize, random)
}

fn content(len: usize, random: &mut Random) -> Vec<u8> {
    let mut content = Vec::with_capacity(len + 8);
    while content.len() < len {
        content.extend_from_slice(&random.next().to_le_bytes());
    }
    content.truncate(len);
    content
}

/// The writer behind a record of other content that ends exactly at `to`.
fn record_up_to(synth: &Synth, to: Lsn, random: &mut Random) -> Option<Synth> {
    let from = synth.position();
    let pages = to.page_start().bytes_since(from.page_start()) / 8192;
    let most = to.bytes_since(from).checked_sub(24 * pages + 26)?;
    (0..32u64).filter_map(|less| most.checked_sub(less)).find_map(|length| {
        let mut again = synth.clone();
        again.record(&content(length as usize, random));
        (again.position() == to).then_some(again)
    })
}
