//! What a hub answers: one line of JSON, `{"version":1,"status":{...}}` or another of
//! [`Said`]. LSNs and large numbers are text; times are ISO 8601 in UTC; what is not
//! known is null.

use super::request::VERSION;
use serde::{Deserialize, Serialize};

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// What is said.
    #[serde(flatten)]
    pub said: Said,
}

/// What a hub can say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// To `status`.
    Status(Box<Status>),
    /// To `standbys`.
    Standbys(Standbys),
    /// To `slots`.
    Slots(Vec<Slot>),
    /// To `drop_slot`.
    Dropped(Dropped),
    /// To `upstream`, `set_upstream` and `reset_upstream`.
    Upstream(Upstream),
    /// To `fence` and `unfence`: the fence that is up; null when there is none.
    Fence(Option<Fence>),
    /// No.
    Error(Failure),
}

/// How a hub is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub walhub_version: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started: String,
    /// Since then.
    pub uptime_seconds: u64,
    /// Its own ID.
    pub instance_id: String,
    /// What it announces to its clients: its own ID and those of the hubs above it.
    pub instance_path: Vec<String>,
    /// The cluster.
    pub system_id: Option<String>,
    /// As its clients are told.
    pub server_version: Option<String>,
    /// Bytes.
    pub wal_segment_size: Option<u64>,
    /// The connection upstream.
    pub upstream: UpstreamState,
    /// While it is fenced.
    pub fence: Option<Fence>,
    /// Where another source had other bytes; while it stands nothing is received.
    pub evidence: Option<OtherHistory>,
    /// Why receiving is paused; null when it is not.
    pub receiving_paused: Option<String>,
    /// The timeline that is received.
    pub timeline: Option<u32>,
    /// Received and checked; null when the receiving core does not say.
    pub received_lsn: Option<String>,
    /// In its file.
    pub written_lsn: Option<String>,
    /// On disk: what standbys are sent, and what is acknowledged upstream.
    pub durable_lsn: Option<String>,
    /// The oldest that is kept.
    pub oldest_lsn: Option<String>,
    /// What was missing behind that when the hub started.
    #[serde(default)]
    pub missing: Vec<MissingWal>,
    /// Standbys that stream.
    pub standbys: usize,
    /// Standbys that hold WAL which nobody follows.
    pub diverged: usize,
    /// Replication connections, streaming or not.
    pub senders: usize,
    /// The most there may be.
    pub max_wal_senders: usize,
    /// Replication slots.
    pub slots: usize,
    /// The most there may be.
    pub max_replication_slots: usize,
    /// The oldest transaction that the upstream was told standbys need.
    pub xmin: Option<u32>,
    /// The same for catalogs.
    pub catalog_xmin: Option<u32>,
    /// How archiving goes; null without an `--archive-command`.
    pub archiver: Option<Archiver>,
    /// Lines of the log that standard error did not take, since the hub's start.
    #[serde(default)]
    pub log_lines_lost: u64,
}

/// WAL that is missing between what is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MissingWal {
    /// The name of the segment, or the first and the last one with ` .. ` between them.
    pub segments: String,
    /// The first position that is missing.
    pub start_lsn: String,
    /// The first that is here again.
    pub end_lsn: String,
}

/// How archiving goes since the hub's start, as in `pg_stat_archiver`, and the backlog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Archiver {
    /// Files that were archived.
    pub archived_count: u64,
    /// The last of them.
    pub last_archived_wal: Option<String>,
    /// When that was.
    pub last_archived_time: Option<String>,
    /// Attempts that failed.
    pub failed_count: u64,
    /// What the last of them was for.
    pub last_failed_wal: Option<String>,
    /// When that was.
    pub last_failed_time: Option<String>,
    /// Complete segments that wait.
    pub waiting_segments: usize,
    /// History files that wait.
    pub waiting_histories: usize,
    /// The file whose turn it is.
    pub next_wal: Option<String>,
}

/// The connection upstream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpstreamState {
    /// `streaming`, `disconnected`, ...
    pub state: String,
    /// Since when.
    pub since: String,
    /// In words.
    pub text: String,
    /// Who.
    pub host: Option<String>,
    /// The timeline that is streamed.
    pub timeline: Option<u32>,
    /// From where on.
    pub start_lsn: Option<String>,
}

/// Which upstream is followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Upstream {
    /// Without its password.
    pub conninfo: String,
    /// `flag` (`--primary-conninfo`) or `ctl`.
    pub set_by: String,
    /// What the flag says, without its password.
    pub flag: String,
}

/// A fence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fence {
    /// The timeline.
    pub timeline: u32,
    /// The end of the last whole record that the hub has. Everything that was
    /// acknowledged by it lies before; so a standby that is here lacks none of it.
    pub lsn: String,
    /// The last byte that is durable: part of a record may lie behind `lsn`.
    pub durable_lsn: String,
    /// When it was put up.
    pub since: String,
}

/// Evidence of another history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OtherHistory {
    /// The timeline.
    pub timeline: u32,
    /// The position that differs.
    pub lsn: String,
    /// Who had other bytes there.
    pub upstream: String,
    /// When that was found.
    pub since: String,
    /// What differed.
    pub detail: String,
}

