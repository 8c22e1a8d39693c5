//! A client's messages, as they lie in the receive buffer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhub::wire::command::parse_command;
use walhub::wire::copy::FromReceiver;
use walhub::wire::frame::next_frame;
use walhub::wire::frontend_read::FromClient;

fuzz_target!(|input: (u16, &[u8])| {
    let (limit, mut rest) = input;
    let limit = usize::from(limit);
    loop {
        let frame = match next_frame(rest, limit) {
            Ok(Some(frame)) => frame,
            Ok(None) => return assert!(rest.len() < limit + 5),
            Err(fault) => return drop(fault.refusal()),
        };
        assert!(frame.body.len() <= limit && frame.len == frame.body.len() + 5);
        match FromClient::parse(frame) {
            Ok(FromClient::Query(text)) => drop(parse_command(text)),
            Ok(FromClient::CopyData(payload)) => {
                if let Err(fault) = FromReceiver::parse(payload) {
                    drop(fault.refusal());
                }
            }
            Ok(_) => {}
            Err(fault) => return drop(fault.refusal()),
        }
        rest = &rest[frame.len..];
    }
});
