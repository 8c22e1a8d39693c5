//! The clock of retention. The keeper looks after slots and old WAL by itself whenever a
//! segment is complete; this is for what changes without one: standbys that go on or leave,
//! slots that are freed or forgotten, time, the disk, the archive, and who reads segments
//! from it. Whoever loses a slot by that is told here to go.

use super::Shared;
use super::connection::insist;
use crate::data::handoff::ToCore;
use crate::keeper::Job;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the keeper looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Sends the keeper to look, until the task is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut clock = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = clock.tick() => {
                if let Some(cell) = shared.hub.current_cell() {
                    let (tli, newest, now) = (cell.tli(), cell.durable(), SystemTime::now());
                    // A keeper whose queue is full comes to it the next time.
                    shared.keeper.note(Job::Retain { tli, newest, now });
                }
            }
            () = shared.hub.holds.slots.revoked() => end_revoked(&shared).await,
        }
    }
}

/// Whose slot has lost its WAL has to go.
async fn end_revoked(shared: &Shared) {
    let revoked = shared.hub.holds.slots.lock().take_revoked();
    for pid in revoked {
        for core in 0..shared.mailboxes.len() {
            insist(shared, core, ToCore::Terminate { pid }).await;
        }
    }
}
