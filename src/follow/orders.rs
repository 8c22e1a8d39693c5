//! Operators' orders to the task that keeps the hub connected.

use crate::hub::course::Upstream;
use crate::wal::Lsn;
use std::sync::Arc;
use tokio::sync::oneshot;

/// An order, and the way to answer it.
#[derive(Debug)]
pub struct UpstreamOrder {
    /// What to do.
    pub steer: Steer,
    /// Signalled when it is done, or with the reason why it is not. An order that changes nothing
    /// is not an error, unless it is about something that is not there.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// What to do.
#[derive(Debug)]
pub enum Steer {
    /// Follow this upstream; `None` means that of `--primary-conninfo`.
    Follow(Option<Arc<Upstream>>),
    /// Receive and acknowledge nothing more.
    Fence,
    /// Receive again, from this upstream if one is named.
    Unfence(Option<Arc<Upstream>>),
    /// It is known what was abandoned at this position.
    ConfirmAbandoned(Lsn),
    /// No standby has the former WAL past a seam any more.
    ConfirmSeam {
        /// The seam.
        at: Lsn,
        /// The names of standbys that are refused there and do not have it.
        let_in: Vec<String>,
    },
    /// Ours is the true history where a difference was found.
    AcceptOurs(Lsn),
    /// The upstream's is the true history there.
    AcceptTheirs(Lsn),
}
