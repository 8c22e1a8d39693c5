//! How far one standby has been sent, to the byte inside an unfinished message.

use super::message::Message;
use crate::wal::Lsn;
use crate::wire::copy::XLOG_DATA_HEADER;

/// A standby's place in its timeline's WAL.
///
/// A full socket accepts part of a message. Its length is already announced, so the rest of exactly
/// that message has to follow, whatever happens to the timeline meanwhile. [`Unfinished`] is
/// that rest.
#[derive(Debug, Clone)]
pub struct Cursor {
    next: Lsn,
    unfinished: Option<Unfinished>,
}

/// The rest of a message whose beginning was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The whole header, sent or not.
    pub header: [u8; XLOG_DATA_HEADER],
    /// How much of the header was sent.
    pub header_sent: usize,
    /// The next WAL byte to send.
    pub next: Lsn,
    /// The message's end.
    pub end: Lsn,
}

impl Unfinished {
    /// Bytes of the message that are still to be sent.
    pub const fn left(&self) -> usize {
        XLOG_DATA_HEADER - self.header_sent + self.end.bytes_since(self.next) as usize
    }
}

impl Cursor {
    /// A cursor at the position that the standby requested.
    pub const fn new(start: Lsn) -> Self {
        Self { next: start, unfinished: None }
    }

    /// The first WAL byte that has not been sent.
    pub fn next(&self) -> Lsn {
        self.unfinished.as_ref().map_or(self.next, |rest| rest.next)
    }

    /// The start of the next message that has not been begun: everything before it is sent or
    /// announced.
    pub const fn next_message(&self) -> Lsn {
        self.next
    }

    /// The rest of an unfinished message.
    pub const fn unfinished(&self) -> Option<&Unfinished> {
        self.unfinished.as_ref()
    }

    /// Accounts for `sent` bytes of what was offered: the rest of the unfinished message (or the
    /// beginning of that rest, with nothing after it), then `messages` with their `headers`.
    /// Returns the WAL bytes among them.
    ///
    /// # Panics
    /// When `sent` is more than was offered.
    pub fn advance(
        &mut self,
        mut sent: usize,
        messages: &[Message],
        headers: &[[u8; XLOG_DATA_HEADER]],
    ) -> u64 {
        let before = self.next();
        if let Some(rest) = self.unfinished.as_mut() {
            let header = (XLOG_DATA_HEADER - rest.header_sent).min(sent);
            rest.header_sent += header;
            sent -= header;
            let wal = (rest.end.bytes_since(rest.next) as usize).min(sent);
            rest.next = rest.next.saturating_add(wal as u64);
            sent -= wal;
            if rest.left() > 0 {
                assert_eq!(sent, 0, "bytes were sent after an unfinished message");
                return self.next().bytes_since(before);
            }
            self.unfinished = None;
        }
        for (message, header) in messages.iter().zip(headers) {
            if sent == 0 {
                break;
            }
            assert_eq!(message.start, self.next, "a message does not continue the stream");
            self.next = message.end;
            let whole = XLOG_DATA_HEADER + message.wal_len();
            if sent >= whole {
                sent -= whole;
                continue;
            }
            let header_sent = sent.min(XLOG_DATA_HEADER);
            self.unfinished = Some(Unfinished {
                header: *header,
                header_sent,
                next: message.start.saturating_add((sent - header_sent) as u64),
                end: message.end,
            });
            sent = 0;
        }
        assert_eq!(sent, 0, "more was sent than was offered");
        self.next().bytes_since(before)
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::cut;
    use super::*;
    use proptest::prelude::*;

    /// The bytes of the whole stream, to be compared with the result of short sends.
    fn stream(messages: &[Message], headers: &[[u8; XLOG_DATA_HEADER]]) -> Vec<u8> {
        let mut out = Vec::new();
        for (message, header) in messages.iter().zip(headers) {
            out.extend_from_slice(header);
            out.extend((0..message.wal_len()).map(|n| (message.start.raw() + n as u64) as u8));
        }
        out
    }

    proptest! {
        #[test]
        fn short_sends_make_the_same_stream(
            from in 0u64..100_000,
            len in 1u64..400_000,
            shorts in proptest::collection::vec(1usize..200_000, 0..40),
        ) {
            let (from, to) = (Lsn::new(from), Lsn::new(from + len));
            let all: Vec<_> = cut(from, to, u64::MAX).collect();
            let all_headers: Vec<_> = (0..all.len()).map(|n| [n as u8; XLOG_DATA_HEADER]).collect();
            let expected = stream(&all, &all_headers);
            let mut cursor = Cursor::new(from);
            let mut sent = Vec::new();
            let mut shorts = shorts.into_iter();
            while cursor.next() < to || cursor.unfinished().is_some() {
                let mut offer = Vec::new();
                if let Some(rest) = cursor.unfinished() {
                    offer.extend_from_slice(&rest.header[rest.header_sent..]);
                    offer.extend((rest.next.raw()..rest.end.raw()).map(|n| n as u8));
                }
                let skip = all.iter().position(|m| m.start >= cursor.next_message()).unwrap_or(all.len());
                offer.extend(stream(&all[skip..], &all_headers[skip..]));
                let taken = shorts.next().unwrap_or(usize::MAX).min(offer.len());
                sent.extend_from_slice(&offer[..taken]);
                cursor.advance(taken, &all[skip..], &all_headers[skip..]);
            }
            prop_assert_eq!(sent, expected);
            prop_assert_eq!(cursor.next_message(), to);
        }
    }
}
