//! A hub's identity and the hubs above it, which keep hubs from forming a loop.
//!
//! Every hub has a persistent random ID. It announces its own ID, followed by the IDs of the hubs
//! above it, to its clients as the parameter status `walhub.instance_path`. It sends its own ID to
//! its upstream as the startup option `walhub.instance_id`, which PostgreSQL accepts silently. A
//! hub that finds itself above itself, or below, refuses the connection.

use std::fmt;
use std::str::FromStr;

/// The parameter status that carries a path downwards.
pub const INSTANCE_PATH: &str = "walhub.instance_path";

/// The startup option that carries one hub's ID upwards.
pub const INSTANCE_ID: &str = "walhub.instance_id";

/// The most hubs in one line from the primary down; more is a mistake, or an attack.
pub const MAX_HOPS: usize = 32;

/// A hub's own number, drawn once for its directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(u128);

impl InstanceId {
    /// Draws a new one from the operating system's randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut raw = [0; 16];
        getrandom::fill(&mut raw)?;
        Ok(Self(u128::from_be_bytes(raw)))
    }

    /// From the stored number.
    pub const fn new(raw: u128) -> Self {
        Self(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> u128 {
        self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hub {self}")
    }
}

/// The text was neither a hub's ID nor a path of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInstance {
    /// Not 32 lower-case hexadecimal digits.
    #[error("invalid instance ID (expected 32 hexadecimal digits)")]
    Id,
    /// More than [`MAX_HOPS`] IDs.
    #[error("instance path has more than {MAX_HOPS} hubs")]
    TooLong,
}

impl FromStr for InstanceId {
    type Err = InvalidInstance;

    fn from_str(text: &str) -> Result<Self, InvalidInstance> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 32 || !text.bytes().all(digit) {
            return Err(InvalidInstance::Id);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| InvalidInstance::Id)
    }
}

/// Hubs from the nearest to the one directly below the primary; empty below a PostgreSQL server.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct InstancePath(Vec<InstanceId>);

impl InstancePath {
    /// No hub above: the upstream is PostgreSQL.
    pub const fn empty() -> Self {
        Self(Vec::new())
    }

    /// What a hub with this path above it announces: itself first.
    pub fn announced_by(&self, own: InstanceId) -> Self {
        Self(std::iter::once(own).chain(self.0.iter().copied()).collect())
    }

    /// The hubs, the nearest first.
    pub fn ids(&self) -> &[InstanceId] {
        &self.0
    }

    /// Whether this hub is in the path.
    pub fn contains(&self, id: InstanceId) -> bool {
        self.0.contains(&id)
    }

    /// Whether the path is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many hubs.
    pub fn hops(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for InstancePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, id) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            write!(f, "{id}")?;
        }
        Ok(())
    }
}

impl FromStr for InstancePath {
    type Err = InvalidInstance;

    fn from_str(text: &str) -> Result<Self, InvalidInstance> {
        if text.is_empty() {
            return Ok(Self::empty());
        }
        let mut path = Vec::new();
        for part in text.split(',') {
            if path.len() == MAX_HOPS {
                return Err(InvalidInstance::TooLong);
            }
            path.push(part.parse()?);
        }
        Ok(Self(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_draws_differ() {
        assert_ne!(InstanceId::random().unwrap(), InstanceId::random().unwrap());
    }

    #[test]
    fn announces_itself_first() {
        let (a, b) = (InstanceId::new(0xA), InstanceId::new(0xB));
        let below_a = InstancePath::empty().announced_by(a);
        let below_b = below_a.announced_by(b);
        assert_eq!(below_b.to_string(), format!("{b},{a}"));
        assert!(below_b.contains(a) && below_b.contains(b));
        assert!(!below_a.contains(b));
    }

    #[test]
    fn refuses_what_is_no_path() {
        let id = InstanceId::new(7);
        let long = vec![id.to_string(); MAX_HOPS + 1].join(",");
        assert_eq!(long.parse::<InstancePath>(), Err(InvalidInstance::TooLong));
        for bad in [",", "7", &format!("{id},"), &"A".repeat(32), &format!("+{}", "1".repeat(31))] {
            assert_eq!(bad.parse::<InstancePath>(), Err(InvalidInstance::Id), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn paths_round_trip(raw in proptest::collection::vec(any::<u128>(), 0..=MAX_HOPS)) {
            let path = InstancePath(raw.into_iter().map(InstanceId::new).collect());
            prop_assert_eq!(path.to_string().parse::<InstancePath>(), Ok(path));
        }

        #[test]
        fn any_text_is_taken_calmly(text in ".{0,200}") {
            drop(text.parse::<InstancePath>());
        }
    }
}
