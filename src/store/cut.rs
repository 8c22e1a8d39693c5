//! Our WAL of a timeline from a place on leaves `pg_wal`, and the timeline goes on from there with
//! that of another history: the steps that make this durable, in an order in which a crash between
//! any two of them does no harm.
//!
//! 1. The segment in which the place lies is built again: its bytes before the place and zeros past
//!    it, under a temporary name. A place on a segment's boundary needs no such file.
//! 2. `walhub.seams` says that this is under way. That decides: from here on a start finishes it.
//! 3. When no complete segment stays directly before it, the control file says that our WAL begins with the open one.
//!    The files from the place on move to `diverged/`, and what was built gets its name. While its
//!    temporary name is there, the segment's own file is the former one. What is in the files is
//!    counted before the first one moves.
//! 4. The slots past the place lose their WAL, `walhub.evidence` has no difference past the place any
//!    more, and `walhub.seams` says that it is finished. Until then nothing is received and nothing is
//!    served.
//!
//! The way back over a switch of timelines takes the same steps. What is built is the segment in which
//! the former timeline was left, from what was [kept](super::kept) of it. All files of the timelines
//! that followed leave, and then the control file says that the former one goes on.

use super::aside::{holds_wal_past, move_aside};
use super::control_file::{Cluster, ControlFile, Sealed};
use super::count::note_cut;
use super::digest::forget_removed_from;
use super::disk::{Disk, parent};
use super::durable::{read_full, read_note, remove, replace_durably};
use super::evidence::Evidence;
use super::fault::{StoreFault, failed};
use super::layout::{FileKind, Layout};
use super::notes::BegunNote;
use super::seams::{Cut, Seam, Seams};
use super::switch::{Switch, open_segment, read_cluster, write_segment};
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize};
use std::io;
use std::path::{Path, PathBuf};

/// The segment that is built again, if the place lies inside it.
fn rebuilt(cut: Cut, size: SegmentSize) -> SegmentName {
    SegmentName { tli: cut.goes_on_with(), no: cut.place().at.segment(size), size }
}

/// Step 1, and the folder that the files will move to: all that needs space.
///
/// # Errors
/// Nothing has changed.
pub async fn prepare_cut<D: Disk>(
    disk: &D,
    layout: &Layout,
    size: SegmentSize,
    cut: Cut,
) -> Result<(), StoreFault> {
    let (name, place) = (rebuilt(cut, size), cut.place());
    let temporary = Layout::temporary(&layout.partial(name));
    // An earlier attempt, at another place in the segment, may have left one. It would be taken for
    // that of this one.
    remove(disk, &temporary).await.map_err(failed("remove file", &temporary))?;
    sync(disk, layout.wal()).await?;
    make_folder(disk, layout, place).await?;
    let len = place.at.segment_offset(size);
    if len == 0 {
        return Ok(());
    }
    let (path, file) = match cut {
        Cut::Past(_) => open_segment(disk, layout, name).await?,
        Cut::Back(_) => {
            let kept = layout.kept_segment(name);
            let file = disk.open_read(&kept).await.map_err(failed("open file", &kept))?;
            (kept, file)
        }
    };
    let read = read_full(disk, &file, len as usize, 0).await;
    let prefix = read.map_err(failed("read file", &path))?;
    if (prefix.len() as u64) < len {
        return Err(failed("read file", &path)(io::ErrorKind::UnexpectedEof.into()));
    }
    if let Err(error) = write_segment(disk, &temporary, prefix, size).await {
        // On a full disk it takes the room that others need.
        drop(remove(disk, &temporary).await);
        return Err(failed("write file", &temporary)(error));
    }
    sync(disk, layout.wal()).await
}

