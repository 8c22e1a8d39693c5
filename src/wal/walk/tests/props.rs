//! Random logs, cuts and damage.

use super::*;
use proptest::prelude::*;

/// What a random log is made of.
#[derive(Clone, Debug)]
enum Part {
    Record(usize),
    Commit(i64),
    Switch,
    Lost(usize),
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let len = prop_oneof![
        4 => 0usize..300,
        2 => 7000usize..9000,
        1 => 9000usize..60_000,
    ];
    let part = prop_oneof![
        12 => len.prop_map(Part::Record),
        4 => any::<i64>().prop_map(Part::Commit),
        1 => Just(Part::Switch),
        1 => (9000usize..30_000).prop_map(Part::Lost),
    ];
    proptest::collection::vec(part, 1..40)
}

fn write(start: u64, parts: &[Part]) -> Synth {
    let mut synth = synth(start);
    for (at, part) in parts.iter().enumerate() {
        let fill = |len: usize| (0..len).map(|byte| (byte * 7 + at) as u8).collect::<Vec<_>>();
        match part {
            Part::Record(len) => drop(synth.record(&fill(*len))),
            Part::Commit(time) => drop(synth.commit(7, *time)),
            Part::Switch => drop(synth.switch_segment()),
            Part::Lost(len) => drop(synth.lose_record(&fill(*len), 1)),
        }
    }
    synth
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn synth_walks_to_its_end(parts in parts(), back in 1u64..4) {
        walks_to(write(2 * MIB - back * PAGE, &parts));
    }

    /// However the input is cut, good or damaged, the walk comes to the same end.
    #[test]
    fn cuts_do_not_matter(
        parts in parts(),
        cuts in proptest::collection::vec(1usize..5000, 1..50),
        damage in proptest::option::of((any::<prop::sample::Index>(), 1u8..)),
        tail in 0usize..9000,
    ) {
        let (start, mut bytes) = write(2 * MIB - 2 * PAGE, &parts).take_bytes();
        if let Some((byte, flip)) = damage {
            let at = byte.index(bytes.len());
            bytes[at] ^= flip;
        }
        bytes.resize(bytes.len() + tail, 0);
        let (whole, _) = walk(rules(), start, &bytes);
        let mut pieces = Walker::new(rules(), start);
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() || pieces.feed(&rest[..(*cut).min(rest.len())]).is_err() {
                break;
            }
            rest = &rest[(*cut).min(rest.len())..];
        }
        prop_assert_eq!(outcome(&pieces), outcome(&whole));
    }

    /// Byte by byte around the end of a page, where everything is split.
    #[test]
    fn single_bytes_do_not_matter(parts in parts()) {
        let (start, bytes) = write(2 * MIB - PAGE, &parts).take_bytes();
        let bytes = &bytes[..bytes.len().min(40_000)];
        let (whole, _) = walk(rules(), start, bytes);
        let mut pieces = Walker::new(rules(), start);
        for byte in bytes {
            pieces.feed(std::slice::from_ref(byte)).unwrap();
        }
        prop_assert_eq!(outcome(&pieces), outcome(&whole));
    }

    /// A changed byte of a record ends the walk at that record, never past it. (The padding after a
    /// record carries nothing and is not checked.)
    #[test]
    fn a_changed_byte_is_caught_at_its_record(
        lens in proptest::collection::vec(prop_oneof![3 => 0usize..400, 1 => 7000usize..20_000], 2..20),
        victim in any::<prop::sample::Index>(),
        byte in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let mut synth = synth(MIB);
        let records: Vec<(Lsn, Lsn, u64)> = lens
            .iter()
            .map(|len| {
                let before = synth.position();
                let start = synth.raw_record(10, 0, &vec![0x33; *len]);
                (before, start, *len as u64 + 24)
            })
            .collect();
        let (first, mut bytes) = synth.take_bytes();
        let (before, start, len) = records[victim.index(records.len())];
        // The byte-th byte of the record, not counting page headers.
        let mut at = start;
        for _ in 0..byte.index(len as usize) {
            at = at.saturating_add(1);
            if at.page_offset() == 0 {
                at = at.saturating_add(24);
            }
        }
        bytes[at.bytes_since(first) as usize] ^= flip;
        let (walker, result) = walk(rules(), first, &bytes);
        prop_assert!(walker.record_end() == before, "{} for {before}", walker.record_end());
        // A length that grew may ask for more than there is: there is no fault yet.
        if let Err(fault) = result {
            prop_assert_eq!(fault.at, start);
        }
    }

    /// Whatever the bytes are, nothing panics, and the good records end before what was fed.
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..20_000), page in 0u64..200) {
        let start = Lsn::new(MIB + page * PAGE);
        let (walker, _) = walk(rules(), start, &bytes);
        prop_assert!(walker.record_end() <= walker.position());
        prop_assert!(walker.position() <= start.saturating_add(bytes.len() as u64));
    }
}
