//! The PostgreSQL version that the primary pretends to be: the magic of its pages, and what it
//! reports about itself.

use std::fmt;
use std::str::FromStr;

/// A major version from 13 to 18.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServerVersion(u8);

/// A version for which no WAL can be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("PostgreSQL versions from 13 to 18 are known")]
pub struct UnknownVersion;

impl ServerVersion {
    /// From the major version's number.
    pub const fn new(major: u32) -> Option<Self> {
        match major {
            13..=18 => Some(Self(major as u8)),
            _ => None,
        }
    }

    /// Its number.
    pub const fn major(self) -> u32 {
        self.0 as u32
    }

    /// `XLOG_PAGE_MAGIC`.
    pub const fn magic(self) -> u16 {
        match self.0 {
            13 => 0xD106,
            14 => 0xD10D,
            15 => 0xD110,
            16 => 0xD113,
            17 => 0xD116,
            _ => 0xD118,
        }
    }

    /// `server_version`: the first minor release, and our name.
    pub fn text(self) -> String {
        format!("{}.0 (walhub bench)", self.0)
    }

    /// `server_version_num`.
    pub const fn num(self) -> u32 {
        self.major() * 10_000
    }

    /// The parameter statuses of a physical walsender of this version.
    pub fn statuses(self, user: &str, application_name: &str) -> Vec<(&'static str, String)> {
        let own = |text: &str| text.to_owned();
        let all = [
            (13, "application_name", own(application_name)),
            (13, "client_encoding", own("SQL_ASCII")),
            (13, "DateStyle", own("ISO, MDY")),
            (14, "default_transaction_read_only", own("off")),
            (14, "in_hot_standby", own("off")),
            (13, "integer_datetimes", own("on")),
            (13, "IntervalStyle", own("postgres")),
            (13, "is_superuser", own("on")),
            (16, "scram_iterations", own("4096")),
            (18, "search_path", own("\"$user\", public")),
            (13, "server_encoding", own("SQL_ASCII")),
            (13, "server_version", self.text()),
            (13, "session_authorization", own(user)),
            (13, "standard_conforming_strings", own("on")),
            (13, "TimeZone", own("GMT")),
        ];
        let known = all.into_iter().filter(|(since, ..)| self.0 >= *since);
        known.map(|(_, name, value)| (name, value)).collect()
    }
}

impl FromStr for ServerVersion {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        text.parse().ok().and_then(Self::new).ok_or(UnknownVersion)
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::page::server_major_of_magic;

    #[test]
    fn versions_are_those_of_their_magics() {
        for major in 13..=18 {
            let version = ServerVersion::new(major).unwrap();
            assert_eq!(server_major_of_magic(version.magic()).map(u32::from), Some(major));
            assert_eq!(version.to_string().parse(), Ok(version));
            assert_eq!(
                crate::cluster::identity::server_version_num(&version.text()),
                version.num()
            );
        }
        assert_eq!("12".parse::<ServerVersion>(), Err(UnknownVersion));
        assert_eq!(ServerVersion::new(19), None);
    }

    #[test]
    fn each_version_has_its_statuses() {
        let count = |major| ServerVersion::new(major).unwrap().statuses("u", "a").len();
        assert_eq!([13, 14, 15, 16, 17, 18].map(count), [11, 13, 13, 14, 14, 15]);
    }
}
