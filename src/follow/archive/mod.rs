//! The archive in place of the upstream: while no upstream streams, the hub continues with what
//! `restore_command` fetches.
//!
//! Histories come first, before each segment, so that a timeline that has ended is not followed
//! past its end. Before WAL is taken, the archive shows that it has our history, as an upstream does
//! (`proof`). A segment is read up to the true end of its WAL, compared with what we have of it,
//! and fed to the receive role as a stream like any other (`feed`). The receive role makes all
//! its own checks. An upstream that was found takes over at a segment boundary.

mod advance;
mod histories;
mod mixture;
mod proof;
mod segments;
mod turn;

use self::turn::{Advance, ArchiveTurn, ShuttingDown};
use super::environment::Environment;
use super::orders::UpstreamOrder;
use super::probe::Probe;
use super::{LOG, Task};
use crate::config::OnGap;
use crate::upstream::position::Position;
use crate::wal::{Lsn, SegmentName, TimelineId};
use std::time::Instant;
use tokio::sync::mpsc;
use tracing::info;

/// Sleeps until `at`, or until there is an order.
async fn sleep(at: Instant, orders: &mut mpsc::Receiver<UpstreamOrder>) -> Option<UpstreamOrder> {
    tokio::select! {
        biased;
        order = orders.recv() => order,
        () = tokio::time::sleep_until(at.into()) => None,
    }
}

impl<E: Environment> Task<E> {
    /// The archive's turn: no upstream is asked before `at`. Returns when an upstream could stream,
    /// or with an order. When the archive cannot be asked, returns at `at`.
    pub(in crate::follow) async fn pause(
        &mut self,
        at: Instant,
        orders: &mut mpsc::Receiver<UpstreamOrder>,
    ) -> Option<UpstreamOrder> {
        let order = self.take_turn(at, orders).await;
        match order {
            Some(_) => self.progress.is_interrupted(),
            None => self.progress.resumes(),
        }
        order
    }

    async fn take_turn(
        &mut self,
        at: Instant,
        orders: &mut mpsc::Receiver<UpstreamOrder>,
    ) -> Option<UpstreamOrder> {
        let Some(archive) = self.parts.archive.clone() else {
            return sleep(at, orders).await;
        };
        if self.parts.hub.position() == Position::Empty {
            if !std::mem::replace(&mut self.told.empty, true) {
                info!(
                    target: LOG,
                    "the directory is empty: the archive is not used until an upstream has said \
                     where WAL begins and to which cluster it belongs"
                );
            }
            return sleep(at, orders).await;
        }
        let pause = self.parts.hub.config.wal_retrieve_retry_interval;
        let probe = Probe::start(&self.parts, &self.upstream, &self.heard);
        let mut turn = ArchiveTurn { probe, orders, order: None, shown: None };
        loop {
            match self.advance(&archive, &mut turn).await {
                Ok(Advance::Further) if turn.order.is_none() => {}
                Ok(Advance::Further | Advance::Over) => break,
                Ok(advance @ (Advance::Exhausted | Advance::Stuck)) => {
                    if matches!(advance, Advance::Exhausted)
                        && self.parts.hub.config.on_gap == OnGap::RestartAtCurrent
                    {
                        // The upstream is asked once more before the hub gives up.
                        let position = self.parts.hub.position();
                        self.progress.exhausts(position);
                        return sleep(at, turn.orders).await;
                    }
                    let mut news = Vec::new();
                    self.supervisor.lasts(Instant::now(), &mut news);
                    self.tell(news);
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep(pause) => {}
                        () = turn.over() => break,
                    }
                }
                Err(ShuttingDown) => {
                    self.progress.stops();
                    return None;
                }
            }
        }
        self.supervisor.forget();
        turn.order
    }

    /// Has the archive nothing more for our position?
    pub(in crate::follow) fn archive_is_exhausted(&self) -> bool {
        self.parts.archive.is_none() || self.progress.is_exhausted(self.parts.hub.position())
    }
}

/// What was said once.
#[derive(Default)]
pub(in crate::follow) struct ArchiveWarnings {
    empty: bool,
    passed: Option<TimelineId>,
    unread: Option<TimelineId>,
    unconfirmed: Option<TimelineId>,
    rejected: Option<TimelineId>,
    ended: Option<(SegmentName, Lsn)>,
    own: Option<Lsn>,
    mixed: Option<Lsn>,
}
