//! Differences between our WAL and another source's. Where one was found is kept on disk as
//! evidence before anything else is done, and until a source was seen to have our bytes at
//! exactly that place it gives no stream (I13): the first one that has them clears the
//! evidence for all but the source that differed. What is here is served meanwhile.

use super::environment::Environment;
use super::link::{Link, LinkFault, StartReply};
use super::{LOG, Parts, Task};
use crate::hub::Hub;
use crate::store::evidence::Evidence;
use crate::store::retention::Hold;
use crate::upstream::login::start_replication;
use crate::upstream::place::{Place, Span};
use crate::upstream::state::UpstreamState;
use crate::wal::Lsn;
use crate::wire::date::date_millis;
use crate::wire::sqlstate;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite};

/// What the task keeps about standing evidence.
#[derive(Default)]
pub(super) struct Kept {
    /// Keeps the WAL that is to be compared.
    hold: Option<Hold>,
    disk: Disk,
}

/// Is the evidence in its file?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Disk {
    #[default]
    Saved,
    /// It could not be written; this is retried before each attempt.
    Unsaved,
}

impl<E: Environment> Task<E> {
    /// `source` has other bytes than we at `at`. Evidence that bars it already stays: there
    /// may be several such places, and it is not followed before the first was compared. What
    /// was cleared for it gives way.
    pub(super) async fn keep_difference(&mut self, source: &str, at: Lsn, detail: &str) {
        let hub = Arc::clone(&self.parts.hub);
        let (Some(tli), Some(identity)) = (self.own_timeline(), hub.identity()) else { return };
        // If our history cannot be read, the difference is still kept.
        let forks = self.own_forks().unwrap_or_default();
        let place = Place::of(at, tli, forks.as_deref().unwrap_or_default(), identity.segment_size);
        let is_gone = place.is_ours(hub.position(), forks.as_deref()) == Ok(false);
        if barred_by(&hub, source).is_some() || is_gone {
            return;
        }
        let tli = place.tli;
        let (upstream, detail) = (source.to_owned(), detail.to_owned());
        let since = SystemTime::now();
        let evidence = Evidence { tli, at, upstream, since, detail, cleared: false };
        hub.course.set_evidence(Some(Arc::new(evidence)));
        self.kept = Kept { hold: None, disk: Disk::Unsaved };
        tracing::error!(
            target: LOG,
            %at, timeline = %tli, source,
            "evidence of another history: nothing is received before a source has our WAL there"
        );
        if let Err(error) = self.settle_difference().await {
            tracing::error!(target: LOG, "{error}");
        }
    }

    /// Called before an attempt. Drops the evidence when we no longer have WAL at its position.
    /// Otherwise makes sure that it is on disk and that our WAL there is kept.
    pub(super) async fn settle_difference(&mut self) -> Result<(), String> {
        let hub = Arc::clone(&self.parts.hub);
        let Some(evidence) = hub.course.evidence() else { return Ok(()) };
        let place = Place { tli: evidence.tli, at: evidence.at };
        let forks = self.own_forks()?;
        let is_ours = place.is_ours(hub.position(), forks.as_deref());
        if !is_ours.map_err(|unknown| unknown.to_string())? {
            return self.forget_difference("our WAL from there on was set aside").await;
        }
        // For its author alone no WAL is kept: it may never come back.
        if let Some(identity) = hub.identity()
            && !evidence.cleared
            && self.kept.hold.is_none()
        {
            let from = place.span(identity.segment_size, Lsn::MAX).from;
            self.kept.hold = Some(hub.holds.hold_restorable(from));
        }
        if self.kept.disk == Disk::Unsaved {
            let saved = self.parts.keeper.save_evidence(Some(&evidence)).await;
            saved
                .map_err(|error| format!("could not save the evidence of a difference: {error}"))?;
            self.kept.disk = Disk::Saved;
        }
        Ok(())
    }

    /// `source` was seen to have our bytes at the place. Of its own evidence nothing is left;
    /// another's stands against that one alone from now on: our bytes elsewhere are no proof
    /// that it has them.
    pub(super) async fn agreed(&mut self, source: &str, why: &str) -> Result<(), String> {
        match self.parts.hub.course.evidence() {
            Some(evidence) if !evidence.is_of(source) => {
                self.clear_for_others(&evidence, why).await
            }
            _ => self.forget_difference(why).await,
        }
    }

