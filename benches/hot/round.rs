//! Who is due, asked anew for every commit.

use criterion::{BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use walhub::fanout::Cursor;
use walhub::fanout::round::Round;
use walhub::wal::Lsn;

pub(crate) fn round(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round");
    let limit = Lsn::new(1 << 32);
    for standbys in [200u32, 2000] {
        // One in ten is far behind.
        let behind = |standby: u32| if standby.is_multiple_of(10) { 64 << 20 } else { 300 };
        let cursors: Vec<Cursor> = (0..standbys)
            .map(|standby| Cursor::new(limit.saturating_sub(behind(standby))))
            .collect();
        group.throughput(Throughput::Elements(u64::from(standbys)));
        let id = BenchmarkId::from_parameter(standbys);
        group.bench_with_input(id, &cursors, |bencher, cursors| {
            let mut round = Round::default();
            bencher.iter(|| {
                round.begin();
                for (standby, cursor) in cursors.iter().enumerate() {
                    let next = cursor.next();
                    if next < limit {
                        round.note(standby as u32, next, limit);
                    }
                }
                black_box(round.live().chain(round.laggards()).map(u64::from).sum::<u64>())
            });
        });
    }
    group.finish();
}
