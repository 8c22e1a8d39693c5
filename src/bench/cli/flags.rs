//! The flags of `walhub bench`.

use crate::bench::profile::{CommitSize, LoadFault, Profile, Rate};
use crate::bench::terminal::Verbosity;
use clap::{Args, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Flags of `walhub bench`.
#[derive(Debug, Args)]
pub struct BenchFlags {
    /// What to do.
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// The subcommands of `walhub bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure a hub between a synthetic primary and synthetic standbys, or an existing server
    Run(Box<RunFlags>),
    /// Serve synthetic WAL to any client until Ctrl-C
    Primary(PrimaryFlags),
    /// Receive as a fleet of standbys until Ctrl-C, and check every byte
    Standbys(Box<StandbysFlags>),
    /// Show the figures of two runs side by side
    Compare(CompareFlags),
    /// The hub of a run, in a process that ends with it
    #[command(hide = true)]
    HubOfThisRun {
        /// Of `walhub`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

const UNITS: &str = "\
Sizes take the units kB, MB, GB (powers of 1024); times us, ms, s, min, h.\n\n\
Exit code: 0 when everything was right; 1 when a byte was false or something else went wrong, \
which the report names; 2 when there was no run.";

/// Flags of `walhub bench run`.
#[derive(Debug, Args)]
#[command(after_help = UNITS)]
pub struct RunFlags {
    /// Measure this server (a hub, a primary, a cascading standby) instead of a hub of our own
    #[arg(long, value_name = "CONNINFO", help_heading = "Server")]
    pub target: Option<String>,
    /// Commit on this primary, by `pg_logical_emit_message` [without it: whatever its clients
    /// write]
    #[arg(long, value_name = "CONNINFO", requires = "target", help_heading = "Server")]
    pub commits_on: Option<String>,
    /// Connections that commit
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4,
        requires = "commits_on",
        help_heading = "Server"
    )]
    pub clients: usize,
    /// Processes of the target: their CPU and memory are measured, with all descendants
    #[arg(
        long,
        value_name = "PID",
        value_delimiter = ',',
        requires = "target",
        help_heading = "Server"
    )]
    pub server_pid: Vec<u32>,
    /// Of those, only the ones whose command line begins with this ("postgres: walsender")
    #[arg(long, value_name = "PREFIX", requires = "server_pid", help_heading = "Server")]
    pub server_match: Option<String>,
    /// The hub's `--cores`
    #[arg(long, value_name = "N", conflicts_with = "target", help_heading = "Server")]
    pub cores: Option<usize>,
    /// The hub's `--wal-buffers`
    #[arg(long, value_name = "SIZE", conflicts_with = "target", help_heading = "Server")]
    pub wal_buffers: Option<String>,
    /// The hub's `--max-send-size`
    #[arg(long, value_name = "SIZE", conflicts_with = "target", help_heading = "Server")]
    pub max_send_size: Option<String>,
    /// Any other argument of the hub's `walhub serve`; may be given several times
    #[arg(
        long,
        value_name = "ARG",
        conflicts_with = "target",
        allow_hyphen_values = true,
        help_heading = "Server"
    )]
    pub serve_arg: Vec<String>,
    /// The folder in which the hub's temporary directory is made
    #[arg(long, value_name = "DIR", conflicts_with = "target", help_heading = "Server")]
    pub directory: Option<PathBuf>,
    /// The PostgreSQL version of the synthetic primary, 13 to 18
    #[arg(
        long,
        value_name = "MAJOR",
        default_value_t = 17,
        conflicts_with = "target",
        help_heading = "Server"
    )]
    pub major: u32,
    /// Segment size of the synthetic primary
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "16MB",
        conflicts_with = "target",
        help_heading = "Server"
    )]
    pub wal_segment_size: String,

    /// The load.
    #[command(flatten)]
    pub load: LoadFlags,

    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", help_heading = "Run")]
    pub duration: String,
    /// How long the load runs before measuring begins
    #[arg(long, value_name = "TIME", default_value = "2s", help_heading = "Run")]
    pub warm_up: String,
    /// Write this much WAL first, then let the standbys receive it; with a target and no
    /// commits: its newest WAL
    #[arg(
        long,
        value_name = "SIZE",
        conflicts_with_all = ["duration", "warm_up", "rate", "commits_per_second"],
        help_heading = "Run"
    )]
    pub catch_up: Option<String>,
    /// Let the standbys of a catch-up begin at places spread over it
    #[arg(long, requires = "catch_up", help_heading = "Run")]
    pub spread: bool,
    /// WAL kept in memory to compare with; a standby that is further behind checks page headers,
    /// record chain and checksums [256MB, or all of a catch-up if memory allows]
    #[arg(long, value_name = "SIZE", help_heading = "Run")]
    pub window: Option<String>,

    /// The standbys.
    #[command(flatten)]
    pub fleet: FleetFlags,
    /// What becomes of the figures.
    #[command(flatten)]
    pub output: OutputFlags,
}

