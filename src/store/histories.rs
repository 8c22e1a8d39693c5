//! History files, as far as the store reads them.

use super::disk::Disk;
use super::durable::read_small;
use super::fault::{StoreFault, failed};
use super::layout::Layout;
use crate::timeline::History;
use crate::wal::{Fork, TimelineId};

/// Where a timeline left its ancestors; `None` for the first one.
///
/// # Errors
/// Its history file is missing or damaged.
pub(super) async fn read_fork<D: Disk>(
    disk: &D,
    layout: &Layout,
    tli: TimelineId,
) -> Result<Option<Fork>, StoreFault> {
    if tli == TimelineId::FIRST {
        return Ok(None);
    }
    let path = layout.history(tli);
    let detail = |detail: String| StoreFault::History { path: path.clone(), detail };
    let bytes = read_small(disk, &path).await.map_err(failed("read file", &path))?;
    let bytes = bytes.ok_or_else(|| detail("it is not there".to_owned()))?;
    let history = History::parse(tli, bytes.into());
    Ok(history.map_err(|fault| detail(fault.to_string()))?.fork())
}
