//! The table that changes.

use super::{DURATION, STALL, STANDBYS, STORM, WARM_UP};
use crate::bench::report::say;
use crate::bench::run::{Moment, Phase, Watch};
use crate::bench::terminal::{LiveLines, sparkline};
use std::collections::VecDeque;
use std::io::Stdout;
use std::time::{Duration, Instant};

/// Samples in the little plots.
const PLOT: usize = 40;

/// Times in which commits reached the last good standby: the median and the 99th percentile,
/// nanoseconds.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Latencies {
    /// Of the commits before the storm.
    pub(super) calm: Option<(u64, u64)>,
    /// Of all commits, for a demo that reached the storm.
    pub(super) with_storm: Option<(u64, u64)>,
}

/// What the demo shows while it runs.
pub(super) struct Scene {
    live_lines: LiveLines,
    begun: Option<Instant>,
    lags: VecDeque<f64>,
    last: Option<(u64, u64)>,
    before_storm: Option<(u64, u64)>,
    calm_reconnects: u64,
    back: Option<Duration>,
}

impl Scene {
    pub(super) fn new(out: Stdout) -> Self {
        Self {
            live_lines: LiveLines::new(out, Duration::from_secs(1)),
            begun: None,
            lags: VecDeque::new(),
            last: None,
            before_storm: None,
            calm_reconnects: 0,
            back: None,
        }
    }

    /// Ends the scene.
    pub(super) fn finish(mut self) -> Latencies {
        self.live_lines.finish();
        let stormed = self.begun.is_some_and(|begun| begun.elapsed() >= STORM);
        Latencies {
            calm: self.before_storm.or(self.last),
            with_storm: self.last.filter(|_| stormed),
        }
    }

    fn lines(&mut self, moment: &Moment) -> Vec<String> {
        let since = self.begun.get_or_insert_with(Instant::now).elapsed();
        let fleet = moment.fleet.clone().unwrap_or_default();
        let total = (WARM_UP + DURATION).as_secs_f64();
        let mut lines = vec![
            format!(
                "walhub demo   one primary -> one hub -> {STANDBYS} standbys   {:.0} of {total:.0} s",
                since.as_secs_f64().min(total)
            ),
            String::new(),
        ];
        let written = say::rate(moment.written_rate as u64, 1.0);
        lines.push(format!(
            "  primary    writes {written:<14} {} so far, over 1 connection",
            say::of(moment.commits, "commit")
        ));
        let cpu = moment.cores.map_or(0.0, |cores| cores.max(0.0) * 100.0);
        lines.push(format!("  hub        uses {cpu:.0} % of a CPU"));
        let received = say::rate(moment.delivered_rate as u64, 1.0);
        let checked = say::bytes(fleet.sums.verified);
        lines.push(format!("  standbys   receive {received:<13} {checked} checked byte by byte"));
        let faults = match fleet.faults {
            0 => "none of it false".to_owned(),
            faults => say::of(faults, "fault"),
        };
        lines.push(format!("             {} streaming; {faults}", fleet.streaming));
        if let Some((p50, p99)) = moment.last {
            lines.push(format!(
                "  commit to the last of them   p50 {:<9} p99 {}",
                say::nanos(p50),
                say::nanos(p99)
            ));
        }
        lines.push(format!(
            "  lag of the last   {:<9} {}",
            say::bytes(moment.sample.lag_last),
            sparkline(self.lags.iter().copied())
        ));
        lines.push(String::new());
        self.events(since, fleet.reconnects, &fleet, &mut lines);
        lines
    }

    fn events(
        &mut self,
        since: Duration,
        reconnects: u64,
        fleet: &crate::bench::standbys::FleetProgress,
        lines: &mut Vec<String>,
    ) {
        if since >= STALL {
            lines.push(format!(
                "  {:2.0} s  one standby has stopped reading; the others do not notice",
                STALL.as_secs_f64()
            ));
        }
        if since < STORM {
            self.calm_reconnects = reconnects;
            return;
        }
        let came_back = reconnects - self.calm_reconnects;
        let all = (STANDBYS - 1) as u64;
        if came_back >= all && fleet.streaming >= STANDBYS - 1 {
            self.back.get_or_insert(since);
        }
        lines.push(format!(
            "  {:2.0} s  all others reconnect at once: {}",
            STORM.as_secs_f64(),
            if self.back.is_some() {
                "all are back".to_owned()
            } else {
                format!("{came_back} of {all} are back")
            }
        ));
    }
}

impl Watch for Scene {
    fn step(&mut self, text: &str) {
        self.live_lines.draw(&[format!("walhub demo   {text}")]);
    }

    fn moment(&mut self, moment: &Moment) {
        if moment.phase == Phase::Measuring && moment.last.is_some() {
            self.last = moment.last;
            // It stops somewhat earlier, because the storm itself delays commits.
            let calm = self.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
            if calm + Duration::from_millis(200) < STORM {
                self.before_storm = moment.last;
            }
        }
        self.lags.push_back(moment.sample.lag_last as f64);
        if self.lags.len() > PLOT {
            self.lags.pop_front();
        }
        let lines = self.lines(moment);
        self.live_lines.draw(&lines);
    }
}
