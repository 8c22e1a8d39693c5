//! Where the log ends: zeros, torn pages, remains of an older use of the file.

use super::*;

#[test]
fn zero_tail_inside_a_page() {
    let mut synth = synth(MIB);
    synth.record(b"last");
    let end = synth.position();
    let (fault, record_end) = fault_after(synth, |bytes| bytes.resize(PAGE_SIZE * 2, 0));
    assert_eq!(record_end, end);
    assert!(fault.is_unwritten());
    assert_eq!(
        fault.to_string(),
        format!("invalid record length at {end}: expected at least 24, got 0")
    );
}

#[test]
fn zero_tail_at_every_alignment_before_a_page_end() {
    for offset in (PAGE_SIZE - 40..PAGE_SIZE).step_by(8) {
        let mut synth = synth(MIB);
        fill_to(&mut synth, offset);
        let end = synth.position();
        let (fault, record_end) = fault_after(synth, |bytes| bytes.extend([0; 9000]));
        assert_eq!((record_end, fault.at, fault.is_unwritten()), (end, end, true));
    }
}

#[test]
fn zero_tail_at_a_page_boundary() {
    let mut synth = synth(MIB);
    fill_to(&mut synth, 8000);
    synth.raw_record(10, 0, &[1; 192 - 24]);
    let end = synth.position();
    let (fault, record_end) = fault_after(synth, |bytes| bytes.extend([0; 24]));
    assert_eq!(record_end, end);
    assert!(fault.is_unwritten());
    assert_eq!(fault.to_string(), format!("invalid magic number 0000 in WAL page at {end}"));
}

#[test]
fn zeros_within_a_record() {
    let mut synth = synth(MIB);
    synth.record(b"whole");
    let torn = synth.record(&[8; 20_000]);
    // Torn at a sector inside the page, and at a page.
    let (fault, record_end) = fault_after(synth.clone(), |bytes| bytes[12_288..].fill(0));
    assert_eq!((record_end, fault.at), (torn, torn.page_start().saturating_add(2 * PAGE)));
    let (fault, record_end) = fault_after(synth, |bytes| bytes[17_000..].fill(0));
    assert_eq!((record_end, fault.kind), (torn, FaultKind::Checksum));
}

#[test]
fn recycled_segment_past_the_end() {
    // An older, recycled segment of the same cluster: everything is right except the page
    // addresses.
    let mut older = synth(MIB);
    while older.position().raw() < 2 * MIB {
        older.record(&[6; 500]);
    }
    let (_, old) = older.take_bytes();
    for count in [1, 15, 16, 200] {
        let mut newer = synth(5 * MIB);
        for _ in 0..count {
            newer.record(&[9; 500]);
        }
        let end = newer.position();
        let (_, record_end) = fault_after(newer, |bytes| {
            let tail = &old[bytes.len()..MIB as usize];
            bytes.extend_from_slice(tail);
        });
        assert_eq!(record_end, end, "{count} records");
    }
}

#[test]
fn record_that_never_came_whole() {
    let mut synth = synth(MIB);
    let end = synth.record(&[1; 10]);
    synth.record(&[2; 20_000]);
    let (start, bytes) = synth.take_bytes();
    let (walker, result) = walk(rules(), start, &bytes[..9000]);
    assert_eq!(result, Ok(()));
    assert_eq!(walker.last_record(), Some(end));
    assert_eq!(walker.position(), Lsn::new(MIB + 9000));
    assert!(walker.record_end() < walker.position());
}

/// The rest of a record whose last eight bytes are those of an XLOG_SWITCH's header.
fn seeming_switch(rem_len: usize, pad: u8) -> Vec<u8> {
    let mut synth = synth(MIB);
    let mut body = vec![0x11; 16_000];
    // The record starts after the long header; page two holds only its rest.
    body.truncate(PAGE_SIZE - 40 - 24 + rem_len);
    let end = body.len();
    body[end - 8..].copy_from_slice(&[0x40, 0, pad, 0, 1, 2, 3, 4]);
    synth.raw_record(10, 0, &body);
    synth.take_bytes().1.split_off(PAGE_SIZE)
}

#[test]
fn zeros_after_what_is_no_switch() {
    let from = Lsn::new(MIB + PAGE);
    for (rem_len, pad) in [(24, 0), (8000, 0), (8, 1), (16, 1)] {
        let mut bytes = seeming_switch(rem_len, pad);
        let end = from.saturating_add(bytes.len() as u64);
        bytes.resize(PAGE_SIZE, 0);
        let (walker, result) = walk(rules(), from, &bytes);
        assert_eq!(result.unwrap_err().at, end, "rest of {rem_len}");
        assert_eq!(walker.record_end(), from);
    }
}

#[test]
fn zeros_after_a_record_after_what_may_be_a_switch() {
    let from = Lsn::new(MIB + PAGE);
    let mut synth = synth(MIB);
    let mut body = vec![0x11; PAGE_SIZE - 40 - 24 + 8];
    let end = body.len();
    body[end - 8..].copy_from_slice(&[0x40, 0, 0, 0, 1, 2, 3, 4]);
    synth.raw_record(10, 0, &body);
    synth.record(b"no switch then");
    let end = synth.position();
    let mut bytes = synth.take_bytes().1.split_off(PAGE_SIZE);
    bytes.resize(2 * PAGE_SIZE, 0);
    let (walker, result) = walk(rules(), from, &bytes);
    assert_eq!(result.unwrap_err().at, end);
    assert_eq!(walker.record_end(), end);
}

#[test]
fn zeros_after_what_may_be_a_switch_end_with_something_else() {
    let mut bytes = seeming_switch(8, 0);
    bytes.resize(3 * PAGE_SIZE, 0);
    bytes[2 * PAGE_SIZE + 5] = 1;
    let from = Lsn::new(MIB + PAGE);
    let (walker, result) = walk(rules(), from, &bytes);
    assert_eq!(result.unwrap_err().kind, FaultKind::RecordLength { found: 0 });
    assert_eq!((walker.record_end(), walker.position()), (from, from));
}
