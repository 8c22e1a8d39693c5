//! Switches from one timeline to the next, and back to none: first the keeper, then the cores.

use super::Task;
use crate::control::Shared;
use crate::control::connection::insist;
use crate::data::handoff::ToCore;
use crate::store::switch::Switch;
use crate::upstream::position::Position;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A switch in progress. It is completed even if the attempt that asked for it has been given up.
pub(super) type Switching = Pin<Box<dyn Future<Output = Result<(), String>> + Send + Sync>>;

impl Task {
    /// Our timeline has ended, and the next one's history is saved: records the switch, and waits
    /// until standbys can be directed to it. An attempt that is given up in the meantime leaves the
    /// switch in `switching`.
    pub(super) async fn go_on_with(&mut self, plan: Switch) -> Result<(), String> {
        self.removed = None;
        let switching = Box::pin(switch(Arc::clone(&self.shared), plan));
        let switched = self.switching.insert(switching).await;
        self.switching = None;
        switched
    }

    /// Our WAL was moved aside: the hub holds none, and the receive role forgets its position
    /// before it gets another upstream.
    pub(super) async fn begin_anew(&self) {
        let hub = &self.shared.hub;
        hub.set_cells(Vec::new());
        hub.set_position(Position::Empty);
        for core in 0..self.shared.mailboxes.len() {
            insist(&self.shared, core, ToCore::BeginAnew).await;
        }
    }
}

async fn switch(shared: Arc<Shared>, plan: Switch) -> Result<(), String> {
    let failed =
        |why: &dyn std::fmt::Display| format!("could not go on with timeline {}: {why}", plan.to);
    let wal = shared.keeper.switch(plan).await.map_err(|fault| failed(&fault))?;
    let (told, outcome) = oneshot::channel();
    insist(&shared, 0, ToCore::Switched { wal, told }).await;
    outcome.await.map_err(|_| failed(&"the receiving core has ended"))?.map_err(|why| failed(&why))
}
