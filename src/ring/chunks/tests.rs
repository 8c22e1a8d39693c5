//! The chunk cache: on one thread against a model, and on several threads against known bytes.

use super::*;
use crate::wal::TimelineId;
use crate::watermark;
use proptest::prelude::*;
use std::collections::HashMap;
use std::time::{Duration, Instant};

const MIB: usize = CHUNK_SIZE;

fn cell() -> CellId {
    watermark::Cell::new(TimelineId::FIRST, Lsn::INVALID, Lsn::INVALID).id()
}

fn lsn(at: usize) -> Lsn {
    Lsn::new(at as u64)
}

/// Bytes that show their position, and which edition of it they are.
fn wal(at: usize, len: usize, edition: u64) -> Vec<u8> {
    let word = |place: usize| {
        let number = (place as u64).wrapping_add(edition << 40);
        (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 0x0101_0101_0101_0101).to_le_bytes()
    };
    let words: Vec<[u8; 8]> = (at / 8..(at + len).div_ceil(8)).map(word).collect();
    words.as_flattened()[at % 8..at % 8 + len].to_vec()
}

/// Four chunks and four spare ones, opened at `at` with the right prefix.
fn opened(at: usize) -> (ChunkWriter, ChunkReader, CellId) {
    let (mut writer, mut readers) = chunks(4 * MIB, 1).unwrap();
    let cell = cell();
    let start = at - at % MIB;
    writer.open(cell, lsn(at), &wal(start, at - start, 0)).unwrap();
    (writer, readers.remove(0), cell)
}

fn append(writer: &mut ChunkWriter, len: usize, edition: u64) -> usize {
    let at = writer.filled().raw() as usize;
    writer.append(&wal(at, len, edition))
}

#[test]
fn the_rest_of_a_short_write_may_be_zeros() {
    let (mut writer, _reader, _) = opened(MIB);
    append(&mut writer, 100, 0);
    let rest = writer.range(lsn(MIB + 4096), lsn(MIB + PAGE_SIZE));
    assert_eq!(rest.to_vec(), [0; PAGE_SIZE - 4096]);
    let (from, to) = (lsn(MIB + 90), lsn(MIB + PAGE_SIZE));
    assert_eq!(writer.range(from, to).to_vec()[..10], wal(MIB, 100, 0)[90..]);
}

#[test]
fn wraps_around_and_forgets_the_oldest() {
    let (mut writer, reader, cell) = opened(3 * MIB + 5000);
    for _ in 0..120 {
        assert_eq!(append(&mut writer, 300_000, 0), 300_000);
        writer.durable(writer.filled());
    }
    let end = 3 * MIB + 5000 + 120 * 300_000;
    assert_eq!(writer.filled(), lsn(end));
    let pin = reader.pin();
    let newest = end - end % MIB;
    for start in (0..end).step_by(MIB) {
        let found = pin.bytes(cell, lsn(start), usize::MAX);
        assert_eq!(found.is_some(), start > newest - 4 * MIB, "{start}");
        if let Some(bytes) = found {
            assert_eq!(bytes.len(), MIB.min(end - start));
            assert!(bytes == wal(start, bytes.len(), 0));
        }
    }
    assert_eq!(pin.bytes(cell, lsn(end - 3), 100).map(<[u8]>::len), Some(3));
    assert_eq!(pin.bytes(cell, lsn(end), 100), None);
}