/// Step 2. One that is decided already only becomes durable once more: that needs no space.
///
/// # Errors
/// The file could not be read or written, another cut is under way, or too many seams stand.
pub async fn decide_cut<D: Disk>(disk: &D, layout: &Layout, cut: Cut) -> Result<(), StoreFault> {
    let path = layout.seams();
    let mut seams = read_seams(disk, layout).await?;
    if seams.under_way() == Some(cut) {
        return sync(disk, layout.root()).await;
    }
    let standing = match cut {
        Cut::Past(seam) => vec![seam],
        Cut::Back(switch) => sent_past(disk, layout, switch).await?,
    };
    let begun = seams.begin(cut, &standing);
    begun.map_err(|why| failed("use file", &path)(io::Error::other(why)))?;
    write_seams(disk, layout, &seams).await
}

/// The places past which standbys may have been sent WAL of the timelines that followed the switch: any
/// of it that is or was here.
async fn sent_past<D: Disk>(
    disk: &D,
    layout: &Layout,
    switch: Switch,
) -> Result<Vec<Seam>, StoreFault> {
    let path = layout.control();
    let found = read_cluster(disk, layout).await?;
    let (_, cluster) =
        found.ok_or_else(|| failed("read file", &path)(io::ErrorKind::NotFound.into()))?;
    if !cluster.sealed.iter().any(|sealed| sealed.tli == switch.from && sealed.end == switch.at) {
        let other = format!("timeline {} was not left at {}", switch.from, switch.at);
        return Err(failed("use file", &path)(io::Error::other(other)));
    }
    let (mut begun, size) = (undone(&cluster, switch), cluster.segment_size);
    if let Some(last) = begun.pop_if(|last| last.tli == cluster.timeline) {
        let names = list(disk, layout).await?;
        let is_complete = |name: &String| match FileKind::of(name, size) {
            FileKind::Segment(segment) => segment.tli == last.tli,
            _ => false,
        };
        let name = SegmentName { tli: last.tli, no: last.at.segment(size), size };
        let open = layout.partial(name);
        let is_open = names.iter().any(|name| open.ends_with(name));
        if names.iter().any(is_complete)
            || is_open && holds_wal_past(disk, &open, name, last.at).await?
        {
            begun.push(last);
        }
    }
    Ok(begun)
}

/// The timelines that followed the switch, each with its beginning.
fn undone(cluster: &Cluster, switch: Switch) -> Vec<Seam> {
    let sealed = &cluster.sealed;
    let is_it = |place: &usize| {
        sealed.get(*place).is_some_and(|left| left.tli == switch.from && left.end == switch.at)
    };
    let Some(place) = (0..sealed.len()).find(is_it) else {
        // It is undone already, but for what comes last.
        return vec![Cut::Back(switch).place()];
    };
    let later = sealed.iter().skip(place + 1).map(|sealed| sealed.tli).chain([cluster.timeline]);
    let begins = sealed.iter().skip(place).map(|sealed| sealed.end);
    later.zip(begins).map(|(tli, at)| Seam { tli, at }).collect()
}

async fn list<D: Disk>(disk: &D, layout: &Layout) -> Result<Vec<String>, StoreFault> {
    disk.list(layout.wal()).await.map_err(failed("list directory", layout.wal()))
}

/// The end of step 4. Returns what stands.
///
/// # Errors
/// A file could not be read or written.
pub async fn finish_cut<D: Disk>(disk: &D, layout: &Layout) -> Result<Seams, StoreFault> {
    let mut seams = read_seams(disk, layout).await?;
    if let Some(cut) = seams.under_way() {
        end_evidence(disk, layout, cut.place()).await?;
        seams.finish();
        write_seams(disk, layout, &seams).await?;
    }
    Ok(seams)
}

/// The WAL that a difference past the seam is about was set aside. Where our WAL ends later says
/// nothing of that.
async fn end_evidence<D: Disk>(disk: &D, layout: &Layout, seam: Seam) -> Result<(), StoreFault> {
    let path = layout.evidence();
    let Some(mut evidence) = read_note(disk, &path, Evidence::decode).await? else { return Ok(()) };
    if evidence.remove_past(seam).is_empty() {
        return Ok(());
    }
    if evidence.is_empty() {
        remove(disk, &path).await.map_err(failed("remove file", &path))?;
        return sync(disk, layout.root()).await;
    }
    let written = replace_durably(disk, &path, evidence.encode()).await;
    written.map_err(failed("write file", &path))
}

