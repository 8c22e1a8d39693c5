//! CopyData's payloads: what is read is written back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhub::wire::copy::{FromReceiver, FromSender, ReplyRequest, keepalive, xlog_data_header};

/// Type byte and length word of the CopyData frame.
const FRAME: usize = 5;

fuzz_target!(|payload: &[u8]| {
    match FromSender::parse(payload) {
        Ok(FromSender::XLogData { start, wal_end, send_time, wal }) => {
            let header = xlog_data_header(start, wal_end, send_time, wal.len());
            assert_eq!(header[FRAME..], payload[..25]);
            assert_eq!(wal, &payload[25..]);
        }
        Ok(FromSender::Keepalive { wal_end, send_time, reply }) => {
            let frame = keepalive(wal_end, send_time, reply);
            same(&frame[FRAME..], payload, reply);
        }
        Err(fault) => drop(fault.refusal()),
    }
    match FromReceiver::parse(payload) {
        Ok(FromReceiver::Status(status)) => same(&status.encode()[FRAME..], payload, status.reply),
        Ok(FromReceiver::Feedback(feedback)) => {
            let frame = feedback.encode();
            assert_eq!(frame[FRAME..], payload[..frame.len() - FRAME]);
        }
        Err(fault) => drop(fault.refusal()),
    }
});

/// Equal but for the last byte, of which any but zero is a request.
fn same(written: &[u8], read: &[u8], reply: ReplyRequest) {
    let last = written.len() - 1;
    assert_eq!(written[..last], read[..last]);
    assert_eq!(read[last] != 0, reply == ReplyRequest::Yes);
}
