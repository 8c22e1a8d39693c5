//! Differences between our WAL and another source's. Where one was found is kept on disk as
//! evidence before anything else is done, and until a source was seen to have our bytes at
//! exactly that place it gives no stream (I13): the first one that has them clears the
//! evidence for all but the source that differed. What is here is served meanwhile.

use super::environment::Environment;
use super::link::{Link, LinkFault, StartReply};
use super::{LOG, Parts, Task};
use crate::archive::check::{self, ReadAt};
use crate::hub::Hub;
use crate::store::evidence::{
    Agreement, Difference, Evidence, Lesson, MOST_BYTES, PlaceBytes, WalSource,
};
use crate::store::holes::Hole;
use crate::store::retention::Hold;
use crate::upstream::login::start_replication;
use crate::upstream::place::{Holding, Place, Span};
use crate::upstream::position::Position;
use crate::upstream::state::UpstreamState;
use crate::wal::{Lsn, SegmentName, SegmentSize, TimelineId};
use crate::wire::date::date_millis;
use crate::wire::sqlstate;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite};

/// What the task keeps about standing evidence.
#[derive(Default)]
pub(super) struct Kept {
    /// Keeps the WAL that is to be compared.
    hold: Option<Hold>,
    disk: Disk,
    /// The place where ours is lost of which the log has told.
    told_lost: Option<Place>,
}

/// Is the evidence in its file?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Disk {
    #[default]
    Saved,
    /// It could not be written; this is retried before each attempt.
    Unsaved,
}

/// The hole that keeps our WAL at `place` from being used, if there is one.
pub(super) fn hole_before(hub: &Hub, place: Place) -> Option<Hole> {
    let hole = hub.holds.hole_before_open()?;
    (hole.tli == place.tli && hole.start() <= place.at).then_some(hole)
}

fn cannot_be_compared(difference: &Difference, hole: Hole) -> String {
    let (source, at) = (&difference.source.name, difference.at);
    format!(
        "{source} had other WAL at {at}, where ours lies past missing segments ({hole}): nothing \
         is received before they are back"
    )
}

impl<E: Environment> Task<E> {
    /// `source` has other bytes than we at `at`; `bytes` if they are known. Evidence that bars it already stays: there
    /// may be several such places, and it is not followed before the first was compared.
    pub(super) async fn keep_difference(
        &mut self,
        source: WalSource,
        at: Lsn,
        bytes: Option<PlaceBytes>,
        detail: &str,
    ) {
        let hub = Arc::clone(&self.parts.hub);
        let (Some(tli), Some(identity)) = (self.own_timeline(), hub.identity()) else { return };
        // If our history cannot be read, the difference is still kept.
        let forks = self.own_forks().unwrap_or_default();
        let place = Place::of(at, tli, forks.as_deref().unwrap_or_default(), identity.segment_size);
        // With no WAL of ours there, nothing differs: what it was about was set aside meanwhile, or
        // never became durable.
        let holding = place.holding(hub.position(), forks.as_deref());
        let has_none = matches!(holding, Ok(Holding::SetAside | Holding::Lost { .. }));
        if barred_by(&hub, &source).is_some() || has_none {
            return;
        }
        let (tli, since, detail) = (place.tli, SystemTime::now(), detail.to_owned());
        tracing::error!(
            target: LOG,
            %at, timeline = %tli, source = source.name,
            "evidence of another history: nothing is received before a source has our WAL there"
        );
        let mut evidence = Evidence::clone(&hub.course.evidence());
        let cleared = false;
        let lost = evidence.add(Difference { tli, at, source, since, detail, bytes, cleared });
        if let Some(Difference { source, at, tli, .. }) = lost {
            tracing::error!(
                target: LOG,
                "too many sources have other WAL: the difference of {} at {at} on timeline {tli} \
                 is no longer kept",
                source.name
            );
        }
        hub.course.set_evidence(evidence);
        self.kept = Kept { disk: Disk::Unsaved, ..Kept::default() };
        if let Err(error) = self.settle_difference().await {
            tracing::error!(target: LOG, "{error}");
        }
    }

