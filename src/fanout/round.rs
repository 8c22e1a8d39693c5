//! Which standbys are served in a round, and in which order.

use crate::wal::Lsn;

/// A standby this close to the watermark is live: its messages are small and a commit is waiting
/// for it. Bytes.
pub const LIVE_DISTANCE: u64 = 1 << 20;

/// Sends in one submission. Between submissions a core checks its other role, so this bounds how
/// long a finished fdatasync waits to be published.
pub const SLICE: usize = 32;

/// WAL bytes that one round may send to standbys that are catching up, before completions are
/// checked again and live standbys have their next turn.
pub const LAGGARD_BUDGET: u64 = 4 << 20;

/// The standbys due in one round: the live ones first, then those that catch up.
///
/// Each round begins with a different standby, so that the last of a large fleet is not always the
/// same one.
#[derive(Debug, Default)]
pub struct Round {
    live: Vec<u32>,
    laggards: Vec<u32>,
    turn: usize,
}

impl Round {
    /// Empties the lists for the next round.
    pub fn begin(&mut self) {
        self.live.clear();
        self.laggards.clear();
        self.turn = self.turn.wrapping_add(1);
    }

    /// Notes a standby with WAL to send: its next byte is at `next`, and it may be sent up to
    /// `limit`.
    pub fn note(&mut self, standby: u32, next: Lsn, limit: Lsn) {
        if limit.bytes_since(next) <= LIVE_DISTANCE {
            self.live.push(standby);
        } else {
            self.laggards.push(standby);
        }
    }

    /// Whether no standby is due.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.laggards.is_empty()
    }

    /// The live standbys in this round's order.
    pub fn live(&self) -> impl Iterator<Item = u32> {
        rotated(&self.live, self.turn)
    }

    /// The standbys that catch up, in this round's order.
    pub fn laggards(&self) -> impl Iterator<Item = u32> {
        rotated(&self.laggards, self.turn)
    }
}

fn rotated(list: &[u32], turn: usize) -> impl Iterator<Item = u32> {
    let (head, tail) = list.split_at(turn.checked_rem(list.len()).unwrap_or(0));
    tail.iter().chain(head).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_before_laggards_and_everybody_begins_once() {
        let mut round = Round::default();
        let mut first = Vec::new();
        for _ in 0..3 {
            round.begin();
            let limit = Lsn::new(100 << 20);
            for standby in 0..3 {
                round.note(standby, limit.saturating_sub(200), limit);
            }
            round.note(7, limit.saturating_sub(LIVE_DISTANCE + 1), limit);
            assert_eq!(round.live().count(), 3);
            assert_eq!(round.laggards().collect::<Vec<_>>(), [7]);
            first.extend(round.live().next());
        }
        first.sort_unstable();
        assert_eq!(first, [0, 1, 2]);
        round.begin();
        assert!(round.is_empty() && round.live().next().is_none());
    }
}
