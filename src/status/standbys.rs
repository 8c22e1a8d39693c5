//! The connected standbys, and those that have diverged.

use super::form;
use crate::cluster::instance::InstanceId;
use crate::wal::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// The streaming standbys, and those that have diverged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StandbysStatus {
    /// Connected, by process number.
    pub standbys: Vec<StandbyStatus>,
    /// Those that hold WAL of an abandoned branch, connected or not.
    pub diverged: Vec<DivergedStandby>,
}

/// A connected standby, as in `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StandbyStatus {
    /// The number in BackendKeyData.
    pub pid: u32,
    /// The user name it gave.
    pub user: String,
    /// Its application name.
    pub application_name: String,
    /// Null over a Unix socket.
    pub client_addr: Option<IpAddr>,
    /// Null over a Unix socket.
    pub client_port: Option<u16>,
    /// When it connected.
    #[serde(with = "form::plain")]
    pub backend_start: SystemTime,
    /// Its ID when it is a hub.
    #[serde(default, with = "form::optional")]
    pub instance_id: Option<InstanceId>,
    /// `startup`, `catchup`, `streaming`, `end of timeline`, `stopping`, `leaving`.
    pub state: String,
    /// Null before it streams.
    #[serde(default, with = "form::optional")]
    pub timeline: Option<TimelineId>,
    /// How far its socket has accepted the WAL; null before it streams.
    #[serde(default, with = "form::optional")]
    pub sent_lsn: Option<Lsn>,
    /// Written by it; null before it has reported, as are all that follow.
    #[serde(default, with = "form::optional")]
    pub write_lsn: Option<Lsn>,
    /// Flushed by it.
    #[serde(default, with = "form::optional")]
    pub flush_lsn: Option<Lsn>,
    /// Replayed by it.
    #[serde(default, with = "form::optional")]
    pub replay_lsn: Option<Lsn>,
    /// Bytes from `flush_lsn` to what is durable at the hub.
    pub flush_lag_bytes: Option<u64>,
    /// Bytes from `replay_lsn` to there.
    pub replay_lag_bytes: Option<u64>,
    /// Time since the first byte that it has not flushed became durable at the hub.
    #[serde(default, rename = "flush_lag_seconds", with = "form::optional_seconds")]
    pub flush_lag: Option<Duration>,
    /// The same for replay.
    #[serde(default, rename = "replay_lag_seconds", with = "form::optional_seconds")]
    pub replay_lag: Option<Duration>,
    /// Its clock at its last report.
    #[serde(default, with = "form::optional")]
    pub reply_time: Option<SystemTime>,
    /// The slot it uses.
    pub slot_name: Option<String>,
}

/// A standby that left the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivergedStandby {
    /// Its application name.
    pub application_name: String,
    /// Its last address.
    pub peer: String,
    /// Its timeline.
    #[serde(with = "form::plain")]
    pub timeline: TimelineId,
    /// Where that timeline ended: what it has from here on is its own.
    #[serde(with = "form::plain")]
    pub left_lsn: Lsn,
    /// What it has, or requested.
    #[serde(with = "form::plain")]
    pub lsn: Lsn,
}
