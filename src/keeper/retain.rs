//! Retention: the plan is made here from everything that it needs to know. An invalidation is on
//! disk before it is acted on.

use super::job::JobDone;
use super::job::JobKind;
use super::work::Keeper;
use crate::store::disk::Disk;
use crate::store::durable::read_full;
use crate::store::retention::{Plan, Receiving, Situation, Space, plan, too_full};
use crate::store::slots::Loss;
use crate::store::tail::leading_rest;
use crate::wal::page::LONG_HEADER;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize};
use std::io;
use std::time::SystemTime;
use tracing::{info, warn};

impl<D: Disk> Keeper<D> {
    /// Moves the horizon at once; `tend` removes the files before it.
    pub(super) async fn retain(
        &self,
        newest: Lsn,
        now: SystemTime,
    ) -> io::Result<JobDone<D::File>> {
        let size = self.segment_size()?;
        self.now.set(Some(now));
        self.completed_upto.set(None);
        self.find_start_of_walk(size).await?;
        if let Err(error) = self.tend_slots(size, now).await {
            // Slots that were not written keep their WAL; WAL that they do not need may go.
            warn!("could not write down replication slots: {error}");
        }
        self.note_completions(size, now).await;
        let space = self.space().await;
        let plan = loop {
            let (losses, plan) = self.plan(newest, now, size, space);
            if plan.invalidate.is_empty() {
                break plan;
            }
            match losses.iter().any(Loss::has_moved_on) {
                true => self.save_positions().await?,
                false => self.lose(losses).await?,
            }
        };
        let before = self.holds.receiving();
        let too_full = too_full(&self.policy, &plan, space, size);
        self.holds.set_too_full(too_full);
        match (before, too_full) {
            (Receiving::Open, Some(too_full)) => warn!(
                "{too_full} in \"{}\", and no WAL may be removed ({} files wait for the archive): \
                 receiving is paused, serving continues",
                self.layout.root().display(),
                self.holds.backlog.len()
            ),
            (Receiving::Paused, None) => {
                info!("the disk has room again, receiving continues");
            }
            (Receiving::Open, None) | (Receiving::Paused, Some(_)) => {}
        }
        self.horizon.set(self.horizon.get().max(plan.horizon));
        self.look_at_restored(size);
        self.open.forget_closed();
        Ok(JobDone::Done(JobKind::Retain))
    }

    /// Whether a segment was completed since retention last ran, and the time of day is known.
    pub fn is_retention_due(&self) -> bool {
        self.now.get().is_some() && self.completed_upto.get().is_some()
    }

    /// Looks after slots and old WAL when a segment was completed, using the last known time of
    /// day. It waits while no time is known: what was completed would look years old.
    pub async fn retain_if_due(&self) {
        let Some(now) = self.now.get() else { return };
        let Some((tli, newest)) = self.completed_upto.take() else { return };
        if let Err(error) = self.retain(self.within(tli, newest), now).await {
            warn!("could not remove old segments: {error}");
        }
    }

    /// Makes one plan, and the losses that it asks for. It takes effect at once when it invalidates
    /// no slot.
    fn plan(
        &self,
        newest: Lsn,
        now: SystemTime,
        size: SegmentSize,
        space: Option<Space>,
    ) -> (Vec<Loss>, Plan) {
        let completed = self.completed.list();
        let oldest = self.oldest(size);
        let unarchived = self.oldest_unarchived();
        // A slot that is created meanwhile reserves its WAL under the same lock.
        let slots = self.holds.slots.lock();
        let (names, needs) = slots.needs(now);
        let plan = self.holds.advance(size, |standbys| {
            let situation = Situation {
                now,
                completed: &completed,
                walk_start: self.walk_start.get(),
                standbys,
                slots: &needs,
                archived: &|no| unarchived.is_none_or(|oldest| no < oldest),
                space,
                receiving: self.holds.receiving(),
                ..Situation::new(size, oldest, newest)
            };
            plan(&self.policy, &situation)
        });
        let lost = plan.invalidate.iter().filter_map(|(n, cause)| Some((names.get(*n)?, *cause)));
        (slots.losses(lost), plan)
    }

    fn oldest(&self, size: SegmentSize) -> SegmentNo {
        self.complete.oldest().unwrap_or_else(|| self.holds.oldest_kept().segment(size))
    }

    /// The disk is checked only when a watermark is set.
    async fn space(&self) -> Option<Space> {
        self.policy.high_watermark?;
        match self.disk.space(self.layout.wal()).await {
            Ok(space) => Some(space),
            Err(error) => {
                warn!("could not determine the disk's free space: {error}");
                None
            }
        }
    }

    /// Looks up when the oldest segments were completed, up to the first one that is not
    /// old.
    async fn note_completions(&self, size: SegmentSize, now: SystemTime) {
        let keep = self.policy.wal_keep_time;
        if keep.is_zero() {
            self.completed.clear();
            return;
        }
        let oldest = self.oldest(size);
        self.completed.stamp(oldest, now);
        let mut no = oldest;
        while let Some(tli) = self.complete.timeline_of(no) {
            let at = match self.completed.at(no) {
                Some(at) => at,
                None => {
                    let path = self.layout.segment(SegmentName { tli, no, size });
                    let Ok(at) = self.disk.modified(&path).await else { return };
                    self.completed.note(no, at);
                    at
                }
            };
            if now.duration_since(at).map_or(true, |age| age < keep) {
                return;
            }
            no = no.next();
        }
    }

    /// Recovery can prove a record that straddles the open segment's start only from the
    /// record's own start, which may lie many segments back: everything from there on stays.
    async fn find_start_of_walk(&self, size: SegmentSize) -> io::Result<()> {
        let Some(range) = self.complete.last() else {
            // No segment is complete, as when a timeline was left for one that forked off far
            // back. How far the old one had come says nothing about what may go.
            self.walk_start.set(self.cluster_start());
            return Ok(());
        };
        let mut no = range.newest;
        while no > range.oldest {
            let start = no.start(size);
            let file = self.open(range.tli, no).await?;
            let header = read_full(&self.disk, &file, LONG_HEADER, 0).await?;
            match leading_rest(start, &header, size) {
                Some(end) if end >= no.end(size) => no = no.previous().unwrap_or(range.oldest),
                Some(_) | None => break,
            }
        }
        self.walk_start.set(Some(no.start(size)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
