//! How fast a scrub reads.

use std::time::{Duration, Instant};

/// What may be read ahead of the rate: nothing is saved up over a pause.
const AHEAD: Duration = Duration::from_millis(50);

/// Spreads reads over time.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes in a second.
    rate: u64,
    /// When all that was read would have been read at that rate.
    paid: Instant,
}

impl Pace {
    pub(super) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), paid: Instant::now() }
    }

    /// So many bytes were read: how long to wait before the next read.
    pub(super) fn read(&mut self, bytes: u64, now: Instant) -> Duration {
        let takes = Duration::from_nanos(
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(self.rate))
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

    #[test]
    fn a_second_takes_its_bytes_and_a_pause_saves_nothing_up() {
        let start = Instant::now();
        let mut pace = Pace { rate: 1 << 20, paid: start };
        let ms = Duration::from_millis;
        assert_eq!(pace.read(1 << 19, start), ms(500));
        assert_eq!(pace.read(1 << 19, start + ms(500)), ms(500));
        assert_eq!(pace.read(1 << 19, start + ms(1200)), ms(500) - AHEAD);
        let later = start + ms(100_000);
        assert_eq!(pace.read(1 << 20, later), ms(1000) - AHEAD);
    }
}
