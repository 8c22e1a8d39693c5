//! From tokens to a command.

use super::token::{CommandToken, Keyword, Lexer};
use super::{CommandFault, NewSlot, ReplicationCommand, SlotLifetime, WhenActive};
use crate::wal::{Lsn, TimelineId};
use crate::wire::refusal::Refusal;

/// One token of lookahead over the lexer.
pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    peeked: Option<Option<CommandToken>>,
    /// The first wrong option. It is reported only when the whole command is grammatical.
    bad_option: Option<CommandFault>,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { lexer: Lexer::new(text), peeked: None, bad_option: None }
    }

    /// The whole text is one command. Returns it with the lexer's notices.
    pub(super) fn parse(mut self) -> Result<(ReplicationCommand, Vec<Refusal>), CommandFault> {
        let command = self.command()?;
        self.accept(&CommandToken::Byte(b';'))?;
        self.end()?;
        match self.bad_option {
            Some(fault) => Err(fault),
            None => Ok((command, self.lexer.notices)),
        }
    }

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
