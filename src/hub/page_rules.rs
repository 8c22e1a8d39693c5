//! What the pages of each timeline have to look like, according to what the hub knows of the
//! cluster and of its histories.

use super::Hub;
use crate::timeline::History;
use crate::wal::page::PageRules;
use crate::wal::{Ancestor, Fork, TimelineId};

/// What a page of this timeline has to look like.
///
/// # Errors
/// The cluster or the timeline's history is not known, or the history is damaged.
pub fn page_rules(hub: &Hub, tli: TimelineId) -> Result<PageRules, String> {
    let identity = hub.identity().ok_or("the cluster is not known yet")?;
    let fork = match hub.history(tli) {
        Some(content) => History::parse(tli, content)
            .map_err(|e| format!("history file of timeline {tli}: {e}"))?
            .fork(),
        None => inherited_fork(hub, tli),
    };
    Ok(PageRules {
        system: identity.system_id,
        size: identity.segment_size,
        tli,
        magic: None,
        fork,
    })
}

/// The fork point of an ancestor whose own history file is missing: the current timeline's file
/// names it too.
fn inherited_fork(hub: &Hub, tli: TimelineId) -> Option<Fork> {
    let current = hub.current_cell()?.tli();
    let history = History::parse(current, hub.history(current)?).ok()?;
    let place = history.entries().iter().position(|entry| entry.tli == tli)?;
    let before = history.entries().get(..place)?;
    let ancestors = before.iter().map(|entry| Ancestor { tli: entry.tli, end: entry.end });
    Fork::new(&ancestors.collect::<Vec<_>>())
}
