//! The clock for a core's sleeps and timeouts.

use std::time::{Instant, SystemTime};

/// Tells a core the time. A simulated ring brings its own.
pub trait Clock {
    /// For timeouts: never goes back.
    fn now(&self) -> Instant;

    /// For messages only: no timeout depends on it.
    fn time_of_day(&self) -> SystemTime;
}

/// The machine's clocks.
#[derive(Copy, Clone, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[inline]
    fn now(&self) -> Instant {
        Instant::now()
    }

    #[inline]
    fn time_of_day(&self) -> SystemTime {
        SystemTime::now()
    }
}
