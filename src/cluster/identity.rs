//! Which cluster the WAL belongs to, as its servers describe themselves.

use crate::wal::{SegmentSize, SystemId};

/// Which cluster this is, as its servers describe themselves. It is kept across restarts, so that
/// the hub can serve while the upstream is away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub system_id: SystemId,
    /// `wal_segment_size` of the cluster.
    pub segment_size: SegmentSize,
    /// `data_directory_mode` as the upstream shows it, `0700` or `0750`.
    pub data_directory_mode: String,
    /// The upstream's parameter statuses in the order it sent them, including `server_version` but
    /// not the hub's own `walhub.` ones.
    pub parameters: Vec<(String, String)>,
}

impl Identity {
    /// A parameter status of the upstream.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The upstream's version, word for word; empty when it sent none.
    pub fn server_version(&self) -> &str {
        self.parameter("server_version").unwrap_or_default()
    }

    /// The version as a number, 150018 for 15.18.
    pub fn server_version_num(&self) -> u32 {
        server_version_num(self.server_version())
    }

    /// The major version, 15 for 15.18.
    pub fn server_major(&self) -> u32 {
        self.server_version_num() / 10_000
    }
}

/// Reads a version text as `PQserverVersion` does: leading `%d.%d`, 0 when there is no number.
pub fn server_version_num(text: &str) -> u32 {
    let mut parts = text.splitn(2, '.');
    let mut number = || {
        let part = parts.next().unwrap_or_default();
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part.get(..digits).unwrap_or_default().parse::<u32>().unwrap_or(0).min(9_999)
    };
    let (major, minor) = (number(), number());
    if major == 0 { 0 } else { major * 10_000 + minor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_libpq_reads_them() {
        assert_eq!(server_version_num("15.18 (Debian 15.18-0+deb12u1)"), 150_018);
        assert_eq!(server_version_num("18beta1"), 180_000);
        assert_eq!(server_version_num("15.99 (walhub)"), 150_099);
        assert_eq!(server_version_num("walhub 1.0"), 0);
        assert_eq!(server_version_num(""), 0);
        assert_eq!(server_version_num("99999999999999.1"), 0);
    }
}
