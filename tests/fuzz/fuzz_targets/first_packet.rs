//! The first bytes of a connection: any are refused, awaited or understood, and
//! what is understood answers every question put to it.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use walhub::wire::startup::{FirstPacket, Startup, StartupFault, next_first_packet};

fuzz_target!(|bytes: &[u8]| {
    match next_first_packet(bytes) {
        Ok(Some((FirstPacket::Startup(startup), len))) => {
            assert!((8..=10_004).contains(&len) && len <= bytes.len());
            ask(&startup);
        }
        Ok(Some((_, len))) => assert!(len <= bytes.len()),
        Ok(None) => assert!(bytes.len() < 10_004),
        Err(fault) => answer(&fault),
    }
});

fn ask(startup: &Startup) {
    if let Ok(user) = startup.user() {
        assert!(!user.is_empty() && user.len() <= 63);
    }
    if let Err(fault) = startup.replication() {
        answer(&fault);
    }
    if let Err(fault) = startup.settings() {
        answer(&fault);
    }
    assert_eq!(
        startup.negotiation().is_none(),
        startup.minor == 0 && !startup.params.iter().any(|(name, _)| name.starts_with("_pq_."))
    );
}

fn answer(fault: &StartupFault) {
    let mut out = BytesMut::new();
    fault.answer(&mut out);
    assert_eq!(out.is_empty(), fault.refusal().is_none());
}
