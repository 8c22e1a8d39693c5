//! Why a store cannot be used. The fault is ours or the disk's, never a peer's.

use super::append::is_no_space;
use super::sealed_text::Unreadable;
use crate::wal::walk::WalkFault;
use crate::wal::{Lsn, SystemId};
use std::io;
use std::path::{Path, PathBuf};

/// Where an operator finds the way on.
pub const DAMAGED: &str = "see \"A damaged file\" in docs/operations.md";

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    /// A system call failed.
    #[error("could not {action} \"{}\": {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error message.
        error: io::Error,
    },
    /// A sync failed: what is cached may never have reached the disk.
    #[error("could not fsync \"{}\": {error}", path.display())]
    Sync {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error message.
        error: io::Error,
    },
    /// One of our small files is damaged.
    #[error("file \"{}\" {fault}; {DAMAGED}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Unreadable,
    },
    /// There is WAL, but nothing that says which cluster it belongs to.
    #[error("directory \"{}\" holds WAL segments but no readable walhub.control; {DAMAGED}", path.display())]
    NoControl {
        /// The WAL directory.
        path: PathBuf,
    },
    /// A complete segment's size is not the cluster's segment size.
    #[error("WAL segment \"{}\" has {found} bytes, should be {expected}; {DAMAGED}", path.display())]
    SegmentLength {
        /// The segment.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// `wal_segment_size`.
        expected: u64,
    },
    /// A complete segment's content has changed.
    #[error("WAL segment \"{}\" of system {system} is damaged: {fault}; {DAMAGED}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// The system whose WAL it should be.
        system: SystemId,
        /// What the walk found.
        fault: WalkFault,
    },
    /// The history file of the current timeline is missing or makes no sense.
    #[error("history file \"{}\" is unusable: {detail}; {DAMAGED}", path.display())]
    History {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// What the control file names is missing.
    #[error("control file says WAL begins at {start}, but the oldest segment begins at {oldest}")]
    Elsewhere {
        /// According to the control file.
        start: Lsn,
        /// According to the files on disk.
        oldest: Lsn,
    },
}

impl StoreFault {
    /// Is the disk full?
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { error, .. } if is_no_space(error))
    }
}

impl From<StoreFault> for io::Error {
    /// Keeps a full disk recognizable as one.
    fn from(fault: StoreFault) -> Self {
        match fault {
            StoreFault::Io { error, .. } if is_no_space(&error) => error,
            fault => Self::other(fault.to_string()),
        }
    }
}

/// Adds to a system call's error what was tried.
pub(super) fn failed<'p>(
    action: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> StoreFault + 'p {
    move |error| StoreFault::Io { action, path: path.to_owned(), error }
}
