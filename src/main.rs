//! The `walhub` binary: subcommands, and errors as exit codes.

use clap::Parser as _;
use std::process::ExitCode;
use walhub::cli::{Cli, Command};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(flags) => walhub::serve::serve(*flags),
        Command::Inspect(flags) => walhub::inspect::inspect(&flags),
        Command::Ctl(flags) => walhub::ctl::ctl(flags),
        Command::Demo => walhub::bench::demo::demo(),
        Command::Bench(flags) => walhub::bench::cli::bench(flags),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            use std::io::Write as _;
            // Nowhere to report a failure to report.
            drop(writeln!(std::io::stderr(), "walhub: {error}"));
            ExitCode::FAILURE
        }
    }
}
