//! History files: any bytes are refused or give a history that answers consistently.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use walhub::timeline::History;
use walhub::wal::{Lsn, TimelineId};

fuzz_target!(|input: (u32, u64, &[u8])| {
    let (tli, lsn, bytes) = input;
    let Some(tli) = TimelineId::new(tli) else { return };
    let history = match History::parse(tli, Bytes::copy_from_slice(bytes)) {
        Ok(history) => history,
        Err(fault) => {
            assert!(fault.to_string().len() < 4096);
            return;
        }
    };
    assert_eq!(history.bytes(), bytes);
    assert!(history.contains(history.tli_at(Lsn::new(lsn))));
    assert_eq!(history.tli_at(history.start()), tli);
    assert_eq!(history.fork().is_some(), history.parent().is_some());
    let mut at = history.entries().first().map(|entry| entry.tli);
    for entry in history.entries() {
        assert_eq!(at, Some(entry.tli));
        assert!(entry.tli < tli);
        assert_eq!(history.switchpoint_of(entry.tli), Some(entry.end));
        at = history.next_after(entry.tli);
    }
    assert!(history.entries().is_empty() || at == Some(tli));
    assert_eq!(History::parse_file_name(&History::file_name(tli)), Some(tli));
});
