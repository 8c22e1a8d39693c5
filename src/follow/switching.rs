//! Switches from one timeline to the next, and back to none: first the keeper, then the cores.

use super::environment::Environment;
use super::{Parts, Task};
use crate::data::handoff::ToCore;
use crate::data::receive::NoSwitch;
use crate::keeper::SaveFault;
use crate::store::switch::Switch;
use crate::upstream::position::Position;
use crate::wal::TimelineId;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A switch in progress. It is completed even if the attempt that asked for it has been given up.
pub(super) type Switching = Pin<Box<dyn Future<Output = Result<(), SwitchFault>> + Send + Sync>>;

/// Why the hub stays on its timeline.
#[derive(Debug, thiserror::Error)]
#[error("could not continue with timeline {to}: {why}")]
pub(super) struct SwitchFault {
    to: TimelineId,
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
    let failed = |why| SwitchFault { to: plan.to, why };
    let wal = parts.keeper.switch(plan).await;
    let wal = wal.map_err(|fault| failed(Obstacle::Unsaved(fault)))?;
    parts.hub.course.set_abandoned(wal.abandoned.clone());
    let (told, outcome) = oneshot::channel();
    parts.receiver().insist(ToCore::Switched { wal, told }).await;
    let outcome = outcome.await.map_err(|_| failed(Obstacle::ReceiverGone))?;
    outcome.map_err(|why| failed(Obstacle::Receiver(why)))
}
