//! Flags of `walhub serve`: what was typed, and what it means.

mod downstream;
mod restore;
mod scrub;
mod tcp;
mod values;

pub use downstream::DownstreamFlags;
pub use restore::RestoreFlags;
pub use scrub::ScrubFlags;
pub use tcp::TcpFlags;
pub use values::Mistake;

use self::values::{command, mistake, number, parsed, positive_time, size, time};
use crate::config::{
    AUTHENTICATION_TIMEOUT, Config, DivergeChoice, MissingSlot, OnDiverge, WeakProof,
    listen_addresses,
};
use crate::store::retention::{ArchiveMode, Policy};
use crate::wire::conninfo::Conninfo;
use crate::wire::units::{SizeUnit, TimeUnit};
use clap::Args;
use clap::builder::BoolishValueParser;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Flags of `walhub serve`. Sizes take kB, MB, GB (powers of 1024); times us, ms, s, min,
/// h, d. A name that PostgreSQL has too means what it means there.
#[derive(Debug, Args)]
#[command(after_help = "\
Sizes take the units kB, MB, GB, TB (powers of 1024); times us, ms, s, min, h, d. A flag with the \
name of a PostgreSQL setting means what that setting means. A number without a unit counts what it \
counts in PostgreSQL: milliseconds for the timeouts, MB for what is kept; the table in \
docs/operations.md says what for each flag.\n\n\
Signals: SIGTERM and SIGINT end the hub as a fast shutdown ends a PostgreSQL server: everything \
durable is sent, standbys are told, exit within 5 s. A second signal ends it at once; the same one \
within 200 ms is the same request. SIGHUP is logged and ignored.\n\n\
Exit status: 0 after SIGTERM or SIGINT; 1 for a wrong value, a directory that cannot be used, or a \
fault; 2 for a wrong command line; 3 after a failed sync.")]
pub struct ServeFlags {
    /// The hub's own directory; created with mode 0700 if it does not exist
    #[arg(short = 'D', long, value_name = "DIR", env = "WALHUB_DIRECTORY")]
    pub directory: PathBuf,

    /// Where the WAL comes from: a libpq connection string, whose hosts are tried in order
    #[arg(long, value_name = "CONNINFO", env = "WALHUB_PRIMARY_CONNINFO", hide_env_values = true)]
    pub primary_conninfo: String,

    /// Physical replication slot to use upstream
    #[arg(long, value_name = "NAME", env = "WALHUB_PRIMARY_SLOT_NAME")]
    pub primary_slot_name: Option<String>,

    /// Create the slot (with its WAL reserved) if it does not exist
    #[arg(long, env = "WALHUB_CREATE_SLOT", value_parser = BoolishValueParser::new())]
    pub create_slot: bool,

    /// Where an empty directory begins: "current", "oldest", or an LSN
    #[arg(long, value_name = "WHERE", default_value = "current", env = "WALHUB_START_FROM")]
    pub start_from: String,

    /// When the upstream no longer has the WAL that is next here: "stop" keeps serving what is
    /// here and keeps asking; "restart-at-current" moves it aside and begins anew
    #[arg(long, value_name = "WHAT", default_value = "stop", env = "WALHUB_ON_GAP")]
    pub on_gap: String,

    /// When the upstream has another history: "stop" receives nothing until an operator says which
    /// is the true one; "follow" gives up the hub's, for a server out of recovery only
    #[arg(long, value_name = "WHAT", default_value = "stop", env = "WALHUB_ON_DIVERGE")]
    pub on_diverge: String,

    /// How long such a server has to be seen with another history before it is followed; a number
    /// without a unit counts seconds
    #[arg(long, value_name = "TIME", default_value = "5min", env = "WALHUB_ON_DIVERGE_AFTER")]
    pub on_diverge_after: String,

    /// Take no WAL from an upstream or the archive that cannot prove to have this hub's history, as
    /// far back as a record that says when it was written
    #[arg(long, env = "WALHUB_REQUIRE_PROOF", value_parser = BoolishValueParser::new())]
    pub require_proof: bool,

