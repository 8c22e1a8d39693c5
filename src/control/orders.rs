//! What an operator's order asks of the task that keeps the hub connected.

use crate::hub::course::Upstream;
use std::sync::Arc;
use tokio::sync::oneshot;

/// An order, and who waits for it.
#[derive(Debug)]
pub(super) struct Order {
    /// What to do.
    pub(super) steer: Steer,
    /// Told when it is done, or why it is not. Doing what is done already is no fault.
    pub(super) answer: oneshot::Sender<Result<(), String>>,
}

/// What to do.
#[derive(Debug)]
pub(super) enum Steer {
    /// Follow this upstream; none for the one of `--primary-conninfo`.
    Follow(Option<Arc<Upstream>>),
    /// Receive and acknowledge nothing more.
    Fence,
    /// Receive again, from this upstream if one is named.
    Unfence(Option<Arc<Upstream>>),
}
