//! What a start finds. Before anything is published or acknowledged, the tail is synced and its
//! cache dropped, so that the walk sees the disk. Otherwise, after a kill, the walk would
//! believe the cached bytes of an unfinished batch, which are lost at a power failure.
//!
//! Order: listing, control file, marker; sync of the newest complete segment, of the open ones,
//! and of the directory; drop of their cache; walk. Apart from the one listing, the cost does
//! not grow with the directory.
//!
//! Only after the walk is any file moved, cleared or removed. A start that is refused leaves
//! everything where it was: what the newest segment is decides which open segments are out of
//! place, and a segment that the walk refuses may not belong here.

use super::abandoned::Abandoned;
use super::append::{Beginning, WRITE_ALIGN};
use super::aside::{adds_nothing, holds_wal_past, keep_copy, set_aside};
use super::clean::clear_past;
use super::control_file::{Cluster, ControlFile};
use super::count::note_abandoned;
use super::course::FenceNote;
use super::cut::{ControlChange, carry_out_cut, read_seams};
use super::digest;
use super::disk::Disk;
use super::durable::{read_note, read_small, remove};
use super::fault::{StoreFault, failed};
use super::histories::read_fork;
use super::holes::{Extent, Hole, oldest_of};
use super::layout::{Layout, Listing, SegmentRange};
use super::notes::{BegunNote, HaltedNote};
use super::seams::{Cut, Seams};
use super::switch::{clear_ended, leaves};
use super::tail::{Tail, TailSearch, lost_before_fence};
use crate::store::durable::{read_full, replace_durably};
use crate::wal::{Fork, Lsn, SegmentName, SegmentNo, TimelineId, Walker};
use std::path::Path;

/// The most that a start reads back to compare with an upstream. It fits into the smallest
/// cache.
const MAX_PREFIX: u64 = 3 << 20;

/// What is in the directory.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The control file; `None` in a directory that was never used.
    pub control: Option<ControlFile>,
    /// The WAL; `None` before the cluster is known.
    pub wal: Option<RecoveredWal>,
    /// All names in `pg_wal`, without those of files that were removed or set aside.
    pub listing: Listing,
    /// A sync failed in the last run, or at the last start. By now the marker is gone, and what
    /// was not durable then is set aside.
    pub halted: Option<HaltedNote>,
    /// Where another history continues on a timeline. One that is under way is to be
    /// [finished](super::cut::finish_cut) before anything is served.
    pub seams: Seams,
}

/// The WAL of the current timeline.
#[derive(Debug, Clone)]
pub struct RecoveredWal {
    /// Complete segments without a hole, up to the newest.
    pub complete: Option<SegmentRange>,
    /// The oldest position of this timeline that is here.
    pub oldest: Lsn,
    /// The timelines before it, oldest first, as far as their WAL is here.
    pub ended: Vec<EndedWal>,
    /// The extent of all of them together.
    pub extent: Extent,
    /// End of the last whole record, for decisions about timelines.
    pub record_end: Lsn,
    /// Start of the last whole record, which the next one's prev-link names.
    pub last_record: Option<Lsn>,
    /// The latest position at which the stream may begin: the start of the open segment.
    pub resume: Lsn,
    /// The published position: `record_end` or `resume`, or a little more where the WAL begins
    /// with the rest of a record.
    pub durable: Lsn,
    /// For the appender.
    pub beginning: Beginning,
    /// For [`Begin`](crate::keeper::Job::Begin): where the walk started.
    pub begins: Lsn,
    /// Where `prefix` begins: a 1 MiB boundary before `durable`, at or before the last record
    /// unless that record is very long; `durable` itself when there is nothing.
    pub prefix_from: Lsn,
    /// The bytes from there up to `durable`, for the cache and for comparison with an upstream's
    /// bytes at these positions.
    pub prefix: Vec<u8>,
    /// The magic of the newest pages.
    pub magic: Option<u16>,
    /// Where the timeline left its ancestors.
    pub fork: Option<Fork>,
    /// The walk, standing at `durable`.
    pub walker: Walker,
    /// What was abandoned at switches and is not confirmed.
    pub abandoned: Abandoned,
}

