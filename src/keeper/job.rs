//! The keeper's jobs and its answers.

use crate::archive::prove::Unproved;
use crate::cluster::instance::InstanceId;
use crate::store::RecoveredWal;
use crate::store::append::Begun;
use crate::store::control_file::ControlFile;
use crate::store::retention::Outlook;
use crate::store::seams::{Cut, Seams, UnagreedSwitch};
use crate::store::slots::SlotName;
use crate::store::switch::Switch;
use crate::wal::{Lsn, SegmentNo, TimelineId};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// File work for the keeper. The jobs of a [lane](Lane) run one after the other, in the order
/// given; only [`Job::Prepare`] lets most others pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Make `<segment>.partial` ready for writing, durably. When no spare is ready, that takes as
    /// long as writing a whole segment. Meanwhile the jobs that were given later are done, up to
    /// the next switch or set-aside.
    Prepare {
        /// Its timeline.
        tli: TimelineId,
        /// The segment.
        no: SegmentNo,
        /// WAL below this position stays; nothing from here on may look like WAL.
        keep: Lsn,
    },
    /// Give the segment its final name, durably.
    Finalize {
        /// Its timeline.
        tli: TimelineId,
        /// The segment.
        no: SegmentNo,
    },
    /// Note that the WAL that begins at `start` is durable up to `upto`.
    Begin {
        /// Its timeline.
        tli: TimelineId,
        /// Where the directory's WAL begins: the start of a segment.
        start: Lsn,
        /// Durable up to here.
        upto: Lsn,
    },
    /// Open a segment, complete or not, for reading.
    Open {
        /// Its timeline.
        tli: TimelineId,
        /// The segment.
        no: SegmentNo,
    },
    /// Take a segment that was fetched from the archive, checked and synced under a temporary
    /// name: give it its own name, durably, and open it.
    Adopt {
        /// The timeline in its name.
        tli: TimelineId,
        /// The segment.
        no: SegmentNo,
        /// What shows that it is the WAL that belongs there.
        shown: ShownBy,
    },
    /// Give a complete segment a digest in the background: what is in its file has been proved.
    Digest {
        /// The timeline in its name.
        tli: TimelineId,
        /// The segment.
        no: SegmentNo,
    },
    /// Replace a damaged segment, durably, by the file that was fetched for it, proved and synced
    /// ([`Layout::mending`](crate::store::layout::Layout::mending)). The damaged one is kept.
    Mend {
        /// The timeline in its name.
        tli: TimelineId,
        /// The segment.
        no: SegmentNo,
    },
    /// Replace the control file of a directory without a cluster, durably.
    SaveControl(Box<ControlFile>),
    /// The cluster's description of itself has changed: replace it in the control file, durably.
    SaveIdentity {
        /// As returned by `SHOW data_directory_mode`.
        data_directory_mode: String,
        /// What the upstream reports at the start of a connection.
        parameters: Vec<(String, String)>,
    },
    /// Store a history file, durably.
    SaveHistory {
        /// The timeline it belongs to.
        tli: TimelineId,
        /// As it was received.
        bytes: Vec<u8>,
    },
    /// Replace the state file, not durably.
    SaveState(String),
    /// Look after the slots, and remove or recycle complete segments that nobody needs; the
    /// files go in the background. The keeper also does this by itself when a segment is
    /// complete.
    Retain {
        /// The timeline it is on.
        tli: TimelineId,
        /// The durable mark.
        newest: Lsn,
    },
    /// Say what [`Job::Retain`] would do now, and who keeps what. Nothing is changed.
    Foresee {
        /// The timeline it is on.
        tli: TimelineId,
        /// The durable mark.
        newest: Lsn,
    },
    /// Write these bytes over a damaged record, in place and durably. What they replace is kept.
    Overwrite {
        /// The timeline in the segment's name.
        tli: TimelineId,
        /// Where they belong: all of them in one segment.
        at: Lsn,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Write a slot that was created to disk.
    SaveSlot(SlotName),
    /// Remove a slot's file, durably, and the slot.
    DropSlot(SlotName),
    /// Nobody needs what was set aside under this name any more: note that, durably.
    ConfirmAside(String),
    /// Replace one of the notes about the upstream, durably, or remove it.
    SaveNote {
        /// Which note.
        note: Note,
        /// Its bytes; `None` to remove it.
        bytes: Option<Vec<u8>>,
    },
    /// Move all WAL into a folder beside `pg_wal` and begin with an empty one, after a gap that
    /// nothing fills. The hub's own ID stays.
    SetAside(InstanceId),
    /// Continue on another timeline: see [`switch`](crate::store::switch). A switch that was
    /// begun from the same timeline and could not be finished is finished instead.
    Switch(Switch),
    /// Make ready what a [`Job::Cut`] needs space for. Nothing changes by it.
    PrepareCut(Cut),
    /// Decide a [`Job::Cut`]: from here on a start finishes it. When it fails, nothing was decided.
    DecideCut(Cut),
    /// Move WAL of ours aside, and take the slots past its beginning their WAL: see
    /// [`cut`](crate::store::cut). Nobody streams, and nothing is received.
    Cut(Cut),
    /// Make sure that this switch of timelines, which comes next, can be undone.
    KeepLeft(UnagreedSwitch),
    /// A sync failed: leave the marker for the next start. Best effort.
    MarkHalted {
        /// Everything below was durable before the failure.
        durable: Lsn,
        /// What happened.
        reason: String,
    },
}

