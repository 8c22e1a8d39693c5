//! The `walhub` binary: subcommands, and errors as exit codes.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::process::ExitCode;
use tracing::Level;
use walhub::cli::{Cli, Command};
use walhub::log;

/// What a shell says of a program that SIGPIPE ended.
const OUTPUT_CLOSED: u8 = 141;

fn main() -> ExitCode {
    let result = match Cli::from_command_line().command {
        Command::Serve(flags) => walhub::serve::serve(*flags),
        Command::Inspect(flags) => walhub::inspect::inspect(&flags),
        Command::Verify(flags) => {
            // What the restore command prints is logged.
            let started = log::start(Level::INFO).map_err(Into::into);
            started.and_then(|()| walhub::verify::verify(&flags))
        }
        Command::Ctl(flags) => walhub::ctl::ctl(flags),
        Command::Demo => walhub::bench::demo::demo(),
        Command::Bench(flags) => walhub::bench::cli::bench(flags),
    };
    match result {
        Ok(code) => {
            log::finish();
            code
        }
        Err(error) if is_closed_output(&*error) => ExitCode::from(OUTPUT_CLOSED),
        Err(error) => {
            log::last_line(&format!("walhub: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Has whoever reads our output seen enough? Errors of sockets come with words of their own.
fn is_closed_output(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