    /// Called before an attempt. Drops evidence when a step has set our WAL at its position aside.
    /// What lies past a hole is still here, and what was lost may be what standbys have. Otherwise
    /// makes sure that it is on disk and that our WAL there is kept.
    pub(super) async fn settle_difference(&mut self) -> Result<(), String> {
        let hub = Arc::clone(&self.parts.hub);
        let evidence = hub.course.evidence();
        if evidence.is_empty() {
            self.kept.hold = None;
            return Ok(());
        }
        let (position, forks) = (hub.position(), self.own_forks()?);
        let mut gone = Vec::new();
        for difference in evidence.iter() {
            let place = place_of(difference);
            let holding = place.holding(position, forks.as_deref());
            match holding.map_err(|unknown| unknown.to_string())? {
                Holding::Held => {}
                Holding::SetAside => gone.push(difference),
                // It bars its source alone.
                Holding::Lost { .. } if difference.cleared => {}
                Holding::Lost { end } => match hole_before(&hub, place) {
                    Some(hole) => return Err(cannot_be_compared(difference, hole)),
                    None => self.tell_lost(difference, end),
                },
            }
        }
        if !gone.is_empty() {
            let mut rest = Evidence::clone(&evidence);
            let gone = rest.remove(|difference| gone.contains(&difference));
            self.change_evidence(rest).await?;
            for difference in gone {
                tell_resolved(&difference, SET_ASIDE);
            }
            return Ok(());
        }
        // For a cleared difference no WAL is kept: its source may never come back.
        if let (Some(identity), Position::At { durable, .. }) = (hub.identity(), position)
            && self.kept.hold.is_none()
            && let Some(standing) = evidence.iter().find(|difference| !difference.cleared)
        {
            let place = Place { at: standing.at.min(durable), tli: standing.tli };
            let from = place.span(identity.segment_size, Lsn::MAX).from;
            self.kept.hold = Some(hub.holds.hold_restorable(from));
        }
        if self.kept.disk == Disk::Unsaved {
            self.save_evidence(&evidence).await?;
            self.kept.disk = Disk::Saved;
        }
        Ok(())
    }

    /// Says once that our WAL at a place is lost, and that it ends at `end`.
    fn tell_lost(&mut self, difference: &Difference, end: Lsn) {
        let (place, name) = (place_of(difference), &difference.source.name);
        if self.kept.told_lost.replace(place) != Some(place) {
            tracing::error!(
                target: LOG,
                "this hub's WAL ends at {end} now, before the difference at {} on timeline {}, which \
                 {name} had: what this hub had from there on was lost, standbys may have it, and \
                 nothing is received before a source shows it there (`walhub ctl accept-history`)",
                place.at, place.tli
            );
        }
    }

    /// `source` was seen to have our bytes at the place of the difference that bars it. If that was
    /// its own, nothing is left of it; another's stands against that one alone from now on: our
    /// bytes elsewhere are no proof that it has them.
    pub(super) async fn agreed(&mut self, source: &WalSource, why: &str) -> Result<(), String> {
        let mut evidence = Evidence::clone(&self.parts.hub.course.evidence());
        let Some((difference, agreement)) = evidence.agree(source) else { return Ok(()) };
        self.change_evidence(evidence).await?;
        match agreement {
            Agreement::Resolved => tell_resolved(&difference, why),
            Agreement::Cleared => tracing::warn!(
                target: LOG,
                "the difference at {} on timeline {} stands against {} alone from now on: {why}",
                difference.at, difference.tli, difference.source.name
            ),
        }
        Ok(())
    }

    /// `source` was compared at the place of the difference that bars it, and is no source of our WAL.
    /// Returns what it shows there, when the difference is its own.
    pub(super) async fn learn(
        &mut self,
        source: &WalSource,
        bytes: &PlaceBytes,
    ) -> Result<Option<Lesson>, String> {
        let before = self.parts.hub.course.evidence();
        let mut evidence = Evidence::clone(&before);
        let lesson = evidence.learn(source, bytes, SystemTime::now());
        if evidence == *before {
            return Ok(lesson);
        }
        if lesson == Some(Lesson::Changed)
            && let Some(difference) = before.against(source)
        {
            tracing::error!(
                target: LOG,
                "{} has other WAL at {} than it had at {}: its history is another one now, and \
                 still not this hub's",
                source.name, difference.at, date_millis(difference.since)
            );
        }
        self.save_evidence(&evidence).await?;
        self.parts.hub.course.set_evidence(evidence);
        Ok(lesson)
    }

