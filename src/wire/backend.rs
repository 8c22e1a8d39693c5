//! The messages a server writes. Every function appends one whole message.

use super::refusal::{Refusal, Severity};
use bytes::{BufMut, BytesMut};

/// `text`, of unlimited length.
pub const TEXT_OID: u32 = 25;
/// `bytea`
pub const BYTEA_OID: u32 = 17;
/// `int4`
pub const INT4_OID: u32 = 23;
/// `int8`
pub const INT8_OID: u32 = 20;

/// A result column in text format that belongs to no table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Column<'a> {
    /// Its label.
    pub name: &'a str,
    /// The type's OID in pg_type.
    pub type_oid: u32,
    /// Bytes of the type; -1 when they vary.
    pub typlen: i16,
    /// The type's modifier; -1 when it has none.
    pub typmod: i32,
}

impl<'a> Column<'a> {
    /// A `text` column.
    pub const fn text(name: &'a str) -> Self {
        Self { name, type_oid: TEXT_OID, typlen: -1, typmod: -1 }
    }

    /// An `int4` column.
    pub const fn int4(name: &'a str) -> Self {
        Self { name, type_oid: INT4_OID, typlen: 4, typmod: -1 }
    }

    /// An `int8` column.
    pub const fn int8(name: &'a str) -> Self {
        Self { name, type_oid: INT8_OID, typlen: 8, typmod: -1 }
    }
}

/// AuthenticationOk.
pub fn auth_ok(out: &mut BytesMut) {
    message(out, b'R', |body| body.put_i32(0));
}

/// ParameterStatus.
pub fn parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    message(out, b'S', |body| {
        put_text(body, name);
        put_text(body, value);
    });
}

/// BackendKeyData with the four-byte key of protocol 3.0.
pub fn backend_key_data(out: &mut BytesMut, pid: u32, key: u32) {
    message(out, b'K', |body| {
        body.put_u32(pid);
        body.put_u32(key);
    });
}

/// ReadyForQuery. A hub has no transactions, so the status is always idle.
pub fn ready_for_query(out: &mut BytesMut) {
    message(out, b'Z', |body| body.put_u8(b'I'));
}

/// NegotiateProtocolVersion: we speak 3.`minor` and support none of these options.
pub fn negotiate_protocol_version(out: &mut BytesMut, minor: u16, unknown: &[&str]) {
    message(out, b'v', |body| {
        body.put_u16(3);
        body.put_u16(minor);
        body.put_u32(count(unknown.len()));
        for name in unknown {
            put_text(body, name);
        }
    });
}

/// RowDescription.
pub fn row_description(out: &mut BytesMut, columns: &[Column<'_>]) {
    message(out, b'T', |body| {
        body.put_u16(count(columns.len()));
        for column in columns {
            put_text(body, column.name);
            body.put_u32(0); // no table
            body.put_i16(0); // no column of it
            body.put_u32(column.type_oid);
            body.put_i16(column.typlen);
            body.put_i32(column.typmod);
            body.put_i16(0); // text format
        }
    });
}

/// DataRow; no value is NULL.
pub fn data_row(out: &mut BytesMut, values: &[Option<&[u8]>]) {
    message(out, b'D', |body| {
        body.put_u16(count(values.len()));
        for value in values {
            match value {
                Some(bytes) => {
                    body.put_i32(count(bytes.len()));
                    body.put_slice(bytes);
                }
                None => body.put_i32(-1),
            }
        }
    });
}

/// CommandComplete.
pub fn command_complete(out: &mut BytesMut, tag: &str) {
    message(out, b'C', |body| put_text(body, tag));
}

/// EmptyQueryResponse.
pub fn empty_query(out: &mut BytesMut) {
    message(out, b'I', |_| {});
}

/// CopyBothResponse: text format, no columns, as every walsender sends it.
pub fn copy_both(out: &mut BytesMut) {
    message(out, b'W', |body| {
        body.put_u8(0);
        body.put_i16(0);
    });
}

/// CopyDone.
pub fn copy_done(out: &mut BytesMut) {
    message(out, b'c', |_| {});
}

/// ErrorResponse, or NoticeResponse when the refusal is only a remark.
pub fn error(out: &mut BytesMut, refusal: &Refusal) {
    let tag = match refusal.severity {
        Severity::Notice | Severity::Warning => b'N',
        Severity::Error | Severity::Fatal => b'E',
    };
    message(out, tag, |body| {
        let word = refusal.severity.word();
        let mut field = |code: u8, text: &str| {
            body.put_u8(code);
            put_text(body, text);
        };
        field(b'S', word);
        field(b'V', word);
        field(b'C', refusal.sqlstate);
        field(b'M', &refusal.message);
        if let Some(detail) = &refusal.detail {
            field(b'D', detail);
        }
        if let Some(hint) = &refusal.hint {
            field(b'H', hint);
        }
        body.put_u8(0);
    });
}

/// The error form that clients of protocol 2 and older read: no length, no fields.
pub fn ancient_error(out: &mut BytesMut, refusal: &Refusal) {
    out.put_u8(b'E');
    out.put_slice(refusal.severity.word().as_bytes());
    out.put_slice(b":  ");
    out.put_slice(without_zero(refusal.message.as_bytes()));
    out.put_slice(b"\n\0");
}

/// Appends a message: type, length (known only afterwards), body.
pub(super) fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    length_prefixed(out, body);
}

