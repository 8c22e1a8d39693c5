//! The loads that both binaries get. No PostgreSQL is in them: the primary is synthetic.

use crate::fault::{During, Outcome};
use std::time::Duration;
use walhub::bench::profile::{CommitSize, Figures, Load, Profile, Rate};
use walhub::bench::report::RunReport;
use walhub::bench::run::{FleetOptions, Starts, Work};
use walhub::bench::standbys::{Behaviours, Replies, StandbySlots, Verify};

/// What one run of one binary does.
pub(super) struct Trial {
    pub(super) load: Load,
    pub(super) fleet: FleetOptions,
    pub(super) work: Work,
}

/// A figure of a run; less is better.
pub(super) struct Measure {
    pub(super) name: &'static str,
    pub(super) read: fn(&RunReport) -> Option<f64>,
}

pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    trial: fn(Scale) -> Outcome<Trial>,
    pub(super) measures: &'static [Measure],
}

impl Row {
    pub(super) fn trial(&self, scale: Scale) -> Outcome<Trial> {
        (self.trial)(scale)
    }
}

/// How long and how large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Full,
    /// Enough to see that a row works.
    Quick,
}

impl Scale {
    fn pick<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

/// Those that a change has to leave as they are.
pub(super) const USUAL: [&str; 5] = ["live-commits", "live-replies", "bulk", "ingest", "memory"];

pub(super) const ROWS: [Row; 8] = [
    Row {
        name: "live-commits",
        what: "200 standbys, 100 commits/s of 288 bytes of WAL, no replies, 5 s after 1 s",
        trial: |scale| live(scale, (100, 288), Replies::Interval(INTERVAL)),
        measures: &[CPU_DELIVERY, LAST_P50],
    },
    Row {
        name: "live-replies",
        what: "likewise; each standby replies twice to each batch",
        trial: |scale| live(scale, (100, 288), Replies::Flush),
        measures: &[CPU_DELIVERY, LAST_P50],
    },
    Row {
        name: "bulk",
        what: "64 standbys receive 192 MiB of complete WAL, most of it from files",
        trial: bulk,
        measures: &[CPU_GIB, WALL_GIB],
    },
    Row {
        name: "ingest",
        what: "the hub receives, checks and syncs 1 GiB that the primary sends at once",
        trial: ingest,
        measures: &[INGEST_CPU, INGEST_WALL],
    },
    Row {
        name: "memory",
        what: "private memory with 1000 standbys in their streams, 20 commits/s for 1 s",
        trial: memory,
        measures: &[PRIVATE_EACH, PRIVATE_ALL],
    },
    Row {
        name: "live-8k",
        what: "200 standbys, 256 commits/s of 8 KiB, no replies, 5 s after 1 s",
        trial: |scale| live(scale, (256, 8 << 10), Replies::Interval(INTERVAL)),
        measures: &[CPU_GIB, LAST_P50],
    },
    Row {
        name: "live-64k",
        what: "200 standbys, 64 commits/s of 64 KiB, no replies, 5 s after 1 s",
        trial: |scale| live(scale, (64, 64 << 10), Replies::Interval(INTERVAL)),
        measures: &[CPU_GIB, LAST_P50],
    },
    Row {
        name: "connects",
        what: "1000 standbys connect at once: from connect to stream",
        trial: memory,
        measures: &[CONNECT_P99, ALL_STREAMING],
    },
];

const CPU_DELIVERY: Measure =
    Measure { name: "CPU us/delivery", read: |report| report.results.cpu?.per_delivery };
const CPU_GIB: Measure = Measure { name: "CPU s/GiB", read: |report| report.results.cpu?.per_gib };
const LAST_P50: Measure = Measure {
    name: "last p50 ms",
    read: |report| {
        let last = &report.results.last;
        (last.count > 0).then_some(last.p50 as f64 / 1e6)
    },
};
const WALL_GIB: Measure = Measure {
    name: "s/GiB",
    read: |report| Some(report.results.seconds / gib(report.results.delivered_bytes)?),
};
const INGEST_CPU: Measure = Measure {
    name: "CPU s/GiB received",
    read: |report| {
        let ingest = report.results.ingest?;
        Some(ingest.cpu_seconds? / gib(ingest.bytes)?)
    },
};
const INGEST_WALL: Measure = Measure {
    name: "s/GiB received",
    read: |report| {
        let ingest = report.results.ingest?;
        Some(ingest.seconds / gib(ingest.bytes)?)
    },
};
const PRIVATE_EACH: Measure = Measure {
    name: "private KiB/standby",
    read: |report| {
        let memory = report.results.memory?;
        let grown = memory.streaming.private.checked_sub(memory.before?.private)?;
        Some(grown as f64 / 1024.0 / report.plan.standbys as f64)
    },
};
const PRIVATE_ALL: Measure = Measure {
    name: "private MiB",
    read: |report| Some(report.results.memory?.end.private as f64 / (1u64 << 20) as f64),
};
const CONNECT_P99: Measure = Measure {
    name: "connect p99 ms",
    read: |report| {
        let connect = &report.results.connect;
        (connect.count > 0).then_some(connect.p99 as f64 / 1e6)
    },
};
const ALL_STREAMING: Measure =
    Measure { name: "all streaming ms", read: |report| Some(report.results.all_streaming? * 1e3) };

fn gib(bytes: u64) -> Option<f64> {
    (bytes > 0).then_some(bytes as f64 / (1u64 << 30) as f64)
}

/// `wal_receiver_status_interval`
const INTERVAL: Duration = Duration::from_secs(10);

fn live(scale: Scale, (per_second, size): (u32, u64), replies: Replies) -> Outcome<Trial> {
    let (warm_up, duration) = scale.pick((1000, 5000), (200, 1000));
    Ok(Trial {
        load: load(per_second, size)?,
        fleet: fleet(scale.pick(200, 20), replies),
        work: Work::Live {
            warm_up: Duration::from_millis(warm_up),
            duration: Duration::from_millis(duration),
        },
    })
}

fn bulk(scale: Scale) -> Outcome<Trial> {
    let (standbys, mib) = scale.pick((64, 192), (8, 16));
    catch_up(standbys, mib)
}

/// The one standby is there because a run needs one.
fn ingest(scale: Scale) -> Outcome<Trial> {
    catch_up(1, scale.pick(1024, 32))
}

fn catch_up(standbys: usize, mib: u64) -> Outcome<Trial> {
    Ok(Trial {
        load: load(0, 64 << 10)?,
        fleet: fleet(standbys, Replies::Interval(INTERVAL)),
        work: Work::CatchUp { size: mib << 20, starts: Starts::Together },
    })
}

fn memory(scale: Scale) -> Outcome<Trial> {
    Ok(Trial {
        load: load(20, 288)?,
        fleet: fleet(scale.pick(1000, 50), Replies::Interval(INTERVAL)),
        work: Work::Live { warm_up: Duration::ZERO, duration: Duration::from_secs(1) },
    })
}

/// No commits per second is as many as are taken.
fn load(per_second: u32, size: u64) -> Outcome<Load> {
    let figures = Figures {
        rate: (per_second == 0).then_some(Rate::Max),
        commit_size: Some(CommitSize::Fixed(size)),
        commits_per_second: (per_second > 0).then_some(per_second),
        ..Figures::default()
    };
    Load::new(Profile::Custom, &figures).during("the load")
}

/// The hub is what is measured: nothing is spent on bytes.
fn fleet(standbys: usize, replies: Replies) -> FleetOptions {
    FleetOptions {
        standbys,
        threads: 1,
        verify: Verify::Off,
        replies,
        behaviours: Behaviours::default(),
        names: "standby_".to_owned(),
        slots: StandbySlots::None,
        connect_rate: None,
        seed: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_load() {
        for row in &ROWS {
            for scale in [Scale::Full, Scale::Quick] {
                assert!(row.trial(scale).is_ok(), "{}", row.name);
            }
        }
        for name in USUAL {
            assert!(ROWS.iter().any(|row| row.name == name), "{name}");
        }
    }
}
