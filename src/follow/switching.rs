//! Switches from one timeline to the next, back to none, and from our WAL past a seam to another
//! history's: first the keeper, then the cores.

use super::difference::{SET_ASIDE, tell_resolved};
use super::environment::Environment;
use super::outcome::AttemptFailure;
use super::{Parts, Task};
use crate::data::figures::About;
use crate::data::handoff::ToCore;
use crate::data::receive::NoSwitch;
use crate::keeper::SaveFault;
use crate::store::abandoned::{Abandoned, Holders};
use crate::store::evidence::Evidence;
use crate::store::seams::{Cut, Seam};
use crate::store::switch::Switch;
use crate::upstream::position::Position;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A switch in progress. It is completed even if the attempt that asked for it has been given up.
pub(super) type Switching = Pin<Box<dyn Future<Output = Result<(), SwitchFault>> + Send + Sync>>;

/// Why the hub stays on its timeline.
#[derive(Debug, thiserror::Error)]
#[error("could not continue {on}: {why}")]
pub(super) struct SwitchFault {
    on: String,
    why: Obstacle,
}

/// What stood in the way of a switch.
#[derive(Debug, thiserror::Error)]
enum Obstacle {
    #[error(transparent)]
    Unsaved(SaveFault),
    #[error(transparent)]
    Receiver(NoSwitch),
    #[error("the receiving core has ended")]
    ReceiverGone,
}

impl<E: Environment> Task<E> {
    /// Our timeline has ended, and the next one's history is saved: records the switch, and waits
    /// until standbys can be directed to it. An attempt that is given up in the meantime leaves the
    /// switch in `switching`.
    pub(super) async fn go_on_with(&mut self, plan: Switch) -> Result<(), SwitchFault> {
        self.progress.switches();
        let switching = Box::pin(switch(Arc::clone(&self.parts), plan));
        let switched = self.switching.insert(switching).await;
        self.switching = None;
        switched
    }

    /// Completes a switch of timelines that was already decided.
    pub(super) async fn end_switching(&mut self) {
        if let Some(switching) = self.switching.take() {
            // The attempt that asked for it has been given up.
            drop(switching.await);
        }
    }

    /// Makes ready what [`Task::cut_at`] needs space for. Nothing changes by it.
    pub(super) async fn prepare_cut(&self, cut: Cut) -> Result<(), AttemptFailure> {
        let prepared = self.parts.keeper.prepare_cut(cut).await;
        let what = "could not prepare to go on with another history";
        prepared.map_err(|fault| AttemptFailure::unsaved(&self.parts.hub, what, &fault))
    }

    /// Sets WAL of ours aside, and waits until standbys can be served from what is left. An attempt
    /// that is given up in the meantime leaves this in `switching`.
    pub(super) async fn cut_at(&mut self, cut: Cut) -> Result<(), SwitchFault> {
        self.progress.switches();
        self.cutting = Some(cut);
        let cutting = Box::pin(set_aside(Arc::clone(&self.parts), cut));
        let done = self.switching.insert(cutting).await;
        self.switching = None;
        done
    }

    /// Finishes what [`Task::cut_at`] could not. Once it has been decided nothing is received and
    /// nothing served until this succeeds: what is on disk is not what the hub was serving.
    pub(super) async fn finish_cutting(&mut self) -> Result<(), SwitchFault> {
        let Some(cut) = self.cutting else { return Ok(()) };
        if self.parts.hub.current_cell().is_none() {
            finish_cut(&self.parts, cut, None).await?;
        }
        self.cutting = None;
        Ok(())
    }

    /// Our WAL was moved aside: the hub holds none, and the receive role forgets its position
    /// before it gets another upstream.
    pub(super) async fn begin_anew(&self) {
        let hub = &self.parts.hub;
        hub.set_cells(Vec::new());
        hub.set_position(Position::Empty);
        for core in &self.parts.cores {
            core.insist(ToCore::BeginAnew).await;
        }
    }
}

async fn switch<E: Environment>(parts: Arc<Parts<E>>, plan: Switch) -> Result<(), SwitchFault> {
    let failed = |why| SwitchFault { on: format!("with timeline {}", plan.to), why };
    let left = Seam { tli: plan.from, at: plan.at };
    let holders = holders_past(&parts, left).await;
    let wal = parts.keeper.switch(plan).await;
    let wal = wal.map_err(|fault| failed(Obstacle::Unsaved(fault)))?;
    note_abandoned(&parts, left, wal.abandoned.clone(), holders).await;
    let (told, outcome) = oneshot::channel();
    parts.receiver().insist(ToCore::Switched { wal, told }).await;
    let outcome = outcome.await.map_err(|_| failed(Obstacle::ReceiverGone))?;
    outcome.map_err(|why| failed(Obstacle::Receiver(why)))
}

/// Sets WAL of ours aside. What needs space was made ready. Unless that is decided the hub serves what
/// it has.
async fn set_aside<E: Environment>(parts: Arc<Parts<E>>, cut: Cut) -> Result<(), SwitchFault> {
    let holders = holders_past(&parts, cut.place()).await;
    let decided = parts.keeper.decide_cut(cut).await;
    decided.map_err(|fault| not_cut(cut, Obstacle::Unsaved(fault)))?;
    // From here on a standby that asks for a stream is told that the hub is starting up.
    parts.hub.set_cells(Vec::new());
    finish_cut(&parts, cut, holders).await
}

