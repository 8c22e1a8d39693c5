//! One standby's own walk over its WAL, for WAL outside the truth's window.
//!
//! Bytes that were compared with the truth are already verified and only feed the walk. The others
//! are held until the walk has proven their records. Each byte is therefore counted once, however
//! often the window's edge is crossed.

use super::Wrong;
use crate::bench::standbys::sums::{Sums, Unverified};
use crate::wal::{Lsn, PageRules, Walker};
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Walk {
    walker: Walker,
    /// Ranges that were not compared and are not proven yet, in order.
    held: VecDeque<(Lsn, Lsn)>,
}

impl Walk {
    /// Begins with the first page that starts at or after `at`.
    pub(super) fn begin(rules: &PageRules, at: Lsn) -> Box<Self> {
        let walker = Walker::new(rules.clone(), at.page_ceil());
        Box::new(Self { walker, held: VecDeque::new() })
    }

    /// Takes WAL that was compared with the truth. Returns the results for held bytes.
    pub(super) fn take_compared(&mut self, at: Lsn, wal: &[u8]) -> Result<Sums, Wrong> {
        self.walk(at, wal)?;
        Ok(self.release())
    }

    /// Takes WAL that only this walk can verify. Returns the results for held bytes.
    pub(super) fn take_unknown(&mut self, at: Lsn, wal: &[u8]) -> Result<Sums, Wrong> {
        self.walk(at, wal)?;
        let end = at.saturating_add(wal.len() as u64);
        match self.held.back_mut() {
            Some((_, to)) if *to == at => *to = end,
            _ => self.held.push_back((at, end)),
        }
        Ok(self.release())
    }

    /// Are no bytes held?
    pub(super) fn is_settled(&self) -> bool {
        self.held.is_empty()
    }

    /// The stream is over: held bytes remain unverified.
    pub(super) fn close(self) -> Sums {
        let why = match self.walker.proven_from() {
            None => Unverified::RecordBegunBefore,
            Some(_) => Unverified::RecordNotEnded,
        };
        let left = self.held.iter().map(|(from, to)| to.bytes_since(*from)).sum();
        Sums::of_unverified(why, left)
    }

    fn walk(&mut self, at: Lsn, wal: &[u8]) -> Result<(), Wrong> {
        let before = usize::try_from(self.walker.position().bytes_since(at)).unwrap_or(usize::MAX);
        let Some(new) = wal.get(before..).filter(|new| !new.is_empty()) else { return Ok(()) };
        let fed = self.walker.feed(new);
        fed.map_err(|fault| Wrong { at: fault.at, text: fault.to_string() })
    }

    fn release(&mut self) -> Sums {
        let mut sums = Sums::default();
        let Some(begun) = self.walker.proven_from() else { return sums };
        let proven = self.walker.record_end();
        while let Some((from, to)) = self.held.front_mut() {
            let unproven = (*from).max((*to).min(begun));
            let before = unproven.bytes_since(*from);
            sums += Sums::of_unverified(Unverified::RecordBegunBefore, before);
            *from = unproven.max((*to).min(proven));
            sums += Sums::of_verified(from.bytes_since(unproven));
            if *from < *to {
                break;
            }
            self.held.pop_front();
        }
        sums
    }
}
