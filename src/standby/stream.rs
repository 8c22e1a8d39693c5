//! One standby's stream: what it says, when it must be pinged, when it is given up.
//!
//! Timers follow `walsender.c` (`WalSndCheckTimeOut`, `WalSndKeepaliveIfNecessary`): only CopyData
//! and CopyDone from the client count as signs of life, never bytes that TCP took.

use crate::wal::Lsn;
use crate::wire::copy::{CopyFault, FromReceiver, HotStandbyFeedback, ReplyRequest, StatusReply};
use crate::wire::frame::next_frame;
use crate::wire::refusal::Refusal;
use crate::wire::sqlstate;
use crate::wire::time::PgTime;
use std::time::{Duration, Instant};

/// The longest message a standby has reason to send in a stream: a status reply is 38 bytes. A
/// client that sends more is not a standby.
const MAX_BODY: usize = 64;

/// The positions in the standby's last reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StandbyPositions {
    /// Received and written by the standby.
    pub write: Lsn,
    /// On its disk.
    pub flush: Lsn,
    /// Replayed.
    pub apply: Lsn,
}

/// The meaning of a piece of a standby's messages.
#[derive(Debug)]
pub enum Heard {
    /// Nothing that requires an action.
    Replies,
    /// It wants a keepalive at once.
    ReplyWanted,
    /// It sent CopyDone. The bytes after it belong to the next command.
    Done(Vec<u8>),
    /// It sent Terminate.
    Terminate,
    /// It broke the protocol in a way that PostgreSQL answers with an error before it continues.
    Failed(Refusal),
    /// It broke the protocol in a way that ends the connection, with a message or
    /// without one.
    Broken(Option<Refusal>),
}

/// What is due by the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepaliveDue {
    /// Nothing yet.
    Nothing,
    /// Send a keepalive that wants a reply.
    Ping,
    /// The standby has been silent for too long: close without a message.
    GiveUp,
}

/// The messages of one standby in COPY BOTH mode.
#[derive(Debug)]
pub struct Talk {
    /// The beginning of a message, at most a header and [`MAX_BODY`] bytes.
    partial: Vec<u8>,
    heard_at: Instant,
    pinged: bool,
    timeout: Duration,
    positions: StandbyPositions,
    replied_at: Option<PgTime>,
    feedback: Option<HotStandbyFeedback>,
}

impl Talk {
    /// A stream that begins now. `timeout` is `wal_sender_timeout`, zero for none.
    pub fn new(now: Instant, timeout: Duration) -> Self {
        Self {
            partial: Vec::new(),
            heard_at: now,
            pinged: false,
            timeout,
            positions: StandbyPositions::default(),
            replied_at: None,
            feedback: None,
        }
    }

    /// The newest positions it reported. They may go back, and `flush` may be ahead of
    /// `write`, at every reconnect.
    pub const fn positions(&self) -> StandbyPositions {
        self.positions
    }

    /// When it reported them, by its own clock.
    pub const fn replied_at(&self) -> Option<PgTime> {
        self.replied_at
    }

    /// The newest hot standby feedback; `None` before the first.
    pub const fn feedback(&self) -> Option<HotStandbyFeedback> {
        self.feedback
    }

    /// Takes the next bytes from the socket, which may begin and end anywhere.
    pub fn hear(&mut self, bytes: &[u8], now: Instant) -> Heard {
        if self.partial.is_empty() {
            return self.parse(bytes, now);
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(bytes);
        self.parse(&whole, now)
    }

    fn parse(&mut self, mut bytes: &[u8], now: Instant) -> Heard {
        let mut heard = Heard::Replies;
        loop {
            // The tag is judged before the length: PostgreSQL names a wrong tag.
            if let Some(tag) = bytes.first()
                && !matches!(tag, b'd' | b'c' | b'X')
            {
                return Heard::Broken(Some(Refusal::fatal(
                    sqlstate::PROTOCOL_VIOLATION,
                    format!(
                        "invalid standby message type \"{}\"",
                        char::from(*tag).escape_default()
                    ),
                )));
            }
            let frame = match next_frame(bytes, MAX_BODY) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.partial.extend_from_slice(bytes);
                    return heard;
                }
                Err(malformed) => {
                    return Heard::Broken(Some(Refusal::fatal(
                        sqlstate::PROTOCOL_VIOLATION,
                        malformed.to_string(),
                    )));
                }
            };
            let rest = bytes.get(frame.len..).unwrap_or_default();
            match frame.tag {
                b'd' => match FromReceiver::parse(frame.body) {
                    Ok(FromReceiver::Status(status)) => {
                        self.note(status);
                        if status.reply == ReplyRequest::Yes {
                            heard = Heard::ReplyWanted;
                        }
                    }
                    Ok(FromReceiver::Feedback(feedback)) => self.feedback = Some(feedback),
                    Err(fault) => return broken(fault),
                },
                b'c' => {
                    self.alive(now);
                    return Heard::Done(rest.to_vec());
                }
                _ => return Heard::Terminate,
            }
            self.alive(now);
            bytes = rest;
        }
    }

    fn note(&mut self, status: StatusReply) {
        self.positions =
            StandbyPositions { write: status.write, flush: status.flush, apply: status.apply };
        self.replied_at = Some(status.client_time);
    }

    fn alive(&mut self, now: Instant) {
        self.heard_at = now;
        self.pinged = false;
    }

    /// When [`Talk::due`] must be called next; `None` without a timeout.
    pub fn deadline(&self) -> Option<Instant> {
        let after = if self.pinged { self.timeout } else { self.timeout / 2 };
        (!self.timeout.is_zero()).then(|| self.heard_at + after)
    }

    /// What is due at `now`. After [`KeepaliveDue::Ping`] the standby counts as pinged.
    pub fn due(&mut self, now: Instant) -> KeepaliveDue {
        let silent = now.saturating_duration_since(self.heard_at);
        if self.timeout.is_zero() {
            KeepaliveDue::Nothing
        } else if silent >= self.timeout {
            KeepaliveDue::GiveUp
        } else if silent >= self.timeout / 2 && !self.pinged {
            self.pinged = true;
            KeepaliveDue::Ping
        } else {
            KeepaliveDue::Nothing
        }
    }
}

