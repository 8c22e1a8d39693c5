//! `target_session_attrs`: which of several servers is wanted.

use std::str::FromStr;

/// What a server has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TargetSessionAttrs {
    /// Anything.
    #[default]
    Any,
    /// A server that permits writing.
    ReadWrite,
    /// A server that permits only reading.
    ReadOnly,
    /// A server that is not in recovery.
    Primary,
    /// A server that is in recovery.
    Standby,
    /// A standby, or any server when no host is a standby.
    PreferStandby,
}

/// What a server is, as far as it has said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerNature {
    /// `in_hot_standby`: it is in recovery.
    pub in_hot_standby: bool,
    /// `default_transaction_read_only`.
    pub read_only: bool,
}

impl TargetSessionAttrs {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        }
    }

    /// Why a server is not what is wanted, in libpq's words; `None` when it is. `PreferStandby`
    /// refuses no server for good: the caller decides when to settle for less.
    pub const fn objection(self, server: ServerNature) -> Option<&'static str> {
        let ServerNature { in_hot_standby, read_only } = server;
        match self {
            Self::ReadWrite if in_hot_standby || read_only => Some("session is read-only"),
            Self::ReadOnly if !in_hot_standby && !read_only => Some("session is not read-only"),
            Self::Primary if in_hot_standby => Some("server is in hot standby mode"),
            Self::Standby | Self::PreferStandby if !in_hot_standby => {
                Some("server is not in hot standby mode")
            }
            _ => None,
        }
    }
}

/// Not one of libpq's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownTarget;

impl FromStr for TargetSessionAttrs {
    type Err = UnknownTarget;

    fn from_str(text: &str) -> Result<Self, UnknownTarget> {
        Ok(match text {
            "any" => Self::Any,
            "read-write" => Self::ReadWrite,
            "read-only" => Self::ReadOnly,
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            "prefer-standby" => Self::PreferStandby,
            _ => return Err(UnknownTarget),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_libpq_decides() {
        let primary = ServerNature { in_hot_standby: false, read_only: false };
        let frozen = ServerNature { in_hot_standby: false, read_only: true };
        let standby = ServerNature { in_hot_standby: true, read_only: false };
        for (text, wanted) in [
            ("any", [true, true, true]),
            ("read-write", [true, false, false]),
            ("read-only", [false, true, true]),
            ("primary", [true, true, false]),
            ("standby", [false, false, true]),
            ("prefer-standby", [false, false, true]),
        ] {
            let target: TargetSessionAttrs = text.parse().unwrap();
            let fine = [primary, frozen, standby].map(|server| target.objection(server).is_none());
            assert_eq!(fine, wanted, "{text}");
            assert_eq!(target.as_str(), text);
        }
        assert_eq!("master".parse::<TargetSessionAttrs>(), Err(UnknownTarget));
    }
}
