//! Retention: the plan is made here from everything that it needs to know. An invalidation is on
//! disk before it is acted on.

use super::work::Keeper;
use crate::store::disk::Disk;
use crate::store::durable::read_full;
use crate::store::retention::{Plan, Receiving, Situation, Space, plan, too_full};
use crate::store::slots::Loss;
use crate::store::tail::leading_rest;
use crate::wal::page::LONG_HEADER;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::io;
use std::time::SystemTime;
use tracing::{info, warn};

/// The most files whose times are looked up in one step.
const LOOKUPS_A_STEP: usize = 64;

impl<D: Disk> Keeper<D> {
    /// Moves the horizon at once; `tend` removes the files before it. It goes in steps, and gives
    /// up when a switch or a set-aside came between them: it comes again soon.
    pub(super) async fn retain(&self, tli: TimelineId, newest: Lsn) -> io::Result<()> {
        let (line, now) = (self.line(), (self.clock)());
        self.completed_upto.set(None);
        // After a set-aside, what is known of the old line says nothing about the next one.
        if self.cluster.borrow().is_none() {
            return Ok(());
        }
        let size = self.segment_size()?;
        let Some(found) = self.on_line(line, self.find_start_of_walk(size)).await else {
            return Ok(());
        };
        found?;
        let Some(tended) = self.on_line(line, self.tend_slots(size, now)).await else {
            return Ok(());
        };
        if let Err(error) = tended {
            // Slots that were not written keep their WAL; WAL that they do not need may go.
            warn!("could not write down replication slots: {error}");
        }
        let mut next = Some(self.oldest(size));
        while let Some(no) = next {
            let Some(left) = self.on_line(line, self.note_completions(size, no, now)).await else {
                return Ok(());
            };
            next = left;
            self.give_way().await;
        }
        self.on_line(line, self.release(tli, newest, size, now)).await.unwrap_or(Ok(()))
    }

    /// Makes the plan and acts on it.
    async fn release(
        &self,
        tli: TimelineId,
        newest: Lsn,
        size: SegmentSize,
        now: SystemTime,
    ) -> io::Result<()> {
        let newest = self.within(tli, newest);
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
        Ok(())
    }

    /// Looks after slots and old WAL when a segment was completed since retention last ran.
    pub async fn retain_if_due(&self) {
        if !self.retains.get() {
            return;
        }
        let Some((tli, newest)) = self.completed_upto.take() else { return };
        if let Err(error) = self.retain(tli, newest).await {
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

    /// Looks up when segments from `no` on were completed, up to the first one that is not old.
    /// Returns where to go on when it has looked up as many as a step may.
    async fn note_completions(
        &self,
        size: SegmentSize,
        mut no: SegmentNo,
        now: SystemTime,
    ) -> Option<SegmentNo> {
        let keep = self.policy.wal_keep_time;
        if keep.is_zero() {
            self.completed.clear();
            return None;
        }
        self.completed.forget_before(self.oldest(size));
        let mut looked_up = 0;
        while let Some(tli) = self.complete.timeline_of(no) {
            let at = match self.completed.at(no) {
                Some(at) => at,
                None if looked_up == LOOKUPS_A_STEP => return Some(no),
                None => {
                    looked_up += 1;
                    let path = self.layout.segment(SegmentName { tli, no, size });
                    let at = self.disk.modified(&path).await.ok()?;
                    self.completed.note(no, at);
                    at
                }
            };
            if now.duration_since(at).map_or(true, |age| age < keep) {
                return None;
            }
            no = no.next();
        }
        None
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
