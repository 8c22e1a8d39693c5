//! A server's messages; what is read never holds more than was there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhub::wire::backend_read::{AuthRequest, FromServer};
use walhub::wire::copy::FromSender;
use walhub::wire::frame::next_frame;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some(frame)) = next_frame(rest, 1 << 16) {
        rest = &rest[frame.len..];
        let Ok(message) = FromServer::parse(frame) else { return };
        match message {
            FromServer::DataRow(values) => assert!(values.len() * 4 <= frame.body.len()),
            FromServer::RowDescription(names) => assert!(names.len() * 19 <= frame.body.len()),
            FromServer::NegotiateProtocol { unknown, .. } => {
                assert!(unknown.len() <= frame.body.len());
            }
            FromServer::Auth(AuthRequest::Sasl(mechanisms)) => {
                assert!(mechanisms.len() * 2 <= frame.body.len());
            }
            FromServer::Error(error) | FromServer::Notice(error) => {
                // A byte that is no UTF-8 becomes three that are.
                assert!(error.to_string().len() <= 3 * frame.body.len() + 8);
            }
            FromServer::CopyData(payload) => {
                if let Ok(FromSender::XLogData { wal, .. }) = FromSender::parse(payload) {
                    assert_eq!(wal.len() + 25, payload.len());
                }
            }
            _ => {}
        }
    }
});
