//! Segments from the archive: fetched ahead, checked, compared with ours, sent to the receive role.

use super::turn::ShuttingDown;
use crate::archive::check::{self, ReadAt as _};
use crate::archive::prove::{Neighbours, SegmentFile, WalkStart, walk_up_to};
use crate::follow::Parts;
use crate::follow::difference::Differing;
use crate::follow::environment::{Archive, Environment};
use crate::follow::feed::Feed;
use crate::restorer::RestoreResult;
use crate::upstream::follow::TargetTimeline;
use crate::wal::page::PageRules;
use crate::wal::walk::{WalkFault, Walker};
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Bytes read from a file at a time.
const PIECE: u64 = 1 << 20;

/// A segment that was checked.
pub(super) struct Judged<R> {
    pub(super) file: R,
    /// At the end of the segment, if all of it is WAL.
    pub(super) walker: Walker,
    /// Why its WAL ends before that.
    pub(super) fault: Option<WalkFault>,
}

impl<R> Judged<R> {
    /// How far all WAL is proved: to the end of the last whole record, or to `upto`, where the
    /// timeline ends. What a timeline's end cuts off is no record.
    pub(super) fn proved_to(&self, upto: Lsn) -> Lsn {
        match self.walker.position() {
            end if end >= upto => upto,
            _ => self.walker.record_end(),
        }
    }
}

/// Why a segment is not used.
pub(super) enum Unusable {
    /// Its bytes differ from ours.
    Differs(Differing),
    /// It could not be read, or nothing is known of its timeline.
    Unknown(String),
}

/// What a segment is checked against.
pub(super) struct Expected {
    /// What its pages have to look like: the WAL up to a fork belongs to the parent, whichever file
    /// it is in.
    pub(super) rules: PageRules,
    /// Our WAL before this is compared with it.
    pub(super) known: Lsn,
    /// What comes after this is not looked at.
    pub(super) upto: Lsn,
}

/// A segment of the archive's, and its name there.
pub(super) type Named<E> = (SegmentName, <<E as Environment>::Archive as Archive>::Restored);

/// Checks a segment. `walker` stands at its start if the segment before it was checked.
pub(super) async fn judge<E: Environment>(
    parts: &Arc<Parts<E>>,
    (name, file): Named<E>,
    walker: Option<Walker>,
    expected: Expected,
) -> Result<Judged<<E::Archive as Archive>::Restored>, Unusable> {
    let reader = Arc::clone(parts);
    let judging =
        parts.environment.blocking(move || match look(&reader, name, &file, walker, expected) {
            Ok(Ok((walker, fault))) => Ok(Judged { file, walker, fault }),
            Ok(Err(differing)) => Err(Unusable::Differs(differing)),
            Err(error) => Err(Unusable::Unknown(error.to_string())),
        });
    judging.await.unwrap_or_else(|error| Err(Unusable::Unknown(error.to_string())))
}

/// Compares a file of the archive with our own segment of timeline `tli` between two positions of
/// it. A difference is evidence about `place`, or without one about where they differ. Returns `None`
/// when they are equal there.
pub(super) async fn first_difference<E: Environment>(
    parts: &Arc<Parts<E>>,
    (name, file): Named<E>,
    tli: TimelineId,
    (from, to): (Lsn, Lsn),
    place: Option<Lsn>,
) -> Result<Option<Differing>, Unusable> {
    let reader = Arc::clone(parts);
    let comparing = parts.environment.blocking(move || {
        let ours = reader.environment.open_own_wal(SegmentName { tli, ..name })?;
        let ours = ours.ok_or(io::ErrorKind::NotFound)?;
        let theirs = E::Archive::open(&file)?;
        let first = check::first_difference_within(&theirs, &ours, name, (from, to))?;
        let Some(first) = first else { return Ok(None) };
        let found = (first, place.unwrap_or(first));
        Differing::of_files((&theirs, &ours), name, found, to).map(Some)
    });
    comparing.await.flatten().map_err(|error| Unusable::Unknown(error.to_string()))
}

/// The walk to the end of its WAL, or how it differs from ours.
type Looked = io::Result<Result<(Walker, Option<WalkFault>), Differing>>;

