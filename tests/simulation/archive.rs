//! A WAL archive as restore_command shows it: complete segments and history files, some of
//! them missing for a while, cut short, damaged, or of another history.

use crate::random::Random;
use crate::truth::{MIB, Truth};
use bytes::Bytes;
use walhub::wal::{Lsn, SegmentNo, TimelineId};

/// The archive.
pub(crate) struct Archive {
    random: Random,
    calm: bool,
    /// Is there one?
    pub(crate) there: bool,
}

/// What one attempt to fetch a segment brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Condition {
    /// Every byte as it was written.
    Good,
    /// Valid up to some place inside a record, which may go on in the next segment; then zeros or a
    /// byte that is wrong.
    Half,
    /// Not a segment's length.
    Short,
    /// Valid, but another history from a place on that the asker holds.
    Foreign,
}

impl Archive {
    pub(crate) fn new(mut random: Random) -> Self {
        let there = random.chance(700);
        Self { random, calm: false, there }
    }

    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
    }

    /// A history file; none when it is not there.
    pub(crate) fn history(&mut self, truth: &Truth, tli: TimelineId) -> Option<Bytes> {
        let known = self.there && tli > TimelineId::FIRST && tli <= truth.newest();
        (known && (self.calm || self.random.chance(900))).then(|| truth.history_file(tli))
    }

    /// A segment's file for somebody who holds the timeline's WAL up to `held`; none when it
    /// is not there.
    pub(crate) fn segment(
        &mut self,
        truth: &Truth,
        (tli, no): (TimelineId, SegmentNo),
        held: Lsn,
    ) -> Option<(Vec<u8>, Condition)> {
        let (from, to) = (no.start(truth.size), no.end(truth.size));
        if !self.there || from < truth.start || truth.end(tli) < to {
            return None;
        }
        if !truth.wrote_any(tli, from, to) {
            return None;
        }
        let mut file = truth.bytes(tli, from, to);
        if self.calm {
            return Some((file, Condition::Good));
        }
        let random = &mut self.random;
        let condition = match random.below(100) {
            0..15 => return None,
            15..25 => match truth.inside_a_record(tli, (from, to), random) {
                Some(at) => {
                    file[at.bytes_since(from) as usize..].fill(0);
                    Condition::Half
                }
                None => Condition::Good,
            },
            25..35 => match truth.inside_a_record(tli, (from, to), random) {
                Some(at) => {
                    file[at.bytes_since(from) as usize] ^= 0x10;
                    Condition::Half
                }
                None => Condition::Good,
            },
            35..40 => {
                file.truncate(random.below(MIB) as usize);
                Condition::Short
            }
            40..60 => match truth.foreign_segment(tli, (from, to), held, random) {
                Some(foreign) => {
                    file = foreign;
                    Condition::Foreign
                }
                None => Condition::Good,
            },
            _ => Condition::Good,
        };
        Some((file, condition))
    }
}