    /// Something was resolved or cleared: that is on disk before it counts.
    pub(super) async fn change_evidence(&mut self, evidence: Evidence) -> Result<(), String> {
        // What is on disk is not known if this is given up.
        self.kept.disk = Disk::Unsaved;
        self.save_evidence(&evidence).await?;
        self.parts.hub.course.set_evidence(evidence);
        self.kept = Kept::default();
        Ok(())
    }

    async fn save_evidence(&self, evidence: &Evidence) -> Result<(), String> {
        let saved = self.parts.keeper.save_evidence(evidence).await;
        saved.map_err(|error| format!("could not save the evidence of a difference: {error}"))
    }
}

/// Why evidence ends with the WAL that it is about.
pub(super) const SET_ASIDE: &str = "our WAL from there on was set aside";

pub(super) fn tell_resolved(difference: &Difference, why: &str) {
    tracing::warn!(
        target: LOG,
        "the difference at {} on timeline {}, which {} had, stands no more: {why}",
        difference.at, difference.tli, difference.source.name
    );
}

pub(super) fn place_of(difference: &Difference) -> Place {
    Place { tli: difference.tli, at: difference.at }
}

/// The place where `source` must show our bytes.
pub(super) fn barred_by(hub: &Hub, source: &WalSource) -> Option<Place> {
    hub.course.evidence().against(source).map(place_of)
}

/// How a source's WAL differs from ours.
pub(super) struct Differing {
    /// The first position at which it does.
    pub(super) first: Lsn,
    /// What both have from the place on that was asked about, or from `first` on.
    pub(super) bytes: PlaceBytes,
}

impl Differing {
    /// The same of files of a segment, whose WAL ends at `upto`; `place` lies before that.
    pub(super) fn of_files(
        (theirs, ours): (&impl ReadAt, &impl ReadAt),
        name: SegmentName,
        (first, place): (Lsn, Lsn),
        upto: Lsn,
    ) -> io::Result<Self> {
        let to = place.saturating_add(MOST_BYTES as u64).min(upto).min(name.no.end(name.size));
        let ours = check::read_from(ours, name, place, to)?;
        let theirs = check::read_from(theirs, name, place, to)?;
        Ok(Self { first, bytes: PlaceBytes { ours, theirs } })
    }
}

/// What came of a comparison.
pub(super) enum Compared {
    /// The upstream has our bytes.
    Same,
    /// It has others.
    Differs(Differing),
    /// It has removed its WAL.
    Removed(String),
    /// Ours cannot be read.
    Unreadable(String),
}

impl Compared {
    pub(super) fn unreadable(error: &io::Error) -> Self {
        Self::Unreadable(format!("our own cannot be read: {error}"))
    }

    /// The upstream that this came of was barred by a difference, or is to be now; `None` when it
    /// has our bytes.
    pub(super) fn diverged(self, hub: &Hub, source: &WalSource) -> Option<UpstreamState> {
        match self {
            Self::Same => None,
            Self::Differs(Differing { first: at, .. }) => {
                Some(UpstreamState::Diverged { at, detail: OTHER_WAL.to_owned() })
            }
            Self::Removed(why) | Self::Unreadable(why) => {
                let evidence = hub.course.evidence();
                let difference = evidence.against(source)?;
                let (author, since) = (&difference.source.name, date_millis(difference.since));
                let detail = format!("{author} had other WAL there at {since}, and {why}");
                Some(UpstreamState::Diverged { at: difference.at, detail })
            }
        }
    }
}

