//! The replication command grammar: the union of PostgreSQL 13 to 18 (`repl_gram.y`).

mod token;

use super::refusal::Refusal;
use super::sqlstate;
use crate::wal::{Lsn, TimelineId};
use token::{CommandToken, Keyword, Lexer};

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
    let mut parser = Parser { lexer: Lexer::new(text), peeked: None, bad_option: None };
    let command = parser.command()?;
    parser.accept(&CommandToken::Byte(b';'))?;
    parser.end()?;
    match parser.bad_option {
        Some(fault) => Err(fault),
        None => Ok((command, parser.lexer.notices)),
    }
}

/// One token of lookahead over the lexer.
struct Parser<'a> {
    lexer: Lexer<'a>,
    peeked: Option<Option<CommandToken>>,
    /// The first wrong option. It is reported only when the whole command is grammatical.
    bad_option: Option<CommandFault>,
}

impl Parser<'_> {
    fn command(&mut self) -> Result<ReplicationCommand, CommandFault> {
        let keyword = match self.next() {
            Ok(Some(CommandToken::Keyword(keyword))) => keyword,
            // The scanner finds an unterminated quote at the front before the parser asks what kind
            // of command it is.
            Err(CommandFault::UnterminatedQuote) => return Err(CommandFault::UnterminatedQuote),
            _ => return Err(CommandFault::Sql),
        };
        match keyword {
            Keyword::IdentifySystem => Ok(ReplicationCommand::IdentifySystem),
            Keyword::Show => self.dotted_name().map(ReplicationCommand::Show),
            Keyword::TimelineHistory => self.timeline().map(ReplicationCommand::TimelineHistory),
            Keyword::ReadSlot => self.dotted_name().map(ReplicationCommand::ReadSlot),
            Keyword::CreateSlot => self.create_slot(),
            Keyword::DropSlot => self.drop_slot(),
            Keyword::AlterSlot => self.alter_slot(),
            Keyword::Start => self.start(),
            Keyword::BaseBackup => self.base_backup(),
            Keyword::UploadManifest => Ok(ReplicationCommand::UploadManifest),
            // Keywords that begin no command.
            _ => Err(CommandFault::Sql),
        }
    }

    fn create_slot(&mut self) -> Result<ReplicationCommand, CommandFault> {
        let name = self.identifier()?;
        let lifetime = match self.accept_keyword(Keyword::Temporary)? {
            true => SlotLifetime::Temporary,
            false => SlotLifetime::Persistent,
        };
        let kind = if self.accept_keyword(Keyword::Physical)? {
            self.physical_options()?
        } else if self.accept_keyword(Keyword::Logical)? {
            self.identifier()?;
            self.slot_options()?;
            NewSlot::Logical
        } else {
            return Err(CommandFault::Syntax);
        };
        Ok(ReplicationCommand::CreateSlot { name, lifetime, kind })
    }

    fn physical_options(&mut self) -> Result<NewSlot, CommandFault> {
        let options = self.slot_options()?;
        Ok(NewSlot::physical(options).unwrap_or_else(|fault| {
            self.bad_option = Some(fault);
            NewSlot::Physical
        }))
    }

    /// `( name [value], ... )` of 15 and later, or bare keywords as before.
    fn slot_options(&mut self) -> Result<Vec<SlotOption>, CommandFault> {
        if self.peek()? == Some(&CommandToken::Byte(b'(')) {
            return self.generic_options();
        }
        let mut options = Vec::new();
        while let Some(CommandToken::Keyword(keyword)) = self.peek()? {
            options.push(SlotOption::flag(match keyword {
                Keyword::ReserveWal => "reserve_wal",
                Keyword::TwoPhase => "two_phase",
                Keyword::ExportSnapshot | Keyword::NoExportSnapshot | Keyword::UseSnapshot => {
                    "snapshot"
                }
                _ => return Err(CommandFault::Syntax),
            }));
            self.next()?;
        }
        Ok(options)
    }

    fn generic_options(&mut self) -> Result<Vec<SlotOption>, CommandFault> {
        self.expect(&CommandToken::Byte(b'('))?;
        let mut options = Vec::new();
        loop {
            let name = match self.next()? {
                Some(CommandToken::Identifier(name)) => name,
                // The one keyword that the grammar does not accept as a name.
                Some(CommandToken::Keyword(Keyword::ReadSlot)) => return Err(CommandFault::Syntax),
                Some(CommandToken::Keyword(keyword)) => keyword.word().to_ascii_lowercase(),
                _ => return Err(CommandFault::Syntax),
            };
            let value = match self.peek()? {
                Some(
                    CommandToken::Identifier(_) | CommandToken::Text(_) | CommandToken::Number(_),
                ) => self.next()?,
                _ => None,
            };
            options.push(SlotOption { name, value });
            match self.next()? {
                Some(CommandToken::Byte(b',')) => {}
                Some(CommandToken::Byte(b')')) => return Ok(options),
                _ => return Err(CommandFault::Syntax),
            }
        }
    }

    fn drop_slot(&mut self) -> Result<ReplicationCommand, CommandFault> {
        let name = self.identifier()?;
        let when_active = match self.accept_keyword(Keyword::Wait)? {
            true => WhenActive::Wait,
            false => WhenActive::Refuse,
        };
        Ok(ReplicationCommand::DropSlot { name, when_active })
    }

    fn alter_slot(&mut self) -> Result<ReplicationCommand, CommandFault> {
        let name = self.identifier()?;
        self.generic_options()?;
        Ok(ReplicationCommand::AlterSlot(name))
    }

    fn start(&mut self) -> Result<ReplicationCommand, CommandFault> {
        let slot = match self.accept_keyword(Keyword::Slot)? {
            true => Some(self.identifier()?),
            false => None,
        };
        if self.accept_keyword(Keyword::Logical)? {
            return self.start_logical(slot);
        }
        self.accept_keyword(Keyword::Physical)?;
        let start = self.position()?;
        let timeline = match self.accept_keyword(Keyword::Timeline)? {
            true => Some(self.timeline()?),
            false => None,
        };
        Ok(ReplicationCommand::StartPhysical { slot, start, timeline })
    }

    fn start_logical(&mut self, slot: Option<String>) -> Result<ReplicationCommand, CommandFault> {
        let slot = slot.ok_or(CommandFault::Syntax)?;
        self.position()?;
        if !self.accept(&CommandToken::Byte(b'('))? {
            return Ok(ReplicationCommand::StartLogical { slot });
        }
        loop {
            self.identifier()?;
            if matches!(self.peek()?, Some(CommandToken::Text(_))) {
                self.next()?;
            }
            match self.next()? {
                Some(CommandToken::Byte(b',')) => {}
                Some(CommandToken::Byte(b')')) => {
                    return Ok(ReplicationCommand::StartLogical { slot });
                }
                _ => return Err(CommandFault::Syntax),
            }
        }
    }

    fn base_backup(&mut self) -> Result<ReplicationCommand, CommandFault> {
        while !matches!(self.peek()?, None | Some(CommandToken::Byte(b';'))) {
            self.next()?;
        }
        Ok(ReplicationCommand::BaseBackup)
    }

    fn dotted_name(&mut self) -> Result<String, CommandFault> {
        let mut name = self.identifier()?;
        while self.accept(&CommandToken::Byte(b'.'))? {
            name.push('.');
            name.push_str(&self.identifier()?);
        }
        Ok(name)
    }

    fn identifier(&mut self) -> Result<String, CommandFault> {
        match self.next()? {
            Some(CommandToken::Identifier(name)) => Ok(name),
            _ => Err(CommandFault::Syntax),
        }
    }

    fn position(&mut self) -> Result<Lsn, CommandFault> {
        match self.next()? {
            Some(CommandToken::Position(lsn)) => Ok(lsn),
            _ => Err(CommandFault::Syntax),
        }
    }

    fn timeline(&mut self) -> Result<TimelineId, CommandFault> {
        match self.next()? {
            Some(CommandToken::Number(n)) => {
                TimelineId::new(n).ok_or(CommandFault::InvalidTimeline)
            }
            _ => Err(CommandFault::Syntax),
        }
    }

    fn expect(&mut self, token: &CommandToken) -> Result<(), CommandFault> {
        if self.accept(token)? { Ok(()) } else { Err(CommandFault::Syntax) }
    }

    fn end(&mut self) -> Result<(), CommandFault> {
        if self.peek()?.is_none() { Ok(()) } else { Err(CommandFault::Syntax) }
    }

    fn accept_keyword(&mut self, keyword: Keyword) -> Result<bool, CommandFault> {
        self.accept(&CommandToken::Keyword(keyword))
    }

    /// Takes the next token if it is this one.
    fn accept(&mut self, token: &CommandToken) -> Result<bool, CommandFault> {
        let is_next = self.peek()? == Some(token);
        if is_next {
            self.peeked = None;
        }
        Ok(is_next)
    }

    fn peek(&mut self) -> Result<Option<&CommandToken>, CommandFault> {
        let token = match self.peeked.take() {
            Some(token) => token,
            None => self.lexer.next()?,
        };
        Ok(self.peeked.insert(token).as_ref())
    }

    fn next(&mut self) -> Result<Option<CommandToken>, CommandFault> {
        match self.peeked.take() {
            Some(token) => Ok(token),
            None => self.lexer.next(),
        }
    }
}

