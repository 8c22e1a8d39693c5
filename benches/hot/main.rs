//! The pure pieces that every byte or every message passes, each alone.
//!
//! `cargo bench --bench hot`; one group: `cargo bench --bench hot -- walk`. What they add
//! up to beside PostgreSQL is measured by `perf/`.

mod framing;
mod replies;
mod round;
mod walk;

use criterion::{criterion_group, criterion_main};

criterion_group!(hot, walk::walk, walk::crc, framing::framing, round::round, replies::replies);
criterion_main!(hot);
