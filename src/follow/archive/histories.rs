//! Where the archive's histories lead: whether our timeline has ended in it, and which one follows.

use super::turn::{Advance, ShuttingDown};
use crate::follow::environment::{Archive as _, Environment};
use crate::follow::heard::ArchiveWord;
use crate::follow::histories::save;
use crate::follow::{LOG, Task};
use crate::store::switch::Switch;
use crate::timeline::History;
use crate::upstream::follow::{TargetTimeline, target_timeline};
use crate::wal::{Lsn, TimelineId};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tracing::{error, info, warn};

impl<E: Environment> Task<E> {
    /// Saves all history files newer than our timeline, and returns where they lead. Returns `None`
    /// when it is unknown whether there is one more: no WAL of our timeline may be taken past its
    /// switchpoint.
    pub(super) async fn survey(
        &mut self,
        archive: &E::Archive,
        tli: TimelineId,
        durable: Lsn,
    ) -> Result<Option<TargetTimeline>, ShuttingDown> {
        let hub = Arc::clone(&self.parts.hub);
        let Some(newer) = self.newer_histories(archive, tli).await? else { return Ok(None) };
        let own = match hub.read_history(tli) {
            Ok(None) => (tli == TimelineId::FIRST).then(History::first),
            Ok(own) => own,
            Err(fault) => {
                if self.told.unread.replace(tli) != Some(tli) {
                    error!(
                        target: LOG,
                        "nothing is taken from the archive while the history of our timeline {tli} \
                         cannot be read: {fault}"
                    );
                }
                return Ok(None);
            }
        };
        self.told.unread = None;
        let target = own.map(|own| target_timeline(&own, &newer, durable));
        let target = target.unwrap_or_default();
        if let Some((branch, at)) = target.passed
            && self.told.passed.replace(branch) != Some(branch)
        {
            warn!(
                target: LOG,
                "timeline {branch} in the archive forked off our timeline at {at}, before our end \
                 at {durable}; it is not followed on the archive's word alone"
            );
        }
        Ok(Some(target))
    }

    /// The histories of the timelines after ours, saved, without those over a switch that was undone.
    /// Returns `None` when it is unknown whether there is one more.
    async fn newer_histories(
        &mut self,
        archive: &E::Archive,
        tli: TimelineId,
    ) -> Result<Option<Vec<History>>, ShuttingDown> {
        let hub = Arc::clone(&self.parts.hub);
        let seams = hub.course.seams();
        let rejected = |history: &History| seams.rejected_in(history);
        let mut newer = Vec::new();
        for raw in tli.raw().saturating_add(1).. {
            let Some(next) = TimelineId::new(raw) else { break };
            let known = hub.history(next);
            // Another timeline may have got the number since.
            let is_undone = |content: &Bytes| {
                History::parse(next, content.clone()).is_ok_and(|known| rejected(&known).is_some())
            };
            let content = match known.clone().filter(|content| !is_undone(content)) {
                Some(content) => content,
                None => match archive.history(next).await.map_err(|_| ShuttingDown)? {
                    Ok(Some(content)) if known.as_ref() == Some(&content) => content,
                    Ok(Some(content)) => {
                        let saved = save(&hub, &self.parts.keeper, next, content.clone()).await;
                        if let Err(fault) = saved {
                            warn!(target: LOG, "{fault}");
                            return Ok(None);
                        }
                        info!(target: LOG, "restored log file \"{}\" from archive", History::file_name(next));
                        content
                    }
                    Ok(None) => break,
                    Err(error) => {
                        if self.told.unread.replace(next) != Some(next) {
                            error!(
                                target: LOG,
                                "nothing is taken from the archive while the history of timeline \
                                 {next} cannot be read: {error}"
                            );
                        }
                        return Ok(None);
                    }
                },
            };
            let Ok(history) = History::parse(next, content) else { break };
            match rejected(&history) {
                None => newer.push(history),
                Some(Switch { from, to, at }) => {
                    if self.told.rejected.replace(next) != Some(next) {
                        warn!(
                            target: LOG,
                            "timeline {next} in the archive is not followed: by walhub ctl the \
                             switch from timeline {from} to {to} at {at} was undone"
                        );
                    }
                }
            }
        }
        Ok(Some(newer))
    }

    /// Does the archive's word count, that `next` follows at the end of our timeline? The archive
    /// may be shared with a copy that was promoted for a test.
    async fn may_believe(&mut self, switch: Switch) -> bool {
        let Switch { from, to: next, at } = switch;
        let settings = self.parts.hub.config.restore.as_ref();
        let grace = settings.map_or(Duration::ZERO, |settings| settings.timeline_grace);
        match self.heard.archive_word((from, at), next, grace) {
            ArchiveWord::Confirmed => true,
            ArchiveWord::Alone(silent) => {
                if let Err(why) = self.take_unagreed(switch).await {
                    error!(target: LOG, "timeline {next} is not followed at {at}: {why}");
                    return false;
                }
                error!(
                    target: LOG,
                    "timeline {next} follows at {at} on the archive's word alone: no upstream has \
                     answered for {} s; until one is followed on it, `walhub ctl accept-history ours \
                     {at}` goes back to timeline {from}",
                    silent.as_secs()
                );
                true
            }
            ArchiveWord::Waits(left) => {
                if self.told.unconfirmed.replace(next) != Some(next) {
                    warn!(
                        target: LOG,
                        "timeline {next} follows at {at} in the archive, and no upstream has named \
                         it: it is followed when one does, or when none answers for {} s more \
                         (--archive-timeline-grace)",
                        left.as_secs()
                    );
                }
                false
            }
        }
    }

    /// Our timeline has ended, all of it is here, and `next` follows.
    pub(super) async fn switch_to(
        &mut self,
        from: TimelineId,
        next: TimelineId,
        at: Lsn,
    ) -> Result<Advance, ShuttingDown> {
        // A history that cannot be read names no fork.
        let fork = self.parts.hub.switchpoint(from, next).unwrap_or_default();
        if fork != Some(at) {
            error!(
                target: LOG,
                "the archive's histories do not agree on where timeline {from} ended: at {at}, and \
                 by that of timeline {next} {}",
                fork.map_or_else(|| "nowhere".to_owned(), |fork| format!("at {fork}"))
            );
            return Ok(Advance::Stuck);
        }
        let switch = Switch { from, to: next, at };
        if !self.may_believe(switch).await {
            return Ok(Advance::Stuck);
        }
        match self.go_on_with(switch).await {
            Ok(()) => Ok(Advance::Further),
            Err(error) => {
                error!(target: LOG, "{error}");
                Ok(Advance::Stuck)
            }
        }
    }
}
