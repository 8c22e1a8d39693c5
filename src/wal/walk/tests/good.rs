//! An intact log is walked to its end.

use super::*;

#[test]
fn records_of_all_sizes_over_pages_and_segments() {
    let mut synth = synth(MIB);
    for len in [0, 1, 7, 8, 100, 8143, 8144, 8145, 8152, 8160, 20_000, 1_500_000, 3_000_000, 5] {
        synth.record(&vec![0x5A; len]);
    }
    assert!(synth.position().raw() > 5 * MIB);
    walks_to(synth);
}

#[test]
fn header_split_at_every_place_before_a_page() {
    for offset in (PAGE_SIZE - 32..PAGE_SIZE).step_by(8) {
        let mut synth = synth(MIB);
        fill_to(&mut synth, offset);
        synth.record(b"crosses");
        synth.record(b"follows");
        walks_to(synth);
    }
}

#[test]
fn header_split_by_a_long_page_header() {
    for back in [8, 16, 24, 32] {
        let mut synth = synth(2 * MIB - 3 * PAGE);
        fill_to(&mut synth, PAGE_SIZE - back);
        let start = synth.record(&[7; 90]);
        assert_eq!(start.raw(), 2 * MIB - back as u64);
        synth.record(b"follows");
        walks_to(synth);
    }
}

#[test]
fn record_that_ends_with_its_page() {
    let mut synth = synth(MIB);
    fill_to(&mut synth, 8000);
    let left = PAGE_SIZE - 8000;
    synth.raw_record(10, 0, &vec![1; left - 24]);
    assert_eq!(synth.position().page_offset(), 0);
    let walker = walks_to(synth.clone());
    assert_eq!(walker.record_end().page_offset(), 0, "as EndRecPtr, before the header");
    synth.record(b"next");
    walks_to(synth);
}

#[test]
fn padding_belongs_to_the_record() {
    let mut synth = synth(MIB);
    let first = synth.position();
    synth.raw_record(10, 0, &[9; 3]);
    let (start, bytes) = synth.take_bytes();
    let unpadded = bytes.len() - 5;
    let (mut walker, result) = walk(rules(), start, &bytes[..unpadded]);
    assert_eq!(result, Ok(()));
    assert_eq!((walker.record_end(), walker.last_record()), (first, None));
    walker.feed(&bytes[unpadded..]).unwrap();
    assert_eq!(walker.record_end(), walker.position());
}

#[test]
fn switch_at_various_offsets() {
    for offset in [40, 64, 4096, 8144, 8152, 8160, 8168, 8176, 8184] {
        let mut synth = synth(MIB);
        if offset > 40 {
            fill_to(&mut synth, offset);
        }
        synth.switch_segment();
        assert_eq!(synth.position(), Lsn::new(2 * MIB));
        walks_to(synth.clone());
        synth.record(b"in the next segment");
        walks_to(synth);
    }
}

#[test]
fn switch_around_the_segments_end() {
    for (back, end) in [(8, 3 * MIB), (16, 3 * MIB), (24, 2 * MIB), (32, 2 * MIB)] {
        let mut synth = synth(2 * MIB - 3 * PAGE);
        fill_to(&mut synth, PAGE_SIZE - back);
        synth.switch_segment();
        assert_eq!(synth.position(), Lsn::new(end));
        synth.record(b"follows");
        walks_to(synth);
    }
}

#[test]
fn switch_ends_with_its_segment_only_when_the_zeros_were_seen() {
    let mut synth = synth(MIB);
    synth.record(b"some");
    let switch = synth.switch_segment();
    let (start, bytes) = synth.take_bytes();
    let (walker, result) = walk(rules(), start, &bytes[..bytes.len() - 1]);
    assert_eq!(result, Ok(()));
    assert_eq!(walker.last_record(), Some(switch));
    assert_eq!(walker.record_end(), switch.saturating_add(24));
    assert_eq!(walker.position(), Lsn::new(2 * MIB - 1));
}

#[test]
fn lost_record_is_given_up_where_the_page_says_so() {
    for pages in 1..=3 {
        let mut synth = synth(MIB);
        synth.record(b"before");
        synth.lose_record(&[3; 30_000], pages);
        synth.record(b"after");
        walks_to(synth);
    }
}

#[test]
fn lost_record_over_a_segments_end() {
    let mut synth = synth(2 * MIB - 3 * PAGE);
    fill_to(&mut synth, 8000);
    synth.lose_record(&[3; 3000], 1);
    synth.record(b"after");
    walks_to(synth);
}

