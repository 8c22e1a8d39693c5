//! When commits are due: an open loop, which a server cannot slow down.

use super::clock::Nanos;
use super::profile::{Burst, Load, Rate};
use std::time::Duration;

/// The schedule of a load. Each commit is due when the time for the WAL of those before it has
/// passed, so the rate holds whatever their sizes.
#[derive(Clone, Debug)]
pub struct Schedule {
    pace: Pace,
    /// When the load began, shifted by its pauses.
    origin: Nanos,
    /// When the next commit is due, in nanoseconds after `origin`.
    next: f64,
    paused: Option<Nanos>,
}

#[derive(Clone, Copy, Debug)]
enum Pace {
    /// Bytes per nanosecond, and bursts.
    Bytes(f64, Option<Burst>),
    AtOnce,
}

/// When the next commit is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// At this time.
    At(Nanos),
    /// As soon as the last one is done: a closed loop.
    AtOnce,
    /// Not while the load is paused.
    Paused,
}

impl Schedule {
    /// A load that begins at `begin`.
    pub fn new(load: &Load, begin: Nanos) -> Self {
        let pace = match load.rate {
            Rate::PerSecond(bytes) => Pace::Bytes(bytes as f64 / 1e9, load.burst),
            Rate::Max => Pace::AtOnce,
        };
        Self { pace, origin: begin, next: 0.0, paused: None }
    }

    /// When the next commit is due.
    pub fn due(&self) -> Due {
        self.due_at(self.elapsed())
    }

    /// When something at this time of the load (see [`Schedule::elapsed`]) is due. It is for
    /// clients that take a commit before it is due.
    pub fn due_at(&self, elapsed: Duration) -> Due {
        match self.pace {
            _ if self.paused.is_some() => Due::Paused,
            Pace::Bytes(..) => Due::At(self.origin.after(elapsed)),
            Pace::AtOnce => Due::AtOnce,
        }
    }

    /// How long the load will have lasted when the next commit is due. Pauses do not count, and a
    /// closed loop has no time of its own.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.next as u64)
    }

    /// The next commit was made, with `bytes` bytes: computes when the one after it is due.
    pub fn made(&mut self, bytes: u64) {
        let Pace::Bytes(base, burst) = self.pace else { return };
        let mut left = bytes as f64;
        loop {
            let (rate, until) = stretch(base, burst, self.next);
            let room = (until - self.next) * rate;
            if left <= room {
                self.next += left / rate;
                return;
            }
            left -= room;
            self.next = until;
        }
    }

    /// Stops the clock of the schedule. Commits already due stay due.
    pub fn pause(&mut self, now: Nanos) {
        self.paused.get_or_insert(now);
    }

    /// Resumes the clock.
    pub fn resume(&mut self, now: Nanos) {
        if let Some(since) = self.paused.take() {
            self.origin = self.origin.after(now.since(since));
        }
    }
}

/// The rate at `at`, and until when it holds.
fn stretch(base: f64, burst: Option<Burst>, at: f64) -> (f64, f64) {
    let Some(burst) = burst.filter(|burst| !burst.every.is_zero()) else {
        return (base, f64::INFINITY);
    };
    let nanos = |span: Duration| span.as_nanos() as f64;
    let (first, every, lasts) = (nanos(burst.first), nanos(burst.every), nanos(burst.lasts));
    if at < first {
        return (base, first);
    }
    // The arithmetic is exact, so that a stretch never ends where it begins.
    let offset = (at - first) % every;
    if offset < lasts {
        (burst.rate as f64 / 1e9, at + (lasts - offset))
    } else {
        (base, at + (every - offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::profile::{Figures, Profile};
    use proptest::prelude::*;

    fn load(rate: u64) -> Load {
        let figures = Figures { rate: Some(Rate::PerSecond(rate)), ..Figures::default() };
        Load::new(Profile::Custom, &figures).unwrap()
    }

    #[test]
    fn a_commit_is_due_when_those_before_had_their_time() {
        let mut schedule = Schedule::new(&load(1000), Nanos(500));
        assert_eq!(schedule.due(), Due::At(Nanos(500)));
        schedule.made(100);
        assert_eq!(schedule.due(), Due::At(Nanos(100_000_500)));
        schedule.made(1);
        assert_eq!(schedule.due(), Due::At(Nanos(101_000_500)));
        assert_eq!(schedule.elapsed(), Duration::from_millis(101));
    }

    #[test]
    fn pauses_shift_what_follows() {
        let mut schedule = Schedule::new(&load(1000), Nanos(0));
        schedule.made(1000);
        schedule.pause(Nanos(400));
        schedule.pause(Nanos(500));
        assert_eq!(schedule.due(), Due::Paused);
        schedule.resume(Nanos(2400));
        schedule.resume(Nanos(9999));
        assert_eq!(schedule.due(), Due::At(Nanos(1_000_002_000)));
    }

    #[test]
    fn bursts_come_in_time() {
        let mut load = load(1000);
        load.burst = Some(Burst {
            first: Duration::from_secs(2),
            every: Duration::from_secs(10),
            lasts: Duration::from_secs(1),
            rate: 100_000,
        });
        let mut schedule = Schedule::new(&load, Nanos(0));
        let mut due = |bytes| {
            schedule.made(bytes);
            schedule.elapsed().as_millis()
        };
        assert_eq!(due(2000), 2000);
        assert_eq!(due(50_000), 2500);
        assert_eq!(due(50_000 + 9000), 12_000);
        assert_eq!(due(2 * (100_000 + 9000) + 1000), 32_010);
    }

    #[test]
    fn a_closed_loop_has_no_schedule() {
        let figures = Figures { rate: Some(Rate::Max), ..Figures::default() };
        let mut schedule = Schedule::new(&Load::new(Profile::Saas, &figures).unwrap(), Nanos(7));
        schedule.made(1 << 30);
        assert_eq!(schedule.due(), Due::AtOnce);
    }

    proptest! {
        #[test]
        fn the_cut_does_not_matter(sizes in proptest::collection::vec(1u64..1 << 24, 1..60)) {
            let load = Load::new(Profile::Burst, &Figures::default()).unwrap();
            let (mut one, mut many) = (Schedule::new(&load, Nanos(0)), Schedule::new(&load, Nanos(0)));
            for size in &sizes {
                many.made(*size);
            }
            one.made(sizes.iter().sum());
            let difference = one.elapsed().abs_diff(many.elapsed());
            prop_assert!(difference < Duration::from_micros(1), "{difference:?}");
        }
    }
}
