//! One attempt to archive a file: which steps, in which order, over any disk and with any command.
//! A simulation runs it with commands that are slow, fail and never end.

use crate::archive::shell::CommandOutcome;
use crate::store::archive_status::{Turn, exists, mark_done, turn};
use crate::store::disk::Disk;
use crate::store::layout::{ArchiveFile, Layout, Mark};
use crate::store::retention::Holds;
use std::io;
use std::time::SystemTime;
use tracing::{debug, info, warn};

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempted {
    /// The command has archived the file.
    Archived {
        /// No file waits any more, after some had piled up.
        drained: bool,
    },
    /// There is nothing to do for the file.
    Dropped,
    /// To be repeated soon.
    Failed,
    /// The command itself is broken: to be repeated later.
    Broken,
    /// The hub is stopping.
    Stopped,
}

/// Tries to archive a file of the backlog of `holds`. `command` is awaited only if the file is to
/// be archived; it logs its own failure. `clock` tells the time of day.
pub async fn attempt<D: Disk>(
    disk: &D,
    layout: &Layout,
    holds: &Holds,
    file: ArchiveFile,
    command: impl Future<Output = io::Result<CommandOutcome>>,
    clock: impl Fn() -> SystemTime,
) -> Attempted {
    let backlog = &holds.backlog;
    match turn(disk, layout, file).await {
        Ok(Turn::Due) => {}
        Ok(Turn::Done) => {
            info!("write-ahead log file \"{file}\" is already marked as archived");
            backlog.forget(file);
            return Attempted::Dropped;
        }
        Ok(Turn::Orphan) => {
            warn!("write-ahead log file \"{file}\" was removed before it was archived");
            backlog.forget(file);
            // The file may have appeared between the two checks.
            if exists(disk, &layout.archived(file)).await.is_ok_and(|there| there) {
                backlog.add(file);
            }
            return Attempted::Dropped;
        }
        Err(error) => {
            warn!("could not check write-ahead log file \"{file}\": {error}");
            backlog.failed(file, clock());
            return Attempted::Failed;
        }
    }
    let serial = backlog.serial(file);
    let attempted = match command.await {
        Ok(CommandOutcome::Done) if backlog.serial(file).is_some_and(|now| serial != Some(now)) => {
            warn!(
                "write-ahead log file \"{file}\" was moved away while it was archived, and another has \
                 come under its name: the archive may hold the former, and gets this one next"
            );
            Attempted::Failed
        }
        Ok(CommandOutcome::Done) => {
            debug!("archived write-ahead log file \"{file}\"");
            if let Err(error) = mark_done(disk, layout, file).await {
                // If it is still here at the next start, it is archived once more.
                let path = layout.mark(file, Mark::Done);
                warn!("could not create archive status file \"{}\": {error}", path.display());
            }
            return Attempted::Archived { drained: backlog.archived(file, clock()) };
        }
        Ok(CommandOutcome::Stopped) => return Attempted::Stopped,
        Ok(CommandOutcome::Broken { .. }) => Attempted::Broken,
        Ok(CommandOutcome::Failed { .. }) | Err(_) => Attempted::Failed,
    };
    backlog.failed(file, clock());
    attempted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::directory::Directory;
    use crate::store::disk::run_ready;
    use crate::store::plain_disk::PlainDisk;
    use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};

    /// As after a cut: the command has archived the bytes of another history.
    #[test]
    fn a_file_that_was_replaced_meanwhile_is_not_archived() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(&folder.path().join("hub")).unwrap();
        let layout = directory.layout();
        let size = SegmentSize::new(1 << 20).unwrap();
        let name = SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(9), size };
        let file = ArchiveFile::Segment(name);
        let holds = Holds::new(Lsn::INVALID);
        std::fs::create_dir_all(layout.archive_status()).unwrap();
        std::fs::write(layout.segment(name), "bytes").unwrap();
        std::fs::write(layout.mark(file, Mark::Ready), "").unwrap();
        holds.backlog.add(file);
        let archive = |meanwhile: &dyn Fn()| {
            let command = async {
                meanwhile();
                Ok(CommandOutcome::Done)
            };
            run_ready(attempt(&PlainDisk, layout, &holds, file, command, SystemTime::now)).unwrap()
        };
        let replaced = archive(&|| {
            holds.backlog.replace(std::collections::BTreeSet::new());
            holds.backlog.add(file);
        });
        assert_eq!(replaced, Attempted::Failed);
        assert!(holds.backlog.waits(file) && layout.mark(file, Mark::Ready).exists());
        // A listing that finds it, and one more word of it, are about the same file.
        let archived = archive(&|| {
            holds.backlog.replace([file].into());
            holds.backlog.add(file);
        });
        assert_eq!(archived, Attempted::Archived { drained: false });
        assert!(!holds.backlog.waits(file) && layout.mark(file, Mark::Done).exists());
    }
}
