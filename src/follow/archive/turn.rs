//! What ends the archive's turn, and what came of an advance.

use crate::follow::orders::UpstreamOrder;
use crate::follow::probe::Probe;
use crate::upstream::proof::Proof;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long to wait for a running fetch after an upstream was found.
const PATIENCE: Duration = Duration::from_secs(5);

/// The outcome of an attempt to advance.
pub(super) enum Advance {
    /// The archive has no more, for now.
    Exhausted,
    /// It may have more, but the command is broken, a file cannot be used, or its WAL could not be
    /// taken.
    Stuck,
    /// The next timeline has begun, or something was stored: look again.
    Further,
    /// An upstream could continue, or an operator has an order.
    Over,
}

/// The hub is shutting down.
pub(super) struct ShuttingDown;

/// What ends the archive's turn.
pub(super) struct ArchiveTurn<'a> {
    pub(super) probe: Probe,
    pub(super) orders: &'a mut mpsc::Receiver<UpstreamOrder>,
    /// The order that came.
    pub(super) order: Option<UpstreamOrder>,
    /// What the archive has shown of our WAL in this turn.
    pub(super) shown: Option<Proof>,
}

impl ArchiveTurn<'_> {
    pub(super) fn is_over(&self) -> bool {
        self.probe.has_found() || self.order.is_some() || !self.orders.is_empty()
    }

    /// Completes when the turn is over.
    pub(super) async fn over(&mut self) {
        if self.order.is_some() {
            return;
        }
        tokio::select! {
            biased;
            Some(order) = self.orders.recv() => self.order = Some(order),
            () = self.probe.found() => {}
        }
    }

    /// Completes when the running fetch is no longer worth waiting for: on an order, or some time
    /// after an upstream was found. That upstream may still refuse us, so a fetch deserves a little
    /// patience; a command that hangs does not.
    pub(super) async fn cut_short(&mut self) {
        self.over().await;
        if self.order.is_none() {
            tokio::select! {
                biased;
                Some(order) = self.orders.recv() => self.order = Some(order),
                () = tokio::time::sleep(PATIENCE) => {}
            }
        }
    }
}
