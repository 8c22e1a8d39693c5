//! libpq's two syntaxes of connection strings, parsed into pairs of option and value.
//!
//! Errors do not quote what they found: it might be a piece of a password.

use super::ConninfoFault;
use percent_encoding::percent_decode_str;
use winnow::combinator::{alt, preceded, repeat};
use winnow::error::EmptyError;
use winnow::prelude::*;
use winnow::token::{any, none_of, take_till};

/// Pairs in the order given. Later ones win.
pub(super) type Pairs = Vec<(String, String)>;

/// What follows the scheme of a URI; `None` when it is none.
pub(super) fn after_scheme(text: &str) -> Option<&str> {
    ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme))
}

/// Parses either syntax.
pub(super) fn pairs(text: &str) -> Result<Pairs, ConninfoFault> {
    match after_scheme(text) {
        Some(rest) => uri(rest),
        None => key_value(text),
    }
}

/// `isspace` of the C locale.
const fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// `name = value`, `name='quoted value'`, with backslashes in both kinds.
fn key_value(text: &str) -> Result<Pairs, ConninfoFault> {
    let mut rest = text;
    let mut pairs = Vec::new();
    loop {
        rest = rest.trim_start_matches(is_space);
        if rest.is_empty() {
            return Ok(pairs);
        }
        let name: &str = take_till(0.., |c| c == '=' || is_space(c))
            .parse_next(&mut rest)
            .map_err(|_: EmptyError| ConninfoFault::MissingEquals)?;
        let Some(value) = rest.trim_start_matches(is_space).strip_prefix('=') else {
            return Err(ConninfoFault::MissingEquals);
        };
        rest = value.trim_start_matches(is_space);
        let value = alt((quoted, bare))
            .parse_next(&mut rest)
            .map_err(|_| ConninfoFault::UnterminatedQuote)?;
        pairs.push((name.to_owned(), value));
    }
}

/// An unquoted value ends at white space.
fn bare(input: &mut &str) -> Result<String, EmptyError> {
    if input.starts_with('\'') {
        return Err(EmptyError);
    }
    let escaped = preceded('\\', any.map(Some));
    // A backslash at the very end stands for nothing.
    let last = '\\'.map(|_| None);
    let plain = none_of(is_space).map(Some);
    repeat(0.., alt((escaped, last, plain)))
        .fold(String::new, |mut value: String, c: Option<char>| {
            value.extend(c);
            value
        })
        .parse_next(input)
}

fn quoted(input: &mut &str) -> Result<String, EmptyError> {
    let character = alt((preceded('\\', any), none_of(['\\', '\''])));
    let start = *input;
    let parsed = (
        '\'',
        repeat(0.., character).fold(String::new, |mut value: String, c: char| {
            value.push(c);
            value
        }),
        '\'',
    )
        .map(|(_, value, _)| value)
        .parse_next(input);
    if parsed.is_err() {
        *input = start;
    }
    parsed
}

/// `[user[:password]@][host[:port]][,...][/dbname][?name=value[&...]]`
fn uri(text: &str) -> Result<Pairs, ConninfoFault> {
    let mut pairs = Vec::new();
    let mut rest = text;
    // There are credentials if an @ comes before any slash.
    if let Some((credentials, after)) =
        text.split_once('@').filter(|(credentials, _)| !credentials.contains('/'))
    {
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        push_decoded(&mut pairs, "user", user)?;
        push_decoded(&mut pairs, "password", password)?;
        rest = after;
    }
    let (hosts, ports) = host_list(&mut rest)?;
    push_decoded(&mut pairs, "host", &hosts)?;
    push_decoded(&mut pairs, "port", &ports)?;
    let (path, params) = rest.split_once('?').unwrap_or((rest, ""));
    push_decoded(&mut pairs, "dbname", path.strip_prefix('/').unwrap_or(path))?;
    if !params.is_empty() {
        uri_params(params, &mut pairs)?;
    }
    Ok(pairs)
}

/// The two lists in the form of the options `host` and `port`.
fn host_list(rest: &mut &str) -> Result<(String, String), ConninfoFault> {
    let (mut hosts, mut ports) = (String::new(), String::new());
    loop {
        hosts.push_str(host(rest)?);
        if let Some(after) = rest.strip_prefix(':') {
            let at = after.find(['/', '?', ',']).unwrap_or(after.len());
            let (port, after) = after.split_at_checked(at).unwrap_or((after, ""));
            ports.push_str(port);
            *rest = after;
        }
        let Some(after) = rest.strip_prefix(',') else { return Ok((hosts, ports)) };
        hosts.push(',');
        ports.push(',');
        *rest = after;
    }
}

fn host<'a>(rest: &mut &'a str) -> Result<&'a str, ConninfoFault> {
    let (host, after) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']').ok_or(ConninfoFault::Bracket)?;
            if host.is_empty() || !(after.is_empty() || after.starts_with([':', '/', '?', ','])) {
                return Err(ConninfoFault::Bracket);
            }
            (host, after)
        }
        None => {
            let at = rest.find([':', '/', '?', ',']).unwrap_or(rest.len());
            rest.split_at_checked(at).unwrap_or((rest, ""))
        }
    };
    *rest = after;
    Ok(host)
}

fn uri_params(params: &str, pairs: &mut Pairs) -> Result<(), ConninfoFault> {
    // libpq accepts one trailing &.
    for param in params.strip_suffix('&').unwrap_or(params).split('&') {
        let (name, value) = param.split_once('=').ok_or(ConninfoFault::Parameter)?;
        if value.contains('=') {
            return Err(ConninfoFault::Parameter);
        }
        let (name, value) = (decode(name)?, decode(value)?);
        pairs.push(match (name.as_str(), value.as_str()) {
            // JDBC's spelling.
            ("ssl", "true") => ("sslmode".to_owned(), "require".to_owned()),
            _ => (name, value),
        });
    }
    Ok(())
}

/// An empty part pushes nothing, so the environment can still give the value.
fn push_decoded(pairs: &mut Pairs, name: &str, part: &str) -> Result<(), ConninfoFault> {
    if !part.is_empty() {
        pairs.push((name.to_owned(), decode(part)?));
    }
    Ok(())
}

/// Every % must begin a byte in hexadecimal, other than the zero byte.
fn decode(part: &str) -> Result<String, ConninfoFault> {
    let hex = |bytes: Option<&[u8]>| {
        bytes.is_some_and(|b| b.len() == 2 && b.iter().all(u8::is_ascii_hexdigit))
    };
    for after in part.split('%').skip(1) {
        if !hex(after.as_bytes().get(..2)) || after.starts_with("00") {
            return Err(ConninfoFault::PercentEncoding);
        }
    }
    let decoded = percent_decode_str(part).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| ConninfoFault::PercentEncoding)
}
