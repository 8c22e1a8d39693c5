//! Flags about the archive as a source.

use super::values::{Mistake, command, number, time};
use crate::config::RestoreSettings;
use crate::store::retention::Restorable;
use crate::wire::units::TimeUnit;
use clap::Args;
use std::num::NonZeroUsize;

/// More would only make the archive's disk or network wait.
const MAX_JOBS: usize = 64;

/// Where WAL comes from that is neither here nor upstream.
#[derive(Debug, Args)]
pub struct RestoreFlags {
    /// Shell command that fetches file %f of the WAL archive to the path %p; for standbys that
    /// need WAL which has been removed here, and while the upstream is away. Empty for none
    #[arg(long, value_name = "COMMAND", default_value = "", env = "WALHUB_RESTORE_COMMAND")]
    pub restore_command: String,

    /// Restore commands at one time, and segments fetched ahead of need
    #[arg(long, value_name = "N", default_value = "2", env = "WALHUB_RESTORE_JOBS")]
    pub restore_jobs: NonZeroUsize,

    /// Follow a timeline that only the archive names when no upstream has answered for this long.
    /// One that an upstream has named is followed at once
    #[arg(
        long,
        value_name = "TIME",
        default_value = "5min",
        env = "WALHUB_ARCHIVE_TIMELINE_GRACE"
    )]
    pub archive_timeline_grace: String,
}

impl RestoreFlags {
    pub(super) fn restorable(&self) -> Result<Restorable, Mistake> {
        let ahead = |settings: RestoreSettings| settings.jobs.get() as u64;
        Ok(self.resolve()?.map_or(Restorable::No, |set| Restorable::Yes { ahead: ahead(set) }))
    }

    pub(super) fn resolve(&self) -> Result<Option<RestoreSettings>, Mistake> {
        number("restore-jobs", self.restore_jobs.get(), 1..=MAX_JOBS)?;
        let command = command("restore-command", &self.restore_command, &['f', 'p', 'r'])?;
        let (flag, text) = ("archive-timeline-grace", &self.archive_timeline_grace);
        let timeline_grace = time(flag, text, TimeUnit::Millisecond)?;
        let jobs = self.restore_jobs;
        Ok(command.map(|command| RestoreSettings { command, jobs, timeline_grace }))
    }
}