#[test]
fn custom_resource_managers_pass() {
    let mut synth = synth(MIB);
    for rmid in [22, 127, 128, 255] {
        synth.raw_record(rmid, 0x70, b"whose?");
    }
    walks_to(synth);
}

#[test]
fn unknown_newer_magic_passes_and_is_told() {
    let mut synth = Synth::new(SYSTEM, size(), tli(1), 0xD11A, Lsn::new(MIB));
    synth.record(b"from the future");
    assert_eq!(walks_to(synth).unknown_magic(), Some(0xD11A));
    let mut known = super::synth(MIB);
    known.record(b"of today");
    assert_eq!(walks_to(known).unknown_magic(), None);
}

#[test]
fn walk_from_any_page_meets_the_same_end() {
    let mut synth = synth(MIB);
    synth.record(&[1; 100]);
    synth.record(&[2; 50_000]);
    synth.lose_record(&[3; 30_000], 2);
    fill_to(&mut synth, 8184);
    let tail = synth.record(&[4; 20_000]);
    let end = synth.position();
    let (start, bytes) = synth.take_bytes();
    for page in 0..bytes.len() / PAGE_SIZE {
        let (before, rest) = bytes.split_at(page * PAGE_SIZE);
        let from = start.saturating_add(before.len() as u64);
        let (walker, result) = walk(rules(), from, rest);
        assert_eq!((result, walker.position()), (Ok(()), end), "page {page}");
        if from <= tail {
            assert_eq!((walker.record_end(), walker.last_record()), (end, Some(tail)));
            assert!(walker.proven_from().is_some_and(|proven| from < proven && proven <= tail));
        } else {
            // Only the rest of a record was seen: counted, not checked.
            assert_eq!((walker.record_end(), walker.last_record()), (from, None));
            assert_eq!(walker.proven_from(), Some(end));
        }
    }
}

#[test]
fn nothing_is_proven_while_a_record_is_skipped() {
    let mut synth = synth(MIB);
    synth.record(&[1; 50_000]);
    let whole = synth.position();
    let (start, mut bytes) = synth.take_bytes();
    let from = start.saturating_add(PAGE);
    let (walker, _) = walk(rules(), from, &bytes[PAGE_SIZE..3 * PAGE_SIZE]);
    assert_eq!((walker.proven_from(), walker.record_end()), (None, from));

    // Torn where nothing is checked: what follows is accepted, and what was skipped is reported.
    bytes[2 * PAGE_SIZE + 1000..2 * PAGE_SIZE + 2000].fill(0);
    synth.record(b"next");
    bytes.extend(synth.take_bytes().1);
    let (walker, result) = walk(rules(), from, &bytes[PAGE_SIZE..]);
    assert_eq!(result, Ok(()));
    assert_eq!(walker.proven_from(), Some(whole));
    assert_eq!(walk(rules(), start, &bytes).1.unwrap_err().kind, FaultKind::Checksum);
}

#[test]
fn walk_from_past_the_beginning_of_a_switch() {
    for back in [8, 16] {
        let mut synth = synth(2 * MIB - 3 * PAGE);
        fill_to(&mut synth, PAGE_SIZE - back);
        synth.switch_segment();
        let (start, bytes) = synth.take_bytes();
        synth.record(b"follows");
        let (_, follows) = synth.take_bytes();

        let segment = &bytes[(2 * MIB - start.raw()) as usize..];
        let (mut walker, result) = walk(rules(), Lsn::new(2 * MIB), segment);
        assert_eq!(result, Ok(()));
        assert_eq!(walker.record_end(), Lsn::new(2 * MIB), "zeros alone prove nothing");
        assert_eq!(walker.position(), Lsn::new(3 * MIB));
        walker.feed(&follows).unwrap();
        assert_eq!(walker.record_end(), synth.position());
    }
}

#[test]
fn records_and_commits_are_counted() {
    let mut synth = synth(MIB);
    for time in [70, 50, 90] {
        synth.commit(7, time);
        // Every third commit or so crosses a page.
        for _ in 0..67 {
            synth.commit(8, 60);
        }
        synth.record(&[0x5A; 9000]);
    }
    let mut walker = walks_to(synth.clone());
    let counted = Tally { records: 3 * 69, commits: 3 * 68, commit_times: Some((50, 90)) };
    assert_eq!(walker.take_tally(), counted);
    assert_eq!(walker.take_tally(), Tally::default());
    synth.take_bytes();
    synth.record(b"no commit");
    let (_, bytes) = synth.take_bytes();
    walker.feed(&bytes).unwrap();
    assert_eq!(walker.take_tally(), Tally { records: 1, ..Tally::default() });
}