/// Who streams, and who has diverged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Standbys {
    /// Connected, by process number.
    pub standbys: Vec<Standby>,
    /// Those that hold WAL which nobody follows, connected or not.
    pub diverged: Vec<Diverged>,
}

/// A connected standby, as in `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standby {
    /// The number in BackendKeyData.
    pub pid: u32,
    /// The user name it gave.
    pub user: String,
    /// What it calls itself.
    pub application_name: String,
    /// Null over a Unix socket.
    pub client_addr: Option<String>,
    /// Null over a Unix socket.
    pub client_port: Option<u16>,
    /// When it was let in.
    pub backend_start: String,
    /// Its ID when it is a hub.
    pub instance_id: Option<String>,
    /// `startup`, `catchup`, `streaming`, `end of timeline`, `stopping`, `leaving`.
    pub state: String,
    /// What follows is null before it streams; a position also before it was reported.
    pub timeline: Option<u32>,
    /// How far its socket has taken the WAL.
    pub sent_lsn: Option<String>,
    /// Written by it.
    pub write_lsn: Option<String>,
    /// On its disk.
    pub flush_lsn: Option<String>,
    /// Replayed.
    pub replay_lsn: Option<String>,
    /// From `flush_lsn` to what is durable at the hub.
    pub flush_lag_bytes: Option<u64>,
    /// From `replay_lsn` to there.
    pub replay_lag_bytes: Option<u64>,
    /// Since the first byte that it has not flushed became durable at the hub.
    pub flush_lag_seconds: Option<f64>,
    /// The same for replay.
    pub replay_lag_seconds: Option<f64>,
    /// Its clock at its last report.
    pub reply_time: Option<String>,
    /// The slot it uses.
    pub slot_name: Option<String>,
}

/// A standby that left the history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diverged {
    /// What it calls itself.
    pub application_name: String,
    /// Where it came from last.
    pub peer: String,
    /// The timeline it is on.
    pub timeline: u32,
    /// Where that timeline ended: what it has from here on is its own.
    pub left_lsn: String,
    /// What it has, or asked for.
    pub lsn: String,
}

/// A replication slot, as in `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// Its name.
    pub slot_name: String,
    /// Does it go with its session?
    pub temporary: bool,
    /// Does somebody use it?
    pub active: bool,
    /// Who.
    pub active_pid: Option<u32>,
    /// From where on it keeps WAL.
    pub restart_lsn: Option<String>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// How much may still come until it is in danger; null without a limit.
    pub safe_wal_size: Option<i64>,
    /// `wal_removed`, `idle_timeout`.
    pub invalidation_reason: Option<String>,
    /// Unused since.
    pub inactive_since: Option<String>,
    /// Did `--auto-create-slots` make it?
    pub auto_created: bool,
}

/// A slot that is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its name.
    pub slot_name: String,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What stands against it.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// Without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// With a hint.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// Why a line is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// Not JSON, or not these words.
    #[error("the answer makes no sense: {0}")]
    Invalid(#[from] serde_json::Error),
    /// From another time.
    #[error("the hub speaks version {0}, this program version {VERSION}")]
    Version(u32),
}

impl Answer {
    /// An answer of this version.
    pub const fn new(said: Said) -> Self {
        Self { version: VERSION, said }
    }

    /// Its line, with the newline.
    pub fn encode(&self) -> Vec<u8> {
        // Plain structs with text keys: the only ways for this to fail do not occur.
        let mut line = serde_json::to_vec(self).expect("an answer is always JSON");
        line.push(b'\n');
        line
    }

    /// Reads a line, with or without its newline.
    pub fn parse(line: &[u8]) -> Result<Self, NoAnswer> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(line)?;
        if version != VERSION {
            return Err(NoAnswer::Version(version));
        }
        Ok(serde_json::from_slice(line)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_and_back() {
        let fence = Fence {
            timeline: 1,
            lsn: "0/5000060".to_owned(),
            durable_lsn: "0/5002000".to_owned(),
            since: "2026-01-01T00:00:00.000Z".to_owned(),
        };
        for (said, line) in [
            (
                Said::Fence(Some(fence)),
                r#"{"version":1,"fence":{"timeline":1,"lsn":"0/5000060","durable_lsn":"0/5002000","since":"2026-01-01T00:00:00.000Z"}}"#,
            ),
            (Said::Fence(None), r#"{"version":1,"fence":null}"#),
            (
                Said::Standbys(Standbys::default()),
                r#"{"version":1,"standbys":{"standbys":[],"diverged":[]}}"#,
            ),
            (
                Said::Error(Failure::new("no\nsuch").with_hint("do")),
                r#"{"version":1,"error":{"message":"no\nsuch","hint":"do"}}"#,
            ),
        ] {
            let answer = Answer::new(said);
            let bytes = answer.encode();
            assert_eq!(String::from_utf8(bytes.clone()).unwrap(), format!("{line}\n"));
            assert_eq!(Answer::parse(&bytes).unwrap(), answer);
        }
        // A newer hub may say more.
        let more = r#"{"version":1,"fence":null,"mood":"good"}"#;
        assert!(Answer::parse(more.as_bytes()).is_ok());
        let newer = Answer::parse(br#"{"version":2,"fence":{}}"#).unwrap_err();
        assert_eq!(newer.to_string(), "the hub speaks version 2, this program version 1");
    }
}
