//! The text of `restore_command` and `archive_command`, with their placeholders.
//!
//! Source: `src/common/percentrepl.c` and `src/common/archive.c`, `BuildRestoreCommand`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A command for the shell, with `%f` (file name), `%p` (path), and for restoring `%r` (the
/// oldest file that is still needed).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
}

/// A command that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateFault {
    /// A placeholder that has no value here.
    #[error("string contains unexpected placeholder \"%{0}\"")]
    Unknown(char),
    /// `%` is the last character.
    #[error("string ends unexpectedly after escape character \"%\"")]
    Unfinished,
    /// Neither a shell nor a command line can hold it.
    #[error("the command contains a zero byte")]
    ZeroByte,
}

/// What a placeholder stands for.
pub type Value<'a> = (char, &'a OsStr);

impl Template {
    /// Reads a command that may hold the placeholders in `allowed`, and `%%`.
    ///
    /// # Errors
    /// Another placeholder, or nothing after a `%`. PostgreSQL notices only when it runs the
    /// command; here the hub does not start.
    pub fn parse(text: &str, allowed: &[char]) -> Result<Self, TemplateFault> {
        if text.contains('\0') {
            return Err(TemplateFault::ZeroByte);
        }
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                continue;
            }
            match chars.next() {
                None => return Err(TemplateFault::Unfinished),
                Some('%') => {}
                Some(name) if allowed.contains(&name) => {}
                Some(name) => return Err(TemplateFault::Unknown(name)),
            }
        }
        Ok(Self { text: text.to_owned() })
    }

    /// The command line with all values inserted literally: nothing is quoted, as in PostgreSQL.
    pub fn expand(&self, values: &[Value<'_>]) -> OsString {
        let mut line = Vec::with_capacity(self.text.len() + 128);
        let mut chars = self.text.chars();
        let mut utf8 = [0; 4];
        while let Some(c) = chars.next() {
            if c != '%' {
                line.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
                continue;
            }
            let name = chars.next();
            match values.iter().find(|(known, _)| Some(*known) == name) {
                Some((_, value)) => line.extend_from_slice(value.as_bytes()),
                None => line.push(b'%'),
            }
        }
        OsString::from_vec(line)
    }

    /// The original text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// The values of `restore_command`: file, where to put it, and the oldest file still needed.
pub fn restore_values<'a>(file: &'a OsStr, path: &'a Path, oldest: &'a OsStr) -> [Value<'a>; 3] {
    [('f', file), ('p', path.as_os_str()), ('r', oldest)]
}

/// The values of `archive_command`: file, and where it is.
pub fn archive_values<'a>(file: &'a OsStr, path: &'a Path) -> [Value<'a>; 2] {
    [('f', file), ('p', path.as_os_str())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn placeholders() {
        let template = Template::parse("cp /a/%f %p # %r 100%%", &['f', 'p', 'r']).unwrap();
        let values = restore_values(
            OsStr::new("00000002.history"),
            Path::new("pg_wal/x"),
            OsStr::new("000000010000000000000003"),
        );
        assert_eq!(
            template.expand(&values),
            "cp /a/00000002.history pg_wal/x # 000000010000000000000003 100%"
        );
        assert_eq!(Template::parse("%r", &['f', 'p']), Err(TemplateFault::Unknown('r')));
        assert_eq!(Template::parse("x %", &['f']), Err(TemplateFault::Unfinished));
        assert_eq!(Template::parse("x\0", &['f']), Err(TemplateFault::ZeroByte));
    }

    proptest! {
        /// Accepted text expands, and without placeholders it expands to itself.
        #[test]
        fn plain_text_stays(text in "[^%\0]*") {
            let template = Template::parse(&text, &[]).unwrap();
            prop_assert_eq!(template.expand(&[]), OsString::from(&text));
            prop_assert_eq!(
                Template::parse(&text.replace('x', "%%"), &[]).unwrap().expand(&[]),
                OsString::from(text.replace('x', "%"))
            );
        }
    }
}