/// A lane of the keeper: what is in one never queues behind what is in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A commit waits for it, or the task that keeps the hub connected does.
    Urgent,
    /// Everything else: what laggards read, slots, retention.
    Patient,
}

/// What was decided, or found, about the upstream while the hub ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// `walhub.fence`
    Fence,
    /// `walhub.auto`
    Upstream,
    /// `walhub.evidence`
    Evidence,
    /// `walhub.abandoned`
    Abandoned,
    /// `walhub.seams`
    Seams,
    /// `walhub.scrub`
    Scrub,
}

impl Job {
    /// The lane it runs in.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Prepare { .. }
            | Self::Finalize { .. }
            | Self::Begin { .. }
            | Self::SaveControl(_)
            | Self::SaveIdentity { .. }
            | Self::SaveHistory { .. }
            | Self::SaveNote { .. }
            | Self::SetAside(_)
            | Self::Switch(_)
            | Self::PrepareCut(_)
            | Self::DecideCut(_)
            | Self::Cut(_)
            | Self::KeepLeft(_)
            | Self::MarkHalted { .. } => Lane::Urgent,
            Self::Open { .. }
            | Self::Adopt { .. }
            | Self::Digest { .. }
            | Self::Mend { .. }
            | Self::SaveState(_)
            | Self::Retain { .. }
            | Self::Foresee { .. }
            | Self::Overwrite { .. }
            | Self::SaveSlot(_)
            | Self::DropSlot(_)
            | Self::ConfirmAside(_) => Lane::Patient,
        }
    }

    /// What kind of job this is.
    pub fn kind(&self) -> JobKind {
        match *self {
            Self::Prepare { tli, no, .. } => JobKind::Prepare { tli, no },
            Self::Finalize { tli, no } => JobKind::Finalize { tli, no },
            Self::Begin { tli, .. } => JobKind::Begin { tli },
            Self::Open { tli, no } => JobKind::Open { tli, no },
            Self::Adopt { tli, no, .. } => JobKind::Adopt { tli, no },
            Self::Digest { tli, no } => JobKind::Digest { tli, no },
            Self::Mend { tli, no } => JobKind::Mend { tli, no },
            Self::SaveControl(_) => JobKind::SaveControl,
            Self::SaveIdentity { .. } => JobKind::SaveIdentity,
            Self::SaveHistory { tli, .. } => JobKind::SaveHistory { tli },
            Self::SaveState(_) => JobKind::SaveState,
            Self::Retain { .. } => JobKind::Retain,
            Self::Foresee { .. } => JobKind::Foresee,
            Self::Overwrite { tli, at, .. } => JobKind::Overwrite { tli, at },
            Self::SaveSlot(_) => JobKind::SaveSlot,
            Self::DropSlot(_) => JobKind::DropSlot,
            Self::ConfirmAside(_) => JobKind::ConfirmAside,
            Self::SaveNote { note, .. } => JobKind::SaveNote(note),
            Self::SetAside(_) => JobKind::SetAside,
            Self::Switch(_) => JobKind::Switch,
            Self::PrepareCut(_) => JobKind::PrepareCut,
            Self::DecideCut(_) => JobKind::DecideCut,
            Self::Cut(_) => JobKind::Cut,
            Self::KeepLeft(_) => JobKind::KeepLeft,
            Self::MarkHalted { .. } => JobKind::MarkHalted,
        }
    }
}

/// What shows that a segment of the archive is the WAL that belongs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShownBy {
    /// It is what the digest of the removed segment says.
    Digest,
    /// Its records are whole and follow each other. There is no digest.
    Records,
}

/// Is there more background work?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tended {
    /// Some was done; there may be more.
    More,
    /// Nothing is left to do.
    Idle,
}

