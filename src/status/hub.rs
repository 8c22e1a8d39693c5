//! The state of a hub.

use super::archive::ArchiverStatus;
use super::form;
use super::scrub::ScrubStatus;
use super::upstream::{
    AbandonedStatus, ArchiveTimelineStatus, EvidenceStatus, FenceStatus, SeamStatus, UpstreamStatus,
};
use crate::cluster::instance::InstanceId;
use crate::wal::{Lsn, SegmentSize, SystemId, TimelineId};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

/// The state of a hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HubStatus {
    /// The program's version.
    pub walhub_version: String,
    /// Its process ID.
    pub pid: u32,
    /// When it started.
    #[serde(with = "form::plain")]
    pub started: SystemTime,
    /// The time since then.
    #[serde(rename = "uptime_seconds", with = "form::whole_seconds")]
    pub uptime: Duration,
    /// Its own ID.
    #[serde(with = "form::plain")]
    pub instance_id: InstanceId,
    /// What it announces to its clients: its own ID and those of the hubs above it.
    #[serde(with = "form::list")]
    pub instance_path: Vec<InstanceId>,
    /// The cluster.
    #[serde(default, with = "form::optional")]
    pub system_id: Option<SystemId>,
    /// The server version that its clients are told.
    pub server_version: Option<String>,
    /// `wal_segment_size`.
    #[serde(default, with = "form::optional")]
    pub wal_segment_size: Option<SegmentSize>,
    /// The connection upstream.
    pub upstream: UpstreamStatus,
    /// The fence, while there is one.
    pub fence: Option<FenceStatus>,
    /// Where another source had other bytes; nothing is received as long as this is set.
    pub evidence: Option<EvidenceStatus>,
    /// What timelines had past their switchpoints, as long as no operator has confirmed it.
    #[serde(default)]
    pub abandoned: Vec<AbandonedStatus>,
    /// Where other histories go on, until an operator confirms it.
    #[serde(default)]
    pub seams: Vec<SeamStatus>,
    /// Timelines for which there is the archive's word alone.
    #[serde(default)]
    pub archive_timelines: Vec<ArchiveTimelineStatus>,
    /// Why receiving is paused; null when it is not.
    pub receiving_paused: Option<String>,
    /// The timeline that is received.
    #[serde(default, with = "form::optional")]
    pub timeline: Option<TimelineId>,
    /// Received and checked; null when the receiving core does not report it.
    #[serde(default, with = "form::optional")]
    pub received_lsn: Option<Lsn>,
    /// Written to its file.
    #[serde(default, with = "form::optional")]
    pub written_lsn: Option<Lsn>,
    /// On disk: what standbys are sent, and what is acknowledged upstream.
    #[serde(default, with = "form::optional")]
    pub durable_lsn: Option<Lsn>,
    /// The oldest position that is kept.
    #[serde(default, with = "form::optional")]
    pub oldest_lsn: Option<Lsn>,
    /// WAL past that position that was missing when the hub started.
    #[serde(default)]
    pub missing: Vec<MissingWal>,
    /// Standbys that stream.
    pub standbys: usize,
    /// Standbys that hold WAL of an abandoned branch.
    pub diverged: usize,
    /// Replication connections, streaming or not.
    pub senders: usize,
    /// The maximum.
    pub max_wal_senders: usize,
    /// Replication slots.
    pub slots: usize,
    /// The maximum.
    pub max_replication_slots: usize,
    /// The oldest transaction that standbys need, as reported to the upstream.
    pub xmin: Option<u32>,
    /// The same for catalogs.
    pub catalog_xmin: Option<u32>,
    /// How archiving goes; null without an `--archive-command`.
    pub archiver: Option<ArchiverStatus>,
    /// What scrubs of the complete segments have found.
    #[serde(default)]
    pub scrub: ScrubStatus,
    /// The newest of what was set aside, the newest first: nothing reads it.
    #[serde(default)]
    pub set_aside: Vec<SetAsideStatus>,
    /// All that was set aside; null before the hub has looked.
    #[serde(default)]
    pub set_aside_total: Option<SetAsideTotal>,
    /// Log lines that standard error did not accept since the hub's start.
    #[serde(default)]
    pub log_lines_lost: u64,
}

/// WAL that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAsideStatus {
    /// Its name below the hub's directory.
    pub name: String,
    /// The bytes in it.
    pub bytes: u64,
    /// When it was put there.
    #[serde(default, with = "form::optional")]
    pub since: Option<SystemTime>,
    /// What an operator has said of it; null when nothing of it is confirmed.
    #[serde(default)]
    pub confirmed: Option<ConfirmedStatus>,
}

/// What was set aside and is confirmed: nobody needs it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmedStatus {
    /// For how long the hub has run since.
    pub counted_seconds: u64,
    /// When it goes, if the hub goes on to run; null when it does not go, or that is not known.
    pub expires_in_seconds: Option<u64>,
    /// How many files in it are not confirmed. They stay.
    pub left_out: usize,
}

impl SetAsideStatus {
    /// Is something in it that nobody has confirmed?
    pub fn is_unconfirmed(&self) -> bool {
        self.confirmed.is_none_or(|confirmed| confirmed.left_out > 0)
    }
}

/// All that was set aside, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAsideTotal {
    /// How many there are.
    pub number: usize,
    /// The bytes in all of them.
    pub bytes: u64,
}

impl SetAsideTotal {
    /// In words for people, unless `shown`, which are shown one by one, are all of them.
    pub fn beyond(&self, shown: usize) -> Option<String> {
        let Self { number, bytes } = self;
        (*number > shown).then(|| format!("{number} of them, {bytes} bytes"))
    }
}

/// WAL that is missing inside the range that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingWal {
    /// The name of the segment, or the first and the last one with ` .. ` between them.
    pub segments: String,
    /// The first position that is missing.
    #[serde(with = "form::plain")]
    pub start_lsn: Lsn,
    /// The first position that is here again.
    #[serde(with = "form::plain")]
    pub end_lsn: Lsn,
}
