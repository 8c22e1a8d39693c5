//! Operators' orders: another upstream, a fence, the end of a fence, a confirmation, whose history is
//! the true one. They are carried out between two attempts, never during one, and a change is on disk
//! before it takes effect.

use super::environment::Environment;
use super::orders::{Steer, UpstreamOrder};
use super::{LOG, Task};
use crate::data::figures::About;
use crate::data::handoff::ToCore;
use crate::hub::course::Upstream;
use crate::hub::diverged::GONE_AFTER;
use crate::store::abandoned::Abandoned;
use crate::store::course::{FenceNote, UpstreamNote};
use crate::store::seams::Seams;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::position::Position;
use crate::upstream::state::UpstreamState;
use crate::wal::Lsn;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

impl<E: Environment> Task<E> {
    /// Does the order end what is in progress?
    pub(super) fn interrupts(&self, order: &UpstreamOrder) -> bool {
        let course = &self.parts.hub.course;
        let (upstream, _) = course.upstream();
        match &order.steer {
            Steer::Follow(Some(other)) => *other != upstream,
            Steer::Follow(None) => course.flag() != upstream,
            Steer::Fence => course.fence().is_none(),
            Steer::Unfence(other) => {
                course.fence().is_some() || other.as_ref().is_some_and(|other| *other != upstream)
            }
            Steer::ConfirmAbandoned(_) | Steer::ConfirmSeam { .. } => false,
            Steer::AcceptOurs(at) => self.is_cleared_by(*at) || self.unagreed_at(*at).is_some(),
            Steer::AcceptTheirs(at) => self.may_accept_theirs(*at).is_ok(),
        }
    }

    /// Carries out an order. What was in progress may have been given up at any point. Nothing is
    /// received in the meantime.
    pub(super) async fn carry_out(&mut self, order: UpstreamOrder) {
        self.recall().await;
        if self.progress.is_stopped() {
            return;
        }
        self.end_switching().await;
        self.obey(order).await;
    }

    /// Obeys the order if nothing prevents it or if nothing has to change.
    pub(super) async fn obey(&mut self, order: UpstreamOrder) {
        let interrupts = self.interrupts(&order);
        let UpstreamOrder { steer, answer } = order;
        if !matches!(steer, Steer::ConfirmAbandoned(_) | Steer::ConfirmSeam { .. }) {
            self.answer_accepting(Err("another order came after it".to_owned()));
        }
        let result = match steer {
            // It is answered when an upstream has shown its history, or none does.
            Steer::AcceptTheirs(at) => return self.accept_theirs(at, answer),
            Steer::Follow(upstream) => self.follow(upstream).await,
            Steer::Fence => self.fence().await,
            Steer::Unfence(upstream) => self.unfence(upstream).await,
            Steer::ConfirmAbandoned(from) => self.confirm_abandoned(from).await,
            Steer::ConfirmSeam { at, let_in } => self.confirm_seam(at, &let_in).await,
            Steer::AcceptOurs(at) => match self.unagreed_at(at) {
                Some(switch) => self.go_back(switch).await,
                None => self.accept_ours(at).await,
            },
        };
        if let Err(error) = &result {
            // Whoever gave the order is told, too.
            tracing::warn!(target: LOG, "walhub ctl: {error}");
        }
        if interrupts {
            self.begin_course();
        }
        // The caller may have gone.
        drop(answer.send(result));
    }

    /// Ends the core's stream, if there is one. What was in progress may have been given up at any
    /// point. The core knows whether there is a stream, and its answer comes after all its earlier
    /// news.
    async fn recall(&mut self) {
        self.parts.receiver().insist(ToCore::RecallUpstream).await;
        loop {
            match self.ends.recv().await {
                Some(UpstreamEnd::Recalled) => return,
                // The hub is shutting down.
                Some(UpstreamEnd::Stopped) | None => return self.progress.stops(),
                Some(UpstreamEnd::Diverged { at, detail }) => {
                    let source = self.source.clone();
                    self.keep_difference(source, at, None, &detail).await;
                }
                Some(end) => tracing::debug!(target: LOG, "the stream had ended: {end:?}"),
            }
        }
    }

    /// Starts with the upstream and the fence in force.
    pub(super) fn begin_course(&mut self) {
        self.forget_refusals();
        let course = &self.parts.hub.course;
        self.upstream = course.upstream().0;
        self.warned_of_apply = false;
        self.progress.is_steered();
        let state = match course.fence() {
            Some(fence) => UpstreamState::Fenced { tli: fence.tli, at: fence.record_end },
            None => UpstreamState::Connecting,
        };
        let mut news = Vec::new();
        self.supervisor.interrupted(self.upstream.conninfo.hosts.len(), state, &mut news);
        self.tell(news);
    }

