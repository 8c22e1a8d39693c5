//! The archive as a source of WAL.

use crate::archive::template::Template;
use std::num::NonZeroUsize;
use std::time::Duration;

/// `--restore-command`, `--restore-jobs` and `--archive-timeline-grace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreSettings {
    /// Fetches a file of the archive.
    pub command: Template,
    /// Number of commands running at one time, and of segments fetched ahead of need.
    pub jobs: NonZeroUsize,
    /// How long no upstream answers before a timeline is followed that only the archive names.
    pub timeline_grace: Duration,
}
