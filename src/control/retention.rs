//! The clock of retention. Segments that are completed look after old WAL by themselves;
//! this is for what changes without them: standbys that go on or leave, slots that are freed
//! or forgotten, time, the disk, the archive, and who reads segments from it.

use super::Shared;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the keeper looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Sends the keeper to look, until the task is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Some(cell) = shared.hub.current_cell() {
            shared.recorder.retain(cell.tli(), cell.durable(), SystemTime::now());
        }
    }
}
