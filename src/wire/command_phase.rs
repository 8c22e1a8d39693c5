//! The command phase of a connection, between startup and stream: what each message asks for.
//! Replication connections speak simple queries only. The content of an answer is up to the server.

use super::frame::{Frame, Malformed};

/// Where a connection is in its command phase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandPhase {
    reading: Reading,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Messages,
    /// After an error in the extended protocol: skips everything up to Sync.
    UpToSync,
}

/// What a message asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// A command, without its NUL. Its answer ends with ReadyForQuery.
    Command(&'a [u8]),
    /// ReadyForQuery (Sync).
    Ready,
    /// A message of the extended protocol, the first since the last Sync. No ReadyForQuery follows
    /// its error.
    Extended,
    /// A function call. ReadyForQuery follows its error.
    Fastpath,
    /// No answer.
    Nothing,
    /// The end of the connection, without an answer.
    Terminate,
    /// A Query whose text does not end where the message does. The connection ends.
    Malformed(Malformed),
    /// A message of a type that no client sends. The connection ends.
    UnknownType(u8),
}

impl CommandPhase {
    /// Takes the next message.
    pub fn take<'a>(&mut self, frame: &Frame<'a>) -> Asked<'a> {
        match (frame.tag, self.reading) {
            (b'X', _) => Asked::Terminate,
            (b'S', _) => {
                self.reading = Reading::Messages;
                Asked::Ready
            }
            // PostgreSQL, too, silently ignores stray copy messages and Flush here.
            (b'd' | b'c' | b'f' | b'H', _) => Asked::Nothing,
            (b'P' | b'B' | b'D' | b'E' | b'C' | b'Q' | b'F', Reading::UpToSync) => Asked::Nothing,
            (b'P' | b'B' | b'D' | b'E' | b'C', Reading::Messages) => {
                self.reading = Reading::UpToSync;
                Asked::Extended
            }
            (b'F', Reading::Messages) => Asked::Fastpath,
            (b'Q', Reading::Messages) => match frame.body.split_last() {
                Some((0, text)) if !text.contains(&0) => Asked::Command(text),
                _ => Asked::Malformed(Malformed::body("Query")),
            },
            (tag, _) => Asked::UnknownType(tag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Frame<'_> {
        Frame { tag, body, len: body.len() + 5 }
    }

    #[test]
    fn an_error_of_the_extended_protocol_lasts_until_sync() {
        let mut phase = CommandPhase::default();
        let mut take = |tag, body: &'static [u8]| phase.take(&frame(tag, body));
        assert_eq!(take(b'Q', b"SHOW x\0"), Asked::Command(b"SHOW x"));
        assert_eq!(take(b'P', b""), Asked::Extended);
        for tag in *b"PBDECQFdcfH" {
            assert_eq!(take(tag, b"SHOW x\0"), Asked::Nothing, "{}", char::from(tag));
        }
        assert_eq!(take(b'z', b""), Asked::UnknownType(b'z'));
        assert_eq!(take(b'S', b""), Asked::Ready);
        assert_eq!(take(b'F', b""), Asked::Fastpath);
        assert_eq!(take(b'E', b""), Asked::Extended);
        assert_eq!(take(b'X', b""), Asked::Terminate);
    }

    #[test]
    fn a_query_is_one_text() {
        let mut phase = CommandPhase::default();
        for body in [&b""[..], b"SHOW x", b"SHOW\0x\0"] {
            assert!(matches!(phase.take(&frame(b'Q', body)), Asked::Malformed(_)), "{body:?}");
        }
        assert_eq!(phase.take(&frame(b'Q', b"\0")), Asked::Command(b""));
    }
}
