//! Damage at a difference: a disk has changed bytes, ours or the upstream's. It is no evidence of two
//! histories. Our copy of the record is mended with the upstream's; an upstream whose copy is damaged
//! is not followed.

use super::difference::fetch;
use super::environment::Environment;
use super::link::LinkFault;
use super::outcome::AttemptFailure;
use super::proof::{lineage_of, read_own};
use super::questions::IdentifiedServer;
use super::{LOG, Task};
use crate::hub::page_rules::page_rules;
use crate::upstream::damage::{Damaged, REACH, WholeRecord, damaged};
use crate::upstream::place::Span;
use crate::upstream::proof::{Lineage, SharedEnd};
use crate::wal::Lsn;
use crate::wire::sqlstate;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How many records are mended in one attempt. With more the disk is lost rather than damaged.
pub(super) const MOST_MENDED: u32 = 16;

/// What a difference turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CloserLook {
    /// Our record was damaged, and is the upstream's now.
    Mended,
    /// Two histories, as far as is known.
    OtherWal,
}

/// WAL of both sides around a difference.
struct BothSides {
    from: Lsn,
    ours: Vec<u8>,
    theirs: Vec<u8>,
}

impl<E: Environment> Task<E> {
    /// Looks at the records around `at`, where WAL before `shared` differs. What the upstream does
    /// not answer within `limit` shows nothing.
    ///
    /// # Errors
    /// The upstream's WAL is damaged there, or ours is and cannot be mended now.
    pub(super) async fn look_closer(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        shared: SharedEnd,
        at: Lsn,
        limit: Duration,
    ) -> Result<CloserLook, AttemptFailure> {
        let hub = Arc::clone(&self.parts.hub);
        let lineage = lineage_of(&hub).map_err(AttemptFailure::other)?;
        let rules = page_rules(&hub, lineage.tli).map_err(AttemptFailure::other)?;
        let _hold = hub.holds.hold_restorable(at.saturating_sub(REACH));
        let Some(both) = self.both_sides(asked, &lineage, shared, at, limit).await else {
            return Ok(CloserLook::OtherWal);
        };
        // Each side is walked twice at most: that takes longer than others on this thread can wait.
        let looking = self.parts.environment.blocking(move || {
            let BothSides { from, ours, theirs } = &both;
            let first = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
            let first = first.map(|n| from.saturating_add(n as u64));
            let found = first.and_then(|at| damaged(&rules, *from, at, ours, theirs));
            (both, found)
        });
        let (both, found) = looking.await.map_err(AttemptFailure::other)?;
        let host = &asked.seen.host;
        match found {
            None => Ok(CloserLook::OtherWal),
            Some(Damaged::Theirs(WholeRecord { from, .. })) => Err(AttemptFailure::other(format!(
                "{host}: its copy of the record at {from} is damaged, and this hub's is whole: \
                 nothing is received from there before that is repaired"
            ))),
            Some(Damaged::Ours(record)) => {
                let file = lineage.file(record.from);
                tracing::error!(
                    target: LOG,
                    at = %record.from,
                    "this hub's copy of a record in {file} is damaged: its checksum does not hold, \
                     and {host} has the record whole; it is replaced by that, and the damaged bytes \
                     are kept in damaged/"
                );
                self.mend(&lineage, record, &both).await.map_err(AttemptFailure::other)?;
                Ok(CloserLook::Mended)
            }
        }
    }

    /// What both have around `at`; `None` when that cannot be had from either.
    async fn both_sides(
        &self,
        asked: &mut IdentifiedServer<E::Socket>,
        lineage: &Lineage,
        shared: SharedEnd,
        at: Lsn,
        limit: Duration,
    ) -> Option<BothSides> {
        let oldest = self.parts.hub.holds.unbroken_from();
        let segment = at.segment_start(lineage.size);
        for from in [at.saturating_sub(REACH).page_start().max(oldest).min(segment), segment] {
            let tli = lineage.asked(from, shared.tli);
            let to = lineage.stream_end(from, shared.tli, shared.end);
            let to = to.min(at.saturating_add(REACH));
            if to <= at {
                continue;
            }
            let answer = timeout(limit, fetch(&mut asked.link, Span { tli, from, to })).await;
            let theirs = match answer.ok()? {
                Ok(theirs) => theirs,
                Err(LinkFault::Server(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE => {
                    continue;
                }
                Err(_) => return None,
            };
            let (reader, files) = (Arc::clone(&self.parts), lineage.clone());
            let reading = self.parts.environment.blocking(move || {
                let mut ours = Vec::new();
                for (from, to) in pieces(&files, from, to) {
                    ours.extend(read_own(&reader.environment, &files, from, to)?);
                }
                Ok::<_, io::Error>(ours)
            });
            let ours = reading.await.flatten().ok()?;
            return Some(BothSides { from, ours, theirs });
        }
        None
    }

    async fn mend(
        &self,
        lineage: &Lineage,
        record: WholeRecord,
        both: &BothSides,
    ) -> Result<(), String> {
        for (from, to) in pieces(lineage, record.from, record.to) {
            let [first, last] = [from, to].map(|at| at.bytes_since(both.from) as usize);
            let bytes = both.theirs.get(first..last).unwrap_or_default().to_vec();
            let mended = self.parts.keeper.overwrite(lineage.file(from).tli, from, bytes).await;
            mended.map_err(|error| {
                format!("the damaged record at {} was not mended: {error}", record.from)
            })?;
        }
        Ok(())
    }
}

/// The parts of this WAL that lie in one segment each.
fn pieces(lineage: &Lineage, from: Lsn, to: Lsn) -> Vec<(Lsn, Lsn)> {
    let (mut at, mut pieces) = (from, Vec::new());
    while at < to {
        let end = at.segment(lineage.size).end(lineage.size).min(to);
        pieces.push((at, end));
        at = end;
    }
    pieces
}
