//! Log sequence numbers: positions in the WAL byte stream.

use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log (`XLogRecPtr`), 64 bits.
///
/// Arithmetic is explicit: positions come from peers, so nothing here may wrap.
/// Printed as PostgreSQL 13-18 do, `%X/%X`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// `InvalidXLogRecPtr`, 0/0.
    pub const INVALID: Self = Self(0);
    /// The largest position; as a limit it means "none".
    pub const MAX: Self = Self(u64::MAX);

    /// From the 64-bit number on the wire.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The 64-bit number on the wire.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether this is 0/0, which PostgreSQL reads as "unknown".
    pub const fn is_invalid(self) -> bool {
        self.0 == 0
    }

    /// `self + bytes`; `None` past the end of the number space.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// `self + bytes`, capped at [`Lsn::MAX`].
    pub const fn saturating_add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// `self - bytes`, but not below 0.
    pub const fn saturating_sub(self, bytes: u64) -> Self {
        Self(self.0.saturating_sub(bytes))
    }

    /// Bytes from `earlier` to `self`; 0 when `self` is not later.
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Where the next record may start: rounded up to 8 bytes (`MAXALIGN`).
    pub const fn align8(self) -> Self {
        Self(self.0.saturating_add(7) & !7)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not `X/X` in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid WAL location (expected two hexadecimal numbers as in 16/B374D848)")]
pub struct InvalidLsn;

impl FromStr for Lsn {
    type Err = InvalidLsn;

    /// Accepts what `pg_lsn` accepts: one to eight hex digits on each side.
    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let (high, low) = text.split_once('/').ok_or(InvalidLsn)?;
        let part = |digits: &str| {
            let plain = !digits.is_empty() && digits.len() <= 8;
            if plain && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                u64::from_str_radix(digits, 16).map_err(|_| InvalidLsn)
            } else {
                Err(InvalidLsn)
            }
        };
        Ok(Self(part(high)? << 32 | part(low)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_and_parses_as_postgres() {
        let lsn = Lsn::new(0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!("16/B374D848".parse(), Ok(lsn));
        assert_eq!("0/0".parse(), Ok(Lsn::INVALID));
        for bad in ["", "/", "1/", "/1", "1/123456789", "+1/2", "1/2/3", "x/1", "1 /2"] {
            assert_eq!(bad.parse::<Lsn>(), Err(InvalidLsn), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(raw: u64) {
            prop_assert_eq!(Lsn::new(raw).to_string().parse(), Ok(Lsn::new(raw)));
        }

        #[test]
        fn aligning_brackets_the_position(raw in 0..u64::MAX - 8) {
            let aligned = Lsn::new(raw).align8();
            prop_assert!(aligned.bytes_since(Lsn::new(raw)) < 8 && aligned.raw().is_multiple_of(8));
        }
    }
}
