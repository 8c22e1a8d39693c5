//! The clock of retention. The keeper checks slots and old WAL itself whenever a segment is
//! complete. This clock covers what changes without one: standbys that advance or leave, slots that
//! are freed or expire, time, the disk, the archive, and readers of its segments. It also ends the
//! streams whose slot has lost its WAL.

use super::Shared;
use crate::data::handoff::ToCore;
use crate::keeper::Job;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// How often the keeper checks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Has the keeper check, until the task is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    // Standbys that come back right after a start hold their WAL again before the first look.
    let mut clock = interval_at(Instant::now() + INTERVAL, INTERVAL);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = clock.tick() => {
                if let Some(cell) = shared.hub.current_cell() {
                    let (tli, newest) = (cell.tli(), cell.durable());
                    // If the keeper's queue is full, it checks the next time.
                    shared.keeper.note(Job::Retain { tli, newest });
                }
            }
            () = shared.hub.holds.slots.revoked() => end_revoked(&shared).await,
        }
    }
}

/// Ends the streams whose slot has lost its WAL.
async fn end_revoked(shared: &Shared) {
    let revoked = shared.hub.holds.slots.lock().take_revoked();
    for slot in revoked {
        for core in &shared.mailboxes {
            core.insist(ToCore::Terminate { slot }).await;
        }
    }
}
