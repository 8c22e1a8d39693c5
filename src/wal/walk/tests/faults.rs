//! Damage: each fault by its name, at its place.

use super::*;

/// Two records; returns the synth and the second's start.
fn two() -> (Synth, Lsn) {
    let mut synth = synth(MIB);
    synth.record(&[1; 100]);
    let second = synth.record(&[2; 100]);
    (synth, second)
}

fn offset(lsn: Lsn) -> usize {
    (lsn.raw() - MIB) as usize
}

#[test]
fn lengths() {
    let (synth, second) = two();
    for (raw, kind) in [
        (23u32, FaultKind::RecordLength { found: 23 }),
        (0, FaultKind::RecordLength { found: 0 }),
        (MAX_RECORD + 1, FaultKind::RecordTooLong { found: MAX_RECORD + 1 }),
        (u32::MAX, FaultKind::RecordTooLong { found: u32::MAX }),
    ] {
        let at = offset(second);
        let (fault, end) = fault_after(synth.clone(), |bytes| {
            bytes[at..at + 4].copy_from_slice(&raw.to_le_bytes());
        });
        assert_eq!((fault, end), (WalkFault { at: second, kind }, second));
    }
}

#[test]
fn length_of_nearly_a_gigabyte_is_followed_without_memory() {
    let (mut synth, second) = two();
    let (start, mut bytes) = synth.take_bytes();
    bytes[offset(second)..][..4].copy_from_slice(&MAX_RECORD.to_le_bytes());
    let (walker, result) = walk(rules(), start, &bytes);
    assert_eq!(result, Ok(()));
    assert_eq!(walker.record_end(), second);
}

#[test]
fn prev_links() {
    let (synth, second) = two();
    let at = offset(second) + 8;
    let (fault, end) = fault_after(synth.clone(), |bytes| bytes[at] ^= 8);
    assert!(matches!(fault.kind, FaultKind::PrevLink { .. }));
    assert_eq!((fault.at, end), (second, second));
    // The first record's prev-link is only known to point back.
    let first = MIB + 40;
    let (fault, _) = fault_after(synth, |bytes| {
        bytes[48..56].copy_from_slice(&first.to_le_bytes());
    });
    assert_eq!(fault.kind, FaultKind::PrevLink { found: Lsn::new(first) });
    assert_eq!(fault.to_string(), "record with incorrect prev-link 0/100028 at 0/100028");
}

#[test]
fn contrecords() {
    let mut synth = synth(MIB);
    let long = synth.record(&[1; 9000]);
    let second = PAGE_SIZE;
    let kind = |synth: &Synth, damage: fn(&mut [u8])| {
        let (fault, end) = fault_after(synth.clone(), |bytes| damage(&mut bytes[second..]));
        assert_eq!(end, Lsn::new(MIB), "nothing was complete");
        assert_eq!(fault.at.page_start(), long.page_start());
        fault.to_string()
    };
    let flag = kind(&synth, |page| page[2] &= !1);
    assert_eq!(flag, "there is no contrecord flag at 0/100028");
    let length = kind(&synth, |page| page[16] ^= 1);
    assert_eq!(length, "invalid contrecord length 876 (expected 877) at 0/100028");
    let (fault, _) = fault_after(synth.clone(), |bytes| bytes[second + 2] |= 8);
    assert_eq!(fault.kind, FaultKind::ContrecordRequested);

    let mut plain = super::synth(MIB);
    plain.record(&[1; 10]);
    fill_to(&mut plain, 8000);
    plain.raw_record(10, 0, &[1; 192 - 24]);
    let boundary = offset(plain.position());
    plain.record(b"next");
    let (fault, end) = fault_after(plain, |bytes| bytes[boundary + 2] |= 1);
    assert_eq!(fault.kind, FaultKind::ContrecordRequested);
    assert_eq!(offset(end), boundary);
}

#[test]
fn contrecord_at_the_start_that_goes_wrong_later() {
    let mut synth = synth(MIB);
    synth.record(&[1; 30_000]);
    let (_, bytes) = synth.take_bytes();
    let from = Lsn::new(MIB + PAGE);
    for (damage, at) in [(0x10, PAGE), (0x02, 0)] {
        let mut bytes = bytes[PAGE_SIZE..].to_vec();
        let byte = if at == 0 { 2 } else { PAGE_SIZE + 16 };
        bytes[byte] ^= damage;
        let (walker, result) = walk(rules(), from, &bytes);
        assert_eq!(result.unwrap_err().at, from.saturating_add(at));
        assert_eq!(walker.record_end(), from);
    }
    let mut bytes = bytes[PAGE_SIZE..].to_vec();
    bytes[16..20].fill(0);
    let (_, result) = walk(rules(), from, &bytes);
    assert_eq!(result.unwrap_err().kind, FaultKind::ContrecordRequested);
}

#[test]
fn page_headers() {
    let mut synth = synth(MIB);
    fill_to(&mut synth, 8000);
    synth.record(&[1; 1000]);
    let fault = |byte: usize, flip: u8| {
        let (fault, end) = fault_after(synth.clone(), |bytes| bytes[byte] ^= flip);
        assert!(end <= fault.at);
        fault.to_string()
    };
    // In the segment's first page, and in the second.
    let second = PAGE_SIZE;
    assert_eq!(fault(1, 0xFF), "invalid magic number 2E10 in WAL page at 0/100000");
    assert_eq!(fault(second, 1), "invalid magic number D111 in WAL page at 0/102000");
    assert_eq!(fault(2, 2), "invalid info bits 0000 in WAL page at 0/100000");
    assert_eq!(fault(second + 2, 2), "invalid info bits 0003 in WAL page at 0/102000");
    assert_eq!(fault(second + 2, 16), "invalid info bits 0011 in WAL page at 0/102000");
    assert_eq!(
        fault(second + 4, 2),
        "unexpected timeline ID 3 on timeline 1 in WAL page at 0/102000"
    );
    assert_eq!(fault(second + 10, 0x10), "unexpected pageaddr 0/2000 in WAL page at 0/102000");
    assert!(fault(24, 1).contains(&format!("is {}, ours is {SYSTEM}", SYSTEM.raw() ^ 1)));
    assert!(fault(34, 0x30).contains("incorrect segment size 2097152"));
    assert!(fault(37, 0x60).contains("incorrect XLOG_BLCKSZ 16384"));
}

#[test]
fn data_after_a_switch() {
    let mut synth = synth(MIB);
    synth.record(b"some");
    let switch = synth.switch_segment();
    for byte in [offset(switch) + 24, PAGE_SIZE, MIB as usize - 1] {
        let (fault, end) = fault_after(synth.clone(), |bytes| bytes[byte] = 1);
        assert_eq!(fault.kind, FaultKind::DataAfterSwitch);
        assert_eq!(end, switch.saturating_add(24));
    }
}

#[test]
fn end_of_the_number_space_is_a_fault() {
    let last = Lsn::MAX.page_start();
    let mut walker = Walker::new(rules(), last);
    assert_eq!(walker.feed(&[0]).unwrap_err().kind, FaultKind::EndOfNumbers);
}

#[test]
#[should_panic(expected = "page boundary")]
fn starts_at_a_page() {
    drop(Walker::new(rules(), Lsn::new(MIB + 8)));
}
