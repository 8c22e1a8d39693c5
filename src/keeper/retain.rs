//! Retention: the plan is made here from everything that it needs to know. An invalidation is on
//! disk before it is acted on.

use super::work::Keeper;
use crate::store::disk::Disk;
use crate::store::durable::read_full;
use crate::store::now::Now;
use crate::store::retention::{
    Needed, Outlook, Plan, Receiving, Situation, SlotNeed, Space, above_mark, outlook, plan,
    resume_room, too_full,
};
use crate::store::slots::Loss;
use crate::store::tail::leading_rest;
use crate::wal::page::LONG_HEADER;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::io;
use std::time::Duration;
use tracing::{info, warn};

/// The most files whose times are looked up in one step.
const LOOKUPS_A_STEP: usize = 64;

impl<D: Disk> Keeper<D> {
    /// Moves the horizon at once; `tend` removes the files before it. It goes in steps, and gives
    /// up when a switch or a set-aside came between them: it comes again soon.
    pub(super) async fn retain(&self, tli: TimelineId, newest: Lsn) -> io::Result<()> {
        let (line, now) = (self.line(), (self.clock)());
        self.completed_upto.set(None);
        let start = self.began.get().unwrap_or(now);
        self.began.set(Some(start));
        // After a set-aside, what is known of the old line says nothing about the next one.
        if self.cluster.borrow().is_none() {
            return Ok(());
        }
        let size = self.segment_size()?;
        if self.on_line(line, self.find_start_of_walk(size)).await.is_none() {
            return Ok(());
        }
        let Some(tended) = self.on_line(line, self.tend_slots(size, now)).await else {
            return Ok(());
        };
        if let Err(error) = tended {
            // Slots that were not written keep their WAL; WAL that they do not need may go.
            warn!("could not write down replication slots: {error}");
        }
        let mut next = Some(self.oldest(size));
        while let Some(no) = next {
            let noted = self.note_completions(size, no, (now, start));
            let Some(left) = self.on_line(line, noted).await else {
                return Ok(());
            };
            next = left;
            self.give_way().await;
        }
        let look = Look { now, running: now.since(start.instant) };
        self.on_line(line, self.release(tli, newest, size, look)).await.unwrap_or(Ok(()))
    }

