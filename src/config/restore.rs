//! The archive as a source of WAL.

use crate::archive::template::Template;
use std::num::NonZeroUsize;

/// `--restore-command` and `--restore-jobs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreSettings {
    /// Fetches a file of the archive.
    pub command: Template,
    /// Number of commands running at one time, and of segments fetched ahead of need.
    pub jobs: NonZeroUsize,
}
