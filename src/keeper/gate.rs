//! The gate: every step of the keeper's that cannot be undone passes here. It looks once more, at
//! the moment of the step and by itself, at what speaks against it, and says in the log what goes
//! and why. The steps take a [`Leave`], which only the gate gives.
//!
//! What it says at which level:
//!
//! | step | level |
//! |---|---|
//! | a segment is removed that no rule, slot or standby keeps | DEBUG |
//! | a segment is removed because the disk is above its watermark | WARN |
//! | a restored segment is removed, which the archive has | DEBUG |
//! | a damaged segment is replaced, which is [kept](KeptDamage) within bounds | WARN |
//! | a damaged record is written over, whose bytes are kept within bounds | WARN |
//! | a slot loses its WAL, expires, or is dropped by name | WARN |
//! | what was set aside goes: it was confirmed, and its time is up | WARN, each file at DEBUG |
//! | all WAL is moved aside | ERROR |
//! | WAL past a place is moved aside, where another history is the true one | ERROR |
//!
//! A step that is refused here is a mistake of the plan. It is not done, and that is an ERROR.
//! A start and a switch of timelines remove nothing that is not elsewhere; what they set aside they
//! say themselves ([`aside`](crate::store::aside)).

use super::damaged::KeptDamage;
use super::work::Keeper;
use crate::store::asides::{AsideFile, Confirmation};
use crate::store::disk::Disk;
use crate::store::layout::ArchiveFile;
use crate::store::retention::{Receiving, Restorable};
use crate::store::seams::Seam;
use crate::store::slots::{Cause, Loss, SlotName};
use crate::wal::{Lsn, SegmentName, SegmentNo};
use std::io;
use std::path::Path;
use tracing::{debug, error, warn};

