//! Takes one typed message (type byte, length, body) from the front of a buffer.

use super::reader::{Reader, Short};
use super::refusal::Refusal;

/// Type byte and length word.
pub const FRAME_HEADER: usize = 5;

/// A whole message, still in the buffer in which it arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// The message type.
    pub tag: u8,
    /// What follows the length word.
    pub body: &'a [u8],
    /// Bytes to drop from the buffer once the message has been handled.
    pub len: usize,
}

/// A message that the protocol does not allow. The stream has lost its framing or the peer is
/// broken: the connection ends.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// The length word does not even cover itself.
    #[error("invalid message length {length} of message type {tag:#04x}")]
    Length {
        /// The message type.
        tag: u8,
        /// The length word as received.
        length: i32,
    },
    /// More than this side is ready to hold at this point of the session.
    #[error("message type {tag:#04x} of {body} bytes exceeds the limit of {limit} bytes here")]
    TooLong {
        /// The message type.
        tag: u8,
        /// Announced bytes of its body.
        body: usize,
        /// Allowed bytes.
        limit: usize,
    },
    /// The body does not have the fields of its type.
    #[error("malformed {message} message")]
    Body {
        /// The message's name in the protocol's documentation.
        message: &'static str,
    },
    /// No such message type exists, or not from this side.
    #[error("unexpected message type {tag:#04x}")]
    Type {
        /// The message type.
        tag: u8,
    },
}

impl Malformed {
    /// A body that does not have the fields of its type.
    pub const fn body(message: &'static str) -> Self {
        Self::Body { message }
    }

    /// What the client is told before the connection closes.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Length { .. } | Self::TooLong { .. } => {
                Refusal::protocol_violation("invalid message length")
            }
            Self::Body { .. } => Refusal::protocol_violation("invalid message format"),
            Self::Type { tag } => {
                Refusal::protocol_violation(format!("invalid frontend message type {tag}"))
            }
        }
    }
}

/// The first message of `buf`; `None` until it has fully arrived.
///
/// An announced body above `max_body` is refused as soon as its header is here,
/// so a peer cannot make the buffer grow beyond that.
pub fn next_frame(buf: &[u8], max_body: usize) -> Result<Option<Frame<'_>>, Malformed> {
    let mut reader = Reader::new(buf);
    let (tag, length) = match (reader.u8(), reader.i32()) {
        (Ok(tag), Ok(length)) => (tag, length),
        (Err(Short), _) | (_, Err(Short)) => return Ok(None),
    };
    let body_len = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_sub(4))
        .ok_or(Malformed::Length { tag, length })?;
    if body_len > max_body {
        return Err(Malformed::TooLong { tag, body: body_len, limit: max_body });
    }
    match reader.bytes(body_len) {
        Ok(body) => Ok(Some(Frame { tag, body, len: FRAME_HEADER + body_len })),
        Err(Short) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_one_message_at_a_time() {
        let bytes = b"Z\0\0\0\x05Ic\0\0\0\x04d";
        let first = next_frame(bytes, 100).unwrap().unwrap();
        assert_eq!(first, Frame { tag: b'Z', body: b"I", len: 6 });
        let second = next_frame(&bytes[first.len..], 0).unwrap().unwrap();
        assert_eq!(second, Frame { tag: b'c', body: b"", len: 5 });
        assert_eq!(next_frame(&bytes[11..], 100), Ok(None));
    }

    #[test]
    fn refuses_impossible_and_oversized_lengths_early() {
        assert_eq!(next_frame(b"Q\0\0\0\x03", 10), Err(Malformed::Length { tag: b'Q', length: 3 }));
        assert_eq!(
            next_frame(b"Q\xff\xff\xff\xff", 10),
            Err(Malformed::Length { tag: b'Q', length: -1 })
        );
        assert_eq!(
            next_frame(b"Q\x7f\xff\xff\xff", 10),
            Err(Malformed::TooLong { tag: b'Q', body: 0x7fff_fffb, limit: 10 })
        );
        assert!(next_frame(b"Q\0\0\0\x0f", 10).is_err());
        assert_eq!(next_frame(b"Q\0\0\0\x0e", 10), Ok(None));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_messages(
            bodies in proptest::collection::vec(
                (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            for (tag, body) in &bodies {
                bytes.push(*tag);
                bytes.extend((body.len() as i32 + 4).to_be_bytes());
                bytes.extend(body);
            }
            let cut = cut.index(bytes.len() + 1);
            let mut seen = Vec::new();
            let mut at = 0;
            for end in [cut, bytes.len()] {
                while let Some(frame) = next_frame(&bytes[at..end], 40).unwrap() {
                    seen.push((frame.tag, frame.body.to_vec()));
                    at += frame.len;
                }
            }
            prop_assert_eq!(seen, bodies);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), max in 0usize..64) {
            if let Ok(Some(frame)) = next_frame(&bytes, max) {
                prop_assert!(frame.body.len() <= max && frame.len <= bytes.len());
            }
        }
    }
}