    /// Makes the plan and acts on it. The disk costs at most one slot its WAL in one look: before
    /// the next one what that has brought is seen.
    async fn release(
        &self,
        tli: TimelineId,
        newest: Lsn,
        size: SegmentSize,
        look: Look,
    ) -> io::Result<()> {
        let Look { now, .. } = look;
        self.holds.look(now.instant, self.policy.grace);
        let pace = self.pressure.measure(newest, now);
        let newest = self.within(tli, newest);
        let space = self.space_without_spares(size, now).await;
        let mut paused = self.pressure.paused(now);
        let plan = loop {
            let sight = Sight { space, pace, paused };
            let (losses, plan) = self.plan(newest, size, look, sight);
            if plan.invalidate.is_empty() {
                break plan;
            }
            match losses.iter().any(Loss::has_moved_on) {
                true => self.save_positions().await?,
                false => {
                    self.lose(losses).await?;
                    paused = paused.map(|_| Duration::ZERO);
                }
            }
        };
        let before = self.holds.receiving();
        self.pressure.note(plan.receiving, now);
        let too_full = too_full(&self.policy, &plan, space, size);
        self.holds.set_too_full(too_full);
        match (before, too_full) {
            (Receiving::Open, Some(too_full)) => warn!(
                "{too_full} in \"{}\", and no WAL may be removed ({} files wait for the archive): \
                 receiving is paused, serving continues; slots that nobody uses lose their WAL \
                 after {:?}, one at a time",
                self.layout.root().display(),
                self.holds.backlog.len(),
                self.policy.grace
            ),
            (Receiving::Paused, None) => {
                info!("the disk has room again, receiving continues");
            }
            (Receiving::Open, None) | (Receiving::Paused, Some(_)) => {}
        }
        self.horizon.set(self.horizon.get().max(plan.horizon));
        self.complete.try_again();
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
    fn plan(&self, newest: Lsn, size: SegmentSize, look: Look, sight: Sight) -> (Vec<Loss>, Plan) {
        let now = look.now;
        let known = self.known(newest, size, now);
        // A slot that is created meanwhile reserves its WAL under the same lock.
        let slots = self.holds.slots.lock();
        let (names, needs) = slots.needs(now);
        let plan = self.holds.advance(size, (now.instant, self.policy.grace), |needed| {
            known.with_situation(needed, &needs, (look, sight), |situation| {
                plan(&self.policy, situation)
            })
        });
        let lost = plan.invalidate.iter().filter_map(|(n, cause)| Some((names.get(*n)?, *cause)));
        (slots.losses(lost), plan)
    }

    /// What the plan would be now. Nothing is changed.
    pub(super) async fn foresee(&self, tli: TimelineId, newest: Lsn) -> io::Result<Outlook> {
        let now = (self.clock)();
        let size = self.segment_size()?;
        let newest = self.within(tli, newest);
        let running = self.began.get().map_or(Duration::ZERO, |began| now.since(began.instant));
        let (space, pace) = (self.space().await, self.pressure.pace());
        let (look, sight) =
            (Look { now, running }, Sight { space, pace, paused: self.pressure.paused(now) });
        let known = self.known(newest, size, now);
        let (names, needs) = self.holds.slots.lock().needs(now);
        let needed = &self.holds.needed(now.instant, self.policy.grace);
        let holders = self.holds.holders(now.instant, self.policy.grace);
        Ok(known.with_situation(needed, &needs, (look, sight), |situation| {
            outlook(&self.policy, situation, &names, &holders)
        }))
    }

    /// Looked up before any lock is taken under which a plan is made.
    fn known(&self, newest: Lsn, size: SegmentSize, now: Now) -> KnownWal {
        KnownWal {
            size,
            oldest: self.oldest(size),
            newest,
            completed: self.completed.ages(now),
            walk_start: self.walk_start.get(),
            unarchived: self.oldest_unarchived(),
        }
    }

    fn oldest(&self, size: SegmentSize) -> SegmentNo {
        self.complete.oldest().unwrap_or_else(|| self.holds.oldest_kept().segment(size))
    }

    /// Before the first WAL comes in after a start: when the disk is above its watermark, none
    /// does until the first plan says so.
    pub async fn look_at_disk(&self) {
        let (Some(size), Some(_)) = (self.size.get(), self.policy.high_watermark) else { return };
        let space = self.space().await;
        if let Some(too_full) = space.and_then(|space| above_mark(&self.policy, space, size)) {
            warn!(
                "{too_full} in \"{}\": nothing is received before old WAL was looked at",
                self.layout.root().display()
            );
            self.holds.set_too_full(Some(too_full));
        }
    }

    /// The disk's space. Above the watermark spares go first, and it counts what that has brought.
    async fn space_without_spares(&self, size: SegmentSize, now: Now) -> Option<Space> {
        let space = self.space().await?;
        let Some(mark) = self.policy.high_watermark else { return Some(space) };
        let more = self.pressure.paused(now).map_or(0, |_| resume_room(size));
        if space.shortage(mark, more) == 0 {
            self.spares.welcome();
            return Some(space);
        }
        match self.spares.give_up_all(&self.disk, &self.layout).await {
            Ok(0) => Some(space),
            Ok(gone) => {
                info!("removed {gone} spare files: the disk is above --disk-high-watermark {mark}");
                self.space().await
            }
            Err(error) => {
                warn!("could not remove a spare file: {error}");
                Some(space)
            }
        }
    }

    async fn space(&self) -> Option<Space> {
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
        (now, start): (Now, Now),
    ) -> Option<SegmentNo> {
        let keep = self.policy.wal_keep_time;
        if keep.is_zero() {
            self.completed.clear();
            return None;
        }
        self.completed.forget_before(self.oldest(size));
        let mut looked_up = 0;
        while let Some(tli) = self.complete.timeline_of(no) {
            if self.completed.age(no, now).is_none() {
                if looked_up == LOOKUPS_A_STEP {
                    return Some(no);
                }
                looked_up += 1;
                match self.completed_at(SegmentName { tli, no, size }).await {
                    Ok(at) => self.completed.note_found(no, at, now, start),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.completed.note_missing(no, now);
                    }
                    Err(error) => {
                        self.say_unreadable(tli, no, &error);
                        self.completed.note(no, now);
                    }
                }
            }
            if self.completed.age(no, now).is_none_or(|age| age < keep) {
                return None;
            }
            no = no.next();
        }
        None
    }