/// The state of an upstream that does not show at the place of `difference` what was noted of ours.
pub(super) fn lost_and_not_shown(difference: &Difference) -> UpstreamState {
    let Difference { at, source, since, .. } = difference;
    let why = match difference.noted() {
        Some(_) => "this upstream does not have what was noted of it",
        None => "what it was is not known, so no upstream can show it",
    };
    let (source, since) = (&source.name, date_millis(*since));
    let detail =
        format!("{source} had other WAL there at {since}, this hub's own there is lost, and {why}");
    UpstreamState::Diverged { at: *at, detail }
}

/// What is said of an upstream that differs.
pub(super) const OTHER_WAL: &str =
    "the upstream has other WAL under positions that are stored here";

/// Compares the upstream's WAL in `span`, which holds the place `at`, with ours. Its own timeline is
/// `theirs`: the span may be in a file of ours of a later one.
pub(super) async fn compare<E: Environment>(
    parts: &Arc<Parts<E>>,
    link: &mut Link<E::Socket>,
    (span, at): (Span, Lsn),
    theirs: TimelineId,
) -> Result<Compared, LinkFault> {
    let Some(identity) = parts.hub.identity() else {
        return Ok(Compared::Unreadable("our own is of no cluster".to_owned()));
    };
    let theirs = match fetch_unless_removed(link, span, theirs).await? {
        Ok(theirs) => theirs,
        Err(removed) => return Ok(removed),
    };
    let (reader, size) = (Arc::clone(parts), identity.segment_size);
    let reading = parts.environment.blocking(move || read_own(&reader.environment, span, size));
    let ours = match reading.await.flatten() {
        Ok(ours) => ours,
        Err(error) => return Ok(Compared::unreadable(&error)),
    };
    Ok(match ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs) {
        None => Compared::Same,
        Some(n) => Compared::Differs(Differing {
            first: span.from.saturating_add(n as u64),
            bytes: PlaceBytes::of(&ours, &theirs, at.bytes_since(span.from) as usize),
        }),
    })
}

/// Compares the upstream's WAL in `span`, which begins at the place of `difference`, with what was noted
/// of ours there: ours itself is lost. The upstream's own timeline is `theirs`.
pub(super) async fn compare_noted<S>(
    link: &mut Link<S>,
    span: Span,
    difference: &Difference,
    theirs: TimelineId,
) -> Result<Compared, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let theirs = match fetch_unless_removed(link, span, theirs).await? {
        Ok(theirs) => theirs,
        Err(removed) => return Ok(removed),
    };
    Ok(match difference.noted() {
        Some(ours) if theirs.starts_with(ours) => Compared::Same,
        Some(ours) if ours.starts_with(&theirs) => Compared::Removed(format!(
            "this upstream's WAL ends at {}, too early to show whether it has ours",
            span.to
        )),
        ours => Compared::Differs(Differing {
            first: span.from,
            bytes: PlaceBytes::of(ours.unwrap_or_default(), &theirs, 0),
        }),
    })
}

/// The upstream's WAL in `span`, or that it has removed it.
async fn fetch_unless_removed<S>(
    link: &mut Link<S>,
    span: Span,
    theirs: TimelineId,
) -> Result<Result<Vec<u8>, Compared>, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let asked = Span { tli: span.tli.min(theirs), ..span };
    match fetch(link, asked).await {
        Ok(theirs) => Ok(Ok(theirs)),
        Err(LinkFault::Server(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE => {
            Ok(Err(Compared::Removed(format!(
                "this upstream cannot show whether it has ours: {}",
                error.message
            ))))
        }
        Err(fault) => Err(fault),
    }
}

/// Fetches the upstream's WAL through a stream opened only for that.
pub(super) async fn fetch<S>(link: &mut Link<S>, span: Span) -> Result<Vec<u8>, LinkFault>
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

/// Reads our own WAL.
fn read_own<E: Environment>(environment: &E, span: Span, size: SegmentSize) -> io::Result<Vec<u8>> {
    let name = SegmentName { tli: span.tli, no: span.from.segment(size), size };
    let file = environment.open_own_wal(name)?.ok_or(io::ErrorKind::NotFound)?;
    let mut wal = vec![0; span.to.bytes_since(span.from) as usize];
    file.read_exact_at(&mut wal, span.from.segment_offset(size))?;
    Ok(wal)
}
