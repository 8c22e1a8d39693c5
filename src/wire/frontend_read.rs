//! Reads a client's typed messages, as a server.

use super::frame::{Frame, Malformed};
use super::reader::Reader;

/// A message from a client after the startup packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FromClient<'a> {
    /// Query: the text without its zero byte.
    Query(&'a [u8]),
    /// The answer to an authentication request; its form depends on the request.
    Password(&'a [u8]),
    /// CopyData's payload.
    CopyData(&'a [u8]),
    /// CopyDone.
    CopyDone,
    /// CopyFail.
    CopyFail,
    /// Terminate.
    Terminate,
    /// Sync.
    Sync,
    /// Flush.
    Flush,
    /// Parse, Bind, Describe, Execute or Close: the extended query protocol.
    Extended,
    /// FunctionCall.
    FunctionCall,
}

impl<'a> FromClient<'a> {
    /// Names the message; [`Malformed::Type`] for an unknown type.
    pub fn parse(frame: Frame<'a>) -> Result<Self, Malformed> {
        Ok(match frame.tag {
            b'Q' => {
                let mut reader = Reader::new(frame.body);
                match reader.zero_terminated() {
                    Ok(text) if reader.is_empty() => Self::Query(text),
                    _ => return Err(Malformed::body("Query")),
                }
            }
            b'p' => Self::Password(frame.body),
            b'd' => Self::CopyData(frame.body),
            b'c' => Self::CopyDone,
            b'f' => Self::CopyFail,
            b'X' => Self::Terminate,
            b'S' => Self::Sync,
            b'H' => Self::Flush,
            b'P' | b'B' | b'D' | b'E' | b'C' => Self::Extended,
            b'F' => Self::FunctionCall,
            tag => return Err(Malformed::Type { tag }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(tag: u8, body: &[u8]) -> Result<FromClient<'_>, Malformed> {
        FromClient::parse(Frame { tag, body, len: body.len() + 5 })
    }

    #[test]
    fn names_every_message() {
        assert_eq!(parse(b'Q', b"SHOW x\0"), Ok(FromClient::Query(b"SHOW x")));
        assert_eq!(parse(b'd', b"r"), Ok(FromClient::CopyData(b"r")));
        assert_eq!(parse(b'P', b""), Ok(FromClient::Extended));
        assert_eq!(parse(b'X', b""), Ok(FromClient::Terminate));
        let unknown = parse(b'?', b"").unwrap_err();
        assert_eq!(unknown.refusal().message, "invalid frontend message type 63");
    }

    #[test]
    fn a_query_is_one_zero_terminated_text() {
        for bad in [&b"SHOW x"[..], b"", b"a\0b\0", b"a\0\0"] {
            assert_eq!(parse(b'Q', bad), Err(Malformed::body("Query")), "{bad:?}");
        }
    }
}
