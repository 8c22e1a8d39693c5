//! Checks what a standby is sent, byte by byte as its socket takes it: framing, positions, the WAL
//! itself, and that none of it can still be lost.

use super::truth::Truth;
use crate::wal::Lsn;
use crate::wire::copy::{FromSender, ReplyRequest, XLOG_DATA_HEADER};
use std::time::Duration;

/// The most WAL in one message.
const MAX_MESSAGE: u64 = 128 << 10;

/// Where a stream stands, as its client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// CopyBothResponse must come.
    Welcome,
    Copy,
    /// CopyDone came.
    Done,
    /// "COPY 0" or a FATAL error came: nothing may follow.
    Over,
}

/// What the standby will find in its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    Keepalive(ReplyRequest),
    Done,
    /// The server shuts down.
    Completed,
    Error,
}

#[derive(Debug)]
pub(super) struct Tap {
    truth: &'static Truth,
    pub(super) stage: Stage,
    /// The next byte of WAL.
    pub(super) at: Lsn,
    /// The end of the message whose WAL is in transit.
    message_end: Lsn,
    partial: Vec<u8>,
    told: Duration,
    /// What came and is not processed yet, each with the count of bytes up to its end.
    pub(super) sights: std::collections::VecDeque<(u64, Sight)>,
    pub(super) bytes: u64,
    pub(super) messages: u64,
}

impl Tap {
    pub(super) fn new(truth: &'static Truth, at: Lsn) -> Self {
        Self {
            truth,
            stage: Stage::Welcome,
            at,
            message_end: at,
            partial: Vec::new(),
            told: Duration::ZERO,
            sights: std::collections::VecDeque::new(),
            bytes: 0,
            messages: 0,
        }
    }

    /// Is it between two messages?
    pub(super) fn is_whole(&self) -> bool {
        self.partial.is_empty() && self.at == self.message_end
    }

    /// The socket took `bytes`; `durable` is what would survive a crash now.
    pub(super) fn take(&mut self, mut bytes: &[u8], durable: Lsn, now: Duration) {
        while !bytes.is_empty() {
            if self.at < self.message_end {
                let rest = self.message_end.bytes_since(self.at) as usize;
                let (wal, after) = bytes.split_at(bytes.len().min(rest));
                let good = self.truth.matching(self.at, wal);
                assert!(good == wal.len(), "I4: a false byte is sent at {}", {
                    self.at.saturating_add(good as u64)
                });
                self.at = self.at.saturating_add(wal.len() as u64);
                assert!(
                    self.at <= durable,
                    "I3: sent up to {}, beyond the durable mark {durable}",
                    self.at
                );
                self.bytes += wal.len() as u64;
                bytes = after;
                continue;
            }
            self.partial.push(bytes[0]);
            self.bytes += 1;
            bytes = &bytes[1..];
            self.look(now);
        }
    }

    fn look(&mut self, now: Duration) {
        let Some((&tag, rest)) = self.partial.split_first() else { return };
        assert!(b"WdcCE".contains(&tag), "framing: a message of type {}", tag.escape_ascii());
        assert!(self.stage != Stage::Over, "framing: {} follows the end", tag.escape_ascii());
        let Some((length, body)) = rest.split_first_chunk::<4>() else { return };
        let length = u32::from_be_bytes(*length) as usize;
        assert!((4..1 << 18).contains(&length), "framing: a message of {length} bytes");
        let body_len = length - 4;
        if tag == b'd' && body.first() == Some(&b'w') && body.len() == XLOG_DATA_HEADER - 5 {
            let Ok(FromSender::XLogData { start, wal_end, send_time, .. }) =
                FromSender::parse(body)
            else {
                panic!("framing: an XLogData header that cannot be read")
            };
            let wal = (body_len - body.len()) as u64;
            assert_eq!(self.stage, Stage::Copy, "framing: WAL outside of the stream");
            assert_eq!(start, self.at, "framing: walStart does not continue the stream");
            assert!(0 < wal && wal <= MAX_MESSAGE, "framing: a message of {wal} bytes of WAL");
            self.message_end = start.saturating_add(wal);
            assert!(self.message_end <= wal_end, "framing: walEnd {wal_end} inside the message");
            let ends_well = self.message_end == wal_end
                || self.message_end.page_offset() == 0
                || self.truth.record_end(self.message_end) == self.message_end;
            assert!(ends_well, "framing: a message is cut inside a page at {}", self.message_end);
            self.note_time(send_time.raw(), now);
            self.partial.clear();
            self.messages += 1;
            return;
        }
        if body.len() < body_len {
            return;
        }
        match tag {
            b'W' => {
                assert_eq!(self.stage, Stage::Welcome, "framing: a second CopyBothResponse");
                assert_eq!(body, [0, 0, 0], "framing: columns in a CopyBothResponse");
                self.stage = Stage::Copy;
            }
            b'd' => {
                let Ok(FromSender::Keepalive { wal_end, send_time, reply }) =
                    FromSender::parse(body)
                else {
                    panic!("framing: CopyData that is neither WAL nor a keepalive")
                };
                assert_eq!(self.stage, Stage::Copy, "framing: a keepalive outside of the stream");
                assert_eq!(wal_end, self.at, "framing: a keepalive names another position");
                self.note_time(send_time.raw(), now);
                self.sights.push_back((self.bytes, Sight::Keepalive(reply)));
            }
            b'c' => {
                assert_eq!(self.stage, Stage::Copy, "framing: a second CopyDone");
                self.stage = Stage::Done;
                self.sights.push_back((self.bytes, Sight::Done));
            }
            b'C' => {
                assert_eq!(body, b"COPY 0\0", "framing: another command is complete");
                self.stage = Stage::Over;
                self.sights.push_back((self.bytes, Sight::Completed));
            }
            _ => {
                self.stage = Stage::Over;
                self.sights.push_back((self.bytes, Sight::Error));
            }
        }
        self.partial.clear();
    }

    fn note_time(&mut self, raw: i64, now: Duration) {
        let told = Duration::from_micros(raw.unsigned_abs());
        assert!(self.told <= told && told <= now, "framing: a clock that goes back");
        self.told = told;
    }
}
