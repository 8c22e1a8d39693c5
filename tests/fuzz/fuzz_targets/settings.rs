//! Settings: Booleans, sizes, durations and command lines that carry them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhub::wire::startup::parse_options;
use walhub::wire::units::{
    SizeUnit, TimeUnit, format_bytes, format_duration, parse_bool, parse_bytes, parse_duration,
};

fuzz_target!(|text: &str| {
    for unit in [SizeUnit::Byte, SizeUnit::Kilobyte, SizeUnit::Megabyte] {
        if let Ok(bytes) = parse_bytes(text, unit) {
            assert_eq!(parse_bytes(&format_bytes(bytes), unit), Ok(bytes));
        }
    }
    for unit in [TimeUnit::Millisecond, TimeUnit::Second] {
        if let Ok(span) = parse_duration(text, unit) {
            assert_eq!(parse_duration(&format_duration(span), unit), Ok(span));
        }
    }
    assert!(parse_bool(text).is_none() || text.len() <= 5);
    if let Ok(settings) = parse_options(text) {
        assert!(settings.len() * 3 <= text.len());
    }
});
