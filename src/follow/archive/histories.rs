//! Where the archive's histories lead: whether our timeline has ended in it, and which one follows.

use super::turn::{Advance, ShuttingDown};
use crate::follow::environment::{Archive as _, Environment};
use crate::follow::histories::save;
use crate::follow::{LOG, Task};
use crate::store::switch::Switch;
use crate::timeline::History;
use crate::upstream::follow::{TargetTimeline, target_timeline};
use crate::wal::{Lsn, TimelineId};
use std::sync::Arc;
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
        let mut newer = Vec::new();
        for raw in tli.raw().saturating_add(1).. {
            let Some(next) = TimelineId::new(raw) else { break };
            let content = match hub.history(next) {
                Some(content) => content,
                None => match archive.history(next).await.map_err(|_| ShuttingDown)? {
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
            match History::parse(next, content) {
                Ok(history) => newer.push(history),
                Err(_) => break,
            }
        }
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
        match self.go_on_with(Switch { from, to: next, at }).await {
            Ok(()) => Ok(Advance::Further),
            Err(error) => {
                error!(target: LOG, "{error}");
                Ok(Advance::Stuck)
            }
        }
    }
}
