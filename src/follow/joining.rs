//! What has to happen before a stream of a server may be asked for: its verdict, comparisons,
//! switches of timelines.

use super::difference::{self, Compared, OTHER_WAL, barred_by};
use super::environment::Environment;
use super::outcome::AttemptFailure;
use super::questions::IdentifiedServer;
use super::{LOG, Task};
use crate::store::evidence::WalSource;
use crate::store::switch::Switch;
use crate::upstream::judge::{Known, Verdict, judge};
use crate::upstream::place::Span;
use crate::upstream::position::Position;
use crate::upstream::state::UpstreamState;
use crate::wal::{Lsn, TimelineId};
use std::sync::Arc;

/// A server may be followed.
pub(super) struct Joining {
    pub(super) tli: TimelineId,
    pub(super) at: StreamStart,
    /// Where the receive role stands.
    pub(super) position: Position,
}

/// Where the stream begins.
pub(super) enum StreamStart {
    At(Lsn),
    /// At the oldest segment there is; the one at `newest` exists.
    Oldest {
        newest: Lsn,
    },
}

impl<E: Environment> Task<E> {
    /// Does what the verdicts about a server ask for, until it may be followed or not.
    pub(super) async fn join(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
    ) -> Result<Joining, AttemptFailure> {
        let mut same = None;
        loop {
            self.settle_difference().await.map_err(AttemptFailure::other)?;
            let known = Known { same, ..self.known(&asked.source).map_err(AttemptFailure::other)? };
            let position = known.position;
            let (tli, at) = match judge(&asked.seen, &known) {
                Verdict::Start { tli, start } => (tli, StreamStart::At(start)),
                Verdict::FindOldest { tli, newest } => (tli, StreamStart::Oldest { newest }),
                Verdict::Not(state) => return Err(AttemptFailure::State(state)),
                Verdict::Switch { next, at } => {
                    self.switch(asked, next, at).await?;
                    continue;
                }
                Verdict::Compare(span) => {
                    let compared = difference::compare(&self.parts, &mut asked.link, span).await?;
                    if let Some(state) = compared.diverged(&self.parts.hub, &asked.source) {
                        return Err(AttemptFailure::State(state));
                    }
                    let why = format!("{} has our WAL there", asked.seen.host);
                    self.agreed(&asked.source, &why).await.map_err(AttemptFailure::other)?;
                    continue;
                }
                Verdict::CompareFork(span) => {
                    self.compare_fork(asked, span).await?;
                    same = Some(span);
                    continue;
                }
            };
            return Ok(Joining { tli, at, position });
        }
    }

    /// What counts when `source` is judged.
    fn known(&self, source: &WalSource) -> Result<Known, String> {
        let hub = &self.parts.hub;
        Ok(Known {
            instance: hub.instance,
            cluster: hub.identity().map(|identity| (identity.system_id, identity.segment_size)),
            position: hub.position(),
            forks: self.own_forks()?,
            differs: barred_by(hub, source),
            same: None,
            oldest: hub.holds.unbroken_from(),
            start_from: self.progress.start_from(),
        })
    }

    /// Checks that the server has our bytes in `span`, before the timeline is left with it. Other
    /// bytes are evidence of another history. Where no difference stands, a server that has
    /// removed that WAL is believed.
    async fn compare_fork(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        span: Span,
    ) -> Result<(), AttemptFailure> {
        let hub = Arc::clone(&self.parts.hub);
        let IdentifiedServer { link, source, .. } = asked;
        let compared = difference::compare(&self.parts, link, span).await?;
        match &compared {
            Compared::Differs(at) => {
                self.keep_difference(source.clone(), *at, OTHER_WAL).await;
            }
            Compared::Unreadable(why) if barred_by(&hub, source).is_none() => {
                let why = format!("timeline {} is not left at {}: {why}", span.tli, span.to);
                return Err(AttemptFailure::other(why));
            }
            Compared::Same | Compared::Unreadable(_) => {}
            Compared::Removed(why) => tracing::warn!(
                target: LOG,
                "WAL before the end of timeline {} at {} is not compared with that of {}: {why}",
                span.tli, span.to, source.name
            ),
        }
        match compared.diverged(&hub, source) {
            Some(state) => Err(AttemptFailure::State(state)),
            None => Ok(()),
        }
    }

    /// Our timeline ended at `at`, and `next` follows: saves the histories, then the switch, and
    /// waits until standbys can be directed to the next timeline.
    async fn switch(
        &mut self,
        asked: &mut IdentifiedServer<E::Socket>,
        next: TimelineId,
        at: Lsn,
    ) -> Result<(), AttemptFailure> {
        let hub = Arc::clone(&self.parts.hub);
        let Position::At { tli: from, .. } = hub.position() else {
            return Err(AttemptFailure::other("no timeline to leave"));
        };
        let (seen, oldest) = (&asked.seen, hub.holds.unbroken_from());
        if at.segment_start(seen.segment_size) < oldest {
            let message = format!(
                "timeline {from} ended there, before the oldest WAL that is still here, {oldest}"
            );
            return Err(AttemptFailure::State(UpstreamState::Gap { at, message }));
        }
        let newest = seen.tli;
        self.save_histories(&mut asked.link, newest, newest, asked.history.clone()).await?;
        let why = match hub.switchpoint(from, next) {
            Ok(Some(fork)) if fork == at => {
                let switch = Switch { from, to: next, at };
                return self.go_on_with(switch).await.map_err(AttemptFailure::other);
            }
            Ok(Some(fork)) => format!(
                "its history of timeline {next} says that timeline {from} ended at {fork}, \
                 that of timeline {newest} says at {at}"
            ),
            Ok(None) => {
                format!("it has no history of timeline {next} that names timeline {from}")
            }
            Err(fault) => format!("its history of timeline {next}: {fault}"),
        };
        let host = asked.seen.host.clone();
        Err(AttemptFailure::State(UpstreamState::Refused { host, why }))
    }
}
