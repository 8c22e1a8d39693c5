//! The walk over logs that are valid, damaged, or nonsense: it never panics, its good
//! records never end past what it was fed, and cuts of the input do not matter.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use walhub::wal::synth::Synth;
use walhub::wal::{
    Ancestor, Fork, Lsn, PAGE_SIZE, PageRules, SegmentSize, SystemId, TimelineId, Walker,
};

#[derive(Arbitrary, Debug)]
struct Case {
    /// Pages before the end of segment 1 where the log starts.
    pages_before: u8,
    magic: Magic,
    parts: Vec<Part>,
    /// Timeline walked, and the history that the walk believes in.
    walked: u8,
    believed: Vec<(u8, u32)>,
    /// Added after the log.
    tail: Vec<u8>,
    /// Bytes changed, at positions modulo the length.
    damage: Vec<(u32, u8)>,
    cuts: Vec<u16>,
    /// The walk starts so many pages past the log's start.
    skip: u8,
}

#[derive(Arbitrary, Debug)]
enum Magic {
    Known,
    Unknown,
}

#[derive(Arbitrary, Debug)]
enum Part {
    Record {
        len: u16,
    },
    Long {
        pages: u8,
    },
    Raw {
        rmid: u8,
        info: u8,
        body: Vec<u8>,
    },
    /// A record that ends so many bytes before its page does.
    ToPageEnd {
        short: u8,
    },
    Switch,
    Lost {
        pages: u8,
    },
    Promote,
}

/// Writes a part; returns where it starts.
fn write(synth: &mut Synth, part: &Part, tli: &mut u32, forks: &mut Vec<Ancestor>) -> Lsn {
    match part {
        Part::Record { len } => synth.record(&vec![0x55; usize::from(*len)]),
        Part::Long { pages } => synth.record(&vec![0x66; usize::from(*pages % 160) * PAGE_SIZE]),
        Part::Raw { rmid, info, body } => synth.raw_record(*rmid, *info, body),
        Part::ToPageEnd { short } => {
            let room = PAGE_SIZE - synth.position().page_offset();
            let len = room.saturating_sub((usize::from(*short) & !7) + 24);
            synth.raw_record(10, 0, &vec![0x77; len])
        }
        Part::Switch => synth.switch_segment(),
        Part::Lost { pages } => {
            let pages = u64::from(*pages % 4) + 1;
            let len = (usize::try_from(pages).unwrap() + 1) * PAGE_SIZE;
            synth.lose_record(&vec![0x88; len], pages)
        }
        Part::Promote => {
            let parent = TimelineId::new(*tli).unwrap();
            *tli += 1;
            let end = synth.promote(TimelineId::new(*tli).unwrap());
            forks.push(Ancestor { tli: parent, end });
            end
        }
    }
}

fuzz_target!(|case: Case| {
    let size = SegmentSize::new(1 << 20).unwrap();
    let system = SystemId::new(77);
    let page = PAGE_SIZE as u64;
    let start = Lsn::new((2 << 20) - page * u64::from(case.pages_before % 128));
    let magic = match case.magic {
        Magic::Known => 0xD110,
        Magic::Unknown => 0xD1FF,
    };
    let mut synth = Synth::new(system, size, TimelineId::FIRST, magic, start);
    let (mut tli, mut forks) = (1, Vec::new());
    for part in &case.parts {
        if synth.position().bytes_since(start) > 4 << 20 {
            break;
        }
        write(&mut synth, part, &mut tli, &mut forks);
    }
    let (end, last) = (synth.position(), synth.last_record());
    let (_, mut bytes) = synth.take_bytes();

    // The very log, under its own history. Raw records may be switches without zeros, or
    // strangers past a fork, and those are rightly refused.
    let raw = case.parts.iter().any(|part| matches!(part, Part::Raw { .. }));
    let own = TimelineId::new(tli).unwrap();
    let rules = PageRules { system, size, tli: own, magic: None, fork: Fork::new(&forks) };
    let mut walker = Walker::new(rules.clone(), start);
    let result = walker.feed(&bytes);
    assert!(raw || result.is_ok(), "{result:?}");
    if result.is_ok() {
        assert_eq!((walker.record_end(), walker.position()), (end, end));
        assert_eq!(walker.last_record().unwrap_or_default(), last);
    }

    // Damage, other beliefs, another start.
    bytes.extend_from_slice(&case.tail);
    for (at, value) in &case.damage {
        if let Some(len) = std::num::NonZeroUsize::new(bytes.len()) {
            bytes[*at as usize % len] = *value;
        }
    }
    let mut rules = rules;
    if !case.believed.is_empty() {
        let ancestor = |(tli, at): &(u8, u32)| {
            let end = start.saturating_add(u64::from(*at));
            TimelineId::new(u32::from(*tli)).map(|tli| Ancestor { tli, end })
        };
        let ancestors: Vec<_> = case.believed.iter().filter_map(ancestor).collect();
        rules.fork = Fork::new(&ancestors);
        rules.tli = TimelineId::new(u32::from(case.walked) + 1).unwrap();
    }
    let skipped = (usize::from(case.skip) * PAGE_SIZE).min(bytes.len() / PAGE_SIZE * PAGE_SIZE);
    let from = start.saturating_add(skipped as u64);
    let mut whole = Walker::new(rules.clone(), from);
    let whole_result = whole.feed(&bytes[skipped..]);
    assert!(whole.record_end() <= whole.position());
    assert!(whole.position() <= from.saturating_add((bytes.len() - skipped) as u64));

    let mut pieces = Walker::new(rules, from);
    let mut rest = &bytes[skipped..];
    let mut pieces_result = Ok(());
    let cuts = case.cuts.iter().map(|cut| usize::from(*cut)).chain([usize::MAX]);
    for cut in cuts {
        let (piece, after) = rest.split_at(cut.min(rest.len()));
        pieces_result = pieces.feed(piece);
        if pieces_result.is_err() {
            break;
        }
        rest = after;
    }
    assert_eq!(pieces_result, whole_result);
    assert_eq!(pieces.position(), whole.position());
    assert_eq!(pieces.record_end(), whole.record_end());
    assert_eq!(pieces.last_record(), whole.last_record());
});
