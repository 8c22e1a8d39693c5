//! What receiving does with each byte: pages, records, checksums, links.

use criterion::{BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use walhub::wal::page::PageRules;
use walhub::wal::synth::Synth;
use walhub::wal::walk::Walker;
use walhub::wal::{Lsn, SegmentSize, SystemId, TimelineId};

const SYSTEM: SystemId = SystemId::new(0x6a55_0000_1234_5678);
const MAGIC: u16 = 0xd110;
const START: Lsn = Lsn::new(16 << 20);
const BYTES: usize = 4 << 20;
/// What arrives at once: a commit, a message of PostgreSQL's.
const PIECES: [usize; 2] = [400, 128 << 10];

fn size() -> SegmentSize {
    SegmentSize::new(16 << 20).expect("16 MiB is a segment size")
}

/// Records of `len` bytes, some MiB of them.
fn wal(len: usize) -> Vec<u8> {
    let mut synth = Synth::new(SYSTEM, size(), TimelineId::FIRST, MAGIC, START);
    let payload: Vec<u8> = (0..len).map(|n| (n * 31) as u8).collect();
    while synth.position().bytes_since(START) < BYTES as u64 {
        synth.record(&payload);
    }
    synth.take_bytes().1
}

pub(crate) fn walk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("walk");
    for len in [60, 200, 8192] {
        let wal = wal(len);
        group.throughput(Throughput::Bytes(wal.len() as u64));
        for piece in PIECES {
            let id = BenchmarkId::new(format!("records of {len}"), format!("pieces of {piece}"));
            group.bench_with_input(id, &wal, |bencher, wal| {
                bencher.iter(|| {
                    let rules = PageRules {
                        system: SYSTEM,
                        size: size(),
                        tli: TimelineId::FIRST,
                        magic: None,
                        fork: None,
                    };
                    let mut walker = Walker::new(rules, START);
                    for piece in wal.chunks(piece) {
                        walker.feed(piece).expect("the WAL is good");
                    }
                    black_box(walker.record_end())
                });
            });
        }
    }
    group.finish();
}

/// The checksums alone: no walk is faster.
pub(crate) fn crc(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crc32c");
    for len in [60, 200, 8192] {
        let bytes = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::from_parameter(len), &bytes, |bencher, bytes| {
            bencher.iter(|| crc32c::crc32c(black_box(bytes)));
        });
    }
    group.finish();
}
