//! What a slot may be called (`ReplicationSlotValidateName`).

use std::fmt;

/// PostgreSQL's `NAMEDATALEN` without the terminating zero.
const MAX_LEN: usize = 63;

/// A valid slot name; also its file's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotName(String);

/// Why a slot may not have this name, in PostgreSQL's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Empty.
    #[error("replication slot name \"{0}\" is too short")]
    TooShort(String),
    /// More than 63 bytes.
    #[error("replication slot name \"{0}\" is too long")]
    TooLong(String),
    /// A character other than a to z, 0 to 9 and _.
    #[error("replication slot name \"{0}\" contains invalid character")]
    InvalidCharacter(String),
}

impl SlotName {
    /// Checks a name.
    pub fn parse(name: &str) -> Result<Self, InvalidName> {
        let is_legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if name.is_empty() {
            Err(InvalidName::TooShort(name.to_owned()))
        } else if name.len() > MAX_LEN {
            Err(InvalidName::TooLong(name.to_owned()))
        } else if !name.bytes().all(is_legal) {
            Err(InvalidName::InvalidCharacter(name.to_owned()))
        } else {
            Ok(Self(name.to_owned()))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_postgres_checks_them() {
        assert!(SlotName::parse("node_a_1").is_ok());
        assert!(SlotName::parse(&"x".repeat(63)).is_ok());
        let fault = |name: &str| SlotName::parse(name).unwrap_err().to_string();
        assert_eq!(fault(""), "replication slot name \"\" is too short");
        assert!(fault(&"X".repeat(64)).ends_with("is too long"));
        assert_eq!(fault("BAD"), "replication slot name \"BAD\" contains invalid character");
        for bad in ["a-b", "a.b", "a/b", "..", "\u{e9}", "a b"] {
            assert!(fault(bad).ends_with("contains invalid character"), "{bad}");
        }
    }
}
