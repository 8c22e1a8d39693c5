//! The time at which an event is handled.

use crate::ring::Clock;
use crate::wire::time::PgTime;
use std::time::{Instant, SystemTime};

/// Now, and the time of day on demand: most events do not need the latter, and asking for it has a
/// cost.
#[derive(Debug)]
pub struct Moment<'a, C> {
    /// For timeouts.
    pub now: Instant,
    clock: &'a C,
}

impl<'a, C: Clock> Moment<'a, C> {
    /// The moment `now` by this clock.
    pub const fn new(clock: &'a C, now: Instant) -> Self {
        Self { now, clock }
    }

    /// For messages and retention: no timeout depends on it.
    pub fn time_of_day(&self) -> SystemTime {
        self.clock.time_of_day()
    }

    /// The time of day as PostgreSQL counts it.
    pub fn pg_time(&self) -> PgTime {
        PgTime::from(self.time_of_day())
    }
}
