//! The command line: the subcommands. Each subcommand's flags are defined in its module.

use crate::bench::cli::BenchFlags;
use crate::ctl::flags::CtlFlags;
use crate::inspect::InspectFlags;
use crate::serve::flags::ServeFlags;
use crate::verify::VerifyFlags;
use clap::{Parser, Subcommand};

/// A hub for PostgreSQL's write-ahead log: one physical standby upstream, hundreds of
/// stock standbys downstream, no replay.
#[derive(Debug, Parser)]
#[command(name = "walhub", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
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
}
