//! What the task tells operators: changes of its state, and what they may not expect of a hub.

use super::environment::Environment;
use super::link::{Link, LinkFault};
use super::questions::show;
use super::{LOG, Task};
use crate::hub::course::Standing;
use crate::keeper::Job;
use crate::upstream::apply::{ReportApply, names_standby};
use crate::upstream::state::UpstreamState;
use crate::upstream::supervise::{GRAVE_AFTER, News};
use std::time::{SystemTime, UNIX_EPOCH};

impl<E: Environment> Task<E> {
    pub(super) fn tell(&self, news: Vec<News>) {
        for item in news {
            match item {
                News::Changed(state) => {
                    if state.is_alarm() {
                        tracing::error!(target: LOG, "{state}");
                    } else if matches!(
                        state,
                        UpstreamState::Streaming { .. }
                            | UpstreamState::Connecting
                            | UpstreamState::Stopped
                    ) {
                        tracing::info!(target: LOG, "{state}");
                    } else {
                        tracing::warn!(target: LOG, "{state}");
                    }
                    self.write_state();
                }
                News::Host(state) => tracing::info!(target: LOG, "{state}"),
                News::Still { state, lasting } => {
                    let minutes = lasting.as_secs() / 60;
                    match lasting < GRAVE_AFTER {
                        true => tracing::warn!(target: LOG, "for {minutes} min, still: {state}"),
                        false => tracing::error!(target: LOG, "for {minutes} min, still: {state}"),
                    }
                }
            }
        }
    }

    /// The state is not decided by an upstream.
    pub(super) fn note(&mut self, state: UpstreamState) {
        let mut news = Vec::new();
        self.supervisor.note(state, &mut news);
        self.tell(news);
    }

    pub(super) fn write_state(&self) {
        let since = SystemTime::now();
        let state = self.supervisor.state().clone();
        self.parts.hub.course.set_standing(Standing { state, since });
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        // A lost write is harmless: only `inspect` reads the file, and the next change writes it
        // again.
        self.parts.keeper.note(Job::SaveState(self.supervisor.state().to_json(since)));
    }

    /// A primary that wants to wait until this hub replays actually waits for something else: logs
    /// once what that is.
    pub(super) async fn warn_of_apply(
        &mut self,
        link: &mut Link<E::Socket>,
    ) -> Result<(), LinkFault> {
        let config = &self.parts.hub.config;
        if self.warned_of_apply || config.feedback.report_apply != ReportApply::Flush {
            return Ok(());
        }
        let names = match show(link, "synchronous_commit").await {
            Ok(level) if level == "remote_apply" => show(link, "synchronous_standby_names").await?,
            // Or it has no such setting, because it is not PostgreSQL.
            Ok(_) | Err(LinkFault::Server(_)) => return Ok(()),
            Err(fault) => return Err(fault),
        };
        let own = self.upstream.conninfo.application_name.as_deref();
        if names_standby(&names, own.unwrap_or(&config.cluster_name)) {
            self.warned_of_apply = true;
            tracing::warn!(
                target: LOG,
                "the upstream waits for this hub with synchronous_commit = remote_apply, and a hub \
                 replays nothing: with --report-apply flush its commits return when they are on \
                 the hub's disk; --report-apply slowest makes them wait for the connected standbys"
            );
        }
        Ok(())
    }
}
