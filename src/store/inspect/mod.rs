//! What `walhub inspect` reports about a directory, whether or not a hub runs on it. Reads only.
//!
//! The end of WAL is what a walk of the open segment finds at this moment. A start would find
//! the same or less: it syncs first and then believes only the disk.

mod contents;
#[cfg(test)]
mod tests;

use crate::cluster::instance::InstanceId;
use crate::status::{
    AbandonedStatus, ConfirmedStatus, DamagedSegment, DirectoryStatus, EndOfWal, EvidenceStatus,
    HaltedStatus, LockStatus, RecordedCluster, ScrubStatus, SealedTimeline, SeamStatus,
    SegmentSpan, SetAsideStatus, SetAsideTotal,
};
use crate::store::abandoned::{Abandoned, AbandonedWal};
use crate::store::asides::{Aside, Confirmations, KnownAsides, all_set_aside, read_confirmed};
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::course::FenceNote;
use crate::store::cut::read_seams;
use crate::store::directory::{Directory, DirectoryFault, lock_holder};
use crate::store::disk::{Disk, run_ready};
use crate::store::durable::read_note;
use crate::store::durable::{read_small, replace_durably};
use crate::store::end::find_end;
use crate::store::evidence::{Difference, Evidence, to_hex};
use crate::store::fault::{DAMAGED, StoreFault, failed};
use crate::store::holes::{Extent, Hole};
use crate::store::layout::Mark;
use crate::store::layout::{FileKind, Layout, Listing};
use crate::store::notes::HaltedNote;
use crate::store::plain_disk::PlainDisk;
use crate::store::rebuild::explain;
use crate::store::recover::{hole_before_open, looks_like_wal, newest_range, open_segments};
use crate::store::scrub::{ScrubNote, ScrubProgress};
use crate::store::seams::Seams;
use crate::store::tail::{Tail, lost_before_fence};
use crate::wal::{SegmentName, SegmentNo, SegmentSize, TimelineId};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// The newest files whose size is measured; the others are only counted.
const MEASURED: usize = 4096;

/// How often a directory is looked at whose hub runs and in which something seems to be wrong.
const LOOKS: u32 = 10;

/// Inspects a directory. A running hub renames, removes and replaces files meanwhile: what is wrong
/// at two looks, one after the other, is wrong.
pub async fn inspect<D: Disk>(disk: &D, layout: &Layout) -> io::Result<DirectoryStatus> {
    let mut report = look(disk, layout).await?;
    for _ in 1..LOOKS {
        if report.wrong.is_empty() || report.running == LockStatus::No {
            break;
        }
        let again = look(disk, layout).await?;
        let both = report.wrong == again.wrong;
        report = again;
        if both {
            break;
        }
    }
    Ok(report)
}

async fn look<D: Disk>(disk: &D, layout: &Layout) -> io::Result<DirectoryStatus> {
    let names = disk.list(layout.wal()).await?;
    let mut report = DirectoryStatus {
        directory: layout.root().display().to_string(),
        running: match lock_holder(layout) {
            Ok(None) => LockStatus::No,
            Ok(Some(pid)) => LockStatus::Yes(pid),
            Err(_) => LockStatus::Unknown,
        },
        instance_id: None,
        cluster: None,
        segments: Vec::new(),
        open: Vec::new(),
        spares: 0,
        histories: Vec::new(),
        waiting_for_archive: None,
        end: None,
        halted: None,
        upstream: None,
        evidence: None,
        abandoned: Vec::new(),
        scrub: None,
        set_aside: Vec::new(),
        set_aside_total: None,
        seams: Vec::new(),
        wrong: Vec::new(),
    };
    report.read_state(disk, layout).await;
    report.read_halted(disk, layout).await;
    report.read_evidence(disk, layout).await;
    report.read_abandoned(disk, layout).await;
    report.read_scrub(disk, layout).await;
    let confirmed = read_confirmed(disk, layout).await.unwrap_or_else(|fault| {
        report.wrong.push(fault.to_string());
        Confirmations::default()
    });
    match all_set_aside(layout, &confirmed).map(KnownAsides::of) {
        Ok(known) => {
            report.set_aside = set_aside_status(&known, Duration::ZERO);
            report.set_aside_total = Some(set_aside_total(&known)).filter(|all| all.number > 0);
        }
        Err(error) => report.wrong.push(format!("could not look at what was set aside: {error}")),
    }
    report.read_seams(disk, layout).await;
    report.read_fence(disk, layout).await;
    report.check_access(layout.root());
    let control = match read_note(disk, &layout.control(), ControlFile::decode).await {
        Ok(Some(control)) => control,
        Ok(None) => {
            if names.iter().any(|name| looks_like_wal(name)) {
                let path = layout.wal().to_owned();
                report.wrong.push(StoreFault::NoControl { path }.to_string());
                report.wrong.extend(explain(disk, layout).await);
            }
            return Ok(report);
        }
        Err(fault) => {
            report.wrong.push(fault.to_string());
            if matches!(fault, StoreFault::Unreadable { .. }) {
                report.wrong.extend(explain(disk, layout).await);
            }
            return Ok(report);
        }
    };
    report.instance_id = Some(control.instance);
    if let Some(cluster) = &control.cluster {
        report.look_at_wal(disk, layout, cluster, names).await;
    } else if names.iter().any(|name| looks_like_wal(name)) {
        report.wrong.push("there are WAL segments, but no cluster is known".to_owned());
    }
    Ok(report)
}

