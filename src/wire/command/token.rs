//! The tokens of the replication grammar (`repl_scanner.l`).

use super::CommandFault;
use crate::wal::Lsn;
use crate::wire::refusal::Refusal;
use crate::wire::sqlstate;
use winnow::error::EmptyError;
use winnow::prelude::*;
use winnow::stream::AsChar;
use winnow::token::{any, take_till, take_while};

/// `NAMEDATALEN - 1`
const IDENTIFIER_BYTES: usize = 63;

/// One token. Keywords come as [`CommandToken::Keyword`]: they match exactly, in upper case only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum CommandToken {
    Keyword(Keyword),
    /// Folded to lower case unless it was quoted; cut to 63 bytes.
    Identifier(String),
    /// `'...'`
    Text(String),
    /// A decimal number, wrapped as C's conversion wraps it.
    Number(u32),
    /// `X/X`
    Position(Lsn),
    /// Any other byte stands for itself.
    Byte(u8),
}

macro_rules! keywords {
    ($($name:ident = $word:literal),+ $(,)?) => {
        /// The words of all versions, without those of BASE_BACKUP: the server that takes the
        /// backup reads them.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Keyword { $($name),+ }

        impl Keyword {
            fn find(word: &[u8]) -> Option<Self> {
                $(if word == $word.as_bytes() { return Some(Self::$name); })+
                None
            }

            /// The word itself.
            pub(super) const fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }
        }
    };
}

keywords! {
    BaseBackup = "BASE_BACKUP",
    IdentifySystem = "IDENTIFY_SYSTEM",
    ReadSlot = "READ_REPLICATION_SLOT",
    Show = "SHOW",
    Start = "START_REPLICATION",
    CreateSlot = "CREATE_REPLICATION_SLOT",
    DropSlot = "DROP_REPLICATION_SLOT",
    AlterSlot = "ALTER_REPLICATION_SLOT",
    TimelineHistory = "TIMELINE_HISTORY",
    UploadManifest = "UPLOAD_MANIFEST",
    Wait = "WAIT",
    Timeline = "TIMELINE",
    Physical = "PHYSICAL",
    Logical = "LOGICAL",
    Slot = "SLOT",
    ReserveWal = "RESERVE_WAL",
    Temporary = "TEMPORARY",
    TwoPhase = "TWO_PHASE",
    ExportSnapshot = "EXPORT_SNAPSHOT",
    NoExportSnapshot = "NOEXPORT_SNAPSHOT",
    UseSnapshot = "USE_SNAPSHOT",
}

/// Reads tokens from the text of a command, one at a time.
pub(super) struct Lexer<'a> {
    rest: &'a [u8],
    /// Notices about names that were cut.
    pub(super) notices: Vec<Refusal>,
}

impl<'a> Lexer<'a> {
    pub(super) const fn new(text: &'a [u8]) -> Self {
        Self { rest: text, notices: Vec::new() }
    }

    /// The next token; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<CommandToken>, CommandFault> {
        self.rest = without_leading_space(self.rest);
        // As in the scanner, the longest match wins: `0/1` before the number 0,
        // `AB/1` before the word AB.
        if let Ok((high, low)) = position.parse_next(&mut self.rest) {
            let lsn = u64::from(wrapping(high, 16)) << 32 | u64::from(wrapping(low, 16));
            return Ok(Some(CommandToken::Position(Lsn::new(lsn))));
        }
        if let Ok(digits) = take(&mut self.rest, |b| b.is_ascii_digit()) {
            return Ok(Some(CommandToken::Number(wrapping(digits, 10))));
        }
        if let Ok(word) = word.parse_next(&mut self.rest) {
            return Ok(Some(match Keyword::find(word) {
                Some(keyword) => CommandToken::Keyword(keyword),
                None => CommandToken::Identifier(self.identifier(&word.to_ascii_lowercase())),
            }));
        }
        let Some((&first, rest)) = self.rest.split_first() else { return Ok(None) };
        self.rest = rest;
        match first {
            b'\'' => self.text().map(|text| CommandToken::Text(lossy(&text))),
            b'"' => {
                let name = until(&mut self.rest, first)?;
                Ok(CommandToken::Identifier(self.identifier(name)))
            }
            byte => Ok(CommandToken::Byte(byte)),
        }
        .map(Some)
    }

    /// The text before the closing quote; a doubled quote stands for one. (Quoted identifiers have
    /// no such rule in the scanner.)
    fn text(&mut self) -> Result<Vec<u8>, CommandFault> {
        let mut text = Vec::new();
        loop {
            text.extend_from_slice(until(&mut self.rest, b'\'')?);
            match self.rest.strip_prefix(b"'") {
                Some(rest) => {
                    text.push(b'\'');
                    self.rest = rest;
                }
                None => return Ok(text),
            }
        }
    }

    /// Cuts a name to the longest permitted length (`truncate_identifier`).
    fn identifier(&mut self, name: &[u8]) -> String {
        match name.split_at_checked(IDENTIFIER_BYTES) {
            Some((kept, cut)) if !cut.is_empty() => {
                let (whole, kept) = (lossy(name), lossy(kept));
                let message = format!("identifier \"{whole}\" will be truncated to \"{kept}\"");
                self.notices.push(Refusal::notice(sqlstate::NAME_TOO_LONG, message));
                kept
            }
            _ => lossy(name),
        }
    }
}

/// The vertical tab counts since 16; older servers call it a syntax error.
fn without_leading_space(text: &[u8]) -> &[u8] {
    let is_space = |b: &u8| b.is_ascii_whitespace() || *b == b'\x0b';
    let words = text.iter().position(|b| !is_space(b)).unwrap_or(text.len());
    text.get(words..).unwrap_or_default()
}

fn position<'a>(input: &mut &'a [u8]) -> Result<(&'a [u8], &'a [u8]), EmptyError> {
    let hex = |input: &mut &'a [u8]| take_while(1.., AsChar::is_hex_digit).parse_next(input);
    let start = *input;
    let parsed = (hex, b'/', hex).map(|(high, _, low)| (high, low)).parse_next(input);
    if parsed.is_err() {
        *input = start;
    }
    parsed
}

/// A word begins with a letter, an underscore or any byte above ASCII.
fn word<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], EmptyError> {
    let starts = |b: u8| b.is_ascii_alphabetic() || b == b'_' || !b.is_ascii();
    let goes_on = move |b: u8| starts(b) || b.is_ascii_digit() || b == b'$';
    if !input.first().is_some_and(|&b| starts(b)) {
        return Err(EmptyError);
    }
    take(input, goes_on)
}

fn take<'a>(input: &mut &'a [u8], which: impl Fn(u8) -> bool) -> Result<&'a [u8], EmptyError> {
    take_while(1.., which).parse_next(input)
}

/// Bytes up to the quote, which is consumed too.
fn until<'a>(input: &mut &'a [u8], quote: u8) -> Result<&'a [u8], CommandFault> {
    (take_till(0.., quote), any)
        .map(|(part, _)| part)
        .parse_next(input)
        .map_err(|_: EmptyError| CommandFault::UnterminatedQuote)
}

/// What the C library makes of too many digits: capped at the largest 64-bit number, of which the
/// low 32 bits are kept.
fn wrapping(digits: &[u8], radix: u32) -> u32 {
    digits.iter().fold(0u64, |sum, &digit| {
        let digit = char::from(digit).to_digit(radix).unwrap_or_default();
        sum.saturating_mul(u64::from(radix)).saturating_add(u64::from(digit))
    }) as u32
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
