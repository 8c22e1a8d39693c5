//! The load: somebody who commits on the primary, and a fleet that receives.
//!
//! Both write down when what happened; everything is worked out afterwards, so that
//! measuring costs the measured as little as possible. The fleet is one thread: on a
//! machine of two CPUs it has one, and the servers have the other.

mod arrivals;
mod commits;
mod fleet;
mod standby;

pub(crate) use arrivals::{Arrivals, Percentiles};
pub(crate) use commits::{Commit, CommitPlan, Committers};
pub(crate) use fleet::{Fleet, FleetPlan};
pub(crate) use standby::{Replies, Temper};

use std::time::{Duration, Instant};

/// The one clock of a measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

/// A moment: nanoseconds since the clock's start.
pub(crate) type Nanos = u64;

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Nanos {
        nanos(self.0.elapsed())
    }

    /// Sleeps until a moment, if it is not over.
    pub(crate) fn sleep_until(self, when: Nanos) {
        let left = Duration::from_nanos(when).saturating_sub(self.0.elapsed());
        if !left.is_zero() {
            std::thread::sleep(left);
        }
    }
}

/// A span as a number. 584 years are not measured.
pub(crate) fn nanos(span: Duration) -> Nanos {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