impl NewSlot {
    /// The physical slot with these options.
    fn physical(options: Vec<SlotOption>) -> Result<Self, CommandFault> {
        let mut reserve = None;
        for option in options {
            match option.name.as_str() {
                "reserve_wal" if reserve.is_none() => reserve = Some(option.boolean()?),
                "reserve_wal" | "snapshot" | "two_phase" | "failover" => {
                    return Err(CommandFault::ConflictingOptions);
                }
                _ => return Err(CommandFault::UnrecognizedOption(option.name)),
            }
        }
        Ok(match reserve {
            Some(true) => Self::PhysicalReserved,
            Some(false) | None => Self::Physical,
        })
    }
}

/// An option of CREATE_REPLICATION_SLOT.
struct SlotOption {
    name: String,
    value: Option<CommandToken>,
}

impl SlotOption {
    fn flag(name: &str) -> Self {
        Self { name: name.to_owned(), value: None }
    }

    /// Accepts less than a Boolean setting does (`defGetBoolean`).
    fn boolean(self) -> Result<bool, CommandFault> {
        let word = match &self.value {
            None | Some(CommandToken::Number(1)) => return Ok(true),
            Some(CommandToken::Number(0)) => return Ok(false),
            Some(CommandToken::Identifier(word) | CommandToken::Text(word)) => {
                word.to_ascii_lowercase()
            }
            Some(_) => String::new(),
        };
        match word.as_str() {
            "true" | "on" => Ok(true),
            "false" | "off" => Ok(false),
            _ => Err(CommandFault::NotBoolean(self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command(text: &str) -> Result<ReplicationCommand, CommandFault> {
        parse_command(text.as_bytes()).map(|(command, _)| command)
    }

    fn start(
        slot: Option<&str>,
        start: u64,
        timeline: Option<u32>,
    ) -> Result<ReplicationCommand, CommandFault> {
        Ok(ReplicationCommand::StartPhysical {
            slot: slot.map(str::to_owned),
            start: Lsn::new(start),
            timeline: timeline.and_then(TimelineId::new),
        })
    }

    #[test]
    fn what_clients_send() {
        assert_eq!(command("IDENTIFY_SYSTEM"), Ok(ReplicationCommand::IdentifySystem));
        assert_eq!(command(" \tIDENTIFY_SYSTEM\r\n ; "), Ok(ReplicationCommand::IdentifySystem));
        assert_eq!(
            command("SHOW data_directory_mode"),
            Ok(ReplicationCommand::Show("data_directory_mode".to_owned()))
        );
        assert_eq!(
            command("SHOW Walhub.\"Instance_Id\""),
            Ok(ReplicationCommand::Show("walhub.Instance_Id".to_owned()))
        );
        assert_eq!(
            command("TIMELINE_HISTORY 3"),
            Ok(ReplicationCommand::TimelineHistory(TimelineId::new(3).unwrap()))
        );
        assert_eq!(
            command("START_REPLICATION SLOT \"slot_15\" 0/600000 TIMELINE 1"),
            start(Some("slot_15"), 0x60_0000, Some(1))
        );
        assert_eq!(
            command("START_REPLICATION PHYSICAL 16/b374d848;"),
            start(None, 0x16_b374_d848, None)
        );
        assert_eq!(
            command("START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '1', x)"),
            Ok(ReplicationCommand::StartLogical { slot: "s".to_owned() })
        );
        assert_eq!(command("UPLOAD_MANIFEST"), Ok(ReplicationCommand::UploadManifest));
        for text in [
            "BASE_BACKUP",
            "BASE_BACKUP LABEL 'pg_basebackup base backup' PROGRESS FAST NOWAIT MANIFEST 'yes' ;",
            "BASE_BACKUP ( LABEL 'x;y', PROGRESS, CHECKPOINT 'fast', WAIT 0)",
        ] {
            assert_eq!(command(text), Ok(ReplicationCommand::BaseBackup), "{text}");
        }
    }

    #[test]
    fn slots_in_both_syntaxes() {
        let create = |kind, lifetime| {
            Ok(ReplicationCommand::CreateSlot { name: "s".to_owned(), lifetime, kind })
        };
        use NewSlot::*;
        use SlotLifetime::*;
        for (text, kind, lifetime) in [
            ("s PHYSICAL", Physical, Persistent),
            ("\"s\" TEMPORARY PHYSICAL RESERVE_WAL", PhysicalReserved, Temporary),
            ("s TEMPORARY PHYSICAL ( RESERVE_WAL)", PhysicalReserved, Temporary),
            ("s PHYSICAL (RESERVE_WAL true)", PhysicalReserved, Persistent),
            ("s PHYSICAL (reserve_wal 'OFF')", Physical, Persistent),
            ("s PHYSICAL (reserve_wal 0)", Physical, Persistent),
            ("s LOGICAL pgoutput NOEXPORT_SNAPSHOT TWO_PHASE", Logical, Persistent),
            ("s LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER)", Logical, Persistent),
        ] {
            assert_eq!(
                command(&format!("CREATE_REPLICATION_SLOT {text}")),
                create(kind, lifetime),
                "{text}"
            );
        }
        let fault = |text: &str| command(&format!("CREATE_REPLICATION_SLOT {text}")).unwrap_err();
        assert_eq!(fault("s PHYSICAL RESERVE_WAL RESERVE_WAL"), CommandFault::ConflictingOptions);
        assert_eq!(fault("s PHYSICAL USE_SNAPSHOT"), CommandFault::ConflictingOptions);
        assert_eq!(fault("s PHYSICAL USE_SNAPSHOT 0"), CommandFault::Syntax, "first of all");
        assert_eq!(fault("s PHYSICAL (foo)"), CommandFault::UnrecognizedOption("foo".to_owned()));
        assert_eq!(
            fault("s PHYSICAL (RESERVE_WAL 2)"),
            CommandFault::NotBoolean("reserve_wal".to_owned())
        );
        for text in [
            "",
            "s",
            "s PHYSICAL ()",
            "s PHYSICAL (a,)",
            "SLOT PHYSICAL",
            "s PHYSICAL WAIT",
            "s LOGICAL",
        ] {
            assert_eq!(fault(text), CommandFault::Syntax, "{text}");
        }
        let drop =
            |when_active| Ok(ReplicationCommand::DropSlot { name: "s".to_owned(), when_active });
        assert_eq!(command("DROP_REPLICATION_SLOT s"), drop(WhenActive::Refuse));
        assert_eq!(command("DROP_REPLICATION_SLOT s WAIT"), drop(WhenActive::Wait));
        assert_eq!(
            command("READ_REPLICATION_SLOT S"),
            Ok(ReplicationCommand::ReadSlot("s".to_owned()))
        );
        assert_eq!(
            command("ALTER_REPLICATION_SLOT s ( FAILOVER )"),
            Ok(ReplicationCommand::AlterSlot("s".to_owned()))
        );
    }

    #[test]
    fn everything_else_is_sql() {
        for text in [
            "",
            ";",
            " ",
            "identify_system",
            "show x",
            "SELECT 1",
            "-- IDENTIFY_SYSTEM",
            "SLOT",
            "PHYSICAL",
            "'x'",
            "\"IDENTIFY_SYSTEM\"",
            "0/0",
            "1",
            "IDENTIFY_SYSTEMS",
            "(",
        ] {
            assert_eq!(command(text), Err(CommandFault::Sql), "{text:?}");
        }
        let refusal = CommandFault::Sql.refusal();
        assert_eq!(refusal.sqlstate, "0A000");
    }

    #[test]
    fn syntax_errors() {
        for text in [
            "IDENTIFY_SYSTEM;;",
            "IDENTIFY_SYSTEM IDENTIFY_SYSTEM",
            "SHOW",
            "SHOW a.",
            "SHOW a b",
            "SHOW 'a'",
            "TIMELINE_HISTORY",
            "TIMELINE_HISTORY x",
            "TIMELINE_HISTORY -1",
            "START_REPLICATION",
            "START_REPLICATION 0",
            "START_REPLICATION 0/",
            "START_REPLICATION 0/0 TIMELINE",
            "START_REPLICATION LOGICAL 0/0",
            "START_REPLICATION SLOT SLOT 0/0",
            "START_REPLICATION SLOT s LOGICAL 0/0 ()",
            "START_REPLICATION 0/1G",
            "UPLOAD_MANIFEST x",
        ] {
            assert_eq!(command(text), Err(CommandFault::Syntax), "{text}");
        }
        for text in ["SHOW 'a", "SHOW \"a", "IDENTIFY_SYSTEM '", "'x", "BASE_BACKUP LABEL 'x''"] {
            assert_eq!(command(text), Err(CommandFault::UnterminatedQuote), "{text}");
        }
        for text in [
            "TIMELINE_HISTORY 0",
            "TIMELINE_HISTORY 4294967296",
            "START_REPLICATION 0/0 TIMELINE 0",
        ] {
            assert_eq!(command(text), Err(CommandFault::InvalidTimeline), "{text}");
        }
    }

    #[test]
    fn numbers_overflow_as_in_c() {
        assert_eq!(command("START_REPLICATION 100000002/1"), start(None, 2 << 32 | 1, None));
        assert_eq!(
            command("START_REPLICATION 0/123456789ABCDEF01"),
            start(None, 0xffff_ffff, None)
        );
        assert_eq!(command("START_REPLICATION 0/0 TIMELINE 4294967299"), start(None, 0, Some(3)));
        assert_eq!(command("START_REPLICATION 0000000000/00000000000A"), start(None, 10, None));
    }

    #[test]
    fn long_names_are_cut_with_a_notice() {
        let long = "N".repeat(64);
        let (command, notices) = parse_command(format!("SHOW {long}").as_bytes()).unwrap();
        assert_eq!(command, ReplicationCommand::Show("n".repeat(63)));
        let [notice] = notices.as_slice() else { panic!("{notices:?}") };
        assert_eq!(notice.sqlstate, "42622");
        assert_eq!(
            notice.message,
            format!(
                "identifier \"{}\" will be truncated to \"{}\"",
                "n".repeat(64),
                "n".repeat(63)
            )
        );
        let (_, notices) =
            parse_command(format!("SHOW \"{}\"", "N".repeat(63)).as_bytes()).unwrap();
        assert!(notices.is_empty());
    }

    #[test]
    fn quotes() {
        assert_eq!(command("BASE_BACKUP LABEL 'a''b'"), Ok(ReplicationCommand::BaseBackup));
        assert_eq!(command("SHOW \"a\"\"b\""), Err(CommandFault::Syntax), "not those of names");
        assert_eq!(command("SHOW \"\""), Ok(ReplicationCommand::Show(String::new())));
        assert_eq!(command("SHOW a\0b"), Ok(ReplicationCommand::Show("a".to_owned())));
    }

    proptest! {
        #[test]
        fn starts_round_trip(
            slot in proptest::option::of("[a-z0-9_]{1,63}"),
            at in any::<u64>(),
            timeline in proptest::option::of(1u32..),
        ) {
            let mut text = "START_REPLICATION ".to_owned();
            if let Some(slot) = &slot {
                text += &format!("SLOT \"{slot}\" ");
            }
            text += &Lsn::new(at).to_string();
            if let Some(tli) = timeline {
                text += &format!(" TIMELINE {tli}");
            }
            prop_assert_eq!(command(&text), start(slot.as_deref(), at, timeline));
        }

        #[test]
        fn quoted_names_round_trip(name in "[^\0\"]{0,15}") {
            let text = format!("SHOW \"{name}\"");
            prop_assert_eq!(command(&text), Ok(ReplicationCommand::Show(name)));
        }

        #[test]
        fn garbage_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            words in proptest::collection::vec(proptest::sample::select(vec![
                "START_REPLICATION", "SLOT", "CREATE_REPLICATION_SLOT", "PHYSICAL", "LOGICAL", "a",
                "(", ")", ",", "'", "\"", "0/0", "7", "TIMELINE", "RESERVE_WAL", ";", "SHOW", ".",
            ]), 0..10),
        ) {
            std::hint::black_box(parse_command(&bytes).is_ok());
            std::hint::black_box(parse_command(words.join(" ").as_bytes()).is_ok());
        }
    }
}