    async fn clear_for_others(&mut self, evidence: &Evidence, why: &str) -> Result<(), String> {
        let cleared = Evidence { cleared: true, ..evidence.clone() };
        self.kept.disk = Disk::Unsaved;
        let saved = self.parts.keeper.save_evidence(Some(&cleared)).await;
        saved.map_err(|error| format!("could not save the evidence of a difference: {error}"))?;
        tracing::warn!(
            target: LOG,
            "the difference at {} on timeline {} stands against {} alone from now on: {why}",
            cleared.at, cleared.tli, cleared.upstream
        );
        self.parts.hub.course.set_evidence(Some(Arc::new(cleared)));
        self.kept = Kept::default();
        Ok(())
    }

    /// The evidence stands no more.
    pub(super) async fn forget_difference(&mut self, why: &str) -> Result<(), String> {
        let course = &self.parts.hub.course;
        let Some(evidence) = course.evidence() else { return Ok(()) };
        // What is on disk is not known if this is given up.
        self.kept.disk = Disk::Unsaved;
        let gone = self.parts.keeper.save_evidence(None).await;
        gone.map_err(|error| format!("could not remove the evidence of a difference: {error}"))?;
        course.set_evidence(None);
        self.kept = Kept::default();
        tracing::warn!(
            target: LOG,
            "the difference at {} on timeline {}, which {} had, stands no more: {why}",
            evidence.at, evidence.tli, evidence.upstream
        );
        Ok(())
    }
}

/// The place where `source` must show our bytes, a host or [`ARCHIVE`].
///
/// [`ARCHIVE`]: crate::store::evidence::ARCHIVE
pub(super) fn barred_by(hub: &Hub, source: &str) -> Option<Place> {
    let evidence = hub.course.evidence().filter(|evidence| evidence.bars(source))?;
    Some(Place { tli: evidence.tli, at: evidence.at })
}

/// Compares the upstream's WAL in `span` with ours. Returns `None` when they are equal.
pub(super) async fn compare<E: Environment>(
    parts: &Parts<E>,
    link: &mut Link<E::Socket>,
    span: Span,
) -> Result<Option<UpstreamState>, LinkFault> {
    let hub = &parts.hub;
    let (Some(evidence), Some(identity)) = (hub.course.evidence(), hub.identity()) else {
        return Ok(None);
    };
    let diverged = |at, detail| Ok(Some(UpstreamState::Diverged { at, detail }));
    let unknown = |why: String| {
        let (upstream, since) = (&evidence.upstream, date_millis(evidence.since));
        let detail = format!("{upstream} had other WAL there at {since}, and {why}");
        diverged(evidence.at, detail)
    };
    let theirs = match fetch(link, span).await {
        Ok(theirs) => theirs,
        Err(LinkFault::Server(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE => {
            return unknown(format!(
                "this upstream cannot show whether it has ours: {}",
                error.message
            ));
        }
        Err(fault) => return Err(fault),
    };
    let ours = match parts.environment.read_own_wal(span, identity.segment_size).await {
        Ok(ours) => ours,
        Err(error) => return unknown(format!("our own cannot be read: {error}")),
    };
    match ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs) {
        None => Ok(None),
        Some(n) => diverged(
            span.from.saturating_add(n as u64),
            "the upstream has other WAL under positions that are stored here".to_owned(),
        ),
    }
}

/// Fetches the upstream's WAL through a stream opened only for that.
async fn fetch<S>(link: &mut Link<S>, span: Span) -> Result<Vec<u8>, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match link.start(&start_replication(None, span.from, span.tli)).await? {
        StartReply::Stream => {}
        StartReply::TimelineEnded { next, at } => {
            return Err(LinkFault::Protocol(format!(
                "timeline {} ended at {at}, before {}, where its history says {next} follows",
                span.tli, span.from
            )));
        }
    }
    let wal = link.wal(span.from, span.to).await?;
    link.end_stream().await?;
    Ok(wal)
}
