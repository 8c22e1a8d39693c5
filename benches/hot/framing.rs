//! How a range becomes messages: once for all standbys at the same place.

use criterion::{BenchmarkId, Criterion};
use std::hint::black_box;
use std::time::SystemTime;
use walhub::fanout::message::cut;
use walhub::wal::Lsn;
use walhub::wire::copy::xlog_data_header;
use walhub::wire::time::PgTime;

pub(crate) fn framing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("framing");
    let from = Lsn::new(0x3000_0028);
    let now = PgTime::from(SystemTime::UNIX_EPOCH);
    // A commit, a page, what one send may carry.
    for len in [300u64, 8192, 256 << 10] {
        group.bench_with_input(BenchmarkId::from_parameter(len), &len, |bencher, len| {
            let to = from.saturating_add(*len);
            let mut headers = Vec::with_capacity(8);
            bencher.iter(|| {
                headers.clear();
                for message in cut(black_box(from), black_box(to), 256 << 10) {
                    headers.push(xlog_data_header(message.start, to, now, message.wal_len()));
                }
                black_box(headers.len())
            });
        });
    }
    group.finish();
}
