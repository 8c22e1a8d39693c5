//! Results as files: one row of one day, for people and for programs.

use super::Report;
use super::table::markdown;
use crate::fault::{During, Outcome};
use crate::machine::Machine;
use crate::options::Options;
use serde::Serialize;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A drawing that belongs to a report.
#[derive(Debug, Clone)]
pub(crate) struct KeptPlot {
    /// The end of its file name, after the row's.
    pub(crate) name: &'static str,
    pub(crate) svg: String,
}

/// Shows reports and keeps them.
#[derive(Debug)]
pub(crate) struct Keeper {
    machine: Machine,
    repeats: usize,
    seconds: u64,
    folder: Option<PathBuf>,
}

/// What stands in the file.
#[derive(Serialize)]
struct Kept<'a> {
    machine: &'a Machine,
    repeats: usize,
    seconds: u64,
    #[serde(flatten)]
    report: &'a Report,
}

impl Keeper {
    pub(crate) fn new(machine: Machine, options: &Options) -> Self {
        // Figures of a quick run would be taken for measurements.
        let usual = (!options.quick).then(usual_folder);
        Self {
            machine,
            repeats: options.repeats(),
            seconds: options.span().as_secs(),
            folder: options.results.clone().or(usual),
        }
    }

    /// Prints a report, and writes it to files.
    pub(crate) fn take(&self, report: &Report) -> Outcome {
        let text = markdown(report);
        let mut terminal = std::io::stdout().lock();
        terminal.write_all(text.as_bytes()).during("standard output")?;
        terminal.flush().during("standard output")?;
        let Some(folder) = &self.folder else { return Ok(()) };
        fs::create_dir_all(folder).during(folder.display())?;
        let file = |end: &str| folder.join(format!("{}-{}{end}", self.machine.date, report.row));
        let Self { machine, repeats, seconds, .. } = self;
        let kept = Kept { machine, repeats: *repeats, seconds: *seconds, report };
        let json = serde_json::to_string_pretty(&kept).during("JSON")?;
        write(&file(".json"), &(json + "\n"))?;
        write(&file(".md"), &format!("{text}{}\n", self.circumstances(&report.load_average)))?;
        for plot in &report.plots {
            write(&file(&format!("-{}.svg", plot.name)), &plot.svg)?;
        }
        Ok(())
    }

    fn circumstances(&self, load_average: &str) -> String {
        let Machine { date, commit, kernel, cpu, cpus, memory_gib, .. } = &self.machine;
        format!(
            "{date}, commit {commit}. {cpu}, {cpus} CPUs, {memory_gib} GiB, Linux {kernel}, \
             congestion control {}, load average at the start {load_average}. Each server measured {} times \
             in turn, {} s each where a load is live.",
            self.machine.congestion_control, self.repeats, self.seconds,
        )
    }
}

/// Where results are kept.
pub(crate) fn usual_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/results")
}

fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).during(path.display())
}
