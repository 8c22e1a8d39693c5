//! How much one standby may say: a standby that says too much is read on a timer.

use std::time::{Duration, Instant};

/// A standby that says more than this in a second is read on a timer. Two replies per
/// flush at 800 flushes a second stay below it.
const TALK_QUOTA: usize = 64 << 10;

/// How long such a standby is then left unread.
const TALK_PAUSE: Duration = Duration::from_millis(10);

/// The receives in a row that it gets nevertheless: a burst of replies is read at once, a flood at
/// no more than 400 kB/s.
const TALK_BURST: u32 = 8;

/// What one standby has said in the current second.
#[derive(Debug)]
pub(super) struct Quota {
    since: Instant,
    heard: usize,
    /// Receives beyond the quota since it was last left unread.
    receives: u32,
    /// Not read before this.
    read_again: Option<Instant>,
}

impl Quota {
    pub(super) const fn new(now: Instant) -> Self {
        Self { since: now, heard: 0, receives: 0, read_again: None }
    }

    /// It said `bytes`. Beyond the quota it may be left unread for a while.
    pub(super) fn note(&mut self, bytes: usize, now: Instant) {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.heard, self.receives) = (now, 0, 0);
        }
        self.heard += bytes;
        if self.heard > TALK_QUOTA {
            self.receives += 1;
            if self.receives >= TALK_BURST {
                self.receives = 0;
                self.read_again = Some(now + TALK_PAUSE);
            }
        }
    }

    /// When it is read again; `None` when it is not left unread.
    pub(super) const fn read_again(&self) -> Option<Instant> {
        self.read_again
    }

    /// Is it time to read it again? True once.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        self.read_again.take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_read_and_a_flood_is_slowed() {
        let t0 = Instant::now();
        let mut quota = Quota::new(t0);
        for _ in 0..TALK_QUOTA / 512 + TALK_BURST as usize - 1 {
            quota.note(512, t0);
            assert_eq!(quota.read_again(), None);
        }
        quota.note(512, t0);
        assert_eq!(quota.read_again(), Some(t0 + TALK_PAUSE));
        assert!(!quota.is_over(t0));
        assert!(quota.is_over(t0 + TALK_PAUSE) && !quota.is_over(t0 + TALK_PAUSE));
        // The next second starts from zero.
        quota.note(512, t0 + Duration::from_secs(1));
        assert_eq!((quota.heard, quota.read_again()), (512, None));
    }
}