    /// Addresses to listen on, separated by commas; only loopback, because nobody is
    /// authenticated; empty for none
    #[arg(
        long,
        value_name = "ADDRESSES",
        default_value = "127.0.0.1",
        env = "WALHUB_LISTEN_ADDRESSES"
    )]
    pub listen_addresses: String,

    /// Port to listen on, also the number in a Unix socket's name
    #[arg(short, long, default_value_t = 5433, env = "WALHUB_PORT")]
    pub port: u16,

    /// Directories for Unix sockets, separated by commas
    #[arg(long, value_name = "DIRS", default_value = "", env = "WALHUB_UNIX_SOCKET_DIRECTORIES")]
    pub unix_socket_directories: String,

    /// Data cores; 1 receives and sends on one thread, more give the receive role its own
    /// [default: 1 on up to 2 CPUs, else half of the CPUs, at most 8]
    #[arg(long, value_name = "N", env = "WALHUB_CORES")]
    pub cores: Option<NonZeroUsize>,

    /// CPUs that the data cores are bound to, one each: "auto" (when at least two stay free for
    /// everything else), "off", or a list such as 2,4-7
    #[arg(long, value_name = "CPUS", default_value = "auto", env = "WALHUB_PIN_CORES")]
    pub pin_cores: String,

    /// Send large pieces from the cache without copying them: "auto" (to other hosts, while the
    /// kernel does it), "on" (to everybody on TCP), "off"
    #[arg(long, value_name = "WHEN", default_value = "auto", env = "WALHUB_ZEROCOPY")]
    pub zerocopy: String,

    /// TCP connections
    #[command(flatten)]
    pub tcp: TcpFlags,

    /// Memory for the newest WAL; half of it may be received and not yet durable
    #[arg(long, value_name = "SIZE", default_value = "64MB", env = "WALHUB_WAL_BUFFERS")]
    pub wal_buffers: String,

    /// The most WAL handed to a socket at once
    #[arg(long, value_name = "SIZE", default_value = "256kB", env = "WALHUB_MAX_SEND_SIZE")]
    pub max_send_size: String,

    /// Shell command that archives a complete segment or history file: %p is its path, seen from
    /// the hub's directory, %f its name, %% a percent sign. WAL is kept until it has succeeded.
    /// Empty for none
    #[arg(
        long,
        value_name = "COMMAND",
        default_value = "",
        hide_default_value = true,
        env = "WALHUB_ARCHIVE_COMMAND"
    )]
    pub archive_command: String,

    /// Retention, slots, feedback
    #[command(flatten)]
    pub downstream: DownstreamFlags,

    /// The archive
    #[command(flatten)]
    pub restore: RestoreFlags,

    /// Verifying
    #[command(flatten)]
    pub scrub: ScrubFlags,

    /// Replication connections at one time
    #[arg(long, value_name = "N", default_value_t = 4000, env = "WALHUB_MAX_WAL_SENDERS")]
    pub max_wal_senders: usize,

    /// End a stream whose standby has been silent for this long; 0 for never
    #[arg(long, value_name = "TIME", default_value = "60s", env = "WALHUB_WAL_SENDER_TIMEOUT")]
    pub wal_sender_timeout: String,

    /// Give up an upstream that has been silent for this long; 0 for never
    #[arg(long, value_name = "TIME", default_value = "60s", env = "WALHUB_WAL_RECEIVER_TIMEOUT")]
    pub wal_receiver_timeout: String,

    /// The longest time between position reports to the upstream; 0 for only when asked
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10s",
        env = "WALHUB_WAL_RECEIVER_STATUS_INTERVAL"
    )]
    pub wal_receiver_status_interval: String,

    /// Time between two failed attempts to reach the upstream
    #[arg(
        long,
        value_name = "TIME",
        default_value = "5s",
        env = "WALHUB_WAL_RETRIEVE_RETRY_INTERVAL"
    )]
    pub wal_retrieve_retry_interval: String,

    /// The hub's application_name at the upstream, unless the connection string has one
    #[arg(long, value_name = "NAME", default_value = "walhub", env = "WALHUB_CLUSTER_NAME")]
    pub cluster_name: String,

    /// Log level: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "WALHUB_LOG_LEVEL")]
    pub log_level: String,
}

/// The smallest cache holds two unsynced batches in addition to what senders read.
const WAL_BUFFERS: RangeInclusive<u64> = 8 << 20..=1 << 40;

/// PostgreSQL's own upper limit (`MAX_BACKENDS`).
const MAX_WAL_SENDERS: usize = 262_143;

/// A larger value would only make one standby wait for another.
const MAX_SEND_SIZE: RangeInclusive<u64> = 8 << 10..=1 << 20;