/// The WAL of a timeline that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedWal {
    /// The timeline.
    pub tli: TimelineId,
    /// The oldest position of it that is here. Its fork segment belongs to the child.
    pub oldest: Lsn,
    /// Its switchpoint.
    pub end: Lsn,
}

/// Performs a start: looks at the directory, makes it safe to continue from, and removes what
/// was under way when an earlier run ended. The caller holds the lock.
pub async fn recover<D: Disk>(disk: &D, layout: &Layout) -> Result<Recovered, StoreFault> {
    let recovered = examine(disk, layout).await?;
    for name in &recovered.listing.temporary {
        let path = layout.wal().join(name);
        match disk.unlink(&path).await {
            // A copy under this name was made again, and has got its own name.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(failed("remove file", &path))?,
        }
    }
    Ok(recovered)
}

/// Like [`recover`], for a directory in which files may be under way: temporary ones stay.
pub async fn examine<D: Disk>(disk: &D, layout: &Layout) -> Result<Recovered, StoreFault> {
    let mut control = read_note(disk, &layout.control(), ControlFile::decode).await?;
    let cluster = control.as_ref().and_then(|control| control.cluster.clone());
    let list =
        async || disk.list(layout.wal()).await.map_err(failed("list directory", layout.wal()));
    let mut names = list().await?;
    let seams = read_seams(disk, layout).await?;
    let Some(mut cluster) = cluster else {
        return match names.iter().any(|name| looks_like_wal(name)) {
            true => Err(StoreFault::NoControl { path: layout.wal().to_owned() }),
            false => {
                let listing = Listing::default();
                Ok(Recovered { control, wal: None, listing, halted: None, seams })
            }
        };
    };
    let is_ours = |cut: &Cut| match cut {
        Cut::Past(seam) => seam.tli == cluster.timeline,
        Cut::Back(_) => true,
    };
    if let Some(cut) = seams.under_way().filter(is_ours) {
        let change = carry_out_cut(disk, layout, &cluster, cut, &names).await?;
        names = list().await?;
        if change == ControlChange::Made {
            control = read_note(disk, &layout.control(), ControlFile::decode).await?;
            cluster =
                control.as_ref().and_then(|control| control.cluster.clone()).unwrap_or(cluster);
        }
    }
    let (leaving, staying) =
        names.into_iter().partition::<Vec<_>, _>(|name| leaves(name, &cluster));
    let mut listing = Listing::of(staying, cluster.segment_size);
    let recovery = Recovery {
        disk,
        layout,
        cluster: &cluster,
        listing: &listing,
        complete: newest_range(&listing, &cluster),
        partials: open_segments(&listing, &cluster),
        gone: Gone::default(),
    };
    let halted = match read_note(disk, &layout.halted(), HaltedNote::decode).await {
        // A marker that cannot be read means the same, without the position.
        Err(StoreFault::Unreadable { fault, .. }) => {
            Some(HaltedNote { durable: Lsn::INVALID, reason: format!("the marker {fault}") })
        }
        other => other?,
    };
    let (wal, gone) = recovery.run(halted.as_ref(), &leaving).await?;
    listing.partials.retain(|(tli, no)| *tli != cluster.timeline || !gone.partials.contains(no));
    listing.spares.retain(|number| !gone.spares.contains(number));
    Ok(Recovered { control, wal: Some(wal), listing, halted, seams })
}

/// The complete segments of the current timeline without a hole, up to the newest. The walk to
/// the end of WAL begins in one of them.
pub(super) fn newest_range(listing: &Listing, cluster: &Cluster) -> Option<SegmentRange> {
    let first = cluster.start.segment(cluster.segment_size);
    let mut range = listing.newest_of(cluster.timeline)?;
    range.oldest = range.oldest.max(first);
    (range.oldest <= range.newest).then_some(range)
}