fn broken(fault: CopyFault) -> Heard {
    fault.refusal().map_or(Heard::Broken(None), Heard::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn status(write: u64, reply: ReplyRequest) -> Vec<u8> {
        StatusReply {
            write: Lsn::new(write),
            flush: Lsn::new(write),
            apply: Lsn::INVALID,
            client_time: PgTime::new(0),
            reply,
        }
        .encode()
        .to_vec()
    }

    fn talk() -> (Talk, Instant) {
        let now = Instant::now();
        (Talk::new(now, Duration::from_secs(20)), now)
    }

    #[test]
    fn pings_at_half_time_and_gives_up_at_the_end() {
        let (mut talk, t0) = talk();
        let at = |s| t0 + Duration::from_secs(s);
        assert_eq!(talk.deadline(), Some(at(10)));
        assert_eq!(talk.due(at(9)), KeepaliveDue::Nothing);
        assert_eq!(talk.due(at(10)), KeepaliveDue::Ping);
        assert_eq!(talk.due(at(11)), KeepaliveDue::Nothing);
        assert_eq!(talk.deadline(), Some(at(20)));
        assert!(matches!(talk.hear(&status(1, ReplyRequest::No), at(12)), Heard::Replies));
        assert_eq!(talk.due(at(21)), KeepaliveDue::Nothing);
        assert_eq!(talk.due(at(22)), KeepaliveDue::Ping);
        assert_eq!(talk.due(at(32)), KeepaliveDue::GiveUp);
    }

    #[test]
    fn half_a_message_is_no_life() {
        let (mut talk, t0) = talk();
        let bytes = status(1, ReplyRequest::No);
        let later = t0 + Duration::from_secs(15);
        assert!(matches!(talk.hear(&bytes[..20], later), Heard::Replies));
        assert_eq!(talk.deadline(), Some(t0 + Duration::from_secs(10)));
    }

    #[test]
    fn no_timeout_no_deadline() {
        let mut talk = Talk::new(Instant::now(), Duration::ZERO);
        assert_eq!(talk.deadline(), None);
        assert_eq!(talk.due(Instant::now() + Duration::from_secs(1 << 20)), KeepaliveDue::Nothing);
    }

    #[test]
    fn what_follows_copy_done_is_kept() {
        let (mut talk, now) = talk();
        let mut bytes = status(7, ReplyRequest::Yes);
        bytes.extend_from_slice(b"c\0\0\0\x04Q\0\0\0\x05\0");
        match talk.hear(&bytes, now) {
            Heard::Done(rest) => assert_eq!(rest, b"Q\0\0\0\x05\0"),
            other => panic!("{other:?}"),
        }
        assert_eq!(talk.positions().write, Lsn::new(7));
    }

    #[test]
    fn faults_are_postgres_faults() {
        let refusal = |bytes: &[u8]| match talk().0.hear(bytes, Instant::now()) {
            Heard::Failed(refusal) | Heard::Broken(Some(refusal)) => refusal.message,
            other => panic!("{other:?}"),
        };
        assert_eq!(refusal(b"Q\0\0\0\x05\0"), "invalid standby message type \"Q\"");
        assert_eq!(refusal(b"d\0\0\0\x04"), "no data left in message");
        assert_eq!(refusal(b"d\0\0\0\x06r\0"), "insufficient data left in message");
        assert!(!refusal(b"d\x7f\0\0\0r").is_empty());
        assert!(matches!(talk().0.hear(b"d\0\0\0\x05z", Instant::now()), Heard::Broken(None)));
        assert!(matches!(talk().0.hear(b"X\0\0\0\x04", Instant::now()), Heard::Terminate));
    }

    proptest! {
        #[test]
        fn any_split_is_heard_alike(cuts in proptest::collection::vec(1usize..50, 0..20)) {
            let mut bytes = Vec::new();
            for n in 1..=8 {
                bytes.extend(status(n, ReplyRequest::No));
            }
            let (mut talk, now) = talk();
            let mut rest = bytes.as_slice();
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                prop_assert!(matches!(talk.hear(head, now), Heard::Replies));
                rest = tail;
            }
            prop_assert_eq!(talk.positions().write, Lsn::new(8));
        }

        #[test]
        fn any_bytes_are_heard_calmly(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut talk, now) = talk();
            drop(talk.hear(&bytes, now));
            prop_assert!(talk.partial.len() <= MAX_BODY + 5);
        }
    }
}
