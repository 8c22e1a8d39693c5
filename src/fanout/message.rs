//! How a range of WAL is cut into XLogData messages.

use crate::wal::Lsn;
use crate::wal::page::PAGE_SIZE;

/// The most WAL in one message: 16 pages, as `MAX_SEND_SIZE` in `walsender.c`. A
/// receiver's libpq buffers a whole message, and answers between messages.
pub const MAX_MESSAGE: u64 = 16 * PAGE_SIZE as u64;

/// One XLogData message: the WAL in `[start, end)`, never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// First byte.
    pub start: Lsn,
    /// First byte after it.
    pub end: Lsn,
}

impl Message {
    /// WAL bytes in the message.
    pub const fn wal_len(self) -> usize {
        self.end.bytes_since(self.start) as usize
    }
}

/// Cuts `[from, to)` into messages of at most [`MAX_MESSAGE`] bytes, together at most `budget`
/// bytes but at least one message. Every message but the last of the range ends on a page boundary,
/// so that a receiver's flush position does not rest inside a record (`XLogSendPhysical`).
pub fn cut(from: Lsn, to: Lsn, budget: u64) -> impl Iterator<Item = Message> {
    let mut start = from;
    std::iter::from_fn(move || {
        let sent = start.bytes_since(from);
        if start >= to || (sent > 0 && sent.saturating_add(MAX_MESSAGE) > budget.max(MAX_MESSAGE)) {
            return None;
        }
        let full = start.saturating_add(MAX_MESSAGE);
        let end = if full >= to { to } else { full.page_start() };
        let message = Message { start, end };
        start = end;
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_commit_is_one_message() {
        let (from, to) = (Lsn::new(0x100_0028), Lsn::new(0x100_0100));
        let messages: Vec<_> = cut(from, to, 256 << 10).collect();
        assert_eq!(messages, [Message { start: from, end: to }]);
    }

    #[test]
    fn nothing_is_no_message() {
        assert_eq!(cut(Lsn::new(80), Lsn::new(80), 1 << 20).count(), 0);
        assert_eq!(cut(Lsn::new(81), Lsn::new(80), 1 << 20).count(), 0);
    }

    proptest! {
        #[test]
        fn messages_tile_the_range(
            from in 0u64..1 << 40, len in 0u64..4 << 20, budget in 1u64..2 << 20,
        ) {
            let (from, to) = (Lsn::new(from), Lsn::new(from + len));
            let mut at = from;
            for message in cut(from, to, budget) {
                prop_assert_eq!(message.start, at);
                prop_assert!(message.end > message.start && message.end <= to);
                prop_assert!(message.wal_len() as u64 <= MAX_MESSAGE);
                prop_assert!(message.end == to || message.end.page_offset() == 0);
                at = message.end;
            }
            prop_assert!(at.bytes_since(from) <= budget.max(MAX_MESSAGE));
            prop_assert!(at == to || at.bytes_since(from) + MAX_MESSAGE > budget);
        }
    }
}
