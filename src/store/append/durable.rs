//! The position that may be published and acknowledged.

use crate::wal::Lsn;
use std::fmt;

/// All WAL of a timeline below this position is on this hub's disk. Only the appender makes one, so
/// a position that was merely received or written cannot be published or acknowledged by mistake
/// (I2, I5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Durable(Lsn);

impl Durable {
    pub(super) const fn new(lsn: Lsn) -> Self {
        Self(lsn)
    }

    /// The position.
    pub const fn lsn(self) -> Lsn {
        self.0
    }
}

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
