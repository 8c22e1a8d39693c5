//! The hub's relation to its upstream, in words for the log and for `inspect`.

use crate::wal::{Lsn, TimelineId};
use std::fmt;

/// One state, with what a reader needs to act on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamState {
    /// No connection has been tried yet.
    Connecting,
    /// WAL is coming in.
    Streaming {
        /// The host.
        host: String,
        /// On which timeline.
        tli: TimelineId,
        /// From this position on.
        start: Lsn,
    },
    /// There is no connection; WAL comes in from the archive.
    Restoring {
        /// On which timeline.
        tli: TimelineId,
        /// From this position on.
        start: Lsn,
    },
    /// The archive has other bytes at positions that we hold.
    ArchiveDiffers {
        /// The file in the archive.
        file: String,
        /// The first such position.
        at: Lsn,
    },
    /// There is no connection.
    Disconnected {
        /// Why the last one failed or ended.
        why: String,
    },
    /// The upstream is behind us; it is expected to catch up.
    Waiting {
        /// The host.
        host: String,
        /// Everything before this is on our disk.
        ours: Lsn,
        /// What it has.
        theirs: Lsn,
    },
    /// The upstream has not reached the place where this empty hub is to begin.
    WaitingToStart {
        /// The host.
        host: String,
        /// `--start-from`.
        start_from: Lsn,
        /// What it has.
        theirs: Lsn,
    },
    /// The upstream will not be followed: another cluster, another history, a loop.
    Refused {
        /// The host.
        host: String,
        /// Why not.
        why: String,
    },
    /// The upstream cannot prove to have our history, and `--require-proof` asks for that.
    Unproved {
        /// The host.
        host: String,
        /// What was compared.
        why: String,
    },
    /// The upstream no longer has the WAL that we need next.
    Gap {
        /// The position we need.
        at: Lsn,
        /// The upstream's message.
        message: String,
    },
    /// The upstream has other bytes at positions that we hold.
    Diverged {
        /// The first such position.
        at: Lsn,
        /// What differs.
        detail: String,
    },
    /// Our disk is full, or too full for more WAL.
    NoSpace {
        /// Which disk, and what keeps WAL from coming in.
        why: String,
    },
    /// An operator has fenced the hub: nothing is requested from any upstream.
    Fenced {
        /// On which timeline.
        tli: TimelineId,
        /// The end of the last whole record that is here.
        at: Lsn,
    },
    /// The hub is stopping.
    Stopped,
}

impl UpstreamState {
    /// The state's fixed name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Streaming { .. } => "streaming",
            Self::Restoring { .. } => "restoring",
            Self::ArchiveDiffers { .. } => "archive differs",
            Self::Disconnected { .. } => "disconnected",
            Self::Waiting { .. } | Self::WaitingToStart { .. } => "waiting for upstream",
            Self::Refused { .. } => "upstream refused",
            Self::Unproved { .. } => "upstream not proved",
            Self::Gap { .. } => "gap",
            Self::Diverged { .. } => "diverged",
            Self::NoSpace { .. } => "no space",
            Self::Fenced { .. } => "fenced",
            Self::Stopped => "stopped",
        }
    }

    /// Ranks several hosts' states: the highest, the one that most needs an operator, is reported.
    pub(crate) const fn severity(&self) -> u8 {
        match self {
            Self::Connecting => 0,
            Self::Streaming { .. } | Self::Restoring { .. } => 1,
            Self::Fenced { .. } | Self::Stopped => 2,
            Self::Disconnected { .. } => 3,
            Self::Waiting { .. } | Self::WaitingToStart { .. } => 4,
            Self::Refused { .. } | Self::Unproved { .. } => 6,
            Self::NoSpace { .. } => 7,
            Self::Gap { .. } => 8,
            Self::Diverged { .. } | Self::ArchiveDiffers { .. } => 9,
        }
    }

    /// Whether an operator has to act, or the state resolves by itself.
    pub const fn is_alarm(&self) -> bool {
        self.severity() >= 5
    }

    /// The content of `walhub.state`.
    pub fn to_json(&self, since_unix_ms: u64) -> String {
        let mut fields = serde_json::Map::new();
        let mut put = |name: &str, value: String| {
            fields.insert(name.to_owned(), serde_json::Value::String(value));
        };
        put("state", self.name().to_owned());
        match self {
            Self::Connecting | Self::Stopped => {}
            Self::Streaming { host, tli, start } => {
                put("host", host.clone());
                put("timeline", tli.to_string());
                put("start", start.to_string());
            }
            Self::Restoring { tli, start } => {
                put("timeline", tli.to_string());
                put("start", start.to_string());
            }
            Self::ArchiveDiffers { file, at } => {
                put("file", file.clone());
                put("at", at.to_string());
            }
            Self::Disconnected { why } | Self::NoSpace { why } => put("why", why.clone()),
            Self::Waiting { host, ours, theirs } => {
                put("host", host.clone());
                put("ours", ours.to_string());
                put("theirs", theirs.to_string());
            }
            Self::WaitingToStart { host, start_from, theirs } => {
                put("host", host.clone());
                put("ours", start_from.to_string());
                put("theirs", theirs.to_string());
            }
            Self::Refused { host, why } | Self::Unproved { host, why } => {
                put("host", host.clone());
                put("why", why.clone());
            }
            Self::Gap { at, message } => {
                put("at", at.to_string());
                put("why", message.clone());
            }
            Self::Diverged { at, detail } => {
                put("at", at.to_string());
                put("why", detail.clone());
            }
            Self::Fenced { tli, at } => {
                put("timeline", tli.to_string());
                put("at", at.to_string());
            }
        }
        fields.insert("since_unix_ms".to_owned(), since_unix_ms.into());
        serde_json::Value::Object(fields).to_string()
    }
}