/// Why a directory was not given another ID.
#[derive(Debug, thiserror::Error)]
pub enum RenameFault {
    /// It is in use, or is not a hub's.
    #[error(transparent)]
    Directory(#[from] DirectoryFault),
    /// It has no control file, or an unusable one.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// It was never used: there is no ID to replace.
    #[error("directory \"{0}\" holds no control file")]
    Unused(String),
}

/// Inspects a directory by plain system calls.
pub fn inspect_now(layout: &Layout) -> io::Result<DirectoryStatus> {
    run_ready(inspect(&PlainDisk, layout)).unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
}

/// Gives a copied directory an ID of its own, so that the copy and its original are not mistaken
/// for a loop. Returns the old one.
pub fn replace_instance_id(layout: &Layout, new: InstanceId) -> Result<InstanceId, RenameFault> {
    let unused = || RenameFault::Unused(layout.root().display().to_string());
    // Opening would turn any empty directory into a hub's.
    if !layout.control().exists() {
        return Err(unused());
    }
    let _locked = Directory::open(layout.root())?;
    let path = layout.control();
    let work = async {
        let found = read_note(&PlainDisk, &path, ControlFile::decode).await?;
        let control = found.ok_or_else(unused)?;
        let renamed = ControlFile { instance: new, cluster: control.cluster };
        let written = replace_durably(&PlainDisk, &path, renamed.encode()).await;
        written.map_err(failed("write file", &path))?;
        Ok(control.instance)
    };
    run_ready(work).unwrap_or_else(|| Err(unused()))
}

fn recorded(cluster: &Cluster) -> RecordedCluster {
    let version = cluster.parameters.iter().find(|(name, _)| name == "server_version");
    let sealed = cluster.sealed.iter().map(|sealed| SealedTimeline {
        timeline: sealed.tli,
        start: sealed.start,
        end: sealed.end,
    });
    RecordedCluster {
        system_id: cluster.system_id,
        wal_segment_size: cluster.segment_size,
        server_version: version.map(|(_, value)| value.clone()),
        timeline: cluster.timeline,
        start: cluster.start,
        sealed: sealed.collect(),
    }
}

/// What `walhub.seams` holds.
pub fn seam_status(seams: &Seams) -> Vec<SeamStatus> {
    seams.iter().map(|seam| SeamStatus { timeline: seam.tli, lsn: seam.at }).collect()
}

/// What `walhub.evidence` holds; `None` when that is nothing.
pub fn evidence_status(evidence: &Evidence) -> Option<EvidenceStatus> {
    let status = |difference: &Difference| EvidenceStatus {
        timeline: difference.tli,
        lsn: difference.at,
        upstream: difference.source.name.clone(),
        since: difference.since,
        detail: difference.detail.clone(),
        our_bytes: difference.bytes.as_ref().map(|bytes| to_hex(&bytes.ours)),
        their_bytes: difference.bytes.as_ref().map(|bytes| to_hex(&bytes.theirs)),
        cleared: difference.cleared,
        also: Vec::new(),
    };
    let mut all = evidence.iter().map(status);
    let first = all.next()?;
    Some(EvidenceStatus { also: all.collect(), ..first })
}

/// What was abandoned and is not confirmed, for people and programs.
pub fn abandoned_status(abandoned: &Abandoned) -> Vec<AbandonedStatus> {
    let status = |entry: &AbandonedWal| {
        let content = entry.content;
        let times = content.and_then(|content| content.commit_times);
        AbandonedStatus {
            timeline: entry.tli,
            start_lsn: entry.from,
            end_lsn: entry.to,
            next_timeline: entry.next,
            records: content.map(|content| content.records),
            commits: content.map(|content| content.commits),
            first_commit_time: times.map(|(first, _)| first.into()),
            last_commit_time: times.map(|(_, last)| last.into()),
            since: entry.since,
            kept_in: Layout::new(Path::new(""))
                .diverged(entry.tli, entry.from)
                .display()
                .to_string(),
            standbys: entry.holders.map(|holders| holders.standbys),
            sent_lsn: entry.holders.and_then(|holders| holders.sent),
        }
    };
    abandoned.iter().map(status).collect()
}

/// The newest of what was set aside, for people and programs. What is confirmed is kept for so long;
/// zero for ever.
pub fn set_aside_status(known: &KnownAsides, keep: Duration) -> Vec<SetAsideStatus> {
    let confirmed = |aside: &Aside, counted: Duration| ConfirmedStatus {
        counted_seconds: counted.as_secs(),
        expires_in_seconds: (!keep.is_zero()).then(|| keep.saturating_sub(counted).as_secs()),
        left_out: aside.left_out,
    };
    let status = |aside: &Aside| SetAsideStatus {
        name: aside.name.clone(),
        bytes: aside.bytes,
        since: Some(aside.since),
        confirmed: aside.confirmed.map(|counted| confirmed(aside, counted)),
    };
    known.newest().iter().map(status).collect()
}

/// All that was set aside, in numbers.
pub fn set_aside_total(known: &KnownAsides) -> SetAsideTotal {
    SetAsideTotal { number: known.number(), bytes: known.bytes() }
}

/// What scrubs have found, and how far the one under way is, for people and programs.
pub fn scrub_status(note: &ScrubNote, under_way: Option<ScrubProgress>) -> ScrubStatus {
    let damaged = note.damage().iter().map(|damage| DamagedSegment {
        segment: damage.name.to_string(),
        from_lsn: damage.from,
        text: damage.what.clone(),
        since: damage.since,
    });
    ScrubStatus {
        last_ended: note.last.map(|last| last.ended),
        last_segments: note.last.map(|last| last.segments),
        segments_read: under_way.map(|progress| progress.done),
        segments: under_way.map(|progress| progress.segments),
        damaged: damaged.collect(),
        stale_in_archive: note.stale().iter().map(ToString::to_string).collect(),
    }
}

fn end_of_wal(timeline: TimelineId, tail: &Tail) -> EndOfWal {
    EndOfWal {
        timeline,
        record_end: tail.record_end,
        last_record: tail.last_record,
        durable: tail.durable(),
        resume: tail.resume,
        ended_by: tail.ended_by.map(|fault| fault.to_string()),
    }
}

/// What is missing by one listing.
#[derive(Debug, Default, PartialEq)]
struct Missing {
    between: Vec<Hole>,
    before_open: Option<Hole>,
}

impl Missing {
    async fn of<D: Disk>(disk: &D, layout: &Layout, cluster: &Cluster, listing: &Listing) -> Self {
        let complete = newest_range(listing, cluster);
        let end = complete.map_or(cluster.start, |range| range.newest.end(cluster.segment_size));
        let open = open_segments(listing, cluster);
        // Other faults are found when the files are measured.
        let before_open = hole_before_open(disk, layout, cluster, end, &open).await.ok().flatten();
        Self { between: Extent::of(listing, cluster).holes, before_open }
    }