/// A job without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the same names and fields as in Job")]
pub enum JobKind {
    Prepare { tli: TimelineId, no: SegmentNo },
    Finalize { tli: TimelineId, no: SegmentNo },
    Begin { tli: TimelineId },
    Open { tli: TimelineId, no: SegmentNo },
    Adopt { tli: TimelineId, no: SegmentNo },
    Digest { tli: TimelineId, no: SegmentNo },
    Mend { tli: TimelineId, no: SegmentNo },
    SaveControl,
    SaveIdentity,
    SaveHistory { tli: TimelineId },
    SaveState,
    Retain,
    Foresee,
    Overwrite { tli: TimelineId, at: Lsn },
    SaveSlot,
    DropSlot,
    ConfirmAside,
    SaveNote(Note),
    SetAside,
    Switch,
    PrepareCut,
    DecideCut,
    Cut,
    KeepLeft,
    MarkHalted,
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepare { tli, no } => {
                write!(f, "prepare segment {} of timeline {tli}", no.raw())
            }
            Self::Finalize { tli, no } => {
                write!(f, "give segment {} of timeline {tli} its final name", no.raw())
            }
            Self::Begin { tli } => write!(f, "note the beginning of timeline {tli}"),
            Self::Open { tli, no } => write!(f, "open segment {} of timeline {tli}", no.raw()),
            Self::Adopt { tli, no } => {
                write!(f, "take restored segment {} of timeline {tli}", no.raw())
            }
            Self::Digest { tli, no } => {
                write!(f, "give segment {} of timeline {tli} a digest", no.raw())
            }
            Self::Mend { tli, no } => {
                write!(f, "replace damaged segment {} of timeline {tli}", no.raw())
            }
            Self::SaveControl | Self::SaveIdentity => f.write_str("save the control file"),
            Self::SaveHistory { tli } => write!(f, "save the history file of timeline {tli}"),
            Self::SaveState => f.write_str("save the state file"),
            Self::Retain => f.write_str("remove old segments"),
            Self::Foresee => f.write_str("say which old segments would be removed"),
            Self::Overwrite { tli, at } => {
                write!(f, "mend the record at {at} on timeline {tli}")
            }
            Self::SaveSlot => f.write_str("save a replication slot"),
            Self::DropSlot => f.write_str("remove a replication slot"),
            Self::ConfirmAside => f.write_str("confirm what was set aside"),
            Self::SaveNote(Note::Fence) => f.write_str("save the fence"),
            Self::SaveNote(Note::Upstream) => f.write_str("save the upstream"),
            Self::SaveNote(Note::Evidence) => f.write_str("save the evidence of a difference"),
            Self::SaveNote(Note::Abandoned) => f.write_str("save what was abandoned"),
            Self::SaveNote(Note::Seams) => f.write_str("save where another history goes on"),
            Self::SaveNote(Note::Scrub) => f.write_str("save what a scrub has found"),
            Self::SetAside => f.write_str("move all WAL aside"),
            Self::Switch => f.write_str("continue with another timeline"),
            Self::PrepareCut => f.write_str("prepare to move WAL past a place aside"),
            Self::DecideCut => f.write_str("decide to move WAL past a place aside"),
            Self::Cut => f.write_str("move WAL past a place aside"),
            Self::KeepLeft => f.write_str("keep what a switch of timelines leaves"),
            Self::MarkHalted => f.write_str("write the halted marker"),
        }
    }
}

/// The keeper's answer; every job gets exactly one.
#[derive(Debug)]
pub enum JobDone<F = Arc<OwnedFd>> {
    /// The segment may be written.
    Prepared {
        /// Its timeline.
        tli: TimelineId,
        /// The segment.
        no: SegmentNo,
        /// Open for reading and writing.
        file: F,
    },
    /// The segment has its final name.
    Finalized {
        /// Its timeline.
        tli: TimelineId,
        /// The segment.
        no: SegmentNo,
    },
    /// The beginning is noted.
    Begun {
        /// Its timeline.
        tli: TimelineId,
        /// Does the first whole record begin at or before the noted position?
        begun: Begun,
    },
    /// The segment was opened, or is not there ([`io::ErrorKind::NotFound`]).
    Opened {
        /// Its timeline.
        tli: TimelineId,
        /// The segment.
        no: SegmentNo,
        /// Open for reading at least.
        result: io::Result<F>,
    },
    /// A segment from the archive can be read up to a position. Never an answer of the keeper's.
    OpenedPartly {
        /// Its timeline.
        tli: TimelineId,
        /// The segment.
        no: SegmentNo,
        /// Open for reading.
        file: F,
        /// What must not be read, and why.
        unproved: Unproved,
    },
    /// A segment from the archive was adopted and opened, or was not.
    Adopted {
        /// The timeline in its name.
        tli: TimelineId,
        /// The segment.
        no: SegmentNo,
        /// Open for reading.
        result: io::Result<F>,
    },
    /// The timeline was switched; this is the WAL that goes on.
    Switched(Box<RecoveredWal>),
    /// WAL past a place was set aside.
    CutOff {
        /// The WAL that goes on.
        wal: Box<RecoveredWal>,
        /// What stands.
        seams: Seams,
    },
    /// What would be removed.
    Foreseen(Box<Outlook>),
    /// A job without a result succeeded.
    Done(JobKind),
    /// The job failed and left nothing half done that could be believed.
    Failed {
        /// Which job.
        job: JobKind,
        /// The operating system's error.
        error: io::Error,
    },
}
