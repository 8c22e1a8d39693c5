//! Writes a report to every requested output.

use super::flags::OutputFlags;
use crate::bench::report::hgrm::hgrm;
use crate::bench::report::table::{table, verdict};
use crate::bench::report::{Latency, RunReport, page};
use crate::bench::terminal::print;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

/// Writes the outputs. The exit code is the verdict.
pub(super) fn hand_out(
    report: &RunReport,
    output: &OutputFlags,
) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let json = output.json.as_deref();
    let to_stdout = json == Some(Path::new("-"));
    let text = if to_stdout { report.to_json() } else { table(report) };
    print(&text)?;
    if let Some(path) = json.filter(|_| !to_stdout) {
        write(path, &report.to_json())?;
    }
    if let Some(path) = &output.html {
        write(path, &page::page(report))?;
    }
    if let Some(prefix) = &output.hgrm {
        histograms(report, prefix)?;
    }
    if report.verdict.is_good() {
        return Ok(ExitCode::SUCCESS);
    }
    if to_stdout {
        for line in verdict(report) {
            writeln!(io::stderr(), "{line}")?;
        }
    }
    Ok(ExitCode::FAILURE)
}

fn histograms(report: &RunReport, prefix: &Path) -> Result<(), String> {
    let results = &report.results;
    let all: [(&str, &Latency); 3] =
        [("each", &results.each), ("first", &results.first), ("last", &results.last)];
    for (name, latency) in all {
        if let Some(histogram) = latency.to_histogram() {
            let mut path = prefix.as_os_str().to_owned();
            path.push(format!("-{name}.hgrm"));
            write(Path::new(&path), &hgrm(&histogram))?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("could not write \"{}\": {e}", path.display()))
}
