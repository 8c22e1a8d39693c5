//! What `walhub ctl` decided and a restart must not forget: two small files beside the control
//! file.
//!
//! `walhub.fence`: the hub receives and acknowledges nothing until it is unfenced.
//!
//! `walhub.auto`: the upstream that was set while the hub ran. It replaces one particular
//! `--primary-conninfo`, and only that one: a flag that has changed since is newer and wins.

use super::sealed_text::{Unreadable, seal, unseal};
use crate::wal::{Lsn, TimelineId};
use crate::wire::secret::Secret;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The fence, as reported to the client that asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceNote {
    /// The timeline.
    pub tli: TimelineId,
    /// The end of the last whole record that is durable here.
    pub record_end: Lsn,
    /// Everything before this is durable here: nothing past it was acknowledged.
    pub durable: Lsn,
    /// When the fence was set.
    pub since: SystemTime,
}

/// The upstream that was set while the hub ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamNote {
    /// The connection string.
    pub primary_conninfo: Secret,
    /// The `--primary-conninfo` that it replaces.
    pub instead_of: Secret,
}

#[derive(Serialize, Deserialize)]
struct FenceText {
    timeline: u32,
    record_end: String,
    durable: String,
    since_unix_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct UpstreamText {
    primary_conninfo: String,
    instead_of: String,
}

impl FenceNote {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = FenceText {
            timeline: self.tli.raw(),
            record_end: self.record_end.to_string(),
            durable: self.durable.to_string(),
            since_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        };
        seal("fence", 1, &text)
    }

    /// Reads the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text: FenceText = unseal("fence", 1, bytes)?;
        let wrong = |field: &str| Unreadable::Content(format!("invalid {field}"));
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(text.since_unix_ms));
        Ok(Self {
            tli: TimelineId::new(text.timeline).ok_or_else(|| wrong("timeline"))?,
            record_end: text.record_end.parse().map_err(|_| wrong("record_end"))?,
            durable: text.durable.parse().map_err(|_| wrong("durable"))?,
            since: since.ok_or_else(|| wrong("since_unix_ms"))?,
        })
    }
}

impl UpstreamNote {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let text = UpstreamText {
            primary_conninfo: self.primary_conninfo.reveal().to_owned(),
            instead_of: self.instead_of.reveal().to_owned(),
        };
        seal("auto", 1, &text)
    }

    /// Reads the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text: UpstreamText = unseal("auto", 1, bytes)?;
        Ok(Self {
            primary_conninfo: Secret::new(text.primary_conninfo),
            instead_of: Secret::new(text.instead_of),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let fence = FenceNote {
            tli: TimelineId::FIRST,
            record_end: Lsn::new(0x500_0060),
            durable: Lsn::new(0x500_2000),
            since: UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
        };
        assert_eq!(FenceNote::decode(&fence.encode()), Ok(fence));
        let upstream = UpstreamNote {
            primary_conninfo: Secret::new("host=b password='x \"y\"'"),
            instead_of: Secret::new("host=a"),
        };
        assert_eq!(UpstreamNote::decode(&upstream.encode()), Ok(upstream.clone()));
        assert!(FenceNote::decode(&upstream.encode()).is_err());
        assert!(UpstreamNote::decode(b"").is_err());
    }
}