/// What is written.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Load")]
pub struct LoadFlags {
    /// A load modelled on public figures
    #[arg(long, value_enum, default_value_t = Profile::Custom)]
    pub profile: Profile,
    /// WAL per second, or `max`
    #[arg(long, value_name = "SIZE|max", value_parser = |text: &str| text.parse::<Rate>())]
    pub rate: Option<Rate>,
    /// WAL per commit, or a range: 1kB-10kB
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| -> Result<CommitSize, LoadFault> { text.parse() })]
    pub commit_size: Option<CommitSize>,
    /// Commits per second; the rate or the commit size follows from it
    #[arg(long, value_name = "N")]
    pub commits_per_second: Option<u32>,
    /// The seed for random sizes, contents and places
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// How standbys check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VerifyFlag {
    /// Byte by byte
    Full,
    /// A checksum for each MiB
    Crc,
    /// Only that nothing is missing
    Off,
}

/// The standbys.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Standbys")]
pub struct FleetFlags {
    /// How many [a profile's own number; 50]
    #[arg(long, short = 'n', value_name = "N")]
    pub standbys: Option<usize>,
    /// Threads that they share [a quarter of the CPUs, 1 to 8]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// How they check what they receive
    #[arg(long, value_enum, default_value_t = VerifyFlag::Full)]
    pub verify: VerifyFlag,
    /// When they report: `flush`, twice for each batch as a walreceiver; `interval`, every 10 s
    /// as pg_receivewal; or at this interval
    #[arg(long, value_name = "flush|interval|TIME", default_value = "flush")]
    pub replies: String,
    /// This many read slowly, 100kB a second each by default
    #[arg(long, value_name = "N[:RATE]")]
    pub slow: Option<String>,
    /// This many stop reading and keep their sockets open
    #[arg(long, value_name = "N[:AFTER]")]
    pub stalled: Option<String>,
    /// This many disconnect and reconnect after random times, 1s to 60s by default
    #[arg(long, value_name = "N[:FROM-TO]")]
    pub flapping: Option<String>,
    /// All good ones disconnect and reconnect at once, this long after the start
    #[arg(long, value_name = "AFTER[/EVERY]")]
    pub storm: Option<String>,
    /// Connections begun per second [all at once]
    #[arg(long, value_name = "N")]
    pub connect_rate: Option<u32>,
    /// Prefix of their `application_name`
    #[arg(long, value_name = "NAME", default_value = "standby_")]
    pub names: String,
    /// Each uses the slot of this name with its number appended
    #[arg(long, value_name = "NAME")]
    pub slots: Option<String>,
    /// Create those slots
    #[arg(long, requires = "slots")]
    pub create_slots: bool,
}

/// What becomes of the figures.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputFlags {
    /// Write the report as JSON; `-` writes it to the standard output instead of the table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as a page for browsers, with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the histograms as PREFIX-each.hgrm, -first, -last
    #[arg(long, value_name = "PREFIX")]
    pub hgrm: Option<PathBuf>,
    /// No progress
    #[arg(long, short)]
    pub quiet: bool,
}

impl OutputFlags {
    /// How much is printed while it runs.
    pub const fn verbosity(&self) -> Verbosity {
        if self.quiet { Verbosity::Quiet } else { Verbosity::Progress }
    }
}

/// Flags of `walhub bench primary`.
#[derive(Debug, Args)]
#[command(after_help = UNITS)]
pub struct PrimaryFlags {
    /// Where to listen; clients are trusted
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5432")]
    pub listen: SocketAddr,
    /// Its PostgreSQL version, 13 to 18
    #[arg(long, value_name = "MAJOR", default_value_t = 17)]
    pub major: u32,
    /// Segment size
    #[arg(long, value_name = "SIZE", default_value = "16MB")]
    pub wal_segment_size: String,
    /// How much of the newest WAL can be streamed
    #[arg(long, value_name = "SIZE", default_value = "256MB")]
    pub window: String,
    /// Write the WAL as segment files into this folder, too (pg_waldump reads them)
    #[arg(long, value_name = "DIR")]
    pub write_wal: Option<PathBuf>,
    /// Begin when this many clients receive
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub wait_for: usize,
    /// End when this much is written and sent
    #[arg(long, value_name = "SIZE")]
    pub total: Option<String>,
    /// The load.
    #[command(flatten)]
    pub load: LoadFlags,
    /// No progress
    #[arg(long, short)]
    pub quiet: bool,
}

/// Flags of `walhub bench standbys`.
#[derive(Debug, Args)]
#[command(after_help = UNITS)]
pub struct StandbysFlags {
    /// The server: a hub, a primary, a cascading standby
    #[arg(long, value_name = "CONNINFO")]
    pub target: String,
    /// End after this time [Ctrl-C]
    #[arg(long, value_name = "TIME")]
    pub duration: Option<String>,
    /// WAL kept in memory to compare with
    #[arg(long, value_name = "SIZE", default_value = "256MB")]
    pub window: String,
    /// The seed for everything random
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// The standbys.
    #[command(flatten)]
    pub fleet: FleetFlags,
    /// What becomes of the figures.
    #[command(flatten)]
    pub output: OutputFlags,
}

/// Flags of `walhub bench compare`.
#[derive(Debug, Args)]
pub struct CompareFlags {
    /// A report (`--json`), several with commas between them, or a folder of them
    #[arg(value_name = "A.json")]
    pub a: String,
    /// The other side
    #[arg(value_name = "B.json")]
    pub b: String,
}
