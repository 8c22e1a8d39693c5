//! The control file: what cluster the directory holds, and what timeline it is on.

use super::job::{JobDone, JobKind};
use super::work::Keeper;
use crate::store::RecoveredWal;
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::disk::Disk;
use crate::store::recover::examine;
use crate::store::switch::{Switch, decide, read_cluster};
use crate::wal::{Lsn, TimelineId};
use std::io;

impl<D: Disk> Keeper<D> {
    /// The three steps of a switch, then an examination of the directory as at a start. What the
    /// steps change is read again here too.
    pub(super) async fn switch(&self, plan: Switch) -> io::Result<JobDone<D::File>> {
        // An earlier switch that was decided and failed later has pulled the slots back already,
        // but only to its own switchpoint, and users may have advanced since.
        let decided = self.end_of(plan.from).unwrap_or(plan.at);
        self.pull_slots_back(decided).await?;
        let cluster = decide(&self.disk, &self.layout, plan).await?;
        self.cluster.replace(Some(cluster));
        let wal = self.look_again().await?;
        // Users may have advanced in the meantime.
        self.pull_slots_back(decided).await?;
        self.look_up_archive_status().await;
        Ok(JobDone::Switched(wal))
    }

    /// Examines the directory as at a start, after files have moved.
    pub(super) async fn look_again(&self) -> io::Result<Box<RecoveredWal>> {
        let recovered = examine(&self.disk, &self.layout).await?;
        let wal = recovered.wal.ok_or_else(|| io::Error::other("the control file has gone"))?;
        // Where our WAL begins may have changed.
        self.cluster.replace(recovered.control.and_then(|control| control.cluster));
        self.complete.replace(&recovered.listing, wal.complete);
        self.partials.replace(recovered.listing.partials.iter().copied().collect());
        self.past_hole.borrow_mut().clear();
        self.walk_start.set(None);
        // A cut may have taken some.
        self.digests.removed.take();
        Ok(Box::new(wal))
    }

    /// Where a timeline ended, if it has.
    fn end_of(&self, tli: TimelineId) -> Option<Lsn> {
        let cluster = self.cluster.borrow();
        let sealed = cluster.as_ref()?.sealed.iter().find(|sealed| sealed.tli == tli)?;
        Some(sealed.end)
    }

    /// Limits a durable mark to the end of its timeline, which may have ended since it was read, and
    /// to where our WAL may have been cut off.
    pub(super) fn within(&self, tli: TimelineId, durable: Lsn) -> Lsn {
        let durable = self.cut_off.get().map_or(durable, |end| end.min(durable));
        self.end_of(tli).map_or(durable, |end| end.min(durable))
    }

    /// Nothing else in the control file changes: [`decide`] alone decides which timeline the
    /// directory is on.
    pub(super) async fn save_identity(
        &self,
        data_directory_mode: String,
        parameters: Vec<(String, String)>,
    ) -> io::Result<JobDone<D::File>> {
        let found = read_cluster(&self.disk, &self.layout).await?;
        let (control, cluster) = found.ok_or(io::ErrorKind::NotFound)?;
        let cluster = Cluster { data_directory_mode, parameters, ..cluster };
        let control = ControlFile { cluster: Some(cluster.clone()), ..control };
        self.replace_making_room(&self.layout.control(), control.encode()).await?;
        self.cluster.replace(Some(cluster));
        Ok(JobDone::Done(JobKind::SaveIdentity))
    }

    pub(super) async fn save_control(&self, control: &ControlFile) -> io::Result<JobDone<D::File>> {
        self.replace_making_room(&self.layout.control(), control.encode()).await?;
        if let Some(cluster) = &control.cluster {
            self.size.set(Some(cluster.segment_size));
            self.holds.begin(cluster.start);
        }
        self.cluster.replace(control.cluster.clone());
        Ok(JobDone::Done(JobKind::SaveControl))
    }

    /// Where the directory's WAL of the current timeline begins.
    pub(super) fn cluster_start(&self) -> Option<Lsn> {
        self.cluster.borrow().as_ref().map(|cluster| cluster.start)
    }
}

#[cfg(test)]
mod tests;
