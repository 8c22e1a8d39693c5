//! `walhub demo`: a fifteen-second demonstration of a hub.

mod scene;
mod words;

use super::cli::NO_RUN;
use super::primary::ServerVersion;
use super::profile::{Figures, Load, Profile, Rate};
use super::run::{FleetOptions, HubOptions, Interrupt, RunPlan, ServerPlan, Work, run};
use super::standbys::{Behaviours, Replies, Stalled, StandbySlots, Storm, Verify};
use super::terminal::print;
use crate::wal::SegmentSize;
use scene::Scene;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

const STANDBYS: usize = 50;
/// Most machines can still check fifty times this byte by byte.
const RATE: u64 = 8 << 20;
const WARM_UP: Duration = Duration::from_secs(1);
const DURATION: Duration = Duration::from_secs(14);
/// How long after its start one standby stops reading.
const STALL: Duration = Duration::from_secs(5);
/// How long after their start all others reconnect at once.
const STORM: Duration = Duration::from_secs(11);

/// Runs the demo.
///
/// # Errors
/// The terminal is gone, or the system has no threads or signals left.
pub fn demo() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let interrupt = Interrupt::catch()?;
    let mut scene = Scene::new(io::stdout());
    let outcome = run(plan()?, &interrupt, &mut scene);
    let latencies = scene.finish();
    match outcome {
        Ok(report) => {
            print(&words::words(&report, latencies))?;
            Ok(if report.verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(fault) => {
            writeln!(io::stderr(), "walhub demo: {fault}")?;
            Ok(ExitCode::from(NO_RUN))
        }
    }
}

fn plan() -> Result<RunPlan, Box<dyn std::error::Error>> {
    let figures = Figures { rate: Some(Rate::PerSecond(RATE)), ..Figures::default() };
    Ok(RunPlan {
        server: ServerPlan::Hub {
            version: ServerVersion::new(17).ok_or("no such version")?,
            segment_size: SegmentSize::new(16 << 20).ok_or("no such size")?,
            hub: HubOptions::default(),
        },
        load: Load::new(Profile::Saas, &figures)?,
        fleet: FleetOptions {
            standbys: STANDBYS,
            threads: 1,
            verify: Verify::Full,
            replies: Replies::Flush,
            behaviours: Behaviours {
                stalled: Some(Stalled { count: 1, after: STALL }),
                storm: Some(Storm { first: STORM, every: None }),
                ..Behaviours::default()
            },
            names: "demo_".to_owned(),
            slots: StandbySlots::None,
            connect_rate: None,
            seed: 1,
        },
        work: Work::Live { warm_up: WARM_UP, duration: DURATION },
        window: None,
        arguments: vec!["demo".to_owned()],
    })
}