/// The timelines that have ended, with the oldest segment of each that is here. The fork
/// segment itself is read from the child's file.
fn ended_wal(listing: &Listing, cluster: &Cluster) -> Vec<EndedWal> {
    let size = cluster.segment_size;
    let wal = cluster.sealed.iter().map(|sealed| {
        let fork = sealed.end.segment(size);
        let own = oldest_of(listing, sealed.tli, sealed.start.segment(size));
        let oldest = own.map_or(fork, |no| no.min(fork));
        EndedWal { tli: sealed.tli, oldest: oldest.start(size), end: sealed.end }
    });
    wal.collect()
}

/// The open segments of the current timeline that directly follow the newest complete one.
pub(super) fn open_segments(listing: &Listing, cluster: &Cluster) -> Vec<SegmentNo> {
    let size = cluster.segment_size;
    let first = newest_range(listing, cluster).map_or(cluster.start.segment(size), next_of);
    let own = listing.partials.iter().filter(|(tli, no)| *tli == cluster.timeline && *no >= first);
    own.map(|(_, no)| *no).collect()
}

/// What is missing between `end`, the start of the open segment, and open segments past it that
/// hold WAL. The upstream's next WAL fills such a hole.
pub(super) async fn hole_before_open<D: Disk>(
    disk: &D,
    layout: &Layout,
    cluster: &Cluster,
    end: Lsn,
    partials: &[SegmentNo],
) -> Result<Option<Hole>, StoreFault> {
    let (tli, size) = (cluster.timeline, cluster.segment_size);
    let mut first = end.segment(size);
    for no in partials.iter().copied().filter(|no| no.start(size) >= end) {
        if no == first {
            first = first.next();
            continue;
        }
        let name = SegmentName { tli, no, size };
        let holds_wal = holds_wal_past(disk, &layout.partial(name), name, no.start(size)).await?;
        if let (true, Some(last)) = (holds_wal, no.previous()) {
            return Ok(Some(Hole { tli, first, last, size }));
        }
    }
    Ok(None)
}

fn next_of(range: SegmentRange) -> SegmentNo {
    range.newest.next()
}

/// How far the first bytes are known to be durable, if the note is about these bytes.
pub(super) fn noted_beginning(
    begun: Option<BegunNote>,
    cluster: &Cluster,
    complete: Option<SegmentRange>,
) -> Lsn {
    let oldest = complete.map_or(cluster.start, |range| range.oldest.start(cluster.segment_size));
    let ours = |note: &BegunNote| {
        note.tli == cluster.timeline && note.start <= oldest && oldest <= note.upto
    };
    begun.filter(ours).map_or(Lsn::INVALID, |note| note.upto)
}