    /// Recovery can prove a record that straddles the open segment's start only from the
    /// record's own start, which may lie many segments back: everything from there on stays.
    async fn find_start_of_walk(&self, size: SegmentSize) {
        let Some(range) = self.complete.last() else {
            // No segment is complete, as when a timeline was left for one that forked off far
            // back. How far the old one had come says nothing about what may go.
            self.walk_start.set(self.cluster_start());
            return;
        };
        let mut no = range.newest;
        while no > range.oldest {
            // In one that cannot be read no record is known to begin.
            let is_whole = match self.leading_rest(range.tli, no, size).await {
                Ok(rest) => rest.is_some_and(|end| end >= no.end(size)),
                Err(error) => {
                    self.say_unreadable(range.tli, no, &error);
                    true
                }
            };
            if !is_whole {
                break;
            }
            no = no.previous().unwrap_or(range.oldest);
        }
        self.walk_start.set(Some(no.start(size)));
    }

    /// Where the record ends that begins before a segment, as far as its first page says.
    async fn leading_rest(
        &self,
        tli: TimelineId,
        no: SegmentNo,
        size: SegmentSize,
    ) -> io::Result<Option<Lsn>> {
        let file = self.open(tli, no).await?;
        let header = read_full(&self.disk, &file, LONG_HEADER, 0).await?;
        Ok(leading_rest(no.start(size), &header, size))
    }

    /// A segment is in the way of nothing else: what is not known of it counts against its removal,
    /// and this is said once.
    pub(super) fn say_unreadable(&self, tli: TimelineId, no: SegmentNo, error: &io::Error) {
        if !self.unreadable.borrow_mut().insert((tli, no)) {
            return;
        }
        match self.name(tli, no) {
            Ok(name) => warn!("could not look at WAL segment {name}, going on without it: {error}"),
            Err(error) => warn!("could not look at a WAL segment: {error}"),
        }
    }
}

/// When retention looks at the WAL.
#[derive(Debug, Clone, Copy)]
struct Look {
    now: Now,
    /// For how long it has.
    running: Duration,
}

/// What it sees of the WAL.
struct KnownWal {
    size: SegmentSize,
    oldest: SegmentNo,
    newest: Lsn,
    completed: Vec<(SegmentNo, Duration)>,
    walk_start: Option<Lsn>,
    unarchived: Option<SegmentNo>,
}

impl KnownWal {
    fn with_situation<T>(
        &self,
        needed: &Needed,
        slots: &[SlotNeed],
        (look, sight): (Look, Sight),
        decide: impl FnOnce(&Situation<'_>) -> T,
    ) -> T {
        let situation = Situation {
            running: look.running,
            completed: &self.completed,
            walk_start: self.walk_start,
            needed: needed.clone(),
            slots,
            archived: &|no| self.unarchived.is_none_or(|oldest| no < oldest),
            space: sight.space,
            pace: sight.pace,
            paused: sight.paused,
            ..Situation::new(self.size, self.oldest, self.newest)
        };
        decide(&situation)
    }
}

/// What it sees of the disk.
#[derive(Debug, Clone, Copy)]
struct Sight {
    space: Option<Space>,
    pace: u64,
    paused: Option<Duration>,
}

#[cfg(test)]
mod tests;
