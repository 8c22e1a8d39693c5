//! A report for the tests of all its forms.

use super::*;
use hdrhistogram::Histogram;

/// From a tenth of a millisecond to a few milliseconds, with a tail.
pub(in crate::bench) fn histogram(scale: u64) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
    for n in 1..=10_000u64 {
        let tail = if n % 1000 == 0 { 20 } else { 1 };
        histogram.record((100_000 + n * 50) * scale * tail).unwrap();
    }
    histogram
}

pub(in crate::bench) fn report() -> RunReport {
    let memory = |private: u64| Memory { processes: 1, private, pss: private, tcp: 1 << 20 };
    let seconds = 10.0;
    let delivered = (50 * 500) << 20;
    RunReport {
        version: VERSION,
        walhub: "0.1.0".to_owned(),
        date: "2026-11-22T10:00:00Z".to_owned(),
        machine: Machine {
            kernel: "6.18.44".to_owned(),
            cpu: "A processor <fast>".to_owned(),
            cpus: 2,
            memory: 24 << 30,
            congestion_control: "bbr".to_owned(),
            load_average: "0.10 0.20 0.30".to_owned(),
        },
        plan: PlanReport {
            mode: Mode::Live,
            server: "walhub 0.1.0, a process of this run".to_owned(),
            load: "custom: 50MB/s in commits of 8kB".to_owned(),
            standbys: 50,
            behaviours: vec!["1 stalled".to_owned()],
            verify: "full".to_owned(),
            replies: "flush".to_owned(),
            threads: 1,
            arguments: vec!["run".to_owned(), "--rate=50MB".to_owned()],
        },
        verdict: Verdict {
            received_bytes: delivered + 1000,
            verified_bytes: delivered + 1000,
            unverified: Vec::new(),
            ..Verdict::default()
        },
        results: Results {
            seconds,
            wal_bytes: 500 << 20,
            commits: 64_000,
            delivered_bytes: delivered,
            deliveries: 3_200_000,
            messages: 900_000,
            replies: 1_800_000,
            generator_late: 1_200_000,
            each: (&histogram(2)).into(),
            first: (&histogram(1)).into(),
            last: (&histogram(3)).into(),
            connect: (&histogram(5)).into(),
            all_streaming: Some(0.05),
            storms: vec![Some(0.2)],
            groups: vec![GroupReport {
                name: "good".to_owned(),
                standbys: 50,
                bytes: delivered,
                messages: 900_000,
                replies: 1_800_000,
                reconnects: 0,
                each: (&histogram(2)).into(),
            }],
            cpu: Some(CpuReport::new(5.0, seconds, delivered, 3_200_000, 900_000)),
            memory: Some(MemoryReport {
                before: Some(memory(70 << 20)),
                streaming: memory(71 << 20),
                end: memory(72 << 20),
                tcp_most: 9 << 20,
            }),
            ..Results::default()
        },
        series: (0..=50u64)
            .map(|n| Sample {
                at: n as f64 / 4.0 - 2.0,
                wal_bytes: (n * 12) << 20,
                delivered_bytes: (n * 50 * 12) << 20,
                lag_last: (n % 7) * 9000,
                lag_median: (n % 3) * 4000,
                streaming: 50,
                cpu: Some(n as f64 / 8.0),
            })
            .collect(),
    }
}