#[test]
fn the_prefix_belongs_to_the_cache() {
    let (writer, reader, cell) = opened(MIB + 700);
    let pin = reader.pin();
    assert!(pin.bytes(cell, lsn(MIB + 1), 10).unwrap() == wal(MIB + 1, 10, 0));
    assert_eq!(pin.bytes(cell, lsn(MIB + 700), 10), None);
    assert_eq!(writer.peek(lsn(MIB + 690), 100).map(<[u8]>::len), Some(10));
    let (page, tail) = (lsn(MIB), writer.range(lsn(MIB), lsn(MIB + PAGE_SIZE)).to_vec());
    assert_eq!(page.page_start(), page);
    assert!(tail[..700] == wal(MIB, 700, 0) && tail[700..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_is_not_durable_is_not_reused() {
    let (mut writer, reader, cell) = opened(0);
    assert_eq!(append(&mut writer, 9 * MIB, 0), 8 * MIB);
    assert_eq!(append(&mut writer, 1, 0), 0);
    writer.durable(lsn(2 * MIB - 1));
    assert_eq!(append(&mut writer, 9 * MIB, 0), MIB);
    writer.durable(lsn(9 * MIB));
    assert_eq!(append(&mut writer, 9 * MIB, 0), 8 * MIB);
    assert!(reader.pin().bytes(cell, lsn(9 * MIB), 100).unwrap() == wal(9 * MIB, 100, 0));
}

#[test]
fn what_is_pinned_is_not_reused() {
    let (mut writer, reader, cell) = opened(0);
    assert_eq!(append(&mut writer, 2 * MIB, 0), 2 * MIB);
    writer.durable(writer.filled());
    let pin = reader.pin();
    let bytes = pin.bytes(cell, lsn(MIB), MIB).unwrap();
    let nested = reader.pin();
    assert!(nested.bytes(cell, lsn(MIB + 9), 1).is_some());
    drop(nested);
    let mut taken = 0;
    for _ in 0..20 {
        taken += append(&mut writer, MIB, 0);
        writer.durable(writer.filled());
    }
    // The buffer of the first chunk, and the six that were free.
    assert_eq!(taken, 7 * MIB);
    assert!(bytes == wal(MIB, MIB, 0));
    // It was retired: no reader finds it again.
    assert_eq!(pin.bytes(cell, lsn(MIB), MIB), None);
    drop(pin);
    assert_eq!(append(&mut writer, MIB, 0), MIB);
}

#[test]
fn what_a_write_in_flight_uses_is_not_reused() {
    let (mut writer, _reader, _cell) = opened(0);
    append(&mut writer, MIB / 2, 0);
    let range = writer.range(lsn(8192), lsn(16_384));
    for _ in 0..20 {
        append(&mut writer, MIB, 0);
        writer.durable(writer.filled());
    }
    assert_eq!(writer.filled(), lsn(20 * MIB + MIB / 2));
    assert!(range.to_vec() == wal(8192, 8192, 0));
}

#[test]
fn a_rewind_goes_on_in_a_fresh_chunk() {
    let (mut writer, reader, cell) = opened(0);
    append(&mut writer, MIB + 500_000, 0);
    writer.durable(lsn(MIB + 100));
    let pin = reader.pin();
    let seen = pin.bytes(cell, lsn(MIB), MIB).unwrap();
    assert_eq!(seen.len(), 500_000);
    writer.rewind(lsn(MIB + 300_000));
    // Once more, before any bytes follow.
    writer.rewind(lsn(MIB + 5000));
    assert_eq!(writer.filled(), lsn(MIB + 5000));
    assert!(writer.peek(lsn(MIB + 4990), 100).unwrap() == wal(MIB + 4990, 10, 0));
    assert_eq!(append(&mut writer, 1000, 1), 1000);
    // The reader's bytes have not changed.
    assert!(seen == wal(MIB, 500_000, 0));
    let again = pin.bytes(cell, lsn(MIB), MIB).unwrap();
    assert!(again[..5000] == wal(MIB, 5000, 0) && again[5000..] == wal(MIB + 5000, 1000, 1));
    // Forgotten bytes do not appear in the tail of the page.
    let page = writer.range(lsn(MIB), lsn(MIB + PAGE_SIZE)).to_vec();
    assert!(page[..6000] == again[..6000] && page[6000..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_rewind_reaches_over_chunks_and_to_their_edges() {
    let (mut writer, reader, cell) = opened(0);
    append(&mut writer, 5 * MIB + 10, 0);
    writer.durable(lsn(MIB));
    writer.rewind(lsn(5 * MIB + 4));
    writer.rewind(lsn(2 * MIB + 10));
    writer.rewind(lsn(2 * MIB));
    assert_eq!(writer.peek(lsn(2 * MIB), 1), None);
    assert_eq!(reader.pin().bytes(cell, lsn(3 * MIB), 1), None);
    assert_eq!(append(&mut writer, 9 * MIB, 2), 7 * MIB);
    let pin = reader.pin();
    assert!(pin.bytes(cell, lsn(2 * MIB - 9), 20).unwrap() == wal(2 * MIB - 9, 9, 0));
    assert!(pin.bytes(cell, lsn(2 * MIB), MIB).unwrap() == wal(2 * MIB, MIB, 2));
}

#[test]
fn a_rewind_needs_no_free_buffer() {
    let (mut writer, reader, cell) = opened(0);
    assert_eq!(append(&mut writer, 9 * MIB, 0), 8 * MIB);
    let held: Vec<_> = (0..8).map(|n| writer.range(lsn(n * MIB), lsn((n + 1) * MIB))).collect();
    writer.rewind(lsn(7 * MIB + 100));
    assert_eq!(append(&mut writer, 10, 1), 0);
    assert_eq!(writer.peek(lsn(7 * MIB), 1000).map(<[u8]>::len), Some(100));
    assert_eq!(reader.pin().bytes(cell, lsn(7 * MIB), 1), None);
    drop(held);
    writer.durable(lsn(MIB));
    assert_eq!(append(&mut writer, 10, 1), 10);
    let pin = reader.pin();
    let bytes = pin.bytes(cell, lsn(7 * MIB), MIB).unwrap();
    assert!(bytes[..100] == wal(7 * MIB, 100, 0) && bytes[100..] == wal(7 * MIB + 100, 10, 1));
}

#[test]
fn a_new_timeline_has_chunks_of_its_own() {
    let (mut writer, reader, old) = opened(0);
    append(&mut writer, 2 * MIB + 9000, 0);
    writer.durable(lsn(2 * MIB + 8192));
    let (fork, new) = (2 * MIB + 5000, cell());
    writer.open(new, lsn(fork), &wal(2 * MIB, 5000, 0)).unwrap();
    append(&mut writer, 2000, 1);
    let pin = reader.pin();
    assert!(pin.bytes(old, lsn(2 * MIB), MIB).unwrap() == wal(2 * MIB, 9000, 0));
    assert!(pin.bytes(new, lsn(fork), MIB).unwrap() == wal(fork, 2000, 1));
    assert_eq!(pin.bytes(new, lsn(MIB), MIB), None);
    assert_eq!(writer.peek(lsn(MIB), 1), None);
    drop(pin);
    // Chunks of the old cell are reusable, whether durable or not.
    assert_eq!(append(&mut writer, 9 * MIB, 1), 8 * MIB - 7000);
}

#[test]
fn opening_again_forgets_what_was_past_it() {
    let (mut writer, reader, cell) = opened(0);
    append(&mut writer, 3 * MIB, 0);
    writer.open(cell, lsn(MIB + 50), &wal(MIB, 50, 0)).unwrap();
    assert_eq!(writer.filled(), lsn(MIB + 50));
    let pin = reader.pin();
    assert!(pin.bytes(cell, lsn(2 * MIB), 1).is_none());
    assert_eq!(pin.bytes(cell, lsn(MIB), MIB).map(<[u8]>::len), Some(50));
    assert_eq!(pin.bytes(cell, lsn(0), usize::MAX).map(<[u8]>::len), Some(MIB));
    append(&mut writer, 2 * MIB, 4);
    assert!(pin.bytes(cell, lsn(2 * MIB), MIB).unwrap() == wal(2 * MIB, MIB, 4));
}

#[test]
fn opening_is_refused_while_all_buffers_are_pinned() {
    let (mut writer, reader, first) = opened(0);
    append(&mut writer, 8 * MIB, 0);
    let pin = reader.pin();
    assert!(pin.bytes(first, lsn(0), 1).is_some());
    let next = cell();
    assert_eq!(writer.open(next, lsn(9), &wal(0, 9, 0)), Err(Full));
    assert_eq!(writer.filled(), Lsn::INVALID);
    drop(pin);
    assert_eq!(writer.open(next, lsn(9), &wal(0, 9, 0)), Ok(()));
    assert_eq!(append(&mut writer, 5, 0), 5);
}

#[test]
fn past_the_fill_mark_a_page_is_zero_in_used_buffers_too() {
    let (mut writer, _reader, _cell) = opened(0);
    for _ in 0..12 {
        append(&mut writer, MIB, 0);
        writer.durable(writer.filled());
    }
    let check = |writer: &ChunkWriter, edition| {
        let (last, page) = (writer.filled().saturating_sub(1), PAGE_SIZE as u64);
        let range = writer.range(last.page_start(), last.page_start().saturating_add(page));
        let (bytes, fill) = (range.to_vec(), last.page_offset() + 1);
        assert!(bytes[fill..].iter().all(|byte| *byte == 0), "past {last}");
        assert_eq!(bytes[fill - 1..fill], wal(last.raw() as usize, 1, edition));
    };
    for len in [1, 100, 8000, 91, 1, 8192, 5000, 700_000] {
        append(&mut writer, len, 0);
        check(&writer, 0);
    }
    writer.rewind(writer.filled().saturating_sub(3000));
    append(&mut writer, 10, 1);
    check(&writer, 1);
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    /// A fraction, in 255ths, of what is not durable; the other steps take fractions too.
    Durable(u8),
    Rewind(u8),
    NewCell(u8),
    Write(u8),
    Written,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1usize..700_000).prop_map(Step::Append),
        2 => (1usize..20_000).prop_map(Step::Append),
        6 => any::<u8>().prop_map(Step::Durable),
        2 => any::<u8>().prop_map(Step::Rewind),
        1 => any::<u8>().prop_map(Step::NewCell),
        2 => any::<u8>().prop_map(Step::Write),
        3 => Just(Step::Written),
    ]
}

/// Slices that a reader holds, with their initial content.
type Seen<'a> = Vec<(&'a [u8], Vec<u8>)>;

/// The cache, and its expected content.
struct World {
    writer: ChunkWriter,
    here: CellId,
    /// The current WAL of each cell, from position 0.
    wal: HashMap<CellId, Vec<u8>>,
    durable: usize,
    edition: u64,
    writes: Vec<(ChunkRange, Vec<u8>)>,
}

impl World {
    fn new(writer: ChunkWriter, here: CellId) -> Self {
        let wal = HashMap::from([(here, Vec::new())]);
        Self { writer, here, wal, durable: 0, edition: 0, writes: Vec::new() }
    }

    fn step(&mut self, step: Step, is_pinned: bool) -> Result<(), TestCaseError> {
        let Self { writer, here, wal: cells, durable, edition, writes } = self;
        let wal = cells.get_mut(here).unwrap();
        let part = |of: u8| *durable + (wal.len() - *durable) * usize::from(of) / 255;
        let may_be_full = is_pinned || !writes.is_empty();
        match step {
            Step::Append(len) => {
                let bytes = super::tests::wal(wal.len(), len, *edition);
                let taken = writer.append(&bytes);
                wal.extend_from_slice(&bytes[..taken]);
                prop_assert!(taken == len || may_be_full || wal.len() - *durable >= 4 * MIB);
            }
            Step::Durable(share) => {
                *durable = part(share);
                writer.durable(lsn(*durable));
            }
            Step::Rewind(share) => {
                wal.truncate(part(share));
                writer.rewind(lsn(wal.len()));
                *edition += 1;
            }
            Step::NewCell(share) => {
                let fork = part(share);
                let beginning = wal[..fork].to_vec();
                *here = cell();
                *durable = fork;
                *edition += 1;
                let prefix = beginning[fork - fork % MIB..].to_vec();
                cells.insert(*here, beginning);
                while writer.open(*here, lsn(fork), &prefix).is_err() {
                    prop_assert!(!writes.is_empty() || is_pinned);
                    writes.clear();
                    if is_pinned {
                        return Err(TestCaseError::reject("the reader must go first"));
                    }
                }
            }
            Step::Write(share) => {
                let from = part(share);
                if from < wal.len() {
                    let edge = (from - from % MIB + MIB).min(wal.len());
                    writes.push((writer.range(lsn(from), lsn(edge)), wal[from..edge].to_vec()));
                }
            }
            Step::Written => writes.clear(),
        }
        self.check()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let (wal, durable) = (&self.wal[&self.here], self.durable);
        prop_assert_eq!(self.writer.filled(), lsn(wal.len()));
        if durable < wal.len() {
            let edge = (durable - durable % MIB + MIB).min(wal.len());
            let peeked = self.writer.peek(lsn(durable), usize::MAX);
            prop_assert!(peeked == Some(&wal[durable..edge]));
        }
        for (range, bytes) in &self.writes {
            prop_assert!(range.to_vec() == *bytes);
        }
        Ok(())
    }

    /// Reads and checks everything cached. Returns it with a copy, to compare again later.
    fn read<'a>(&self, pin: &'a Pin<'_>) -> Result<Seen<'a>, TestCaseError> {
        let mut seen = Vec::new();
        for (cell, wal) in &self.wal {
            for at in (0..wal.len()).step_by(MIB).flat_map(|start| [start, start + 4097]) {
                if let Some(bytes) = pin.bytes(*cell, lsn(at), usize::MAX) {
                    prop_assert!(wal.get(at..at + bytes.len()) == Some(bytes), "{cell:?} at {at}");
                    seen.push((bytes, bytes.to_vec()));
                }
            }
        }
        Ok(seen)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_plain_vector(
        stretches in prop::collection::vec((any::<bool>(), prop::collection::vec(step(), 1..16)), 1..6),
    ) {
        let (writer, reader, here) = opened(0);
        let mut world = World::new(writer, here);
        for (is_pinned, steps) in stretches {
            let pin = is_pinned.then(|| reader.pin());
            let seen = pin.as_ref().map(|pin| world.read(pin)).transpose()?;
            for step in steps {
                world.step(step, is_pinned)?;
                if !is_pinned {
                    world.read(&reader.pin())?;
                }
            }
            prop_assert!(seen.iter().flatten().all(|(now, then)| now == then));
        }
        drop(reader.pin());
        world.read(&reader.pin())?;
    }
}

#[test]
fn readers_on_other_threads_see_whole_bytes_only() {
    let (mut writer, readers) = chunks(0, 2).unwrap();
    let id = cell();
    writer.open(id, lsn(0), &[]).unwrap();
    let published = Arc::new(watermark::Cell::new(TimelineId::FIRST, lsn(0), lsn(0)));
    // Long enough to compare a byte of every position.
    let truth: Arc<Vec<u8>> = Arc::new(wal(0, 3 * MIB + 12_345, 0));
    let end = Instant::now() + Duration::from_millis(700);
    let threads: Vec<_> = readers
        .into_iter()
        .enumerate()
        .map(|(core, reader)| {
            let (published, truth) = (Arc::clone(&published), Arc::clone(&truth));
            std::thread::spawn(move || {
                let (mut hits, mut lag) = (0u64, 0);
                while Instant::now() < end {
                    let limit = published.limit().raw() as usize;
                    lag = (lag + 77_777) % (6 * MIB);
                    // One reader stays at the tip, the other moves behind it.
                    let at = limit.saturating_sub(if core == 0 { 5000 } else { lag });
                    let pin = reader.pin();
                    if let Some(bytes) = pin.bytes(id, lsn(at), (limit - at).min(9000)) {
                        hits += 1;
                        let place = at % truth.len();
                        let known = bytes.len().min(truth.len() - place);
                        assert!(bytes[..known] == truth[place..place + known], "at {at}");
                    }
                }
                hits
            })
        })
        .collect();
    let mut at = 0;
    while Instant::now() < end {
        let place = at % truth.len();
        let len = (1 + at % 70_001).min(truth.len() - place);
        let taken = writer.append(&truth[place..place + len]);
        at += taken;
        writer.durable(lsn(at));
        published.publish(lsn(at));
    }
    let hits: Vec<u64> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(hits.iter().all(|hits| *hits > 100) && at > 20 * MIB, "{hits:?} {at}");
}
