//! What a client is told when it does not get what it asked for: the content of
//! an ErrorResponse or NoticeResponse.

use super::sqlstate;
use std::fmt;

/// How serious it is, and what happens to the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// For information.
    Notice,
    /// Something deserves attention.
    Warning,
    /// The command failed; the session continues.
    Error,
    /// The session ends.
    Fatal,
}

impl Severity {
    /// PostgreSQL's word for it, untranslated (field `V`).
    pub const fn word(self) -> &'static str {
        match self {
            Self::Notice => "NOTICE",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// One error or notice as the client will see it.
///
/// Texts are PostgreSQL's own where it has one: tools match on SQLSTATE, and people search for the
/// wording.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Also decides between ErrorResponse and NoticeResponse.
    pub severity: Severity,
    /// One of [`sqlstate`].
    pub sqlstate: &'static str,
    /// The primary message, without a full stop.
    pub message: String,
    /// The detail.
    pub detail: Option<String>,
    /// The hint.
    pub hint: Option<String>,
}

impl Refusal {
    /// The command fails; the session continues.
    pub fn error(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, sqlstate, message.into())
    }

    /// The session ends.
    pub fn fatal(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Fatal, sqlstate, message.into())
    }

    /// Nothing is refused: a warning.
    pub fn warning(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, sqlstate, message.into())
    }

    /// Nothing is refused: a notice.
    pub fn notice(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Notice, sqlstate, message.into())
    }

    /// The peer violated the protocol; nothing it sends next can be trusted.
    pub fn protocol_violation(message: impl Into<String>) -> Self {
        Self::fatal(sqlstate::PROTOCOL_VIOLATION, message)
    }

    /// With a detail.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether the session ends with it.
    pub fn ends_session(&self) -> bool {
        self.severity == Severity::Fatal
    }

    fn new(severity: Severity, sqlstate: &'static str, message: String) -> Self {
        Self { severity, sqlstate, message, detail: None, hint: None }
    }
}

impl fmt::Display for Refusal {
    /// As psql with `VERBOSITY=verbose` prints its first line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:  {}: {}", self.severity.word(), self.sqlstate, self.message)
    }
}

/// A peer's text as a part of one log line: control characters, which could end the line or steer
/// a terminal, are escaped.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_on_its_line() {
        assert_eq!(one_line("slot \"s1\""), "slot \"s1\"");
        assert_eq!(one_line("a\nb\x1b[1mü"), "a\\nb\\u{1b}[1mü");
    }

    #[test]
    fn builds_and_prints() {
        let refusal = Refusal::fatal(sqlstate::CANNOT_CONNECT_NOW, "the system is starting up")
            .with_detail("d")
            .with_hint("h");
        assert!(refusal.ends_session());
        assert_eq!(refusal.to_string(), "FATAL:  57P03: the system is starting up");
        assert_eq!(refusal.detail.as_deref(), Some("d"));
        assert_eq!(refusal.hint.as_deref(), Some("h"));
        assert!(!Refusal::error("42601", "syntax error").ends_session());
    }
}