impl ServeFlags {
    /// Resolves what was typed into a configuration.
    ///
    /// # Errors
    /// Names the flag and what is wrong with its value.
    pub fn resolve(self) -> Result<Config, Mistake> {
        let env = |name: &str| std::env::var(name).ok();
        let conninfo = Conninfo::parse(&self.primary_conninfo, &env)
            .map_err(|e| mistake("primary-conninfo", e))?;
        let addresses =
            listen_addresses(&self.listen_addresses).map_err(|e| mistake("listen-addresses", e))?;
        let directories = self.unix_socket_directories.split(',').map(str::trim);
        let missing_slot = if self.create_slot { MissingSlot::Create } else { MissingSlot::Refuse };
        let archive_command = command("archive-command", &self.archive_command, &['f', 'p'])?;
        let archive_mode = match archive_command {
            Some(_) => ArchiveMode::Always,
            None => ArchiveMode::Off,
        };
        let cache = |flag, text: &str, range| size(flag, text, SizeUnit::Kilobyte, range);
        let timeout = |flag, text: &str| time(flag, text, TimeUnit::Millisecond);
        let wal_sender_timeout = timeout("wal-sender-timeout", &self.wal_sender_timeout)?;
        let restorable = self.restore.restorable()?;
        let diverge_after = time("on-diverge-after", &self.on_diverge_after, TimeUnit::Second)?;
        let retention = self.downstream.retention(restorable, wal_sender_timeout)?;
        Ok(Config {
            primary_conninfo: conninfo,
            primary_slot_name: slot_name(self.primary_slot_name, missing_slot)?,
            missing_slot,
            start_from: parsed("start-from", &self.start_from)?,
            on_gap: parsed("on-gap", &self.on_gap)?,
            on_diverge: match parsed("on-diverge", &self.on_diverge)? {
                DivergeChoice::Stop => OnDiverge::Stop,
                DivergeChoice::Follow => OnDiverge::Follow { after: diverge_after },
            },
            weak_proof: if self.require_proof { WeakProof::Refuse } else { WeakProof::Accept },
            listen_addresses: addresses,
            port: self.port,
            unix_socket_directories: directories
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
                .collect(),
            cores: self.cores.unwrap_or_else(default_cores),
            pin_cores: parsed("pin-cores", &self.pin_cores)?,
            zerocopy: parsed("zerocopy", &self.zerocopy)?,
            tcp: self.tcp.resolve()?,
            wal_buffers: cache("wal-buffers", &self.wal_buffers, WAL_BUFFERS)? as usize,
            max_send_size: cache("max-send-size", &self.max_send_size, MAX_SEND_SIZE)? as usize,
            retention: Policy { archive_mode, ..retention },
            archive_command,
            slots: self.downstream.slots()?,
            feedback: self.downstream.feedback()?,
            restore: self.restore.resolve()?,
            scrub: self.scrub.resolve()?,
            max_wal_senders: number("max-wal-senders", self.max_wal_senders, 0..=MAX_WAL_SENDERS)?,
            wal_sender_timeout,
            wal_receiver_timeout: timeout("wal-receiver-timeout", &self.wal_receiver_timeout)?,
            wal_receiver_status_interval: time(
                "wal-receiver-status-interval",
                &self.wal_receiver_status_interval,
                TimeUnit::Second,
            )?,
            // As in PostgreSQL, at least 1 ms: without a pause nothing else gets done.
            wal_retrieve_retry_interval: positive_time(
                "wal-retrieve-retry-interval",
                &self.wal_retrieve_retry_interval,
            )?,
            cluster_name: self.cluster_name,
            log_level: self.log_level,
            authentication_timeout: AUTHENTICATION_TIMEOUT,
            directory: self.directory,
        })
    }
}

/// A slot's name by PostgreSQL's rule (`ReplicationSlotValidateName`); an empty one means none.
fn slot_name(name: Option<String>, missing: MissingSlot) -> Result<Option<String>, Mistake> {
    let name = name.filter(|name| !name.is_empty());
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    match &name {
        None if missing == MissingSlot::Create => {
            Err(mistake("create-slot", "needs --primary-slot-name"))
        }
        Some(name) if name.len() > 63 || !name.bytes().all(legal) => Err(mistake(
            "primary-slot-name",
            format!(
                "\"{name}\": replication slot names may only contain lower case letters, numbers, \
                 and the underscore character, at most 63 of them"
            ),
        )),
        _ => Ok(name),
    }
}