    async fn follow(&self, upstream: Option<Arc<Upstream>>) -> Result<(), String> {
        let course = &self.parts.hub.course;
        let flag = course.flag();
        // An order that names the flag's upstream means the flag.
        let upstream = upstream.filter(|upstream| *upstream != flag);
        let note = upstream.as_ref().map(|upstream| UpstreamNote {
            primary_conninfo: upstream.text.clone(),
            instead_of: flag.text.clone(),
        });
        let saved = self.parts.keeper.save_upstream(note).await;
        saved.map_err(|error| format!("could not save the upstream: {error}"))?;
        let shown = upstream.as_ref().unwrap_or(&flag).conninfo.shown();
        tracing::info!(target: LOG, "walhub ctl changed the upstream to \"{shown}\"");
        course.set_upstream(upstream);
        Ok(())
    }

    async fn fence(&self) -> Result<(), String> {
        let hub = &self.parts.hub;
        if hub.course.fence().is_some() {
            return Ok(());
        }
        let Position::At { tli, durable, .. } = hub.position() else {
            return Err("there is no WAL yet that could be fenced".to_owned());
        };
        let figures = self.parts.receiver().ask(About::Receiver).await;
        let figures = figures.and_then(|figures| figures.receiver);
        let figures = figures.filter(|figures| (figures.tli, figures.durable) == (tli, durable));
        let figures = figures.ok_or("the receiving core did not say where its WAL ends")?;
        let since = SystemTime::now();
        let fence = FenceNote { tli, record_end: figures.record_end.min(durable), durable, since };
        let saved = self.parts.keeper.save_fence(Some(fence)).await;
        saved.map_err(|error| format!("could not save the fence: {error}; receiving continues"))?;
        hub.course.set_fence(Some(fence));
        Ok(())
    }

    /// Here, because a switch adds to the same list.
    async fn confirm_abandoned(&self, from: Lsn) -> Result<(), String> {
        let course = &self.parts.hub.course;
        let mut abandoned = Abandoned::clone(&course.abandoned());
        let confirmed = abandoned.confirm(from);
        if confirmed.is_empty() {
            let seam = match course.seams().iter().any(|seam| seam.at == from) {
                true => {
                    format!("; the seam there is another matter: walhub ctl confirm seam {from}")
                }
                false => String::new(),
            };
            return Err(format!("nothing was abandoned at {from} that is not confirmed{seam}"));
        }
        let saved = self.parts.keeper.save_abandoned(&abandoned).await;
        saved.map_err(|error| format!("could not save what was abandoned: {error}"))?;
        course.set_abandoned(abandoned);
        for entry in confirmed {
            tracing::info!(target: LOG, "confirmed, by walhub ctl: {entry}");
        }
        Ok(())
    }

    /// Not while a standby that was refused there still asks: it may have the former WAL, and would
    /// be let in at once.
    async fn confirm_seam(&self, at: Lsn, let_in: &[String]) -> Result<(), String> {
        let hub = &self.parts.hub;
        let course = &hub.course;
        let mut seams = Seams::clone(&course.seams());
        let passed = seams.confirm(at);
        if passed.is_empty() {
            return Err(format!("no seam at {at} is to be confirmed"));
        }
        let (refused, now) = (hub.refused_at_seam(at), Instant::now());
        let asking = refused.still_asking(let_in, now);
        if !asking.is_empty() {
            return Err(format!(
                "standbys that were refused at the seam {at} still ask, and may have the former WAL: {}; \
                 stop them, and say it again {} s after the last of them was seen; one that was made \
                 again can be named: --let-in NAME",
                asking.shown(now),
                GONE_AFTER.as_secs()
            ));
        }
        let saved = self.parts.keeper.save_seams(&seams).await;
        saved.map_err(|error| format!("could not save where other histories go on: {error}"))?;
        course.set_seams(seams);
        let who = match refused.is_empty() {
            true => String::new(),
            false => format!("; refused there were {}", refused.shown(now)),
        };
        for seam in passed {
            tracing::warn!(
                target: LOG,
                "standbys past {seam} are let in again, by walhub ctl: none has the former WAL{who}"
            );
        }
        Ok(())
    }

    async fn unfence(&self, upstream: Option<Arc<Upstream>>) -> Result<(), String> {
        if upstream.is_some() {
            self.follow(upstream).await?;
        }
        let course = &self.parts.hub.course;
        if course.fence().is_some() {
            let saved = self.parts.keeper.save_fence(None).await;
            saved.map_err(|error| format!("could not remove the fence: {error}"))?;
            course.set_fence(None);
            tracing::info!(target: LOG, "unfenced, as requested by walhub ctl");
        }
        Ok(())
    }
}
