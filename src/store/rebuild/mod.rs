//! A damaged control file: what is wrong with it, and another one by what the segments say.
//!
//! Nothing is believed of the damaged file that no checksum vouches for, unless the segments say the
//! same, or it does no harm. Where the segments do not agree with each other nothing is written.

mod salvage;
mod survey;
#[cfg(test)]
mod tests;

use self::salvage::Salvaged;
use self::survey::Survey;
use super::aside::holds_wal_past;
use super::control_file::{Cluster, ControlFile, Sealed};
use super::directory::{Directory, DirectoryFault};
use super::disk::{Disk, run_ready};
use super::durable::{read_small, replace_durably};
use super::end::find_end;
use super::fault::{StoreFault, failed};
use super::layout::{Layout, Listing};
use super::notes::HaltedNote;
use super::plain_disk::PlainDisk;
use super::tail::Tail;
use crate::cluster::instance::InstanceId;
use crate::timeline::History;
use crate::wal::{SegmentName, TimelineId};
use std::io;
use std::path::PathBuf;

/// Why no control file was written.
#[derive(Debug, thiserror::Error)]
pub enum RebuildFault {
    /// It is in use, or is not a hub's.
    #[error(transparent)]
    Directory(#[from] DirectoryFault),
    /// Something cannot be read or written, or the WAL is damaged.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// There is nothing to do.
    #[error("the control file is whole")]
    Whole,
    /// There is nothing to go by.
    #[error("there is no WAL segment that would say whose WAL this is")]
    NoWal,
    /// The files contradict each other.
    #[error("the segments do not agree: {0}")]
    Disagree(String),
}

/// A control file by what the segments say.
#[derive(Debug)]
pub struct Rebuilt {
    /// What is wrong with the one that is there, a line each.
    pub damage: Vec<String>,
    /// What it says then.
    pub control: ControlFile,
    /// What the segments say, in words.
    pub by: String,
    /// Where the WAL ends with it.
    pub tail: Tail,
    /// Where the damaged one is kept; `None` when there was none.
    pub kept: Option<PathBuf>,
}

/// Writes a new control file in the place of a damaged one, which is kept under another name. The
/// directory's hub must not run. `fresh` becomes the hub's ID where the damaged file does not say it.
///
/// # Errors
/// Nothing was written.
pub fn rebuild_control(layout: &Layout, fresh: InstanceId) -> Result<Rebuilt, RebuildFault> {
    let missing = || failed("list directory", layout.wal())(io::ErrorKind::NotFound.into());
    // Opening would turn any empty directory into a hub's.
    if !layout.wal().is_dir() {
        return Err(missing().into());
    }
    let _locked = Directory::open(layout.root())?;
    let work = async {
        let disk = &PlainDisk;
        let mut rebuilt = plan(disk, layout, fresh).await?;
        rebuilt.kept = keep_damaged(disk, layout).await?;
        let path = layout.control();
        let written = replace_durably(disk, &path, rebuilt.control.encode()).await;
        written.map_err(failed("write file", &path))?;
        Ok(rebuilt)
    };
    run_ready(work).unwrap_or_else(|| Err(missing().into()))
}

/// What is wrong with the control file and whether it can be rebuilt, in words. Writes nothing.
pub async fn explain<D: Disk>(disk: &D, layout: &Layout) -> Vec<String> {
    match plan(disk, layout, InstanceId::new(0)).await {
        Ok(Rebuilt { mut damage, by, .. }) => {
            damage.push(format!("walhub inspect --rebuild-control would write another one: {by}"));
            damage
        }
        Err(RebuildFault::Whole) => Vec::new(),
        Err(fault) => {
            vec![format!("the control file cannot be rebuilt from the segments: {fault}")]
        }
    }
}

/// What would be written.
async fn plan<D: Disk>(
    disk: &D,
    layout: &Layout,
    fresh: InstanceId,
) -> Result<Rebuilt, RebuildFault> {
    let path = layout.control();
    let bytes = read_small(disk, &path).await.map_err(failed("read file", &path))?;
    let (salvaged, mut damage) = match &bytes {
        None => (Salvaged::default(), vec!["there is no control file".to_owned()]),
        Some(bytes) => match ControlFile::decode(bytes) {
            Ok(_) => return Err(RebuildFault::Whole),
            Err(fault) => {
                let length = bytes.len();
                (Salvaged::of(bytes), vec![format!("the control file, of {length} bytes, {fault}")])
            }
        },
    };
    let survey = Survey::of(disk, layout).await?;
    let (tli, history) = choose_timeline(disk, layout, &survey, salvaged.timeline()).await?;
    let cluster = cluster_of(&survey, tli, history.as_ref(), &salvaged)?;
    damage.extend(salvaged.contradictions(&cluster, survey.imprint.major()));
    let names = disk.list(layout.wal()).await.map_err(failed("list directory", layout.wal()))?;
    let listing = Listing::of(names, cluster.segment_size);
    let halted = match read_small(disk, &layout.halted()).await {
        Ok(bytes) => bytes.map(|bytes| HaltedNote::decode(&bytes).ok().map(|note| note.durable)),
        Err(_) => None,
    };
    let tail = find_end(disk, layout, &cluster, &listing, halted).await?;
    let by = format!(
        "{} complete segments are of {}; timeline {tli} here since {}, and its WAL ends at {}",
        survey.complete(),
        survey.imprint,
        cluster.start,
        tail.record_end
    );
    let instance = salvaged.instance().unwrap_or(fresh);
    let control = ControlFile { instance, cluster: Some(cluster) };
    Ok(Rebuilt { damage, control, by, tail, kept: None })
}

/// The timeline on which this directory goes on: the newest one with a segment. After a switch that
/// a crash may have cut short before it was decided, the parent's is the safe choice as long as its
/// own file is here: a start finds the child's again.
async fn choose_timeline<D: Disk>(
    disk: &D,
    layout: &Layout,
    survey: &Survey,
    said: Option<TimelineId>,
) -> Result<(TimelineId, Option<History>), RebuildFault> {
    let (newest, segments) = survey.timelines.last_key_value().ok_or(RebuildFault::NoWal)?;
    let history = read_history(disk, layout, *newest).await?;
    let Some(child) = &history else { return Ok((*newest, history)) };
    let (Some(parent), at) = (child.parent(), child.start()) else {
        return Ok((*newest, history));
    };
    let fork = |tli| SegmentName { tli, no: at.segment(survey.size), size: survey.size };
    let exists = async |path: PathBuf| disk.open_read(&path).await.is_ok();
    let has_parents =
        exists(layout.segment(fork(parent))).await || exists(layout.partial(fork(parent))).await;
    if segments.complete > 0 || !has_parents || said == Some(*newest) {
        return Ok((*newest, history));
    }
    let copy = layout.partial(fork(*newest));
    if !exists(copy.clone()).await || holds_wal_past(disk, &copy, fork(*newest), at).await? {
        return Ok((*newest, history));
    }
    Ok((parent, read_history(disk, layout, parent).await?))
}

/// The history of a timeline; `None` for the first one.
async fn read_history<D: Disk>(
    disk: &D,
    layout: &Layout,
    tli: TimelineId,
) -> Result<Option<History>, RebuildFault> {
    if tli == TimelineId::FIRST {
        return Ok(None);
    }
    let path = layout.history(tli);
    let bytes = read_small(disk, &path).await.map_err(failed("read file", &path))?;
    let detail = |detail: String| StoreFault::History { path: path.clone(), detail };
    let bytes = bytes.ok_or_else(|| detail("it is not there".to_owned()))?;
    let history = History::parse(tli, bytes.into());
    Ok(Some(history.map_err(|fault| detail(fault.to_string()))?))
}

/// The cluster, on timeline `tli`.
fn cluster_of(
    survey: &Survey,
    tli: TimelineId,
    history: Option<&History>,
    salvaged: &Salvaged,
) -> Result<Cluster, RebuildFault> {
    let forks = history.map(History::forks).unwrap_or_default();
    let is_known = |of: TimelineId| of == tli || forks.iter().any(|(ancestor, _)| *ancestor == of);
    let foreign = survey.timelines.iter().find(|(of, all)| all.complete > 0 && !is_known(**of));
    if let Some((of, all)) = foreign {
        let name = SegmentName { tli: *of, no: all.oldest, size: survey.size };
        return Err(RebuildFault::Disagree(format!(
            "\"{name}\" is of timeline {of}, which is not in the history of timeline {tli}"
        )));
    }
    let first = forks.iter().position(|(ancestor, _)| survey.timelines.contains_key(ancestor));
    let mut sealed: Vec<Sealed> = Vec::new();
    for (ancestor, end) in forks.get(first.unwrap_or(forks.len())..).unwrap_or_default() {
        // One that never filled a segment is in the file of the next.
        let begun = sealed.last().map(|before| before.end.segment_start(survey.size));
        let start = survey.oldest(*ancestor).or(begun).unwrap_or(*end);
        sealed.push(Sealed { tli: *ancestor, start, end: *end });
    }
    let (start, size) = (survey.oldest(tli), survey.size);
    let major = survey.imprint.major();
    Ok(Cluster {
        system_id: survey.imprint.system,
        segment_size: size,
        data_directory_mode: salvaged.mode().to_owned(),
        parameters: salvaged.parameters(major),
        timeline: tli,
        start: start.ok_or(RebuildFault::NoWal)?,
        sealed,
    })
}

/// Gives the damaged file a second name, durably.
async fn keep_damaged<D: Disk>(disk: &D, layout: &Layout) -> Result<Option<PathBuf>, StoreFault> {
    let path = layout.control();
    let wanted = layout.damaged_control();
    let numbered = (1u32..).map(|number| Layout::numbered(&wanted, number));
    for kept in std::iter::once(wanted.clone()).chain(numbered) {
        match disk.link(&path, &kept).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            linked => {
                linked.map_err(failed("create file", &kept))?;
                let synced = disk.sync_dir(layout.root()).await;
                synced.map_err(failed("fsync directory", layout.root()))?;
                return Ok(Some(kept));
            }
        }
    }
    Err(failed("create file", &wanted)(io::ErrorKind::AlreadyExists.into()))
}
