//! Who has a slot.

/// Stands for one use of a slot, or for one session. No two are alike: a process ID may come back,
/// and a session may use the same slot again. The default stands for nothing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotToken(u64);

impl SlotToken {
    /// The one after this one.
    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A session, as the slots know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotSession {
    /// The number in BackendKeyData. It is only told: it does not show whose a slot is.
    pub(super) pid: u32,
    pub(super) token: SlotToken,
}

/// Who has a slot. A temporary slot belongs to its session besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// Whoever comes first may have it.
    Nobody,
    /// This session creates it: it is not on disk yet.
    Creator { pid: u32 },
    /// This session streams from it. Only who has the token frees it.
    User { pid: u32, token: SlotToken },
    /// This session drops it: the next generation is without it.
    Dropper { pid: u32 },
}

impl Holder {
    /// The session's number.
    pub(super) const fn pid(self) -> Option<u32> {
        match self {
            Self::Nobody => None,
            Self::Creator { pid } | Self::User { pid, .. } | Self::Dropper { pid } => Some(pid),
        }
    }

    /// The use's token, if it is a stream that has the slot.
    pub(super) const fn token(self) -> Option<SlotToken> {
        match self {
            Self::User { token, .. } => Some(token),
            _ => None,
        }
    }
}