/// The connected standbys that have been sent WAL past a place; `None` when a core does not say.
async fn holders_past<E: Environment>(parts: &Parts<E>, place: Seam) -> Option<Holders> {
    let (mut standbys, mut sent) = (0, None);
    for core in &parts.cores {
        let mut from = Some(0);
        while let Some(first) = from {
            let figures = core.ask(About::Standbys(first)).await?;
            let past = figures
                .standbys
                .iter()
                .filter(|standby| standby.tli == place.tli && standby.sent > place.at);
            for standby in past {
                standbys += 1;
                sent = sent.max(Some(standby.sent));
            }
            from = figures.next;
        }
    }
    Some(Holders { standbys, sent })
}

/// Says and keeps who had what was abandoned past a place.
async fn note_abandoned<E: Environment>(
    parts: &Parts<E>,
    place: Seam,
    mut abandoned: Abandoned,
    holders: Option<Holders>,
) {
    let news = holders.and_then(|holders| abandoned.note_holders(place.tli, place.at, holders));
    if let Some(Holders { standbys, sent: upto }) = news.and_then(|entry| entry.holders) {
        let upto = upto.map_or_else(String::new, |upto| format!(", up to {upto}"));
        tracing::warn!("connected standbys that had been sent WAL past {place}: {standbys}{upto}");
        if let Err(error) = parts.keeper.save_abandoned(&abandoned).await {
            tracing::error!("after a restart it is not known who had WAL past {place}: {error}");
        }
    }
    parts.hub.course.set_abandoned(abandoned);
}

/// Nobody streams and nobody begins to before what is left is known.
async fn finish_cut<E: Environment>(
    parts: &Parts<E>,
    cut: Cut,
    holders: Option<Holders>,
) -> Result<(), SwitchFault> {
    forget_wal(parts).await;
    let done = parts.keeper.cut(cut).await;
    let (wal, seams) = done.map_err(|fault| not_cut(cut, Obstacle::Unsaved(fault)))?;
    // The cores may have been given files that have moved since.
    forget_wal(parts).await;
    let course = &parts.hub.course;
    course.set_seams(seams);
    // The same is on disk.
    let mut evidence = Evidence::clone(&course.evidence());
    for difference in evidence.remove_past(cut.place()) {
        tell_resolved(&difference, SET_ASIDE);
    }
    course.set_evidence(evidence);
    note_abandoned(parts, cut.place(), wal.abandoned.clone(), holders).await;
    let (told, outcome) = oneshot::channel();
    parts.receiver().insist(ToCore::CutOff { wal, told }).await;
    let outcome = outcome.await.map_err(|_| not_cut(cut, Obstacle::ReceiverGone))?;
    outcome.map_err(|why| not_cut(cut, Obstacle::Receiver(why)))
}

fn not_cut(cut: Cut, why: Obstacle) -> SwitchFault {
    let on = match cut {
        Cut::Past(seam) => format!("with another history from {seam}"),
        Cut::Back(switch) => format!("with timeline {} from {}", switch.from, switch.at),
    };
    SwitchFault { on, why }
}

/// Ends all streams, and waits until each core has forgotten the files that it read.
async fn forget_wal<E: Environment>(parts: &Parts<E>) {
    for core in &parts.cores {
        core.insist(ToCore::BeginAnew).await;
        // Its answer comes after all that was in its queue.
        while core.ask(About::Receiver).await.is_none() {
            tracing::warn!("a data core does not answer; our WAL is set aside when it does");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::keeper_that;
    use crate::data::handoff::mailbox;
    use crate::follow::System;
    use crate::hub::tests::hub;
    use crate::keeper::{Job, JobDone};
    use crate::wal::{Lsn, TimelineId};
    use crate::watermark::Cell;
    use std::io;

    #[test]
    fn what_is_served_stays_when_a_cut_is_not_decided() {
        let hub = Arc::new(hub("15.18"));
        let (tli, at) = (TimelineId::FIRST, Lsn::new(0x500_0000));
        hub.push_cell(Arc::new(Cell::new(tli, at, Lsn::new(0x600_0000))));
        let (receiver, _inbox) = mailbox(1, Arc::new(|| {}));
        let keeper = keeper_that(|job| match job {
            Job::DecideCut(_) => {
                JobDone::Failed { job: job.kind(), error: io::ErrorKind::StorageFull.into() }
            }
            job => panic!("{job:?}"),
        });
        let environment = System { hub: Arc::clone(&hub), receiver };
        let cores = Vec::new();
        let parts = Parts { hub: Arc::clone(&hub), cores, keeper, archive: None, environment };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let refused =
            runtime.block_on(set_aside(Arc::new(parts), Cut::Past(Seam { tli, at }))).unwrap_err();
        assert!(refused.to_string().contains("another history"), "{refused}");
        assert!(hub.current_cell().is_some());
    }
}
