//! What the archive has of segments that were mended here after they were archived.
//!
//! The archive's command does not replace a file that has other content, by PostgreSQL's rules. So
//! nothing is archived once more: it is said, and an operator replaces the archive's file.

use super::Scrub;
use super::repair::ArchivedCopy;
use crate::store::layout::ArchiveFile;
use crate::wal::SegmentName;
use tracing::{error, info, warn};

impl Scrub {
    /// A segment was mended.
    pub(super) fn look_at_archived(&self, name: SegmentName) {
        let (file, backlog) = (ArchiveFile::Segment(name), &self.hub.holds.backlog);
        if self.hub.config.archive_command.is_none() {
            return;
        }
        // One that waits is archived as it is now, unless a command may be reading it already.
        if backlog.waits(file) && backlog.next() != Some(file) {
            return;
        }
        let path = self.layout.segment(name);
        let ours = path.display();
        match self.repairer.archived_copy(name) {
            ArchivedCopy::Same => return,
            ArchivedCopy::Differs => error!(
                "the archive has WAL segment {name} as it was before it was mended here: replace \
                 it there by \"{ours}\""
            ),
            ArchivedCopy::Unknown => warn!(
                "WAL segment {name} was mended here after it was archived, and what the archive has \
                 of it may be damaged: compare it with \"{ours}\""
            ),
        }
        self.hub.holds.scrub.is_stale(name);
        self.save();
    }

    /// Forgets those that are right in the archive by now, or gone from here.
    pub(super) fn look_at_stale(&self) {
        let note = self.hub.holds.scrub.note();
        let is_stale = |name: &SegmentName| {
            self.layout.segment(*name).exists()
                && self.repairer.archived_copy(*name) != ArchivedCopy::Same
        };
        let stale: Vec<_> = note.stale().iter().copied().filter(is_stale).collect();
        for name in &stale {
            warn!("WAL segment {name} was archived before it was mended here");
        }
        if self.hub.holds.scrub.retain_stale(|name| stale.contains(&name)) {
            info!("the archive has other WAL segments as they were mended here, or they are gone");
        }
    }
}