/// A step that cannot be undone.
pub(super) enum FinalStep<'a> {
    /// A complete segment is removed, or becomes a spare and is written over.
    Remove(SegmentName),
    /// A segment that came back from the archive is removed.
    RemoveRestored(SegmentName),
    /// A damaged segment is replaced, and this becomes of it.
    Replace(SegmentName, &'a KeptDamage),
    /// A damaged record at this position is written over, and this becomes of its bytes.
    Overwrite(SegmentName, Lsn, &'a KeptDamage),
    /// Slots lose their WAL.
    Invalidate(&'a [Loss]),
    /// Slots that were created automatically are dropped.
    Expire(&'a [SlotName]),
    /// A client or an operator drops this slot.
    Drop(&'a SlotName),
    /// Files that were set aside go: an operator has confirmed them, and their time is up.
    ExpireAside(&'a Confirmation),
    /// One of them goes.
    ExpireFile(&'a AsideFile),
    /// WAL past this place is moved to `diverged/`: an operator has said that another history is the
    /// true one.
    Cut(Seam),
    /// All WAL is moved to this folder, and nobody is served from it any more.
    SetAside(&'a Path),
}

/// The gate's leave to do one step.
#[must_use = "it is the leave for one step"]
pub(super) struct Leave(());

/// What speaks against a step.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Objection {
    #[error("the plan in force keeps WAL from segment {} on", .0.raw())]
    Plan(SegmentNo),
    #[error("standbys may still be granted WAL from {0} on")]
    Granted(Lsn),
    #[error("it waits for the archive")]
    Archive,
    #[error("slot \"{0}\" needs WAL from {1} on")]
    Slot(SlotName, Lsn),
    #[error("slot \"{0}\" is in use, and no limit is set")]
    InUse(SlotName),
    #[error("a standby streams from it")]
    Streams,
    #[error("{0} files wait to be archived before that")]
    Backlog(usize),
    #[error("no confirmation covers it whose time is up")]
    NotConfirmed,
}

impl From<Objection> for io::Error {
    fn from(objection: Objection) -> Self {
        Self::other(objection)
    }
}

impl<D: Disk> Keeper<D> {
    /// Lets a step pass, or says what speaks against it.
    pub(super) fn gate(&self, step: &FinalStep<'_>) -> Result<Leave, Objection> {
        let objection = match step {
            FinalStep::Remove(name) => self.objection_to_removal(*name),
            // It lies before what the plan keeps, and is there for nobody but its readers.
            FinalStep::RemoveRestored(_) | FinalStep::Replace(..) | FinalStep::Overwrite(..) => {
                None
            }
            FinalStep::Invalidate(losses) => self.objection_to_losses(losses),
            FinalStep::Expire(_) => None,
            FinalStep::Drop(name) => self.objection_to_drop(name),
            FinalStep::ExpireAside(confirmed) => {
                let keep = self.policy.keep_set_aside;
                let is_due = !keep.is_zero() && confirmed.counted >= keep;
                (!is_due).then_some(Objection::NotConfirmed)
            }
            FinalStep::ExpireFile(AsideFile { aside, mark, .. }) => {
                (!self.has_expired(aside, *mark)).then_some(Objection::NotConfirmed)
            }
            // An operator has ordered it by name, and the task that passes it on has compared.
            FinalStep::Cut(_) => None,
            FinalStep::SetAside(_) => match self.holds.backlog.len() {
                0 => None,
                waiting => Some(Objection::Backlog(waiting)),
            },
        };
        match objection {
            None => {
                self.say(step);
                Ok(Leave(()))
            }
            Some(objection) => {
                Self::say_refused(step, &objection);
                Err(objection)
            }
        }
    }

    /// Lets all WAL be moved to this folder.
    pub(super) fn leave_to_set_aside(&self, folder: &Path) -> Result<Leave, Objection> {
        self.gate(&FinalStep::SetAside(folder))
    }

    fn objection_to_removal(&self, name: SegmentName) -> Option<Objection> {
        let end = name.no.end(name.size);
        let (horizon, kept) = (self.horizon.get(), self.holds.oldest_kept());
        if name.no >= horizon {
            return Some(Objection::Plan(horizon));
        }
        if kept < end {
            return Some(Objection::Granted(kept));
        }
        if self.holds.backlog.waits(ArchiveFile::Segment(name)) {
            return Some(Objection::Archive);
        }
        if self.policy.restorable != Restorable::No {
            return None;
        }
        let slots = self.holds.slots.lock();
        slots.iter().find_map(|slot| {
            let from = slot.needed_from().filter(|from| *from < end)?;
            Some(Objection::Slot(slot.name.clone(), from))
        })
    }

    fn objection_to_losses(&self, losses: &[Loss]) -> Option<Objection> {
        let is_unlimited = self.policy.max_slot_wal_keep_size.is_none();
        let wrong = losses
            .iter()
            .find(|loss| is_unlimited && loss.cause == Cause::WalRemoved && loss.is_in_use());
        wrong.map(|loss| Objection::InUse(loss.name.clone()))
    }

    fn objection_to_drop(&self, name: &SlotName) -> Option<Objection> {
        let slots = self.holds.slots.lock();
        slots.get(name.as_str()).filter(|slot| slot.has_stream()).map(|_| Objection::Streams)
    }

    /// Where the WAL begins that a slot keeps.
    fn kept_by_slot(&self, name: &SlotName) -> Option<Lsn> {
        self.holds.slots.lock().get(name.as_str())?.needed_from()
    }

    fn say(&self, step: &FinalStep<'_>) {
        let is_full = self.holds.receiving() == Receiving::Paused || !self.spares.are_wanted();
        match step {
            FinalStep::Remove(name) if is_full => {
                warn!("removing WAL segment {name}: the disk is above --disk-high-watermark");
            }
            FinalStep::Remove(name) => {
                debug!("removing WAL segment {name}: no rule, slot or standby keeps it");
            }
            FinalStep::RemoveRestored(name) => {
                debug!("removing WAL segment {name}: the archive has it, and nobody reads it");
            }
            FinalStep::Replace(name, kept) => {
                warn!("replacing damaged WAL segment {name}, which is {kept}");
            }
            FinalStep::Overwrite(name, at, kept) => {
                warn!(
                    "writing over the damaged record at {at} in WAL segment {name}; its bytes are \
                     {kept}"
                );
            }
            FinalStep::Invalidate(losses) => {
                for loss in *losses {
                    warn!(
                        restart_lsn = %loss.kept_from.unwrap_or(Lsn::INVALID),
                        "invalidating obsolete replication slot \"{}\": {}", loss.name, loss.cause
                    );
                }
            }
            FinalStep::Expire(names) => {
                for name in *names {
                    warn!(
                        "dropping replication slot \"{name}\": created automatically, not used \
                         for {:?}",
                        self.policy.auto_created_ttl
                    );
                }
            }
            FinalStep::Drop(name) => {
                warn!(
                    restart_lsn = %self.kept_by_slot(name).unwrap_or(Lsn::INVALID),
                    "dropping replication slot \"{name}\": a client or walhub ctl asks for it"
                );
            }
            FinalStep::ExpireAside(confirmed) => {
                warn!(
                    "removing {confirmed}, which was set aside: {:?} have passed since while the hub \
                     ran",
                    self.policy.keep_set_aside
                );
            }
            FinalStep::ExpireFile(file) => debug!("removing \"{}\"", file.path.display()),
            FinalStep::Cut(seam) => {
                let folder = self.layout.diverged(seam.tli, seam.at);
                error!(
                    "moving WAL past {seam} aside to \"{}\": another history is the true one",
                    folder.display()
                );
            }
            FinalStep::SetAside(folder) => {
                error!(
                    "moving all WAL aside to \"{}\": the WAL that comes next could not be had",
                    folder.display()
                );
            }
        }
    }

    fn say_refused(step: &FinalStep<'_>, objection: &Objection) {
        match step {
            FinalStep::Remove(name) | FinalStep::RemoveRestored(name) => {
                error!("not removing WAL segment {name}: {objection}");
            }
            FinalStep::Replace(name, _) => {
                error!("not replacing WAL segment {name}: {objection}");
            }
            FinalStep::Overwrite(name, at, _) => {
                error!("not writing over the record at {at} in {name}: {objection}");
            }
            FinalStep::Invalidate(_) => error!("not invalidating replication slots: {objection}"),
            FinalStep::Expire(_) => error!("not dropping replication slots: {objection}"),
            FinalStep::Drop(name) => {
                error!("not dropping replication slot \"{name}\": {objection}");
            }
            FinalStep::ExpireAside(confirmed) => {
                error!("not removing {confirmed}, which was set aside: {objection}");
            }
            FinalStep::ExpireFile(file) => {
                error!("not removing \"{}\": {objection}", file.path.display());
            }
            FinalStep::Cut(seam) => error!("not moving WAL past {seam} aside: {objection}"),
            FinalStep::SetAside(_) => error!("not moving WAL aside: {objection}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::{Job, JobDone};
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::layout::{Layout, Listing, SegmentRange};
    use crate::store::plain_disk::PlainDisk;
    use crate::store::retention::{Holds, Policy};
    use crate::store::slots::{Create, InvalidSlots, Origin};
    use crate::wal::{SegmentSize, TimelineId};
    use crate::wire::command::SlotLifetime;
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;
    const TLI: TimelineId = TimelineId::FIRST;

    fn size() -> SegmentSize {
        SegmentSize::new(MIB).unwrap()
    }

    fn name(no: u64) -> SegmentName {
        SegmentName { tli: TLI, no: SegmentNo::new(no), size: size() }
    }

    /// Segments 5 to 9.
    fn keeper(layout: &Layout, policy: Policy) -> Keeper<PlainDisk> {
        for no in 5..10 {
            std::fs::write(layout.segment(name(no)), "").unwrap();
        }
        let holds = Arc::new(Holds::new(Lsn::new(5 * MIB)));
        let (oldest, newest) = (SegmentNo::new(5), SegmentNo::new(9));
        let complete = Some(SegmentRange { tli: TLI, oldest, newest });
        let layout = layout.clone();
        let keeper = Keeper::new(PlainDisk, layout, holds, &Listing::default(), complete, None);
        keeper.size.set(Some(size()));
        keeper.with_policy(policy)
    }

    fn create(keeper: &Keeper<PlainDisk>, from: u64) -> SlotName {
        let slot = SlotName::parse("s").unwrap();
        let mut slots = keeper.holds.slots.lock();
        let create = Create {
            name: slot.clone(),
            lifetime: SlotLifetime::Persistent,
            origin: Origin::Asked,
            reserve: Some(Lsn::new(from * MIB)),
            session: slots.enter(1),
        };
        slots.create(create, 10).unwrap();
        slots.set_free(&slot);
        slot
    }

    /// Whatever a plan with a mistake says.
    #[test]
    fn a_segment_stays_that_anything_speaks_for() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let layout = directory.layout();
        let keeper = keeper(layout, Policy::default());
        let objection = |no| keeper.gate(&FinalStep::Remove(name(no))).err();
        assert_eq!(objection(5), Some(Objection::Plan(SegmentNo::new(0))), "no plan yet");
        keeper.horizon.set(SegmentNo::new(8));
        assert_eq!(objection(5), Some(Objection::Granted(Lsn::new(5 * MIB))));
        keeper.give_up_before(SegmentNo::new(8), size());
        assert_eq!(objection(8), Some(Objection::Plan(SegmentNo::new(8))));
        assert_eq!(objection(7), None);
        keeper.holds.backlog.add(ArchiveFile::Segment(name(7)));
        assert_eq!((objection(6), objection(7)), (None, Some(Objection::Archive)));
        let slot = create(&keeper, 6);
        let needed = Objection::Slot(slot, Lsn::new(6 * MIB));
        assert_eq!((objection(5), objection(6)), (None, Some(needed)));
        let refused = keeper.leave_to_set_aside(Path::new("aside")).err();
        assert_eq!(refused, Some(Objection::Backlog(1)));
        // The rest goes, and what was refused stays in nobody's way.
        while run_ready(keeper.tend()).unwrap().unwrap() == crate::keeper::Tended::More {}
        let here: Vec<_> = (5..10).filter(|no| layout.segment(name(*no)).exists()).collect();
        assert_eq!(here, [6, 7, 8, 9]);
    }

    #[test]
    fn a_slot_in_use_loses_its_wal_by_a_limit_only() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let keeper = keeper(directory.layout(), Policy::default());
        let slot = create(&keeper, 6);
        let losses = |cause| keeper.holds.slots.lock().losses([(&slot, cause)].into_iter());
        assert!(keeper.gate(&FinalStep::Invalidate(&losses(Cause::WalRemoved))).is_ok());
        let session = keeper.holds.slots.lock().enter(2);
        let used = keeper.holds.use_slot("s", session, InvalidSlots::Accept).unwrap();
        let in_use = Some(Objection::InUse(slot.clone()));
        assert_eq!(keeper.gate(&FinalStep::Invalidate(&losses(Cause::WalRemoved))).err(), in_use);
        let done = run_ready(keeper.run(Job::SaveSlot(slot.clone()))).unwrap();
        assert!(matches!(done, JobDone::Done(_)), "{done:?}");
        assert!(run_ready(keeper.lose(losses(Cause::WalRemoved))).unwrap().is_err());
        assert!(keeper.holds.slots.lock().get("s").unwrap().restart_lsn.is_some());
        drop(used);
        let limit = Policy { max_slot_wal_keep_size: Some(MIB), ..Policy::default() };
        assert!(keeper.with_policy(limit).gate(&FinalStep::Invalidate(&[])).is_ok());
    }

    #[test]
    fn a_slot_is_not_dropped_while_a_standby_streams_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let keeper = keeper(directory.layout(), Policy::default());
        let slot = create(&keeper, 6);
        let run = |job| run_ready(keeper.run(job)).unwrap();
        run(Job::SaveSlot(slot.clone()));
        let session = keeper.holds.slots.lock().enter(2);
        let used = keeper.holds.use_slot("s", session, InvalidSlots::Accept).unwrap();
        let refused = run(Job::DropSlot(slot.clone()));
        assert!(matches!(refused, JobDone::Failed { .. }), "{refused:?}");
        assert!(keeper.holds.slots.lock().get("s").unwrap().has_stream());
        drop(used);
        run(Job::DropSlot(slot));
        assert!(keeper.holds.slots.lock().get("s").is_none());
    }
}
