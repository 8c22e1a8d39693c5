//! The replication command grammar: the union of PostgreSQL 13 to 18 (`repl_gram.y`).

mod parser;
#[cfg(test)]
mod tests;
mod token;

use super::refusal::Refusal;
use super::sqlstate;
use crate::wal::{Lsn, TimelineId};
use parser::Parser;

/// A replication command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplicationCommand {
    /// IDENTIFY_SYSTEM
    IdentifySystem,
    /// SHOW name, folded; parts joined by dots.
    Show(String),
    /// TIMELINE_HISTORY n
    TimelineHistory(TimelineId),
    /// CREATE_REPLICATION_SLOT, either option syntax.
    CreateSlot {
        /// Not yet checked to be a slot name.
        name: String,
        /// Whether the slot ends with the session.
        lifetime: SlotLifetime,
        /// What to create.
        kind: NewSlot,
    },
    /// DROP_REPLICATION_SLOT
    DropSlot {
        /// Not yet checked to be a slot name.
        name: String,
        /// What to do when the slot is in use.
        when_active: WhenActive,
    },
    /// ALTER_REPLICATION_SLOT; its options are for logical slots only.
    AlterSlot(String),
    /// READ_REPLICATION_SLOT
    ReadSlot(String),
    /// START_REPLICATION, physical.
    StartPhysical {
        /// Not yet checked to be a slot name.
        slot: Option<String>,
        /// First byte wanted.
        start: Lsn,
        /// `None` is the server's current timeline.
        timeline: Option<TimelineId>,
    },
    /// START_REPLICATION ... LOGICAL
    StartLogical {
        /// The slot named.
        slot: String,
    },
    /// BASE_BACKUP with any options. The server that takes the backup knows its two grammars.
    BaseBackup,
    /// UPLOAD_MANIFEST
    UploadManifest,
}

/// How long a slot lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotLifetime {
    /// Until it is dropped.
    Persistent,
    /// As long as the session.
    Temporary,
}

/// What CREATE_REPLICATION_SLOT creates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewSlot {
    /// Keeps WAL from its first use on.
    Physical,
    /// Keeps WAL from now on (`RESERVE_WAL`).
    PhysicalReserved,
    /// A logical slot, which a hub cannot have.
    Logical,
}

/// What DROP_REPLICATION_SLOT does about a slot in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenActive {
    /// Refuses.
    Refuse,
    /// Waits until it is free (`WAIT`).
    Wait,
}

/// Why a text is not a replication command.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandFault {
    /// The first word is not a keyword: SQL, which a physical walsender does not run.
    #[error("cannot execute SQL commands in WAL sender for physical replication")]
    Sql,
    /// A keyword followed by something that may not follow it.
    #[error("syntax error")]
    Syntax,
    /// A quote without its end.
    #[error("unterminated quoted string")]
    UnterminatedQuote,
    /// There is no timeline 0.
    #[error("invalid timeline 0")]
    InvalidTimeline,
    /// A slot option given twice, or one for the other kind of slot.
    #[error("conflicting or redundant options")]
    ConflictingOptions,
    /// An unknown slot option.
    #[error("unrecognized option: {0}")]
    UnrecognizedOption(String),
    /// A slot option that is neither on nor off.
    #[error("{0} requires a Boolean value")]
    NotBoolean(String),
}

impl CommandFault {
    /// The error for the client; the session continues.
    pub fn refusal(&self) -> Refusal {
        let state = match self {
            Self::Sql => sqlstate::FEATURE_NOT_SUPPORTED,
            Self::UnrecognizedOption(_) => sqlstate::INTERNAL_ERROR,
            Self::Syntax
            | Self::UnterminatedQuote
            | Self::InvalidTimeline
            | Self::ConflictingOptions
            | Self::NotBoolean(_) => sqlstate::SYNTAX_ERROR,
        };
        Refusal::error(state, self.to_string())
    }
}

/// Reads the text of a Query (up to its first zero byte).
///
/// Returns the command and the notices that go out before its result: names that were cut to 63
/// bytes.
pub fn parse_command(text: &[u8]) -> Result<(ReplicationCommand, Vec<Refusal>), CommandFault> {
    let text = text.split(|&b| b == 0).next().unwrap_or_default();
    Parser::new(text).parse()
}
