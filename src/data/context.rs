//! What a role needs from its core while it handles an event.

use super::handoff::ToControl;
use super::moment::Moment;
use crate::ring::{Clock as _, Ring};
use crate::wire::time::PgTime;
use std::collections::VecDeque;
use std::time::Instant;

/// The core's ring, the time, and the way to the control thread.
pub struct Context<'a, R> {
    /// Where operations are started.
    pub ring: &'a mut R,
    /// When this pass of the loop began.
    pub now: Instant,
    /// Messages for the control thread.
    pub news: &'a mut VecDeque<ToControl>,
}

impl<R: Ring> Context<'_, R> {
    /// The time of day. It is for messages only: no timeout depends on it.
    pub fn pg_time(&self) -> PgTime {
        PgTime::from(self.ring.clock().time_of_day())
    }

    /// Runs `event` at this moment.
    pub fn at<T>(&self, event: impl FnOnce(&Moment<'_, R::Clock>) -> T) -> T {
        event(&Moment::new(&self.ring.clock(), self.now))
    }
}
