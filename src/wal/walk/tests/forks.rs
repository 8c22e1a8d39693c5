//! Timelines: the prefix of a parent is walked, its tail is not.

use super::*;
use crate::wal::record::{RM_XLOG, xlog_info};

/// A parent's log, and the same log left after `before` records for timeline 2. Returns
/// parent bytes, child bytes, switchpoint.
fn parent_and_child(before: usize, len: usize) -> (Vec<u8>, Vec<u8>, Lsn, Synth) {
    let mut parent = synth(MIB);
    for _ in 0..before {
        parent.raw_record(10, 0, &vec![1; len - 24]);
    }
    let mut child = parent.clone();
    for _ in 0..300 {
        parent.raw_record(10, 0, &[2; 176]);
    }
    let switchpoint = child.promote(tli(2));
    for _ in 0..300 {
        child.raw_record(10, 0, &[3; 176]);
    }
    let after = child.clone();
    (parent.take_bytes().1, child.take_bytes().1, switchpoint, after)
}

/// Parents, as the number of records before the fork and their length. The switchpoint lies at the
/// start of the log, inside the first page, 152 bytes before its end, in a later page, and on a
/// page boundary.
const PARENTS: [(usize, usize); 5] = [(0, 200), (1, 200), (40, 200), (200, 200), (1, 8152)];

#[test]
fn child_is_walked_from_its_parents_prefix() {
    for (before, len) in PARENTS {
        let (_, child, switchpoint, after) = parent_and_child(before, len);
        let (walker, result) = walk(rules_on(2, &[(1, switchpoint)]), Lsn::new(MIB), &child);
        assert_eq!(result, Ok(()), "{before} records of {len}");
        assert_eq!(walker.record_end(), after.position());
    }
}

#[test]
fn parents_tail_past_the_switchpoint_is_not_taken() {
    // The whole fork segment was copied: addresses, prev-links and checksums are right, and the
    // parent's number stands on pages where it is legal.
    for (before, len) in PARENTS {
        let (parent, _, switchpoint, _) = parent_and_child(before, len);
        let (walker, result) = walk(rules_on(2, &[(1, switchpoint)]), Lsn::new(MIB), &parent);
        let fault = result.unwrap_err();
        assert_eq!(walker.record_end(), switchpoint, "{before} records of {len}: {fault}");
    }
}

#[test]
fn parents_tail_after_the_childs_first_records_is_not_taken() {
    let (parent, child, switchpoint, _) = parent_and_child(50, 200);
    let rules = rules_on(2, &[(1, switchpoint)]);
    let begun = (switchpoint.raw() - MIB) as usize;
    for sector in 1..60 {
        let cut = (begun / 512 + sector) * 512;
        let mixed = [&child[..cut], &parent[cut..]].concat();
        let (walker, result) = walk(rules.clone(), Lsn::new(MIB), &mixed);
        assert!(result.is_err());
        assert!(walker.record_end().raw() <= MIB + cut as u64 + 24, "cut at {cut}");
        let (whole, _) = walk(rules.clone(), Lsn::new(MIB), &child[..cut]);
        assert_eq!(walker.record_end(), whole.record_end(), "cut at {cut}");
    }
}

#[test]
fn record_across_the_switchpoint_is_not_taken() {
    let (parent, ..) = parent_and_child(50, 200);
    // Inside a record of one page, and inside one that continues past the page.
    for switchpoint in [MIB + 40 + 24 + 50 * 200 + 104, MIB + 40 + 40 * 200 + 64] {
        let rules = rules_on(2, &[(1, Lsn::new(switchpoint))]);
        let (walker, result) = walk(rules, Lsn::new(MIB), &parent);
        assert!(result.is_err());
        assert!(walker.record_end().raw() <= switchpoint);
    }
}

#[test]
fn pages_of_the_wrong_generation_are_refused() {
    let mut synth = synth(MIB);
    fill_to(&mut synth, 400);
    let first = synth.promote(tli(2));
    fill_to(&mut synth, 800);
    let second = synth.promote(tli(5));
    fill_to(&mut synth, 80);
    let (start, bytes) = synth.take_bytes();
    let good = rules_on(5, &[(1, first), (2, second)]);
    assert_eq!(walk(good, start, &bytes).1, Ok(()));
    // A parent whose own history is gone.
    let short = rules_on(5, &[(2, second)]);
    assert_eq!(walk(short, start, &bytes).1, Ok(()));
    // Not the histories that wrote it.
    for (own, ancestors) in [
        (5, vec![(1, second)]),
        (5, vec![(1, first), (3, second)]),
        (5, vec![(1, second), (2, second)]),
        (2, vec![(1, first)]),
        (6, vec![(1, first), (2, second)]),
        (5, vec![(1, first), (2, second.saturating_add(2 * PAGE))]),
        (5, vec![]),
    ] {
        let result = walk(rules_on(own, &ancestors), start, &bytes).1;
        assert!(result.is_err(), "timeline {own} {ancestors:?}");
    }
}

#[test]
fn full_page_writes_may_be_told_before_the_timeline() {
    let mut parent = synth(MIB);
    parent.record(b"parent");
    let mut child = parent.clone();
    let switchpoint = child.position();
    child.raw_record(RM_XLOG, xlog_info::FPW_CHANGE, &[255, 1, 1]);
    let mut stranger = child.clone();
    child.promote(tli(2));
    stranger.promote(tli(3));
    for (mut synth, good) in [(child, true), (stranger, false)] {
        let rules = rules_on(2, &[(1, switchpoint)]);
        let (start, bytes) = synth.take_bytes();
        assert_eq!(walk(rules, start, &bytes).1.is_ok(), good);
    }
}

#[test]
fn servers_we_do_not_know_may_open_a_timeline_as_they_like() {
    let mut synth = Synth::new(SYSTEM, size(), tli(1), 0xD120, Lsn::new(MIB));
    synth.record(b"parent");
    let switchpoint = synth.position();
    synth.record(b"child");
    let (start, bytes) = synth.take_bytes();
    let rules = rules_on(2, &[(1, switchpoint)]);
    assert_eq!(walk(rules, start, &bytes).1, Ok(()));
}
