//! History files that the archive has and no upstream has sent us.

use super::Shared;
use crate::follow::save_history;
use crate::timeline::History;
use crate::wal::TimelineId;
use tracing::{info, warn};

/// Asks the archive for the history of an earlier timeline, and makes it known when it agrees with
/// our own.
pub(super) async fn restore_history(shared: &Shared, tli: TimelineId) {
    let Some(restorer) = &shared.restorer else { return };
    let hub = &shared.hub;
    let content = match restorer.history(tli).await {
        Ok(Ok(Some(content))) => content,
        // The hub is shutting down, or the archive has none.
        Err(_) | Ok(Ok(None)) => return,
        Ok(Err(error)) => return warn!("{error}"),
    };
    let ours = hub.current_cell().and_then(|cell| hub.read_history(cell.tli()).ok().flatten());
    let theirs = History::parse(tli, content.clone()).ok();
    if let (Some(ours), Some(theirs)) = (ours, theirs)
        && ours.contains(tli)
        && !ours.begins_with(&theirs)
    {
        let file = History::file_name(tli);
        return warn!(
            "archive file \"{file}\" differs from the history of timeline {}",
            ours.tli()
        );
    }
    match save_history(hub, &shared.keeper, tli, content).await {
        Ok(()) => info!("restored log file \"{}\" from archive", History::file_name(tli)),
        Err(fault) => warn!("{fault}"),
    }
}