/// Is this the name of a segment, whatever the segment size?
pub(super) fn looks_like_wal(name: &str) -> bool {
    name.get(..24).is_some_and(|stem| stem.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The recovery of a directory whose cluster is known.
struct Recovery<'a, D> {
    disk: &'a D,
    layout: &'a Layout,
    cluster: &'a Cluster,
    listing: &'a Listing,
    complete: Option<SegmentRange>,
    partials: Vec<SegmentNo>,
    gone: Gone,
}

/// Files that are no longer here.
#[derive(Debug, Default)]
struct Gone {
    /// Open segments of the timeline that were removed or set aside.
    partials: Vec<SegmentNo>,
    /// Spares in whose room something was kept.
    spares: Vec<u64>,
}

impl<D: Disk> Recovery<'_, D> {
    /// Returns the WAL, and what is no longer here.
    async fn run(
        mut self,
        halted: Option<&HaltedNote>,
        leaving: &[String],
    ) -> Result<(RecoveredWal, Gone), StoreFault> {
        let size = self.cluster.segment_size;
        let resume = self.complete.map_or(self.cluster.start, |range| range.newest.end(size));
        let begun = read_note(self.disk, &self.layout.begun(), BegunNote::decode).await?;
        self.warn_if_empty(begun);
        if let Err(fault) = self.sync_tail().await {
            // What is cached may not be on disk, and the next sync would still succeed. Any other
            // fault says nothing about what is durable.
            if halted.is_none() && matches!(fault, StoreFault::Sync { .. }) {
                let upto = begun.map_or(resume, |begun| begun.upto.max(resume));
                self.mark(upto, &fault).await;
            }
            return Err(fault);
        }
        self.check_histories().await?;
        let fork = self.read_fork().await?;
        let trusted = self.trusted(begun, halted);
        let search = self.search(fork.clone(), trusted, halted);
        let tail = search.find(self.disk).await?;
        let walker = search.walk_again(self.disk, &tail).await?;
        let fence = read_note(self.disk, &self.layout.fence(), FenceNote::decode).await?;
        if let Some(lost) = lost_before_fence(fence, self.cluster.timeline, &tail) {
            tracing::warn!("{lost}");
        }
        let abandoned = note_abandoned(self.disk, self.layout, self.cluster, leaving).await;
        clear_ended(self.disk, self.layout, self.cluster, leaving).await?;
        self.clear_early_partials().await?;
        if halted.is_some() {
            let reason =
                format!("a sync failed, and WAL from {} on may not be on disk", tail.durable());
            self.forget_past(tail.durable(), &reason).await?;
            self.remove_marker().await?;
        } else if let Some(past_end) = tail.past_end {
            tracing::warn!("{past_end}; they are kept beside it, and are received again");
            let reason = format!("it holds whole records from {} on", past_end.from);
            self.forget_past(tail.durable(), &reason).await?;
        }
        self.name_complete(tail.durable()).await?;
        let (prefix_from, prefix) = self.read_prefix(&tail).await?;
        let resume = self.complete.map_or(self.cluster.start, |range| range.newest.end(size));
        let first = self.cluster.start.segment(size);
        let oldest = oldest_of(self.listing, self.cluster.timeline, first);
        let before_open =
            hole_before_open(self.disk, self.layout, self.cluster, resume, &self.partials).await?;
        let wal = RecoveredWal {
            complete: self.complete,
            oldest: oldest.map_or(self.cluster.start, |no| no.start(size)),
            ended: ended_wal(self.listing, self.cluster),
            extent: Extent { before_open, ..Extent::of(self.listing, self.cluster) },
            record_end: tail.record_end,
            last_record: tail.last_record,
            resume,
            durable: tail.durable(),
            beginning: tail.beginning,
            begins: tail.walked_from,
            prefix_from,
            prefix,
            magic: tail.magic,
            fork,
            walker,
            abandoned,
        };
        Ok((wal, self.gone))
    }

    /// A directory that was used is never without WAL, unless somebody took it away.
    fn warn_if_empty(&self, begun: Option<BegunNote>) {
        let upto = noted_beginning(begun, self.cluster, self.complete);
        if self.complete.is_none() && self.partials.is_empty() && upto > Lsn::INVALID {
            let (path, start) = (self.layout.wal().display(), self.cluster.start);
            tracing::warn!(
                "there is no WAL in \"{path}\", where it was once durable up to {upto} at least: \
                 the hub begins again at {start}; is a file system not mounted there?"
            );
        }
    }

    /// Clears open segments that lie before a complete one. One that adds nothing to its complete
    /// segment is left over from a rename that a crash cut in two, and is removed. Any other is
    /// set aside: its content was never proven.
    async fn clear_early_partials(&mut self) -> Result<(), StoreFault> {
        let tli = self.cluster.timeline;
        let own = self.listing.partials.iter().filter(|(other, _)| *other == tli);
        for no in own.map(|(_, no)| *no).filter(|no| !self.partials.contains(no)) {
            let (name, path) = (self.name(no), self.layout.partial(self.name(no)));
            let whole = self.layout.segment(name);
            if !self.listing.has_complete(tli, no) {
                let reason = "it lies before complete segments, and this one was never completed";
                set_aside(self.disk, &path, reason).await?;
            } else if adds_nothing(self.disk, &path, &whole, name).await? {
                self.disk.unlink(&path).await.map_err(failed("remove file", &path))?;
            } else {
                set_aside(self.disk, &path, "its complete segment holds other bytes").await?;
            }
            self.gone.partials.push(no);
        }
        if self.gone.partials.is_empty() {
            return Ok(());
        }
        self.sync_dir(self.layout.wal()).await
    }

    /// Syncs everything since the last complete segment, and the names.
    async fn sync_tail(&self) -> Result<(), StoreFault> {
        let newest = self.complete.map(|range| self.layout.segment(self.name(range.newest)));
        let partials = self.partials.iter().map(|no| self.layout.partial(self.name(*no)));
        for path in newest.iter().cloned().chain(partials) {
            let file = self.disk.open_read(&path).await.map_err(failed("open file", &path))?;
            let length = self.disk.len(&file).await.map_err(failed("stat file", &path))?;
            let expected = self.cluster.segment_size.bytes();
            if Some(&path) == newest.as_ref() && length != expected {
                return Err(StoreFault::SegmentLength { path, found: length, expected });
            }
            let synced = self.disk.sync_data(&file).await;
            synced.map_err(|error| StoreFault::Sync { path: path.clone(), error })?;
            let dropped = self.disk.drop_cache(&file).await;
            dropped.map_err(failed("drop the cache of", &path))?;
        }
        for dir in [self.layout.wal(), self.layout.root()] {
            let synced = self.disk.sync_dir(dir).await;
            synced.map_err(|error| StoreFault::Sync { path: dir.to_owned(), error })?;
        }
        let synced = digest::sync_names(self.disk, self.layout).await;
        synced.map_err(|error| StoreFault::Sync { path: self.layout.digests(), error })
    }

    /// How far bytes are known to be durable without a checksum.
    fn trusted(&self, begun: Option<BegunNote>, halted: Option<&HaltedNote>) -> Lsn {
        let begun = noted_beginning(begun, self.cluster, self.complete);
        // The fork segment was durable before the control file named the timeline.
        let fork = self.cluster.sealed.last().map_or(Lsn::INVALID, |sealed| sealed.end);
        let begun = begun.max(fork);
        halted.map_or(begun, |note| note.durable.max(begun))
    }

    fn search(
        &self,
        fork: Option<Fork>,
        trusted: Lsn,
        halted: Option<&HaltedNote>,
    ) -> TailSearch<'_> {
        TailSearch {
            layout: self.layout,
            cluster: self.cluster,
            fork,
            complete: self.complete,
            partials: &self.partials,
            trusted,
            // The bytes that the other note covers were synced before the failure.
            limit: halted.map_or(Lsn::MAX, |note| note.durable.max(trusted)),
        }
    }

    /// What lies past the end is not believed, and is WAL all the same: it is set aside, and then made
    /// to look like none, before other WAL is written over it.
    async fn forget_past(&mut self, durable: Lsn, reason: &str) -> Result<(), StoreFault> {
        let size = self.cluster.segment_size;
        for no in std::mem::take(&mut self.partials) {
            let (name, path) = (self.name(no), self.layout.partial(self.name(no)));
            let gives_up = holds_wal_past(self.disk, &path, name, durable).await?;
            if gives_up && no.start(size) >= durable {
                set_aside(self.disk, &path, reason).await?;
                self.gone.partials.push(no);
                continue;
            }
            self.partials.push(no);
            if no.end(size) <= durable {
                continue;
            }
            if gives_up {
                self.keep_copy(&path, name, reason).await?;
            }
            let file = self.disk.open_write(&path).await.map_err(failed("open file", &path))?;
            let cleared = clear_past(self.disk, &file, name, durable).await;
            cleared.map_err(failed("clear the tail of", &path))?;
            let synced = self.disk.sync_data(&file).await;
            synced.map_err(|error| StoreFault::Sync { path, error })?;
        }
        self.sync_dir(self.layout.wal()).await
    }

    /// On a full disk the copy takes the room of spares.
    async fn keep_copy(
        &mut self,
        path: &Path,
        name: SegmentName,
        reason: &str,
    ) -> Result<(), StoreFault> {
        let mut spares = self.listing.spares.iter();
        loop {
            match keep_copy(self.disk, path, name, reason).await {
                Err(fault) if fault.is_no_space() => {
                    let part = Layout::temporary(path);
                    remove(self.disk, &part).await.map_err(failed("remove file", &part))?;
                    let Some(number) = spares.next() else { return Err(fault) };
                    let spare = self.layout.spare(*number);
                    self.disk.unlink(&spare).await.map_err(failed("remove file", &spare))?;
                    self.gone.spares.push(*number);
                }
                kept => return kept,
            }
        }
    }

    async fn remove_marker(&self) -> Result<(), StoreFault> {
        let marker = self.layout.halted();
        self.disk.unlink(&marker).await.map_err(failed("remove file", &marker))?;
        self.sync_dir(self.layout.root()).await
    }

    /// Gives their final name to open segments that turned out to be complete.
    async fn name_complete(&mut self, durable: Lsn) -> Result<(), StoreFault> {
        let size = self.cluster.segment_size;
        let full = self.partials.iter().copied().take_while(|no| no.end(size) <= durable);
        for no in full.collect::<Vec<_>>() {
            let (from, to) =
                (self.layout.partial(self.name(no)), self.layout.segment(self.name(no)));
            let forgotten = digest::forget(self.disk, self.layout, self.name(no)).await;
            forgotten.map_err(failed("remove the digest of", &from))?;
            self.disk.rename(&from, &to).await.map_err(failed("rename file", &from))?;
            self.sync_dir(self.layout.wal()).await?;
            let oldest = self.complete.map_or(no, |range| range.oldest);
            self.complete = Some(SegmentRange { tli: self.cluster.timeline, oldest, newest: no });
        }
        Ok(())
    }

    async fn read_prefix(&self, tail: &Tail) -> Result<(Lsn, Vec<u8>), StoreFault> {
        let size = self.cluster.segment_size;
        let oldest = self.complete.map_or(self.cluster.start, |range| range.oldest.start(size));
        let durable = tail.durable();
        // Not only the chunk that holds the mark: a mark on a chunk boundary would leave nothing
        // to compare, and two histories may well meet there.
        let record = tail.last_record.unwrap_or(durable).min(durable.saturating_sub(1));
        let from = record.max(durable.saturating_sub(MAX_PREFIX));
        let from = Lsn::new(from.raw() - from.raw() % WRITE_ALIGN).max(oldest).min(durable);
        let (mut at, mut prefix) = (from, Vec::new());
        while at < durable {
            let no = at.segment(size);
            let end = no.end(size).min(durable);
            let path = match self.complete.is_some_and(|range| no <= range.newest) {
                true => self.layout.segment(self.name(no)),
                false => self.layout.partial(self.name(no)),
            };
            let file = self.disk.open_read(&path).await.map_err(failed("open file", &path))?;
            let len = end.bytes_since(at) as usize;
            let read = read_full(self.disk, &file, len, at.segment_offset(size)).await;
            let read = read.map_err(failed("read file", &path))?;
            if read.len() < len {
                let error = std::io::ErrorKind::UnexpectedEof.into();
                return Err(failed("read file", &path)(error));
            }
            prefix.extend_from_slice(&read);
            at = end;
        }
        Ok((from, prefix))
    }

    async fn read_fork(&self) -> Result<Option<Fork>, StoreFault> {
        // Without WAL there is no page that a history could explain.
        match self.complete.is_none() && self.partials.is_empty() {
            true => Ok(None),
            false => read_fork(self.disk, self.layout, self.cluster.timeline).await,
        }
    }

    /// Each is served, so each has to be a file that can be read.
    async fn check_histories(&self) -> Result<(), StoreFault> {
        for tli in &self.listing.histories {
            let path = self.layout.history(*tli);
            read_small(self.disk, &path).await.map_err(failed("read file", &path))?;
        }
        Ok(())
    }

    async fn mark(&self, durable: Lsn, fault: &StoreFault) {
        let note = HaltedNote { durable, reason: fault.to_string() };
        // Best effort: the disk is failing.
        drop(replace_durably(self.disk, &self.layout.halted(), note.encode()).await);
    }

    async fn sync_dir(&self, dir: &Path) -> Result<(), StoreFault> {
        let synced = self.disk.sync_dir(dir).await;
        synced.map_err(|error| StoreFault::Sync { path: dir.to_owned(), error })
    }

    fn name(&self, no: SegmentNo) -> SegmentName {
        SegmentName { tli: self.cluster.timeline, no, size: self.cluster.segment_size }
    }
}

#[cfg(test)]
mod tests;
