//! Measures walhub beside PostgreSQL 15: `cargo run --release --example perf -- all`.
//!
//! Each row of the targets is one command. The servers of a row take turns within one
//! run, every number is a median with its extremes, and what counts are ratios: the
//! same machine, the same minutes, the same load. See `docs/performance.md`.

mod bed;
mod fault;
mod fleet;
mod floor;
mod git;
mod machine;
mod network;
mod options;
mod report;
mod rows;
#[path = "../tests/support/mod.rs"]
mod support;
mod versus;

use clap::Parser as _;
use fault::{During, Fault, Outcome};
use machine::Machine;
use options::Options;
use report::Keeper;
use rows::{ROWS, Run};
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use support::{process, scene::Scene};

fn main() -> ExitCode {
    match perf(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // Nowhere to report a failure to report.
            drop(writeln!(std::io::stderr(), "perf: {fault}"));
            ExitCode::FAILURE
        }
    }
}

fn perf(options: &Options) -> Outcome {
    if options.rows.iter().any(|name| name == "list") {
        return list();
    }
    if options.rows.iter().any(|name| name == "summary") {
        let rows: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        let text = report::summary(&rows, options.results.as_deref())?;
        return std::io::stdout().write_all(text.as_bytes()).during("standard output");
    }
    if cfg!(debug_assertions) && !options.quick {
        return Err(Fault::new("only a release build is worth measuring: --release, or --quick"));
    }
    if let Some((first, names)) = options.rows.split_first()
        && first == "versus"
    {
        return versus(options, names);
    }
    let rows = rows::chosen(&options.rows)?;
    // First of all: it may begin the process anew.
    let congestion_control = network::isolate()?;
    let walhub = measured(options)?;
    let scene = Scene::within(&options.directory, "walhub-perf");
    leave_nothing_after_a_panic(scene.root().to_owned());
    let keeper = Keeper::new(Machine::look(congestion_control), options);
    let mut run = Run { options, scene: &scene, walhub, small_commits: None };
    for row in &rows {
        if let Some(limit) = options.max_load {
            machine::wait_until_quiet(limit)?;
        }
        let report = (row.measure)(&mut run, row).inspect_err(|_| scene.fail());
        keeper.take(&report.during(row.name)?)?;
    }
    Ok(())
}

/// A panic aborts in a release build: nothing is dropped, and servers would stay.
fn leave_nothing_after_a_panic(folder: PathBuf) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        process::kill_descendants();
        support::scene::keep_logs(&folder);
        std::process::exit(1);
    }));
}

/// Compares two binaries; needs no PostgreSQL.
fn versus(options: &Options, rows: &[String]) -> Outcome {
    // First of all: it may begin the process anew.
    let congestion_control = network::isolate()?;
    versus::versus(options, rows, &measured(options)?, congestion_control)
}

/// The walhub to measure.
fn measured(options: &Options) -> Outcome<PathBuf> {
    options.walhub.clone().map_or_else(build, Ok)
}

fn list() -> Outcome {
    let mut text = String::new();
    for row in ROWS {
        text += &format!("{:16} {}\n", row.name, row.what);
    }
    for (name, what) in versus::list() {
        text += &format!("versus {name:16} {what}\n");
    }
    std::io::stdout().write_all(text.as_bytes()).during("standard output")
}

/// Brings the binary beside this one up to date: a stale one would be measured under
/// the name of a commit that it is not.
fn build() -> Outcome<PathBuf> {
    // target/release/examples/perf lies beside target/release/walhub.
    let program = std::env::current_exe().during("the path of this program")?;
    let folder = program.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let profile = match folder.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let status = Command::new(cargo)
        .args(["build", "--locked", "--bin", "walhub", "--profile", profile])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .during("cargo build")?;
    if !status.success() {
        return Err(Fault::new(format!("cargo build: {status}")));
    }
    let walhub = folder.join("walhub");
    if walhub.is_file() { Ok(walhub) } else { Err(Fault::new("there is no walhub beside perf")) }
}
