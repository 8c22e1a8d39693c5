//! Why a store cannot be used. Ours, or the disk's: never a peer's.

use super::sealed_text::Unreadable;
use crate::wal::walk::WalkFault;
use crate::wal::{Lsn, SystemId};
use std::io;
use std::path::{Path, PathBuf};

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    /// A system call failed.
    #[error("could not {action} \"{}\": {error}", path.display())]
    Io {
        /// The verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// A sync failed: what is cached may never have reached the disk.
    #[error("could not fsync \"{}\": {error}", path.display())]
    Sync {
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// One of our small files is damaged.
    #[error("file \"{}\" {fault}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Unreadable,
    },
    /// There is WAL and nothing that says whose.
    #[error("directory \"{}\" holds WAL segments but no readable walhub.control", path.display())]
    NoControl {
        /// The WAL directory.
        path: PathBuf,
    },
    /// A complete segment has another size than the cluster's.
    #[error("WAL segment \"{}\" has {found} bytes, should be {expected}", path.display())]
    SegmentLength {
        /// The segment.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// `wal_segment_size`.
        expected: u64,
    },
    /// A complete segment's content is not what it was.
    #[error("WAL segment \"{}\" of system {system} is damaged: {fault}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Whose WAL it should be.
        system: SystemId,
        /// What the walk found.
        fault: WalkFault,
    },
    /// The history file of the current timeline is not there, or makes no sense.
    #[error("history file \"{}\" is unusable: {detail}", path.display())]
    History {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// What the control file names is not there.
    #[error("control file says WAL begins at {start}, but the oldest segment begins at {oldest}")]
    Elsewhere {
        /// In the control file.
        start: Lsn,
        /// On disk.
        oldest: Lsn,
    },
}

/// Adds what was tried to a system call's error.
pub(super) fn failed<'p>(
    action: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> StoreFault + 'p {
    move |error| StoreFault::Io { action, path: path.to_owned(), error }
}