/// Appends a length word that counts itself and the body.
pub(super) fn length_prefixed(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length: u32 = count(out.len() - start);
    if let Some(word) = out.get_mut(start..start + 4) {
        word.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends a zero-terminated text. A zero byte inside would end it early for the reader and shift
/// every later field, so the text is cut there.
pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    out.put_slice(without_zero(text.as_bytes()));
    out.put_u8(0);
}

fn without_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A length or count in the width that the message has for it.
///
/// Panics when our own message outgrows it; nothing a peer sends comes near that.
pub(super) fn count<N: TryFrom<usize>>(n: usize) -> N {
    match N::try_from(n) {
        Ok(n) => n,
        Err(_) => panic!("a message field of {n} bytes or items cannot be written"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        write(&mut out);
        out.to_vec()
    }

    #[test]
    fn writes_the_bytes_postgres_writes() {
        assert_eq!(written(copy_both), b"W\0\0\0\x07\0\0\0");
        assert_eq!(written(copy_done), b"c\0\0\0\x04");
        assert_eq!(written(ready_for_query), b"Z\0\0\0\x05I");
        assert_eq!(written(auth_ok), b"R\0\0\0\x08\0\0\0\0");
        assert_eq!(
            written(|out| command_complete(out, "START_REPLICATION")),
            b"C\0\0\0\x16START_REPLICATION\0"
        );
        assert_eq!(
            written(|out| negotiate_protocol_version(out, 0, &["_pq_.foo", "_pq_.bar"])),
            b"v\0\0\0\x1e\0\x03\0\0\0\0\0\x02_pq_.foo\0_pq_.bar\0"
        );
        assert_eq!(
            written(|out| row_description(out, &[Column::int8("next_tli")])),
            b"T\0\0\0\x21\0\x01next_tli\0\0\0\0\0\0\0\0\0\0\x14\0\x08\xff\xff\xff\xff\0\0"
        );
        assert_eq!(
            written(|out| data_row(out, &[Some(b"2"), None])),
            b"D\0\0\0\x0f\0\x02\0\0\0\x012\xff\xff\xff\xff"
        );
        assert_eq!(
            written(|out| backend_key_data(out, 7, 0x0102_0304)),
            b"K\0\0\0\x0c\0\0\0\x07\x01\x02\x03\x04"
        );
    }

    #[test]
    fn errors_carry_severity_state_and_texts() {
        let refusal = Refusal::error("42601", "syntax error").with_hint("write it well");
        assert_eq!(
            written(|out| error(out, &refusal)),
            b"E\0\0\0\x37SERROR\0VERROR\0C42601\0Msyntax error\0Hwrite it well\0\0"
        );
        let remark = Refusal::notice("42622", "x");
        assert_eq!(written(|out| error(out, &remark))[0], b'N');
        let old = Refusal::fatal("0A000", "unsupported frontend protocol 2.0");
        assert_eq!(
            written(|out| ancient_error(out, &old)),
            b"EFATAL:  unsupported frontend protocol 2.0\n\0"
        );
    }

    #[test]
    fn a_zero_inside_a_text_does_not_shift_the_fields() {
        assert_eq!(written(|out| parameter_status(out, "a\0b", "c")), b"S\0\0\0\x08a\0c\0");
    }
}
