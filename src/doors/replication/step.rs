//! What a message of a client asks for beside its answer.

use crate::store::retention::Hold;
use crate::store::slots::SlotName;
use crate::wal::{Lsn, TimelineId};
use crate::watermark::Cell;
use std::sync::Arc;

/// What is to be done after a message.
#[derive(Debug)]
pub enum Step {
    /// The buffer holds no whole message; read more.
    Read,
    /// Write the answer, then take the next message.
    Answered,
    /// Nothing more to write; stream.
    Stream(Accepted),
    /// Something has to happen to a slot before the answer.
    Slot(SlotTask),
    /// The archive has to be asked for this timeline's history before the answer.
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
    /// Keeps the WAL from there on.
    pub hold: Hold,
}

/// What has to happen before a command about a slot is answered.
#[derive(Debug)]
pub enum SlotTask {
    /// The slot is written down.
    Create {
        /// Which.
        name: SlotName,
    },
    /// The slot is written down, and then its standby starts.
    CreateThenStart {
        /// Which.
        name: SlotName,
        /// Where it starts.
        start: Lsn,
        /// On which timeline.
        timeline: Option<TimelineId>,
    },
    /// The slot's file is removed, and then the slot.
    Drop {
        /// Which.
        name: SlotName,
    },
    /// Nobody uses the slot any more.
    AwaitFree {
        /// Which.
        name: String,
    },
}

/// A task that has been carried out, or why it could not be.
#[derive(Debug)]
pub struct SlotDone {
    /// Which.
    pub task: SlotTask,
    /// What came of it.
    pub result: Result<(), String>,
}