    /// The segments that an earlier look missed, too. Next to one that is missing, the earlier look
    /// may have missed others, and may have taken the end of the WAL to be before them.
    fn and(self, earlier: &Self) -> Self {
        let known = || earlier.between.iter().chain(&earlier.before_open);
        let both = |hole: Hole| known().filter_map(move |known| hole.common(known));
        Self {
            between: self.between.into_iter().flat_map(both).collect(),
            before_open: self.before_open.and_then(|hole| both(hole).next()),
        }
    }
}

impl DirectoryStatus {
    async fn look_at_wal<D: Disk>(
        &mut self,
        disk: &D,
        layout: &Layout,
        cluster: &Cluster,
        names: Vec<String>,
    ) {
        let size = cluster.segment_size;
        self.cluster = Some(recorded(cluster));
        for name in &names {
            if Layout::is_stray(name) {
                self.wrong.push(format!("\"{name}\" was set aside by a start, nothing reads it"));
            } else if looks_like_wal(name) && FileKind::of(name, size) == FileKind::Other {
                self.wrong.push(format!("\"{name}\" is no segment name of this cluster"));
            }
        }
        let listing = Listing::of(names, size);
        self.list(&listing, size);
        self.read_contents(disk, layout, size).await;
        self.look_for_holes(disk, layout, cluster, &listing).await;
        self.count_unarchived(disk, layout, size).await;
        self.measure(disk, layout, &listing, size).await;
        let halted = self.halted.as_ref().map(|halted| halted.durable);
        match find_end(disk, layout, cluster, &listing, halted).await {
            Ok(tail) => {
                let fence = read_note(disk, &layout.fence(), FenceNote::decode).await;
                // One that cannot be read is named with the other notes.
                let lost = lost_before_fence(fence.ok().flatten(), cluster.timeline, &tail);
                self.wrong.extend(lost);
                // A running hub writes what the walk has not seen yet.
                let past_end = tail.past_end.filter(|_| self.running == LockStatus::No);
                self.wrong.extend(past_end.map(|past_end| format!("{past_end}; {DAMAGED}")));
                self.end = Some(end_of_wal(cluster.timeline, &tail));
            }
            Err(fault) => self.wrong.push(fault.to_string()),
        }
    }

