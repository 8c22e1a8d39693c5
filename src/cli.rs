//! The command line: the subcommands. Each subcommand's flags are defined in its module.

use crate::bench::cli::BenchFlags;
use crate::ctl::flags::CtlFlags;
use crate::inspect::InspectFlags;
use crate::serve::flags::ServeFlags;
use crate::verify::VerifyFlags;
use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};
use std::ffi::OsString;

/// A hub for PostgreSQL's write-ahead log: one physical standby upstream, hundreds of
/// stock standbys downstream, no replay.
#[derive(Debug, Parser)]
#[command(name = "walhub", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Parses the command line, or says what is wrong and ends the process.
    pub fn from_command_line() -> Self {
        Self::try_parse().unwrap_or_else(|error| {
            let typed: Vec<_> = std::env::args_os().collect();
            name_variable(error, &typed, |name| std::env::var(name).ok()).exit()
        })
    }
}

/// A value that is wrong may come from a flag's environment variable. Then the error names that.
fn name_variable(
    mut error: clap::Error,
    typed: &[OsString],
    variable: impl Fn(&str) -> Option<String>,
) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let (Some(argument), Some(value)) =
        (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue))
    else {
        return error;
    };
    let flag = argument.split([' ', '[', '=']).next().unwrap_or_default();
    let Some(words) = flag.strip_prefix("--") else { return error };
    let name = format!("WALHUB_{}", words.replace('-', "_").to_uppercase());
    let is_typed = typed.iter().any(|typed| typed.to_string_lossy().starts_with(flag));
    if !is_typed && variable(&name) == Some(value) {
        let said = ContextValue::String(format!("{name} ({flag})"));
        error.insert(ContextKind::InvalidArg, said);
    }
    error
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the hub
    Serve(Box<ServeFlags>),
    /// Show what a hub's directory holds: identity, timelines, segments, the exact end of
    /// its WAL, and what is wrong with it
    Inspect(InspectFlags),
    /// Walk every complete segment of a directory whose hub does not run, name what is damaged,
    /// and repair it from an archive
    Verify(VerifyFlags),
    /// Ask a running hub: status, standbys, slots; steer it: upstream, fence
    Ctl(CtlFlags),
    /// Show a hub at work for fifteen seconds; needs nothing but this program
    Demo,
    /// Generate load, and measure: a synthetic primary, thousands of synthetic standbys
    Bench(BenchFlags),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let typed = ["walhub", "serve", "-D", "d", "--create-slot=maybe"].map(OsString::from);
        let wrong = || Cli::try_parse_from(&typed).map(|_| ()).unwrap_err();
        let by = |typed: &[OsString], variable: Option<&str>| {
            name_variable(wrong(), typed, |_| variable.map(str::to_owned)).to_string()
        };
        let said = by(&typed[..4], Some("maybe"));
        assert!(said.contains("'maybe' for 'WALHUB_CREATE_SLOT (--create-slot)'"), "{said}");
        for said in [by(&typed, Some("maybe")), by(&typed[..4], None)] {
            assert!(said.contains("for '--create-slot"), "{said}");
        }
    }
}
