//! History files: fetched, compared with ours, saved.

use super::Task;
use super::environment::Environment;
use super::link::Link;
use super::outcome::AttemptFailure;
use super::questions::fetch_history;
use crate::hub::Hub;
use crate::keeper::{KeeperClient, SaveFault};
use crate::upstream::position::Position;
use crate::wal::{Lsn, TimelineId};
use bytes::Bytes;

/// History files fetched below the upstream's timeline: more generations than any
/// cluster has.
const MAX_HISTORIES: u32 = 1024;

/// Makes a history file known, once it is durable.
///
/// # Errors
/// It could not be stored.
pub async fn save<F>(
    hub: &Hub,
    keeper: &KeeperClient<F>,
    tli: TimelineId,
    content: Bytes,
) -> Result<(), UnsavedHistory> {
    let saved = keeper.save_history(tli, content.to_vec()).await;
    saved.map_err(|error| UnsavedHistory { tli, error })?;
    hub.set_history(tli, content);
    Ok(())
}

/// A history file is not on disk.
#[derive(Debug, thiserror::Error)]
#[error("could not save the history of timeline {tli}: {error}")]
pub struct UnsavedHistory {
    tli: TimelineId,
    error: SaveFault,
}

/// Where the ancestors of a timeline of ours ended; `None` when there is no file that says so.
pub(super) fn forks_of(
    hub: &Hub,
    tli: TimelineId,
) -> Result<Option<Vec<(TimelineId, Lsn)>>, String> {
    let history = hub.read_history(tli);
    let history = history.map_err(|fault| format!("history of our timeline {tli}: {fault}"))?;
    Ok(history.map(|history| history.forks()))
}

impl<E: Environment> Task<E> {
    /// The timeline that the hub receives; `None` before the first WAL.
    pub(super) fn own_timeline(&self) -> Option<TimelineId> {
        match self.parts.hub.position() {
            Position::At { tli, .. } => Some(tli),
            Position::Empty => None,
        }
    }

    /// Where the ancestors of our timeline ended; `None` when there is no file that says so.
    pub(super) fn own_forks(&self) -> Result<Option<Vec<(TimelineId, Lsn)>>, String> {
        self.own_timeline().map_or(Ok(None), |tli| forks_of(&self.parts.hub, tli))
    }

    /// Saves the history files up to the timeline that we receive, durably before its WAL: standbys
    /// ask for each of them, ancestor or not. `content` is that of timeline `of`.
    pub(super) async fn save_histories(
        &self,
        link: &mut Link<E::Socket>,
        tli: TimelineId,
        of: TimelineId,
        mut content: Option<Bytes>,
    ) -> Result<(), AttemptFailure> {
        let (hub, keeper) = (&self.parts.hub, &self.parts.keeper);
        let first = tli.raw().saturating_sub(MAX_HISTORIES).max(2);
        for raw in (first..=tli.raw()).rev() {
            let Some(one) = TimelineId::new(raw) else { continue };
            let (known, ours) = (hub.history(one), self.own_timeline());
            // Our own timeline's history came with our WAL. A newer one may be left from an
            // upstream with another history.
            if known.is_some() && ours.is_some_and(|ours| one <= ours) {
                continue;
            }
            let file = if one == of { content.take() } else { fetch_history(link, one).await? };
            let Some(file) = file.filter(|file| known.as_ref() != Some(file)) else { continue };
            save(hub, keeper, one, file).await.map_err(AttemptFailure::other)?;
        }
        Ok(())
    }
}
