//! What a completion belongs to, packed into the ring's 64-bit token.

use super::table::Key;
use crate::ring::Token;

/// What an operation of a core is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Bytes from a standby.
    Reply(Key),
    /// A standby's socket has room again.
    Room(Key),
    /// A send without a copy: what the socket took, then that its memory is free.
    Zerocopy(Key),
    /// A block of a segment file for standbys that catch up, by its slot in the pool.
    Block(u32),
    /// Bytes from the upstream, on the connection with this number.
    Upstream(u32),
    /// The upstream's socket has room again.
    UpstreamRoom(u32),
    /// A batch's write, by its number.
    Write(u64),
    /// A segment's fdatasync, by the segment's number.
    Sync(u64),
}

const PAYLOAD_BITS: u32 = 56;
const PAYLOAD: u64 = (1 << PAYLOAD_BITS) - 1;

impl Purpose {
    /// The token of this purpose. Numbers are kept modulo 2^56.
    pub fn token(self) -> Token {
        let key = |key: Key| u64::from(key.generation) << 32 | u64::from(key.index);
        let (kind, payload) = match self {
            Self::Reply(of) => (1, key(of)),
            Self::Room(of) => (2, key(of)),
            Self::Block(slot) => (3, u64::from(slot)),
            Self::Upstream(connection) => (4, u64::from(connection)),
            Self::UpstreamRoom(connection) => (5, u64::from(connection)),
            Self::Write(number) => (6, number),
            Self::Sync(number) => (7, number),
            Self::Zerocopy(of) => (8, key(of)),
        };
        Token(kind << PAYLOAD_BITS | payload & PAYLOAD)
    }

    /// The purpose of a token that [`Purpose::token`] made; `None` for others.
    pub fn of(token: Token) -> Option<Self> {
        let payload = token.0 & PAYLOAD;
        let key = Key { index: payload as u32, generation: (payload >> 32) as u32 };
        Some(match token.0 >> PAYLOAD_BITS {
            1 => Self::Reply(key),
            2 => Self::Room(key),
            3 => Self::Block(payload as u32),
            4 => Self::Upstream(payload as u32),
            5 => Self::UpstreamRoom(payload as u32),
            6 => Self::Write(payload),
            7 => Self::Sync(payload),
            8 => Self::Zerocopy(key),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        let key = Key { index: u32::MAX, generation: (1 << 24) - 1 };
        for purpose in [
            Purpose::Reply(key),
            Purpose::Room(Key { index: 0, generation: 1 }),
            Purpose::Block(9),
            Purpose::Upstream(u32::MAX),
            Purpose::UpstreamRoom(0),
            Purpose::Write(1 << 40),
            Purpose::Sync(PAYLOAD),
            Purpose::Zerocopy(key),
        ] {
            assert_eq!(Purpose::of(purpose.token()), Some(purpose));
        }
        assert_eq!(Purpose::of(Token(0)), None);
    }
}
