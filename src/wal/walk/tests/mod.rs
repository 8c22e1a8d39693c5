//! The walk against logs that are intact, that end, that are damaged.

mod ends;
mod faults;
mod forks;
mod good;
mod props;

use super::*;
use crate::wal::synth::Synth;
use crate::wal::{Ancestor, Fork, SegmentSize, SystemId, TimelineId};

const SYSTEM: SystemId = SystemId::new(0x6A55_0000_1234_5678);
const MAGIC: u16 = 0xD110;
const MIB: u64 = 1 << 20;
const PAGE: u64 = PAGE_SIZE as u64;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn tli(raw: u32) -> TimelineId {
    TimelineId::new(raw).unwrap()
}

fn rules() -> PageRules {
    PageRules { system: SYSTEM, size: size(), tli: tli(1), magic: None, fork: None }
}

fn rules_on(timeline: u32, ancestors: &[(u32, Lsn)]) -> PageRules {
    let ancestors: Vec<_> =
        ancestors.iter().map(|(raw, end)| Ancestor { tli: tli(*raw), end: *end }).collect();
    PageRules { tli: tli(timeline), fork: Fork::new(&ancestors), ..rules() }
}

fn synth(start: u64) -> Synth {
    Synth::new(SYSTEM, size(), tli(1), MAGIC, Lsn::new(start))
}

/// Fills with records of `len` bytes until the next starts at `page_offset` of some page after the
/// first two.
fn fill_to(synth: &mut Synth, page_offset: usize) {
    let due = synth.position().page_start().raw() + 2 * PAGE + page_offset as u64;
    while synth.position().raw() + 4000 < due {
        synth.raw_record(10, 0, &[0xAB; 576]);
    }
    // The rest, without the page headers in between.
    let mut left = due - synth.position().raw();
    if synth.position().page_start().raw() < due - page_offset as u64 {
        left -= 24;
    }
    synth.raw_record(10, 0, &vec![0xCD; left as usize - 24]);
    assert_eq!(synth.position().page_offset(), page_offset);
}

/// Walks `bytes` in one piece from the first position on.
fn walk(rules: PageRules, start: Lsn, bytes: &[u8]) -> (Walker, Result<(), WalkFault>) {
    let mut walker = Walker::new(rules, start);
    let result = walker.feed(bytes);
    (walker, result)
}

/// The result of a walk, in a form that can be compared.
fn outcome(walker: &Walker) -> (Lsn, Lsn, Option<Lsn>, Tally, Option<WalkFault>) {
    let Walker { notes, fault, .. } = *walker;
    (walker.position(), walker.record_end(), walker.last_record(), notes, fault)
}

/// Walks to the end without a fault.
fn walks_to(mut synth: Synth) -> Walker {
    let (end, last) = (synth.position(), synth.last_record());
    let (start, bytes) = synth.take_bytes();
    let (walker, result) = walk(rules(), start, &bytes);
    assert_eq!(result, Ok(()));
    assert_eq!(outcome(&walker), (end, end, Some(last), walker.notes, None));
    walker
}

/// The fault of a walk over `synth`'s bytes after `damage`, with `record_end`.
fn fault_after(mut synth: Synth, damage: impl FnOnce(&mut Vec<u8>)) -> (WalkFault, Lsn) {
    let (start, mut bytes) = synth.take_bytes();
    damage(&mut bytes);
    let (mut walker, result) = walk(rules(), start, &bytes);
    let fault = result.unwrap_err();
    assert_eq!(walker.position(), walker.record_end(), "falls back to the good records");
    assert_eq!(walker.feed(&[0]), Err(fault), "a walk is over after its fault");
    (fault, walker.record_end())
}
