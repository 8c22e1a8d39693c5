//! What the pages of each timeline have to look like, according to what the hub knows of the
//! cluster and of its histories.

use super::Hub;
use crate::wal::page::PageRules;
use crate::wal::{Ancestor, Fork, TimelineId};
use crate::watermark::CellId;

/// What a page of this timeline has to look like.
///
/// # Errors
/// The cluster or the timeline's history is not known, or the history is damaged.
pub fn page_rules(hub: &Hub, tli: TimelineId) -> Result<PageRules, String> {
    let identity = hub.identity().ok_or("the cluster is not known yet")?;
    let history = hub.read_history(tli);
    let history = history.map_err(|fault| format!("history file of timeline {tli}: {fault}"))?;
    let fork = history.map_or_else(|| inherited_fork(hub, tli), |history| history.fork());
    Ok(PageRules {
        system: identity.system_id,
        size: identity.segment_size,
        tli,
        magic: None,
        fork,
    })
}

/// The rules of cells whose WAL is being read. They are derived once, and again when the hub's
/// cells or histories have changed: parsing a history for each block would cost as much as checking
/// the block.
#[derive(Debug, Default)]
pub struct KnownRules {
    rules: Vec<(CellId, PageRules)>,
    /// The hub's [`Hub::lineage`] when the first of them was derived.
    lineage: u64,
}

/// Why the pages of a cell cannot be checked.
#[derive(Debug)]
pub enum NoRules {
    /// The hub no longer has the cell: its WAL was moved aside.
    NoCell,
    /// The error of [`page_rules`].
    NotKnown {
        /// The cell's timeline.
        tli: TimelineId,
        /// What is missing or damaged.
        error: String,
    },
}

impl KnownRules {
    /// The rules of a cell's pages.
    ///
    /// # Errors
    /// The cell is gone, or its rules are not known.
    pub fn of(&mut self, hub: &Hub, cell: CellId) -> Result<&PageRules, NoRules> {
        let lineage = hub.lineage();
        if lineage != self.lineage {
            self.rules.clear();
            self.lineage = lineage;
        }
        let place = match self.rules.iter().position(|(known, _)| *known == cell) {
            Some(place) => place,
            None => {
                let tli = hub.cell(cell).ok_or(NoRules::NoCell)?.tli();
                let rules =
                    page_rules(hub, tli).map_err(|error| NoRules::NotKnown { tli, error })?;
                self.rules.push((cell, rules));
                self.rules.len() - 1
            }
        };
        Ok(&self.rules[place].1)
    }
}

/// The fork point of an ancestor whose own history file is missing: the current timeline's file
/// names it too.
fn inherited_fork(hub: &Hub, tli: TimelineId) -> Option<Fork> {
    let history = hub.read_history(hub.current_cell()?.tli()).ok()??;
    let place = history.entries().iter().position(|entry| entry.tli == tli)?;
    let before = history.entries().get(..place)?;
    let ancestors = before.iter().map(|entry| Ancestor { tli: entry.tli, end: entry.end });
    Fork::new(&ancestors.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::tests::hub;
    use crate::wal::Lsn;
    use crate::watermark::Cell;
    use bytes::Bytes;
    use std::sync::Arc;

    #[test]
    fn rules_are_derived_anew_when_a_history_or_a_cell_changes() {
        let hub = hub("15.18");
        let tli = TimelineId::new(2).unwrap();
        let cell = Arc::new(Cell::new(tli, Lsn::INVALID, Lsn::INVALID));
        let mut known = KnownRules::default();
        assert!(matches!(known.of(&hub, cell.id()), Err(NoRules::NoCell)));

        hub.push_cell(Arc::clone(&cell));
        let unknown_fork = known.of(&hub, cell.id()).unwrap().clone();
        assert_eq!((unknown_fork.tli, unknown_fork.fork), (tli, None));

        hub.set_history(tli, Bytes::from_static(b"1\t0/5000000\tx\n"));
        let rules = known.of(&hub, cell.id()).unwrap().clone();
        assert_eq!(rules, page_rules(&hub, tli).unwrap());
        assert!(rules.fork.is_some());

        hub.set_history(tli, Bytes::from_static(b"damaged"));
        let fault = known.of(&hub, cell.id()).map(drop).unwrap_err();
        assert!(matches!(fault, NoRules::NotKnown { tli: of, .. } if of == tli), "{fault:?}");

        hub.set_cells(Vec::new());
        assert!(matches!(known.of(&hub, cell.id()), Err(NoRules::NoCell)));
    }
}
