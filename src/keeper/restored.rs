//! Segments that came back from the archive for standbys: kept as long as somebody reads
//! near them. Retention's horizon is past them for good, so they are no part of its plan.

use super::work::{Keeper, Tended, failed_sync};
use crate::store::disk::Disk;
use crate::store::retention::Restorable;
use crate::wal::{SegmentNo, SegmentSize, TimelineId};
use std::collections::BTreeSet;
use std::io;

/// The restored segments on disk, by the timeline in their names.
#[derive(Debug, Default)]
pub(super) struct Restored {
    files: BTreeSet<(TimelineId, SegmentNo)>,
    /// Nobody needs these any more.
    going: BTreeSet<(TimelineId, SegmentNo)>,
}

impl<D: Disk> Keeper<D> {
    /// Gives a restored segment its name and opens it. One that has its name already is
    /// only opened: somebody was faster.
    pub(super) async fn adopt(&mut self, named: TimelineId, no: SegmentNo) -> io::Result<D::File> {
        let name = self.name(named, no)?;
        let from = self.layout.restoring(&name.to_string());
        match self.disk.rename(&from, &self.layout.segment(name)).await {
            Ok(()) => {
                self.restored.going.remove(&(named, no));
                self.restored.files.insert((named, no));
                self.disk.sync_dir(self.layout.wal()).await.map_err(failed_sync)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.open(named, no).await
    }

    /// Marks what nobody reads and nobody is about to read.
    pub(super) fn look_at_restored(&mut self, size: SegmentSize) {
        if self.restored.files.is_empty() {
            return;
        }
        let ahead = match self.policy.restorable {
            Restorable::No => 0,
            // One more: a reader opens the next file before it is through with its own.
            Restorable::Yes { ahead } => ahead.saturating_add(1),
        };
        let readers: Vec<_> =
            self.holds.positions().into_iter().map(|at| at.segment(size).raw()).collect();
        let wanted = |no: SegmentNo| {
            readers
                .iter()
                .any(|reader| (*reader..=reader.saturating_add(ahead)).contains(&no.raw()))
        };
        let going = self.restored.files.extract_if(.., |(_, no)| !wanted(*no));
        self.restored.going.extend(going);
    }

    /// Removes one segment that was marked. Who has it open can read it to its end.
    pub(super) async fn remove_restored(&mut self) -> io::Result<Tended> {
        let Some((tli, no)) = self.restored.going.pop_first() else { return Ok(Tended::Idle) };
        // Recovery, or a switch, may count it among the others by now.
        if self.complete.iter().any(|range| {
            range.tli == tli && (range.oldest..=range.newest).contains(&no) && no >= self.horizon
        }) {
            return Ok(Tended::More);
        }
        let path = self.layout.segment(self.name(tli, no)?);
        self.unsynced_names = true;
        match self.disk.unlink(&path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Tended::More),
            other => other.map(|()| Tended::More),
        }
    }
}
