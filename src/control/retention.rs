//! The clock of retention. Segments that are completed look after old WAL by themselves;
//! this is for what changes without them: slots that are freed or forgotten, time, the disk,
//! the archive, and who reads segments from it.

use super::Shared;
use crate::store::retention::{ArchiveMode, Restorable};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the keeper looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Sends the keeper to look, until the task is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let policy = &shared.hub.config.retention;
        let ruled = policy.high_watermark.is_some()
            || !policy.wal_keep_time.is_zero()
            || policy.archive_mode == ArchiveMode::Always
            || policy.restorable != Restorable::No;
        if !ruled && shared.hub.holds.slots.lock().is_empty() {
            continue;
        }
        if let Some(cell) = shared.hub.current_cell() {
            shared.recorder.retain(cell.durable(), SystemTime::now());
        }
    }
}
