//! PostgreSQL's clock on the wire (`TimestampTz`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds from the Unix epoch to 2000-01-01 00:00:00 UTC.
const EPOCH_OFFSET: u64 = 946_684_800;

/// Microseconds since 2000-01-01 00:00:00 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PgTime(i64);

impl PgTime {
    /// From the number on the wire.
    pub const fn new(micros: i64) -> Self {
        Self(micros)
    }

    /// The number on the wire.
    pub const fn raw(self) -> i64 {
        self.0
    }

    /// Microseconds from `earlier` to this instant; negative when the two clocks disagree.
    pub const fn micros_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl From<SystemTime> for PgTime {
    /// Capped at the ends of the number space, some 290,000 years away.
    fn from(time: SystemTime) -> Self {
        let epoch = UNIX_EPOCH + Duration::from_secs(EPOCH_OFFSET);
        let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self(match time.duration_since(epoch) {
            Ok(after) => micros(after),
            Err(before) => -micros(before.duration()),
        })
    }
}

impl From<PgTime> for SystemTime {
    fn from(time: PgTime) -> Self {
        let epoch = UNIX_EPOCH + Duration::from_secs(EPOCH_OFFSET);
        let span = Duration::from_micros(time.0.unsigned_abs());
        let moved = if time.0 < 0 { epoch.checked_sub(span) } else { epoch.checked_add(span) };
        moved.unwrap_or(epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_from_2000() {
        assert_eq!(PgTime::from(UNIX_EPOCH).raw(), -946_684_800_000_000);
        let later = UNIX_EPOCH + Duration::from_secs(EPOCH_OFFSET + 1);
        assert_eq!(PgTime::from(later), PgTime::new(1_000_000));
        assert_eq!(PgTime::new(5).micros_since(PgTime::new(7)), -2);
    }

    proptest! {
        #[test]
        fn round_trips(micros in any::<i64>()) {
            let time = PgTime::new(micros);
            let expected = if micros == i64::MIN { PgTime::new(-i64::MAX) } else { time };
            prop_assert_eq!(PgTime::from(SystemTime::from(time)), expected);
        }
    }
}
