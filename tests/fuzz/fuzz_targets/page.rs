//! Page headers: whatever is read is written back the same, and the rules never panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhub::wal::{Ancestor, Fork, Lsn, PageHeader, PageRules, SegmentSize, SystemId, TimelineId};

type Input<'a> = (u64, Option<u16>, u32, u64, u32, Vec<(u32, u64)>, &'a [u8]);

fuzz_target!(|input: Input<'_>| {
    let (at, magic, tli, system, shift, ancestors, bytes) = input;
    let Ok(header) = PageHeader::parse(bytes) else { return };
    let mut written = Vec::new();
    header.write(&mut written);
    assert_eq!(written.len(), header.size());
    assert_eq!(PageHeader::parse(&written), Ok(header));
    // All but the padding.
    assert_eq!(written[..20], bytes[..20]);
    assert_eq!(written.get(24..), bytes.get(24..written.len()));

    let ancestor = |(tli, end): (u32, u64)| {
        TimelineId::new(tli).map(|tli| Ancestor { tli, end: Lsn::new(end) })
    };
    let ancestors: Vec<_> = ancestors.into_iter().filter_map(ancestor).collect();
    let mut rules = PageRules {
        system: SystemId::new(system),
        size: SegmentSize::new(1 << (20 + shift % 11)).unwrap(),
        tli: TimelineId::new(tli).unwrap_or(TimelineId::FIRST),
        magic,
        fork: Fork::new(&ancestors),
    };
    let before = rules.clone();
    match rules.check(Lsn::new(at), &header) {
        Ok(()) => {
            assert_eq!(rules.magic, Some(header.magic));
            assert_eq!(header.addr, Lsn::new(at));
        }
        Err(fault) => {
            assert_eq!(rules, before, "a refused page teaches nothing");
            assert!(!fault.to_string().is_empty());
        }
    }
});