/// What stands.
///
/// # Errors
/// The file is damaged: it may be what keeps two histories apart.
pub async fn read_seams<D: Disk>(disk: &D, layout: &Layout) -> Result<Seams, StoreFault> {
    Ok(read_note(disk, &layout.seams(), Seams::decode).await?.unwrap_or_default())
}

async fn write_seams<D: Disk>(disk: &D, layout: &Layout, seams: &Seams) -> Result<(), StoreFault> {
    let path = layout.seams();
    replace_durably(disk, &path, seams.encode()).await.map_err(failed("write file", &path))
}

/// Step 3, or the rest of it. `names` is what is in `pg_wal`. Returns whether the control file has
/// changed.
pub(super) async fn carry_out_cut<D: Disk>(
    disk: &D,
    layout: &Layout,
    cluster: &Cluster,
    cut: Cut,
    names: &[String],
) -> Result<ControlChange, StoreFault> {
    let size = cluster.segment_size;
    let (name, place) = (rebuilt(cut, size), cut.place());
    let partial = layout.partial(name);
    let temporary = Layout::temporary(&partial);
    let is_built = names.iter().any(|other| temporary.ends_with(other));
    let is_inside = place.at.segment_offset(size) > 0;
    let gone = match cut {
        Cut::Past(seam) => vec![seam],
        Cut::Back(switch) => undone(cluster, switch),
    };
    let is_past = |other: SegmentName| match cut {
        Cut::Past(_) => other.no > name.no || other.no == name.no && (is_built || !is_inside),
        Cut::Back(_) => true,
    };
    for past in &gone {
        let no = match cut {
            Cut::Past(_) => name.no,
            Cut::Back(_) => SegmentNo::new(0),
        };
        let first = SegmentName { tli: past.tli, no, size };
        let forgotten = forget_removed_from(disk, layout, first).await;
        forgotten.map_err(failed("remove the digests in", &layout.removed_digests()))?;
    }
    let mut leaving = Vec::new();
    for past in &gone {
        let leaves = |other: &&String| match FileKind::of(other, size) {
            FileKind::Segment(other) | FileKind::Partial(other) => {
                other.tli == past.tli && is_past(other)
            }
            _ => false,
        };
        let files: Vec<_> = names.iter().filter(leaves).cloned().collect();
        note_cut(disk, layout, cluster, (*past, cut.goes_on_with()), &files).await;
        leaving.push((past, files));
    }
    let stays = |other: &String| match FileKind::of(other, size) {
        FileKind::Segment(other) => other.tli == name.tli && other.no.next() == name.no,
        _ => false,
    };
    let own = Seam { tli: name.tli, at: place.at };
    let start = (!names.iter().any(stays)).then(|| name.no.start(size));
    match start {
        None => limit_beginning(disk, layout, own).await?,
        Some(start) => {
            let begun = BegunNote { tli: own.tli, start, upto: own.at };
            note_beginning(disk, layout, begun).await?;
        }
    }
    let change = match (cut, start) {
        (Cut::Past(_), Some(start)) => begin_at(disk, layout, start).await?,
        (Cut::Past(_) | Cut::Back(_), _) => ControlChange::None,
    };
    for (past, files) in leaving {
        let folder = make_folder(disk, layout, *past).await?;
        for file in &files {
            let reason = match cut {
                Cut::Past(seam) => format!("another history goes on from {seam}"),
                Cut::Back(switch) => format!("the hub goes back to timeline {}", switch.from),
            };
            move_aside(disk, &layout.wal().join(file), &folder.join(file), &reason).await?;
        }
        sync(disk, &folder).await?;
    }
    sync(disk, layout.wal()).await?;
    if is_built {
        disk.rename(&temporary, &partial).await.map_err(failed("rename file", &temporary))?;
        sync(disk, layout.wal()).await?;
    }
    match cut {
        Cut::Past(_) => Ok(change),
        Cut::Back(switch) => go_back(disk, layout, switch, start).await,
    }
}