fn look<E: Environment>(
    parts: &Parts<E>,
    name: SegmentName,
    file: &<E::Archive as Archive>::Restored,
    walker: Option<Walker>,
    Expected { rules, known, upto }: Expected,
) -> Looked {
    let theirs = E::Archive::open(file)?;
    let own = SegmentName { tli: rules.tli, ..name };
    if known > name.no.start(name.size)
        && let Some(ours) = parts.environment.open_own_wal(own)?
        && let Some(at) = check::first_difference(&theirs, &ours, name, known.min(upto))?
    {
        let both = (&theirs, &ours);
        return Ok(Err(Differing::of_files(both, name, (at, at), known.min(upto))?));
    }
    if let Some(mut walker) = walker {
        let fault = check::walk_on(&mut walker, &theirs, name, upto)?;
        return Ok(Ok((walker, fault)));
    }
    let mut walker = Walker::new(rules.clone(), name.no.start(name.size));
    let fault = check::walk_on(&mut walker, &theirs, name, upto)?;
    if walker.proven_from().is_some_and(|from| from <= known) {
        return Ok(Ok((walker, fault)));
    }
    // A record that began in our WAL goes on past our end: it is walked from there.
    let mut walker = match walk_up_to(&OwnWal(parts, &rules), own, &rules)? {
        WalkStart::Ready(walker) => *walker,
        WalkStart::Fault { name, fault } => {
            return Err(io::Error::other(format!("our own segment \"{name}\": {fault}")));
        }
    };
    let fault = check::walk_on(&mut walker, &theirs, name, upto)?;
    Ok(Ok((walker, fault)))
}

/// Our WAL before a segment.
struct OwnWal<'a, E: Environment>(&'a Parts<E>, &'a PageRules);

impl<E: Environment> Neighbours for OwnWal<'_, E> {
    type File = E::Wal;

    fn rules(&self, _: TimelineId) -> io::Result<PageRules> {
        Ok(self.1.clone())
    }

    fn before(&self, name: SegmentName) -> Option<SegmentName> {
        let no = name.no.previous()?;
        let history = self.0.hub.read_history(self.1.tli).ok().flatten();
        let last = no.end(name.size).saturating_sub(1);
        let tli = history.map_or(name.tli, |history| history.tli_at(last));
        Some(SegmentName { tli, no, ..name })
    }

    fn after(&self, name: SegmentName) -> SegmentName {
        SegmentName { no: name.no.next(), ..name }
    }

    fn open(&self, name: SegmentName) -> io::Result<Option<SegmentFile<E::Wal>>> {
        let file = self.0.environment.open_own_wal(name)?;
        let upto = name.no.end(name.size);
        Ok(file.map(|file| SegmentFile { name, file, upto }))
    }
}

/// Sends the WAL of a segment's file from `from` to `to`.
pub(super) async fn pour<E: Environment>(
    parts: &Parts<E>,
    feed: &mut Feed<E::Socket>,
    (name, file): &Named<E>,
    (from, to): (Lsn, Lsn),
) -> io::Result<()> {
    let file = Arc::new(E::Archive::open(file)?);
    let mut at = from;
    while at < to {
        let len = to.bytes_since(at).min(PIECE) as usize;
        let (file, offset) = (Arc::clone(&file), at.segment_offset(name.size));
        let reading = parts.environment.blocking(move || {
            let mut piece = vec![0; len];
            file.read_exact_at(&mut piece, offset).map(|()| piece)
        });
        let piece = feed.during(reading).await??;
        feed.send(&piece?, to).await?;
        at = at.saturating_add(len as u64);
    }
    Ok(())
}

/// Segments being fetched from the archive, in order.
pub(super) struct Ahead<'a, A: Archive> {
    archive: &'a A,
    tli: TimelineId,
    size: SegmentSize,
    coming: VecDeque<(SegmentNo, Coming<A::Restored>)>,
}

pub(super) type FetchedSegment<R> = RestoreResult<(SegmentName, R)>;
type Coming<R> = oneshot::Receiver<FetchedSegment<R>>;

impl<'a, A: Archive> Ahead<'a, A> {
    pub(super) fn new(archive: &'a A, tli: TimelineId, size: SegmentSize) -> Self {
        Self { archive, tli, size, coming: VecDeque::new() }
    }

    /// Takes this segment; the ones after it are being fetched from now on.
    pub(super) async fn take(
        &mut self,
        no: SegmentNo,
        target: &TargetTimeline,
    ) -> Result<FetchedSegment<A::Restored>, ShuttingDown> {
        while self.coming.front().is_some_and(|(first, _)| *first != no) {
            self.coming.pop_front();
        }
        let mut next = self.coming.back().map_or(no, |(last, _)| last.next());
        while next.raw() <= no.raw().saturating_add(self.archive.ahead())
            && target.ends.is_none_or(|(_, end)| next.start(self.size) < end)
        {
            self.coming.push_back((next, self.archive.segment(self.names(next, target))));
            next = next.next();
        }
        match self.coming.pop_front() {
            Some((_, coming)) => coming.await.map_err(|_| ShuttingDown),
            None => Ok(Ok(None)),
        }
    }

    /// Where our timeline ends inside the segment, the file of the timeline that continues past it
    /// holds the same WAL, and is more likely to have been archived whole.
    pub(super) fn names(&self, no: SegmentNo, target: &TargetTimeline) -> Vec<SegmentName> {
        let size = self.size;
        let last = no.end(size).saturating_sub(1);
        let heir = target.history.as_ref().map(|history| history.tli_at(last));
        let heir = heir.filter(|heir| *heir != self.tli);
        let tlis = heir.into_iter().chain([self.tli]);
        tlis.map(|tli| SegmentName { tli, no, size }).collect()
    }
}
