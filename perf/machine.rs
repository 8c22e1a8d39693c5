//! On what, when and of what was measured.

use crate::fault::{Fault, Outcome};
use crate::git;
use serde::Serialize;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};
use walhub::bench::{measure, report};

/// How long a machine is waited for that is to become quiet.
const PATIENCE: Duration = Duration::from_secs(600);

/// The machine and the commit.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_gib: u64,
    pub(crate) congestion_control: String,
    /// Load average when the run began: a machine with other work makes poor figures.
    pub(crate) load_average: String,
}

impl Machine {
    pub(crate) fn look(congestion_control: String) -> Self {
        let seen = measure::Machine::this();
        let mut date = report::date(SystemTime::now());
        date.truncate("2000-01-01".len());
        Self {
            date,
            commit: commit(),
            kernel: seen.kernel,
            cpu: if seen.cpu.is_empty() { "unknown".to_owned() } else { seen.cpu },
            cpus: seen.cpus,
            memory_gib: (seen.memory + (1 << 29)) >> 30,
            congestion_control,
            load_average: seen.load_average,
        }
    }
}

/// The load averages of one, five and fifteen minutes.
pub(crate) fn load_average() -> String {
    measure::Machine::this().load_average
}

/// Waits until the load average of one minute is below `limit`.
pub(crate) fn wait_until_quiet(limit: f64) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let load = load_average();
        let minute = load.split(' ').next().and_then(|text| text.parse::<f64>().ok());
        if minute.is_some_and(|minute| minute < limit) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let text = format!("the load average stays above {limit} for {PATIENCE:?}: {load}");
            return Err(Fault::new(text));
        }
        sleep(Duration::from_secs(1));
    }
}

/// The commit that this was built from, with a plus when files differ from it.
fn commit() -> String {
    git::work_tree(Path::new(env!("CARGO_MANIFEST_DIR"))).map_or_else(
        || "unknown".to_owned(),
        |tree| format!("{}{}", tree.head, if tree.clean { "" } else { "+" }),
    )
}
