//! The command line of `walhub bench`.

mod flags;
mod outcome;
mod plan;
mod primary;
mod standbys;

use super::report::compare::{Side, compare};
use super::run::{Interrupt, become_hub};
use super::terminal::{Progress, print};
pub use flags::{
    BenchCommand, BenchFlags, CompareFlags, FleetFlags, LoadFlags, OutputFlags, PrimaryFlags,
    RunFlags, StandbysFlags,
};
use plan::Mistake;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// Exit code when there was no run, or the arguments make no sense.
pub const NO_RUN: u8 = 2;

/// Runs `walhub bench`.
///
/// # Errors
/// A file cannot be read or written.
pub fn bench(flags: BenchFlags) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match flags.command {
        BenchCommand::Run(flags) => run(*flags),
        BenchCommand::Primary(flags) => primary::primary(flags),
        BenchCommand::Standbys(flags) => standbys::standbys(*flags),
        BenchCommand::Compare(CompareFlags { a, b }) => {
            let text = compare(&Side::load(&a)?, &Side::load(&b)?);
            print(&text)?;
            Ok(ExitCode::SUCCESS)
        }
        BenchCommand::HubOfThisRun { arguments } => Err(become_hub(&arguments).into()),
    }
}

fn run(flags: RunFlags) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let output = flags.output.clone();
    let plan = match plan::run(flags) {
        Ok(plan) => plan,
        Err(mistake) => return refuse(&mistake),
    };
    let interrupt = Interrupt::catch()?;
    let mut progress = Progress::new(output.verbosity());
    let outcome = super::run::run(plan, &interrupt, &mut progress);
    progress.finish();
    match outcome {
        Ok(report) => outcome::hand_out(&report, &output),
        Err(fault) => refuse(&fault),
    }
}

/// Says why there was no run.
fn refuse(why: &dyn std::fmt::Display) -> Result<ExitCode, Box<dyn std::error::Error>> {
    writeln!(io::stderr(), "walhub bench: {why}")?;
    Ok(ExitCode::from(NO_RUN))
}

/// The arguments after the program's name.
fn typed() -> Vec<String> {
    std::env::args().skip(1).collect()
}

/// A flag's value that cannot be used.
fn mistake(flag: &'static str, fault: impl std::fmt::Display) -> Mistake {
    Mistake { flag, fault: fault.to_string() }
}
