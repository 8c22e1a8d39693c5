//! An operator's word that another history is the true one: our WAL past a place is set aside.

use super::gate::FinalStep;
use super::job::{JobDone, JobKind};
use super::work::Keeper;
use crate::store::StoreFault;
use crate::store::cut::{decide_cut, finish_cut, prepare_cut, read_seams};
use crate::store::disk::Disk;
use crate::store::seams::{Seam, Seams};
use std::io;

impl<D: Disk> Keeper<D> {
    /// Everything that needs space. Nothing has changed if it fails.
    pub(super) async fn prepare_cut(&self, seam: Seam) -> io::Result<JobDone<D::File>> {
        prepare_cut(&self.disk, &self.layout, self.segment_size()?, seam).await?;
        Ok(JobDone::Done(JobKind::PrepareCut))
    }

    /// Decides a cut that was prepared. When it fails, nothing was decided, and the hub may go on as
    /// before.
    pub(super) async fn decide_cut(&self, seam: Seam) -> io::Result<JobDone<D::File>> {
        if let Err(error) = self.decide(seam).await {
            // The file may say so although its directory could not be synced.
            let seams = read_seams(&self.disk, &self.layout).await?;
            if seams.under_way() != Some(seam) {
                return Err(error);
            }
        }
        Ok(JobDone::Done(JobKind::DecideCut))
    }

    async fn decide(&self, seam: Seam) -> io::Result<()> {
        self.making_room(async || Ok(decide_cut(&self.disk, &self.layout, seam).await?)).await
    }

    /// The steps of a cut that was prepared. Nobody streams, and nothing is received. When it fails
    /// it may be decided: then it is to be asked for again, or a start finishes it. Until it succeeds
    /// nothing is served, so a full disk is no obstacle to what is written in it.
    pub(super) async fn cut(&self, seam: Seam) -> io::Result<JobDone<D::File>> {
        let _leave = self.gate(&FinalStep::Cut(seam))?;
        self.decide(seam).await?;
        let wal = self.making_room(async || self.look_again().await).await?;
        // Files that are open under these names are not those of the segments any more.
        self.open.forget_from(seam.tli, seam.at.segment(self.segment_size()?));
        self.completed_upto.set(None);
        self.cut_off.set(Some(wal.durable));
        self.making_room(async || Ok(self.end_cut(seam).await?)).await?;
        self.look_up_archive_status().await;
        Ok(JobDone::Switched(wal))
    }

    /// Once the files have moved: the slots past the place lose their WAL, and the cut is over.
    pub(super) async fn end_cut(&self, seam: Seam) -> Result<Seams, StoreFault> {
        self.lose_slots_past(seam.at).await.map_err(|error| {
            let [path, _] = self.layout.slots();
            StoreFault::Io { action: "write file", path, error }
        })?;
        let seams = finish_cut(&self.disk, &self.layout).await?;
        self.holds.slots.lock().watch(&seams);
        Ok(seams)
    }
}

#[cfg(test)]
#[cfg(not(walhub_loom))]
mod tests;