/// The control file says that the timeline goes on that was left by the switch. No complete segment of
/// it is left before `start`.
async fn go_back<D: Disk>(
    disk: &D,
    layout: &Layout,
    switch: Switch,
    start: Option<Lsn>,
) -> Result<ControlChange, StoreFault> {
    let Some((control, mut cluster)) = read_cluster(disk, layout).await? else {
        return Ok(ControlChange::None);
    };
    let left = |sealed: &Sealed| sealed.tli == switch.from && sealed.end == switch.at;
    let Some(place) = cluster.sealed.iter().position(left) else {
        return Ok(ControlChange::None);
    };
    let began = cluster.sealed.get(place).map_or(cluster.start, |left| left.start);
    cluster.sealed.truncate(place);
    cluster.timeline = switch.from;
    cluster.start = start.map_or(began, |start| start.max(began));
    let control = ControlFile { cluster: Some(cluster), ..control };
    let path = layout.control();
    let written = replace_durably(disk, &path, control.encode()).await;
    written.map_err(failed("write file", &path))?;
    Ok(ControlChange::Made)
}

/// Is the control file another one than before?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ControlChange {
    None,
    Made,
}

/// The note about the first bytes vouches for none that have left.
async fn limit_beginning<D: Disk>(disk: &D, layout: &Layout, seam: Seam) -> Result<(), StoreFault> {
    let begun = read_note(disk, &layout.begun(), BegunNote::decode).await?;
    let goes_past = |begun: &BegunNote| begun.tli == seam.tli && begun.upto > seam.at;
    match begun.filter(goes_past) {
        Some(begun) => note_beginning(disk, layout, BegunNote { upto: seam.at, ..begun }).await,
        None => Ok(()),
    }
}

/// No complete segment is left before the open one: our WAL of the timeline begins with the open one, although it began
/// earlier once and the segments before were removed since. The record that it may begin in the
/// middle of has no checksum here, so a note vouches for these bytes.
async fn begin_at<D: Disk>(
    disk: &D,
    layout: &Layout,
    start: Lsn,
) -> Result<ControlChange, StoreFault> {
    let path = layout.control();
    let Some((control, cluster)) = read_cluster(disk, layout).await? else {
        return Ok(ControlChange::None);
    };
    if cluster.start >= start {
        return Ok(ControlChange::None);
    }
    let control = ControlFile { cluster: Some(Cluster { start, ..cluster }), ..control };
    let written = replace_durably(disk, &path, control.encode()).await;
    written.map_err(failed("write file", &path))?;
    Ok(ControlChange::Made)
}

async fn note_beginning<D: Disk>(
    disk: &D,
    layout: &Layout,
    begun: BegunNote,
) -> Result<(), StoreFault> {
    let path = layout.begun();
    let written = replace_durably(disk, &path, begun.encode()).await;
    written.map_err(failed("write file", &path))
}

async fn make_folder<D: Disk>(
    disk: &D,
    layout: &Layout,
    seam: Seam,
) -> Result<PathBuf, StoreFault> {
    let (root, folder) = (layout.all_diverged(), layout.diverged(seam.tli, seam.at));
    for dir in [&root, &folder] {
        match disk.mkdir(dir).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("create directory", dir))?,
        }
        sync(disk, parent(dir)).await?;
    }
    Ok(folder)
}

async fn sync<D: Disk>(disk: &D, dir: &Path) -> Result<(), StoreFault> {
    let synced = disk.sync_dir(dir).await;
    synced.map_err(|error| StoreFault::Sync { path: dir.to_owned(), error })
}

#[cfg(test)]
mod tests;