fn default_cores() -> NonZeroUsize {
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let cores = if cpus <= 2 { 1 } else { (cpus / 2).min(8) };
    NonZeroUsize::new(cores).unwrap_or(NonZeroUsize::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PinCores, TcpSettings, Zerocopy};
    use clap::Parser;
    use std::time::Duration;

    #[derive(Debug, Parser)]
    struct Serve {
        #[command(flatten)]
        flags: ServeFlags,
    }

    fn serve(args: &[&str]) -> Result<Config, String> {
        let base = ["serve", "-D", "d", "--primary-conninfo", "host=127.0.0.1 user=u"];
        let typed = Serve::try_parse_from(base.iter().chain(args)).map_err(|e| e.to_string())?;
        typed.flags.resolve().map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = serve(&[]).unwrap();
        assert_eq!(config.wal_buffers, 64 << 20);
        assert_eq!(config.max_send_size, 256 << 10);
        assert_eq!(config.retention.wal_keep_size, 1 << 30);
        assert_eq!(config.retention.grace, Duration::from_secs(120));
        assert_eq!(config.max_wal_senders, 4000);
        assert_eq!(config.port, 5433);
        assert_eq!(config.wal_sender_timeout, Duration::from_secs(60));
        assert_eq!(config.wal_receiver_status_interval, Duration::from_secs(10));
        assert_eq!(config.wal_retrieve_retry_interval, Duration::from_secs(5));
    }

    #[test]
    fn units_are_postgres_units() {
        let config = serve(&["--wal-sender-timeout", "2500", "--wal-buffers", "8 MB"]).unwrap();
        assert_eq!(config.wal_sender_timeout, Duration::from_millis(2500));
        assert_eq!(config.wal_buffers, 8 << 20);
        let config =
            serve(&["--wal-receiver-status-interval", "2", "--wal-keep-size", "0"]).unwrap();
        assert_eq!(config.wal_receiver_status_interval, Duration::from_secs(2));
        assert_eq!(config.retention.wal_keep_size, 0);
    }

    #[test]
    fn what_is_zero_is_the_systems() {
        let config = serve(&[]).unwrap();
        assert_eq!(config.tcp, TcpSettings::default());
        assert_eq!((config.zerocopy, config.pin_cores), (Zerocopy::Auto, PinCores::Auto));
        let config = serve(&[
            "--tcp-congestion=bbr",
            "--tcp-keepalives-idle=30",
            "--tcp-keepalives-interval=1min",
            "--tcp-keepalives-count=4",
            "--tcp-user-timeout=1500",
        ]);
        let expected = TcpSettings {
            congestion: Some("bbr".to_owned()),
            keepalives_idle: Duration::from_secs(30),
            keepalives_interval: Duration::from_secs(60),
            keepalives_count: 4,
            user_timeout: Duration::from_millis(1500),
        };
        assert_eq!(config.unwrap().tcp, expected);
    }

    #[test]
    fn mistakes_name_the_flag() {
        for (args, flag) in [
            (["--wal-buffers", "1MB"], "--wal-buffers"),
            (["--wal-sender-timeout", "soon"], "--wal-sender-timeout"),
            (["--start-from", "here"], "--start-from"),
            (["--on-gap", "jump"], "--on-gap"),
            (["--on-diverge", "jump"], "--on-diverge"),
            (["--on-diverge-after", "soon"], "--on-diverge-after"),
            (["--wal-retrieve-retry-interval", "0"], "--wal-retrieve-retry-interval"),
            (["--max-slot-wal-keep-size", "-2"], "--max-slot-wal-keep-size"),
            (["--disk-high-watermark", "100%"], "--disk-high-watermark"),
            (["--max-replication-slots", "262144"], "--max-replication-slots"),
            (["--restore-command", "cp /a/%x %p"], "--restore-command"),
            (["--restore-jobs", "65"], "--restore-jobs"),
            (["--auto-create-slots", "Node*"], "--auto-create-slots"),
            (["--auto-create-slots", "*,limit=x"], "--auto-create-slots"),
            (["--hot-standby-feedback", "maybe"], "--hot-standby-feedback"),
            (["--report-apply", "fastest"], "--report-apply"),
            (["--listen-addresses", "0.0.0.0"], "--listen-addresses"),
            (["--zerocopy", "never"], "--zerocopy"),
            (["--pin-cores", "1-"], "--pin-cores"),
            (["--tcp-congestion", "a name with blanks"], "--tcp-congestion"),
            (["--tcp-keepalives-idle", "10h"], "--tcp-keepalives-idle"),
            (["--tcp-keepalives-count", "128"], "--tcp-keepalives-count"),
            (["--tcp-user-timeout", "30d"], "--tcp-user-timeout"),
        ] {
            let error = serve(&args).unwrap_err();
            assert!(error.contains(flag), "{error}");
        }
    }
}
