//! Replication slots of standbys: how many, and which are created automatically.

use crate::store::slots::SlotName;
use crate::wire::units::{TimeUnit, UnitFault, parse_duration};
use std::str::FromStr;
use std::time::Duration;

/// How long an automatically created slot may stay unused, unless `ttl=` says otherwise: a standby
/// that is gone for longer has found another hub.
const TTL: Duration = Duration::from_secs(86_400);

/// `--max-replication-slots` and `--auto-create-slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotSettings {
    /// The most slots that may exist.
    pub max: usize,
    /// Which slots START_REPLICATION creates.
    pub auto_create: Option<AutoCreate>,
}

/// `--auto-create-slots PATTERN[,limit=N][,ttl=TIME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoCreate {
    pattern: String,
    /// The most such slots that may exist.
    pub limit: usize,
    /// How long one may stay unused; zero means forever.
    pub ttl: Duration,
}

/// An invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AutoCreateFault {
    /// The pattern matches no name.
    #[error(
        "\"{0}\" fits no slot name: expected lower case letters, numbers, \"_\", and the wildcards \
         \"*\" and \"?\""
    )]
    Pattern(String),
    /// Neither `limit=` nor `ttl=`.
    #[error("\"{0}\": expected \"limit=N\" or \"ttl=TIME\"")]
    Option(String),
    /// `ttl=`
    #[error(transparent)]
    Ttl(#[from] UnitFault),
}

impl FromStr for AutoCreate {
    type Err = AutoCreateFault;

    fn from_str(text: &str) -> Result<Self, AutoCreateFault> {
        let mut parts = text.split(',').map(str::trim);
        let pattern = parts.next().unwrap_or_default().to_owned();
        // A pattern that matches any name matches this one.
        let example = pattern.replace(['*', '?'], "x");
        if SlotName::parse(&example).is_err() {
            return Err(AutoCreateFault::Pattern(pattern));
        }
        let mut settings = Self { pattern, limit: usize::MAX, ttl: TTL };
        for part in parts {
            let unknown = || AutoCreateFault::Option(part.to_owned());
            match part.split_once('=').ok_or_else(unknown)? {
                ("limit", n) => settings.limit = n.parse().map_err(|_| unknown())?,
                ("ttl", time) => settings.ttl = parse_duration(time, TimeUnit::Second)?,
                _ => return Err(unknown()),
            }
        }
        Ok(settings)
    }
}

impl AutoCreate {
    /// Whether a slot of this name is created automatically.
    pub fn fits(&self, name: &SlotName) -> bool {
        fits(self.pattern.as_bytes(), name.as_str().as_bytes())
    }
}

/// `*` matches any run of characters, `?` any one.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    // The last `*`, and where its run would continue.
    let (mut at, mut retry) = ((0, 0), None);
    loop {
        let (p, n) = at;
        match (pattern.get(p), name.get(n)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                retry = Some((p + 1, n + 1));
                at = (p + 1, n);
            }
            (Some(b'?'), Some(_)) => at = (p + 1, n + 1),
            (Some(c), Some(d)) if c == d => at = (p + 1, n + 1),
            _ => match retry {
                Some((p, n)) if n <= name.len() => {
                    retry = Some((p, n + 1));
                    at = (p, n);
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values() {
        let read = |text: &str| text.parse::<AutoCreate>();
        let all = read("*").unwrap();
        assert_eq!((all.limit, all.ttl), (usize::MAX, TTL));
        let some = read("node_?*, limit=50 ,ttl=2h").unwrap();
        assert_eq!((some.limit, some.ttl), (50, Duration::from_secs(7200)));
        assert_eq!(read("x,ttl=0").unwrap().ttl, Duration::ZERO);
        for bad in ["", "Node", "a-b", "*,limit", "*,limit=-1", "*,size=1", "*,ttl=soon"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns() {
        let fits = |pattern: &str, name: &str| {
            pattern.parse::<AutoCreate>().unwrap().fits(&SlotName::parse(name).unwrap())
        };
        for (pattern, name) in
            [("*", "a"), ("a", "a"), ("a?c", "abc"), ("a*c", "ac"), ("*b*b", "abbab"), ("a**", "a")]
        {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("a", "ab"), ("a?", "a"), ("*b", "bc"), ("a*c", "ab"), ("?", "ab"), ("a*b*c", "acb")]
        {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    /// The definition, word for word.
    fn by_definition(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                (0..=name.len()).any(|skipped| by_definition(rest, &name[skipped..]))
            }
            (Some((b'?', rest)), Some((_, name))) => by_definition(rest, name),
            (Some((c, rest)), Some((d, name))) => c == d && by_definition(rest, name),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_against_their_definition(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(fits(pattern, name), by_definition(pattern, name));
        }
    }
}
