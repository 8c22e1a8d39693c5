//! What a client writes: walhub towards its own upstream. Every function appends
//! one whole message.

use super::backend::{count, length_prefixed, message, put_text};
use bytes::{BufMut, BytesMut};

/// StartupMessage of protocol 3.0.
pub fn startup(out: &mut BytesMut, params: &[(&str, &str)]) {
    length_prefixed(out, |body| {
        body.put_u16(3);
        body.put_u16(0);
        for (name, value) in params {
            put_text(body, name);
            put_text(body, value);
        }
        body.put_u8(0);
    });
}

/// SSLRequest.
pub fn ssl_request(out: &mut BytesMut) {
    request(out, 5679, |_| {});
}

/// CancelRequest.
pub fn cancel(out: &mut BytesMut, pid: u32, key: u32) {
    request(out, 5678, |body| {
        body.put_u32(pid);
        body.put_u32(key);
    });
}

/// Query.
pub fn query(out: &mut BytesMut, text: &str) {
    message(out, b'Q', |body| put_text(body, text));
}

/// PasswordMessage: a clear-text password or an md5 response.
pub fn password(out: &mut BytesMut, password: &str) {
    message(out, b'p', |body| put_text(body, password));
}

/// SASLInitialResponse with the client's first message.
pub fn sasl_initial(out: &mut BytesMut, mechanism: &str, first: &[u8]) {
    message(out, b'p', |body| {
        put_text(body, mechanism);
        body.put_i32(count(first.len()));
        body.put_slice(first);
    });
}

/// SASLResponse.
pub fn sasl_response(out: &mut BytesMut, data: &[u8]) {
    message(out, b'p', |body| body.put_slice(data));
}

/// CopyData around a payload that does not bring its own frame.
pub fn copy_data(out: &mut BytesMut, payload: &[u8]) {
    message(out, b'd', |body| body.put_slice(payload));
}

/// CopyDone.
pub fn copy_done(out: &mut BytesMut) {
    message(out, b'c', |_| {});
}

/// Terminate.
pub fn terminate(out: &mut BytesMut) {
    message(out, b'X', |_| {});
}

/// One of the requests that take the place of a startup packet.
fn request(out: &mut BytesMut, minor: u16, rest: impl FnOnce(&mut BytesMut)) {
    length_prefixed(out, |body| {
        body.put_u16(1234);
        body.put_u16(minor);
        rest(body);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::next_frame;
    use crate::wire::frontend_read::FromClient;
    use crate::wire::startup::{FirstPacket, Startup, next_first_packet};
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        write(&mut out);
        out.to_vec()
    }

    #[test]
    fn writes_the_bytes_libpq_writes() {
        assert_eq!(written(ssl_request), b"\0\0\0\x08\x04\xd2\x16\x2f");
        assert_eq!(written(copy_done), b"c\0\0\0\x04");
        assert_eq!(written(terminate), b"X\0\0\0\x04");
        assert_eq!(written(|out| query(out, "IDENTIFY_SYSTEM")), b"Q\0\0\0\x14IDENTIFY_SYSTEM\0");
        assert_eq!(
            written(|out| sasl_initial(out, "SCRAM-SHA-256", b"n,,")),
            b"p\0\0\0\x19SCRAM-SHA-256\0\0\0\0\x03n,,"
        );
        assert_eq!(written(|out| sasl_response(out, b"xy")), b"p\0\0\0\x06xy");
        assert_eq!(written(|out| password(out, "pw")), b"p\0\0\0\x07pw\0");
        assert_eq!(written(|out| copy_data(out, b"r")), b"d\0\0\0\x05r");
        assert_eq!(
            next_first_packet(&written(|out| cancel(out, 4, 5))),
            Ok(Some((FirstPacket::Cancel { pid: 4, key: 5 }, 16)))
        );
    }

    proptest! {
        #[test]
        fn a_server_reads_what_a_client_writes(
            params in proptest::collection::vec(("[^\0]{1,9}", "[^\0]{0,9}"), 0..5),
            text in "[^\0]{0,20}",
        ) {
            let pairs: Vec<_> = params.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let bytes = written(|out| startup(out, &pairs));
            let parsed = next_first_packet(&bytes);
            let startup = FirstPacket::Startup(Startup { minor: 0, params });
            prop_assert_eq!(parsed, Ok(Some((startup, bytes.len()))));

            let bytes = written(|out| query(out, &text));
            let frame = next_frame(&bytes, 1000).unwrap().unwrap();
            prop_assert_eq!(FromClient::parse(frame), Ok(FromClient::Query(text.as_bytes())));
        }
    }
}