    /// A running hub renames and removes segments while their names are read, and a name that changes
    /// may be in neither place. What a second look does not miss is not missing.
    async fn look_for_holes<D: Disk>(
        &mut self,
        disk: &D,
        layout: &Layout,
        cluster: &Cluster,
        listing: &Listing,
    ) {
        let mut missing = Missing::of(disk, layout, cluster, listing).await;
        if missing != Missing::default()
            && let Ok(names) = disk.list(layout.wal()).await
        {
            let again = Listing::of(names, cluster.segment_size);
            missing = Missing::of(disk, layout, cluster, &again).await.and(&missing);
        }
        let gap = |hole: &Hole| {
            format!("gap on timeline {} from {} to {}: {hole}", hole.tli, hole.start(), hole.end())
        };
        self.wrong.extend(
            missing.between.iter().map(|hole| {
                format!("{} missing, what lies before is served up to there", gap(hole))
            }),
        );
        self.wrong.extend(
            missing.before_open.iter().map(|hole| {
                format!("{} missing, the open segment after it is not used", gap(hole))
            }),
        );
    }

    fn list(&mut self, listing: &Listing, size: SegmentSize) {
        let name = |tli, no| SegmentName { tli, no, size }.to_string();
        for range in &listing.segments {
            self.segments.push(SegmentSpan {
                timeline: range.tli,
                first: name(range.tli, range.oldest),
                last: name(range.tli, range.newest),
                count: range.count(),
                start: range.oldest.start(size),
                end: range.newest.end(size),
                contents: None,
            });
        }
        self.open = listing.partials.iter().map(|(tli, no)| name(*tli, *no)).collect();
        self.spares = listing.spares.len();
        self.histories = listing.histories.clone();
        self.wrong.extend(
            listing
                .other
                .iter()
                .filter(|name| !looks_like_wal(name))
                .map(|name| format!("\"{name}\" does not belong into pg_wal")),
        );
    }

    /// Counts the marks of what waits for the archive.
    async fn count_unarchived<D: Disk>(&mut self, disk: &D, layout: &Layout, size: SegmentSize) {
        let folder = layout.archive_status();
        match disk.list(&folder).await {
            Ok(names) => {
                let marks = names.iter().filter_map(|name| Mark::parse(name, size));
                let waiting = marks.filter(|(_, mark)| *mark == Mark::Ready).count();
                self.waiting_for_archive = Some(waiting);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let fault = StoreFault::Io { action: "list directory", path: folder, error };
                self.wrong.push(fault.to_string());
            }
        }
    }

    /// Sizes of the newest files. A stat for each of 65,536 files would take too long.
    async fn measure<D: Disk>(
        &mut self,
        disk: &D,
        layout: &Layout,
        listing: &Listing,
        size: SegmentSize,
    ) {
        let name = |(tli, no): (TimelineId, SegmentNo)| SegmentName { tli, no, size };
        let newest_first = listing.segments.iter().rev().flat_map(|range| {
            let numbers = (range.oldest.raw()..=range.newest.raw()).rev();
            numbers.map(|no| (range.tli, SegmentNo::new(no)))
        });
        let complete = newest_first.take(MEASURED).map(|segment| layout.segment(name(segment)));
        let open = listing.partials.iter().map(|segment| layout.partial(name(*segment)));
        for path in complete.chain(open) {
            let length = match disk.open_read(&path).await {
                Ok(file) => disk.len(&file).await,
                // A running hub removes and renames files.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Err(error),
            };
            match length {
                Ok(found) if found == size.bytes() => {}
                Ok(found) => {
                    let expected = size.bytes();
                    let fault = StoreFault::SegmentLength { path, found, expected };
                    self.wrong.push(fault.to_string());
                }
                Err(error) => {
                    let fault = StoreFault::Io { action: "read the size of", path, error };
                    self.wrong.push(fault.to_string());
                }
            }
        }
    }

