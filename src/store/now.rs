//! The time by both clocks.

use std::time::{Duration, Instant, SystemTime};

/// The time at which something is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For durations: never goes back, and does not jump.
    pub instant: Instant,
    /// For what people and files say. Nothing is removed because it jumped.
    pub time_of_day: SystemTime,
}

impl Now {
    /// By the machine's clocks.
    pub fn by_system() -> Self {
        Self { instant: Instant::now(), time_of_day: SystemTime::now() }
    }

    /// The time since an earlier moment.
    pub fn since(self, earlier: Instant) -> Duration {
        self.instant.saturating_duration_since(earlier)
    }

    /// The time of day as it would be if nobody had set the clock since `start`.
    pub fn unset_since(self, start: Self) -> SystemTime {
        start.time_of_day + self.since(start.instant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_changes_no_duration() {
        let start = Now::by_system();
        let day = Duration::from_secs(24 * 3600);
        let instant = start.instant + Duration::from_secs(3);
        let later = Now { instant, time_of_day: start.time_of_day + 8 * day };
        assert_eq!(later.since(start.instant), Duration::from_secs(3));
        assert_eq!(later.unset_since(start), start.time_of_day + Duration::from_secs(3));
    }
}