impl fmt::Display for UpstreamState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting | Self::Stopped => f.write_str(self.name()),
            Self::Streaming { host, tli, start } => {
                write!(f, "streaming from {host}, timeline {tli}, from {start} on")
            }
            Self::Restoring { tli, start } => {
                write!(f, "restoring from the archive, timeline {tli}, from {start} on")
            }
            Self::ArchiveDiffers { file, at } => write!(
                f,
                "archive differs: archive file \"{file}\" has other WAL than this hub from {at} on; \
                 nothing of it is stored, still serving"
            ),
            Self::Disconnected { why } => write!(f, "disconnected: {why}"),
            Self::Waiting { host, ours, theirs } => write!(
                f,
                "waiting for upstream: {host} is at {theirs}, behind our {ours}; still serving"
            ),
            Self::WaitingToStart { host, start_from, theirs } => write!(
                f,
                "waiting for upstream: {host} is at {theirs}, before --start-from {start_from}"
            ),
            Self::Refused { host, why } => {
                write!(f, "upstream refused: {host}: {why}; nothing of it is stored, still serving")
            }
            Self::Unproved { host, why } => write!(
                f,
                "upstream not proved: {host}: {why}; nothing of it is stored (--require-proof), \
                 still serving"
            ),
            Self::Gap { at, message } => write!(
                f,
                "gap: the upstream no longer has the WAL at {at} ({message}); bytes are never \
                 joined over a hole, still serving"
            ),
            Self::Diverged { at, detail } => write!(
                f,
                "diverged: the upstream has another history from {at} on ({detail}); nothing of \
                 it is stored, still serving; when it is known whose history is the true one: \
                 walhub ctl accept-history"
            ),
            Self::NoSpace { why } => {
                write!(f, "no space: {why}; receiving is paused, still serving")
            }
            Self::Fenced { tli, at } => write!(
                f,
                "fenced at {at} on timeline {tli}: nothing is received or acknowledged until \
                 `walhub ctl unfence`; still serving"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::needs_an_operator;

    /// Who reads only the file with the state judges by its name.
    #[test]
    fn a_states_name_says_whether_it_is_an_alarm() {
        let (host, why) = (|| "h".to_owned(), || "w".to_owned());
        let (tli, at) = (TimelineId::FIRST, Lsn::new(7));
        for state in [
            UpstreamState::Connecting,
            UpstreamState::Streaming { host: host(), tli, start: at },
            UpstreamState::Restoring { tli, start: at },
            UpstreamState::ArchiveDiffers { file: why(), at },
            UpstreamState::Disconnected { why: why() },
            UpstreamState::Waiting { host: host(), ours: at, theirs: at },
            UpstreamState::WaitingToStart { host: host(), start_from: at, theirs: at },
            UpstreamState::Refused { host: host(), why: why() },
            UpstreamState::Unproved { host: host(), why: why() },
            UpstreamState::Gap { at, message: why() },
            UpstreamState::Diverged { at, detail: why() },
            UpstreamState::NoSpace { why: why() },
            UpstreamState::Fenced { tli, at },
            UpstreamState::Stopped,
        ] {
            assert_eq!(needs_an_operator(state.name()), state.is_alarm(), "{}", state.name());
        }
    }

    #[test]
    fn what_ends_a_divergence_is_named() {
        let state = UpstreamState::Diverged { at: Lsn::new(0x300_0000), detail: "other".into() };
        assert!(state.to_string().contains("walhub ctl accept-history"), "{state}");
    }

    #[test]
    fn state_file_is_json() {
        let state = UpstreamState::Diverged { at: Lsn::new(0x300_0000), detail: "a \"b\"".into() };
        let json: serde_json::Value = serde_json::from_str(&state.to_json(7)).unwrap();
        assert_eq!(json["state"], "diverged");
        assert_eq!(json["at"], "0/3000000");
        assert_eq!(json["since_unix_ms"], 7);
    }
}
