//! The numbers that name a history: timeline and system.

use std::fmt;
use std::num::{NonZeroU32, ParseIntError};
use std::str::FromStr;

/// A timeline ID (`TimeLineID`), never zero. Printed in decimal, as PostgreSQL's
/// messages and `IDENTIFY_SYSTEM` do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The first timeline of a cluster; it has no history file.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// Returns `None` for 0, which is no timeline.
    pub const fn new(raw: u32) -> Option<Self> {
        match NonZeroU32::new(raw) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number on the wire.
    pub const fn raw(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLI {}", self.0)
    }
}

/// The system identifier that initdb gave the cluster (`pg_control`'s first word).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(u64);

impl SystemId {
    /// From the number in `IDENTIFY_SYSTEM` or a long page header.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for SystemId {
    type Err = ParseIntError;

    /// Accepts a decimal number.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

impl fmt::Debug for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system {}", self.0)
    }
}
