//! Why a walk ended.

use crate::wal::lsn::Lsn;
use crate::wal::page::PageFault;
use std::fmt;

/// The end of a walk. At the end of the newest WAL this is normal: the walk meets space that was
/// never written, or the remains of an older use of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkFault {
    /// Start of the record, or of the page, that does not belong.
    pub at: Lsn,
    /// What is wrong with it.
    pub kind: FaultKind,
}

/// What ended a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// The page's header is not of this stream.
    Page(PageFault),
    /// Shorter than a record header; 0 where nothing was written yet.
    RecordLength {
        /// `xl_tot_len`.
        found: u32,
    },
    /// Longer than any server can read.
    RecordTooLong {
        /// `xl_tot_len`.
        found: u32,
    },
    /// Does not follow the record before it.
    PrevLink {
        /// `xl_prev`.
        found: Lsn,
    },
    /// The bytes are not those that were written.
    Checksum,
    /// The page does not continue the incomplete record.
    NoContrecordFlag,
    /// The page continues a record, but one of another length.
    ContrecordLength {
        /// `xlp_rem_len`.
        found: u32,
        /// Bytes still missing.
        expected: u32,
    },
    /// The page continues a record where a new one is due.
    ContrecordRequested,
    /// Not zeros after an XLOG_SWITCH.
    DataAfterSwitch,
    /// A record of the parent that does not end where the child starts.
    AcrossFork {
        /// Start of the child.
        fork: Lsn,
    },
    /// A record past the switchpoint that is not of the timeline walked.
    OtherBranch {
        /// Start of the timeline walked.
        fork: Lsn,
    },
    /// The bytes would pass the last possible position.
    EndOfNumbers,
}

impl WalkFault {
    /// Whether nothing was written here yet: whether the log ends in zeros, as prepared files do.
    /// Otherwise something else is there: an older use of the file, or damage.
    pub const fn is_unwritten(&self) -> bool {
        matches!(
            self.kind,
            FaultKind::RecordLength { found: 0 } | FaultKind::Page(PageFault::Magic { found: 0 })
        )
    }
}

impl fmt::Display for WalkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at;
        match self.kind {
            FaultKind::Page(fault) => write!(f, "{fault} in WAL page at {at}"),
            FaultKind::RecordLength { found } => {
                write!(f, "invalid record length at {at}: expected at least 24, got {found}")
            }
            FaultKind::RecordTooLong { found } => {
                write!(f, "record length {found} at {at} too long")
            }
            FaultKind::PrevLink { found } => {
                write!(f, "record with incorrect prev-link {found} at {at}")
            }
            FaultKind::Checksum => {
                write!(f, "incorrect resource manager data checksum in record at {at}")
            }
            FaultKind::NoContrecordFlag => write!(f, "there is no contrecord flag at {at}"),
            FaultKind::ContrecordLength { found, expected } => {
                write!(f, "invalid contrecord length {found} (expected {expected}) at {at}")
            }
            FaultKind::ContrecordRequested => write!(f, "contrecord is requested by {at}"),
            FaultKind::DataAfterSwitch => {
                write!(f, "data after the switch record that ends at {at}")
            }
            FaultKind::AcrossFork { fork } => {
                write!(f, "record at {at} reaches beyond the switchpoint {fork}")
            }
            FaultKind::OtherBranch { fork } => {
                write!(f, "record at {at} is not of the timeline that starts at {fork}")
            }
            FaultKind::EndOfNumbers => write!(f, "no WAL locations are left at {at}"),
        }
    }
}

impl std::error::Error for WalkFault {}
