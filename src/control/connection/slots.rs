//! What a client waits for when it creates or drops a slot: the keeper, or another session that
//! still uses the slot.

use super::Client;
use crate::doors::replication::step::{SlotDone, SlotTask};
use crate::standby::answers::MAX_MESSAGE;
use std::io;
use std::pin::pin;

impl Client {
    /// Carries out the task. Returns `None` when the client has gone or the hub is shutting down.
    pub(super) async fn carry_out(&mut self, task: SlotTask) -> io::Result<Option<SlotDone>> {
        let result = match &task {
            SlotTask::Create { name } | SlotTask::CreateThenStart { name, .. } => {
                self.shared.keeper.save_slot(name.clone()).await
            }
            SlotTask::Drop { name } => self.shared.keeper.drop_slot(name.clone()).await,
            SlotTask::AwaitFree { name } => {
                if !self.await_free(name).await? {
                    return Ok(None);
                }
                Ok(())
            }
        };
        Ok(Some(SlotDone { task, result: result.map_err(|fault| fault.to_string()) }))
    }

    /// Waits until the slot is not in use. Returns `false` when the client has gone or must go.
    async fn await_free(&mut self, name: &str) -> io::Result<bool> {
        let shared = self.shared.clone();
        let slots = &shared.hub.holds.slots;
        self.socket.write(&mut self.out).await?;
        loop {
            let mut freed = pin!(slots.freed());
            // From here on it is notified of every slot that is freed.
            freed.as_mut().enable();
            if slots.lock().get(name).is_none_or(|slot| !slot.is_used()) {
                return Ok(true);
            }
            tokio::select! {
                () = freed => {}
                () = shared.stopping() => {
                    self.dismiss();
                    return Ok(false);
                }
                read = self.socket.read(&mut self.unread), if self.unread.len() < MAX_MESSAGE => {
                    if read? == 0 {
                        return Ok(false);
                    }
                }
            }
        }
    }
}