    async fn read_state<D: Disk>(&mut self, disk: &D, layout: &Layout) {
        // Not synced: after a crash it may be anything, and then nothing is reported from it.
        if let Ok(Some(bytes)) = read_small(disk, &layout.state()).await {
            self.upstream = serde_json::from_slice(&bytes).ok();
            self.wrong.extend(self.upstream_trouble());
        }
    }

    async fn read_halted<D: Disk>(&mut self, disk: &D, layout: &Layout) {
        let report = match read_note(disk, &layout.halted(), HaltedNote::decode).await {
            Ok(None) => return,
            Ok(Some(note)) => HaltedStatus { durable: Some(note.durable), reason: note.reason },
            Err(fault) => HaltedStatus { durable: None, reason: fault.to_string() },
        };
        self.wrong.push(format!(
            "a sync failed ({}): the next start trusts nothing after {}",
            report.reason,
            report
                .durable
                .map_or_else(|| "the last complete segment".to_owned(), |lsn| lsn.to_string())
        ));
        self.halted = Some(report);
    }

    async fn read_evidence<D: Disk>(&mut self, disk: &D, layout: &Layout) {
        match read_note(disk, &layout.evidence(), Evidence::decode).await {
            Ok(None) => {}
            Ok(Some(evidence)) => {
                self.evidence = evidence_status(&evidence);
                let standing = evidence.iter().filter(|difference| !difference.cleared);
                self.wrong.extend(standing.map(|difference| {
                    let Difference { at, tli, source, .. } = difference;
                    let source = &source.name;
                    format!("{source} has another history from {at} on timeline {tli} on")
                }));
            }
            Err(fault) => self.wrong.push(fault.to_string()),
        }
    }

    /// What is known of the fence is compared with the end of the WAL.
    async fn read_fence<D: Disk>(&mut self, disk: &D, layout: &Layout) {
        if let Err(fault) = read_note(disk, &layout.fence(), FenceNote::decode).await {
            self.wrong.push(fault.to_string());
        }
    }

    async fn read_abandoned<D: Disk>(&mut self, disk: &D, layout: &Layout) {
        match read_note(disk, &layout.abandoned(), Abandoned::decode).await {
            Ok(abandoned) => self.abandoned = abandoned_status(&abandoned.unwrap_or_default()),
            Err(fault) => self.wrong.push(fault.to_string()),
        }
    }

    async fn read_seams<D: Disk>(&mut self, disk: &D, layout: &Layout) {
        match read_seams(disk, layout).await {
            Ok(seams) => {
                self.seams = seam_status(&seams);
                // A hub that runs is about to finish it.
                let left = seams.under_way().filter(|_| self.running == LockStatus::No);
                self.wrong.extend(
                    left.map(|cut| {
                        format!("{cut} was being set aside: the next start finishes that")
                    }),
                );
            }
            Err(fault) => self.wrong.push(fault.to_string()),
        }
    }

    async fn read_scrub<D: Disk>(&mut self, disk: &D, layout: &Layout) {
        match read_note(disk, &layout.scrub(), ScrubNote::decode).await {
            Ok(None) => {}
            Ok(Some(mut note)) => {
                // Retention may have removed some since.
                note.mend(|name| layout.segment(name).exists());
                let scrub = scrub_status(&note, None);
                let damaged = scrub.damaged.iter();
                self.wrong.extend(damaged.map(|one| format!("damaged: {}", one.in_words())));
                self.scrub = Some(scrub);
            }
            Err(fault) => self.wrong.push(fault.to_string()),
        }
    }

    fn check_access(&mut self, path: &Path) {
        if let Ok(meta) = std::fs::metadata(path)
            && meta.mode() & 0o077 != 0
        {
            let mode = meta.mode() & 0o7777;
            self.wrong.push(format!("the directory has mode {mode:04o}, should be 0700"));
        }
    }
}
