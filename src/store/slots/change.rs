//! Changes that take effect once they are on disk.

use super::name::SlotName;
use super::record::{Cause, SlotRecord};
use crate::wal::Lsn;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What the next generation says that the table does not say yet.
#[derive(Debug, Clone, Default)]
pub enum SlotChange {
    /// Nothing.
    #[default]
    None,
    /// These slots have lost their WAL.
    Lose(Vec<Loss>),
    /// These slots do not exist.
    Forget(Vec<SlotName>),
}

/// A slot that is to lose its WAL.
#[derive(Debug, Clone)]
pub struct Loss {
    /// The slot.
    pub name: SlotName,
    /// Why.
    pub cause: Cause,
    /// The position from which it kept WAL.
    pub kept_from: Option<Lsn>,
    /// Where its user was, which may be further.
    pub(super) restart_lsn: Option<Lsn>,
    /// Whether a session had it when this was decided.
    pub(super) was_used: bool,
    /// Tells the slot from a later one of the same name.
    pub(super) reported: Arc<AtomicU64>,
}

impl Loss {
    /// Did a session have it when this was decided?
    pub fn is_in_use(&self) -> bool {
        self.was_used
    }

    /// Would it be lost by a position on disk that it has left? Then writing the position it has
    /// now may save it.
    pub fn has_moved_on(&self) -> bool {
        self.restart_lsn > self.kept_from
    }
}

impl SlotChange {
    /// The record as the change has it; `None` when there is to be none.
    pub(super) fn apply_to(&self, record: SlotRecord) -> Option<SlotRecord> {
        match self {
            Self::None => Some(record),
            Self::Forget(names) => (!names.contains(&record.name)).then_some(record),
            Self::Lose(losses) => match losses.iter().find(|loss| loss.name == record.name) {
                Some(loss) => {
                    let invalidated = Some(loss.cause);
                    Some(SlotRecord { restart_lsn: None, invalidated, ..record })
                }
                None => Some(record),
            },
        }
    }
}
