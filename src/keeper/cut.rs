//! An operator's word that another history is the true one: our WAL past a place is set aside. The
//! same for a timeline that only the archive had named, and what is kept until that is settled.

use super::gate::FinalStep;
use super::job::{JobDone, JobKind};
use super::work::Keeper;
use crate::store::StoreFault;
use crate::store::cut::{decide_cut, finish_cut, prepare_cut, read_seams};
use crate::store::disk::Disk;
use crate::store::kept::{keep_left, let_go};
use crate::store::seams::{Cut, Seams, UnagreedSwitch};
use crate::wal::SegmentNo;
use std::io;
use tracing::warn;

impl<D: Disk> Keeper<D> {
    /// Everything that needs space. Nothing has changed if it fails.
    pub(super) async fn prepare_cut(&self, cut: Cut) -> io::Result<JobDone<D::File>> {
        prepare_cut(&self.disk, &self.layout, self.segment_size()?, cut).await?;
        Ok(JobDone::Done(JobKind::PrepareCut))
    }

    /// Decides a cut that was prepared. When it fails, nothing was decided, and the hub may go on as
    /// before.
    pub(super) async fn decide_cut(&self, cut: Cut) -> io::Result<JobDone<D::File>> {
        if let Err(error) = self.decide(cut).await {
            // The file may say so although its directory could not be synced.
            let seams = read_seams(&self.disk, &self.layout).await?;
            if seams.under_way() != Some(cut) {
                return Err(error);
            }
        }
        Ok(JobDone::Done(JobKind::DecideCut))
    }

    async fn decide(&self, cut: Cut) -> io::Result<()> {
        self.making_room(async || Ok(decide_cut(&self.disk, &self.layout, cut).await?)).await
    }

    /// The steps of a cut that was prepared. Nobody streams, and nothing is received. When it fails
    /// it may be decided: then it is to be asked for again, or a start finishes it. Until it succeeds
    /// nothing is served, so a full disk is no obstacle to what is written in it.
    pub(super) async fn cut(&self, cut: Cut) -> io::Result<JobDone<D::File>> {
        let place = cut.place();
        let _leave = self.gate(&FinalStep::Cut(place))?;
        self.decide(cut).await?;
        let wal = self.making_room(async || self.look_again().await).await?;
        // Files that are open under these names are not those of the segments any more.
        match cut {
            Cut::Past(seam) => {
                self.open.forget_from(seam.tli, seam.at.segment(self.segment_size()?));
            }
            Cut::Back(_) => {
                self.open.clear();
                // Retention may have gone past the place. What is here now is what there is.
                self.horizon.set(SegmentNo::new(0));
                self.completed.clear();
                self.holds.found(wal.extent.clone());
            }
        }
        self.completed_upto.set(None);
        self.cut_off.set(Some(wal.durable));
        let seams = self.making_room(async || Ok(self.end_cut(cut).await?)).await?;
        self.look_up_archive_status().await;
        Ok(JobDone::CutOff { wal, seams })
    }

    /// Once the files have moved: the slots past the place lose their WAL, and the cut is over.
    pub(super) async fn end_cut(&self, cut: Cut) -> Result<Seams, StoreFault> {
        self.lose_slots_past(cut.place().at).await.map_err(|error| {
            let [path, _] = self.layout.slots();
            StoreFault::Io { action: "write file", path, error }
        })?;
        let seams = finish_cut(&self.disk, &self.layout).await?;
        self.holds.slots.lock().watch(&seams);
        self.let_go(&seams).await;
        Ok(seams)
    }

    /// Makes sure, before a switch for which there is the archive's word alone, that it can be undone.
    pub(super) async fn keep_left(&self, taken: UnagreedSwitch) -> io::Result<JobDone<D::File>> {
        let (disk, layout) = (&self.disk, &self.layout);
        let seams = keep_left(disk, layout, self.segment_size()?, taken).await?;
        self.replace_making_room(&layout.seams(), seams.encode()).await?;
        Ok(JobDone::Done(JobKind::KeepLeft))
    }

    /// Lets go of what is kept for no switch any more. What stays is let go of by the next start.
    pub(super) async fn let_go(&self, seams: &Seams) {
        let Some(size) = self.size.get() else { return };
        if let Err(fault) = let_go(&self.disk, &self.layout, size, seams).await {
            warn!("{fault}");
        }
    }
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests;
