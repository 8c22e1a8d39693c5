//! What standbys say: as often as they are sent something.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use std::time::{Duration, Instant};
use walhub::standby::stream::Talk;
use walhub::wal::Lsn;
use walhub::wire::copy::{ReplyRequest, StatusReply};
use walhub::wire::time::PgTime;

pub(crate) fn replies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replies");
    let reply = |at: u64| StatusReply {
        write: Lsn::new(at),
        flush: Lsn::new(at),
        apply: Lsn::new(at),
        client_time: PgTime::new(0),
        reply: ReplyRequest::No,
    };
    // What one receive finds: one, or a walreceiver's two for a batch.
    for count in [1u64, 2] {
        let bytes: Vec<u8> = (0..count).flat_map(|at| reply(at).encode()).collect();
        group.throughput(Throughput::Elements(count));
        group.bench_with_input(BenchmarkId::new("whole", count), &bytes, |bencher, bytes| {
            let now = Instant::now();
            let mut talk = Talk::new(now, Duration::from_secs(60));
            bencher.iter(|| black_box(talk.hear(black_box(bytes), now)));
        });
    }
    let bytes = reply(7).encode();
    group.bench_function("torn", |bencher| {
        let now = Instant::now();
        bencher.iter_batched(
            || Talk::new(now, Duration::from_secs(60)),
            |mut talk| {
                black_box(talk.hear(black_box(&bytes[..20]), now));
                black_box(talk.hear(black_box(&bytes[20..]), now));
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}
