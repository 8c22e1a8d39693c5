//! What a client's message requires besides its answer.

use crate::store::retention::Hold;
use crate::store::slots::SlotName;
use crate::wal::{Lsn, TimelineId};
use crate::watermark::Cell;
use std::sync::Arc;

/// What to do after a message.
#[derive(Debug)]
pub enum Step {
    /// The buffer holds no whole message; read more.
    Read,
    /// Write the answer, then take the next message.
    Answered,
    /// Nothing more to write; stream.
    Stream(Accepted),
    /// A slot task must be done before the answer.
    Slot(SlotTask),
    /// The archive must be asked for this timeline's history before the answer.
    History(TimelineId),
    /// Write the answer, if any, and close.
    Close,
}

/// A START_REPLICATION that goes to a data core.
#[derive(Debug)]
pub struct Accepted {
    /// The timeline's cell.
    pub cell: Arc<Cell>,
    /// The position asked for.
    pub start: Lsn,
    /// It is sent nothing past this before it has said that it is not past it.
    pub seam: Option<Lsn>,
    /// Keeps the WAL from there on.
    pub hold: Hold,
}

/// What must happen before a command about a slot is answered.
#[derive(Debug)]
pub enum SlotTask {
    /// The slot is saved.
    Create {
        /// Its name.
        name: SlotName,
    },
    /// The slot is saved, and then its standby starts.
    CreateThenStart {
        /// Its name.
        name: SlotName,
        /// Where it starts.
        start: Lsn,
        /// On which timeline.
        timeline: Option<TimelineId>,
    },
    /// The slot's file is removed, and then the slot.
    Drop {
        /// Its name.
        name: SlotName,
    },
    /// The slot is no longer in use.
    AwaitFree {
        /// Its name.
        name: String,
    },
}

/// A task that has been carried out, or why it could not be.
#[derive(Debug)]
pub struct SlotDone {
    /// The task.
    pub task: SlotTask,
    /// The outcome.
    pub result: Result<(), String>,
}
