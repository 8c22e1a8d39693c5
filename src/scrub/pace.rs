//! How fast a scrub reads.

use std::time::{Duration, Instant};

/// What may be read ahead of the rate: nothing is saved up over a pause.
const AHEAD: Duration = Duration::from_millis(50);

/// Spreads reads over time.
#[derive(Debug)]
pub(super) struct Pace {
    /// When all that was read would have been read at its rate.
    paid: Instant,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { paid: Instant::now() }
    }

    /// So many bytes were read, of which `rate` may be read in a second: how long to wait before the
    /// next read.
    pub(super) fn read(&mut self, bytes: u64, rate: u64, now: Instant) -> Duration {
        let takes = Duration::from_nanos(
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1)))
                .unwrap_or(u64::MAX),
        );
        let from = self.paid.max(now.checked_sub(AHEAD).unwrap_or(now));
        self.paid = from + takes;
        self.paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 1 << 20;

    #[test]
    fn a_second_takes_its_bytes_and_a_pause_saves_nothing_up() {
        let start = Instant::now();
        let mut pace = Pace { paid: start };
        let ms = Duration::from_millis;
        assert_eq!(pace.read(1 << 19, RATE, start), ms(500));
        assert_eq!(pace.read(1 << 19, RATE, start + ms(500)), ms(500));
        assert_eq!(pace.read(1 << 19, RATE, start + ms(1200)), ms(500) - AHEAD);
        let later = start + ms(100_000);
        assert_eq!(pace.read(1 << 20, RATE, later), ms(1000) - AHEAD);
    }
}
