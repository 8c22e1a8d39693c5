//! Flags of `walhub serve`: what was typed, and what it means.

mod downstream;
mod restore;

pub use downstream::DownstreamFlags;
pub use restore::RestoreFlags;

use crate::archive::template::Template;
use crate::config::{
    AUTHENTICATION_TIMEOUT, Config, MissingSlot, OnGap, PinCores, TcpSettings, Zerocopy,
    listen_addresses,
};
use crate::store::retention::{ArchiveMode, Policy};
use crate::upstream::position::StartFrom;
use crate::wire::conninfo::Conninfo;
use crate::wire::units::{SizeUnit, TimeUnit, format_bytes, parse_bytes, parse_duration};
use clap::Args;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Flags of `walhub serve`. Sizes take kB, MB, GB (powers of 1024); times us, ms, s, min,
/// h, d. A name that PostgreSQL has too means what it means there.
#[derive(Debug, Args)]
#[command(after_help = "\
Sizes take the units kB, MB, GB, TB (powers of 1024); times us, ms, s, min, h, d. A flag that bears \
the name of a PostgreSQL setting means what the setting means.\n\n\
Signals: SIGTERM and SIGINT end the hub as a fast shutdown ends a PostgreSQL server: everything \
durable is sent, standbys are told, exit within 5 s. A second signal ends it at once.")]
pub struct ServeFlags {
    /// The hub's own directory; created with mode 0700 if it does not exist
    #[arg(short = 'D', long, value_name = "DIR", env = "WALHUB_DIRECTORY")]
    pub directory: PathBuf,

    /// Where the WAL comes from: a libpq connection string, hosts tried in order
    #[arg(long, value_name = "CONNINFO", env = "WALHUB_PRIMARY_CONNINFO", hide_env_values = true)]
    pub primary_conninfo: String,

    /// Physical replication slot to use upstream
    #[arg(long, value_name = "NAME", env = "WALHUB_PRIMARY_SLOT_NAME")]
    pub primary_slot_name: Option<String>,

    /// Create the slot (with its WAL reserved) if it does not exist
    #[arg(long, env = "WALHUB_CREATE_SLOT")]
    pub create_slot: bool,

    /// Where an empty directory begins: "current", "oldest", or an LSN
    #[arg(long, value_name = "WHERE", default_value = "current", env = "WALHUB_START_FROM")]
    pub start_from: String,

    /// When the upstream no longer has the WAL that is next here: "stop" keeps serving what is
    /// here and keeps asking; "restart-at-current" moves it aside and begins anew
    #[arg(long, value_name = "WHAT", default_value = "stop", env = "WALHUB_ON_GAP")]
    pub on_gap: String,

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

    /// Congestion control of TCP connections, clients' and upstream; the system's default if empty
    #[arg(long, value_name = "NAME", default_value = "", env = "WALHUB_TCP_CONGESTION")]
    pub tcp_congestion: String,

    /// Silence after which clients' connections are probed; 0 for the system's default
    #[arg(long, value_name = "TIME", default_value = "0", env = "WALHUB_TCP_KEEPALIVES_IDLE")]
    pub tcp_keepalives_idle: String,

    /// Time between two probes; 0 for the system's default
    #[arg(long, value_name = "TIME", default_value = "0", env = "WALHUB_TCP_KEEPALIVES_INTERVAL")]
    pub tcp_keepalives_interval: String,

    /// Probes that may be lost before a connection is given up; 0 for the system's default
    #[arg(long, value_name = "N", default_value_t = 0, env = "WALHUB_TCP_KEEPALIVES_COUNT")]
    pub tcp_keepalives_count: u32,

    /// Time that sent data may stay unacknowledged before a connection is given up; 0 for the
    /// system's default
    #[arg(long, value_name = "TIME", default_value = "0", env = "WALHUB_TCP_USER_TIMEOUT")]
    pub tcp_user_timeout: String,

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

    /// Replication connections at one time
    #[arg(long, value_name = "N", default_value_t = 4000, env = "WALHUB_MAX_WAL_SENDERS")]
    pub max_wal_senders: usize,

    /// End a stream whose standby is silent for so long; 0 never
    #[arg(long, value_name = "TIME", default_value = "60s", env = "WALHUB_WAL_SENDER_TIMEOUT")]
    pub wal_sender_timeout: String,

    /// Give up an upstream that is silent for so long; 0 never
    #[arg(long, value_name = "TIME", default_value = "60s", env = "WALHUB_WAL_RECEIVER_TIMEOUT")]
    pub wal_receiver_timeout: String,

    /// Report positions upstream at least so often; 0 only when asked
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

    /// Name upstream (application_name), unless the connection string has one
    #[arg(long, value_name = "NAME", default_value = "walhub", env = "WALHUB_CLUSTER_NAME")]
    pub cluster_name: String,

    /// Log level: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "WALHUB_LOG_LEVEL")]
    pub log_level: String,
}

/// A flag whose value cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--{flag}: {fault}")]
pub struct Mistake {
    flag: &'static str,
    fault: String,
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
        let directories = self.unix_socket_directories.split(',').map(str::trim);
        let missing_slot = if self.create_slot { MissingSlot::Create } else { MissingSlot::Refuse };
        let archive_command = archive_command(&self.archive_command)?;
        let archive_mode = match archive_command {
            Some(_) => ArchiveMode::Always,
            None => ArchiveMode::Off,
        };
        Ok(Config {
            primary_conninfo: conninfo,
            primary_slot_name: slot_name(self.primary_slot_name, missing_slot)?,
            missing_slot,
            start_from: self
                .start_from
                .parse::<StartFrom>()
                .map_err(|e| mistake("start-from", e))?,
            on_gap: self.on_gap.parse::<OnGap>().map_err(|e| mistake("on-gap", e))?,
            listen_addresses: listen_addresses(&self.listen_addresses)
                .map_err(|e| mistake("listen-addresses", e))?,
            port: self.port,
            unix_socket_directories: directories
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
                .collect(),
            cores: self.cores.unwrap_or_else(default_cores),
            pin_cores: self.pin_cores.parse::<PinCores>().map_err(|e| mistake("pin-cores", e))?,
            zerocopy: self.zerocopy.parse::<Zerocopy>().map_err(|e| mistake("zerocopy", e))?,
            tcp: TcpSettings {
                congestion: congestion(self.tcp_congestion)?,
                keepalives_idle: keepalive("tcp-keepalives-idle", &self.tcp_keepalives_idle)?,
                keepalives_interval: keepalive(
                    "tcp-keepalives-interval",
                    &self.tcp_keepalives_interval,
                )?,
                keepalives_count: match self.tcp_keepalives_count {
                    count @ 0..=MAX_KEEPALIVES => count,
                    count => {
                        let fault =
                            format!("{count} is outside the valid range (0 .. {MAX_KEEPALIVES})");
                        return Err(mistake("tcp-keepalives-count", fault));
                    }
                },
                user_timeout: at_most(
                    "tcp-user-timeout",
                    &self.tcp_user_timeout,
                    TimeUnit::Millisecond,
                    MAX_USER_TIMEOUT,
                )?,
            },
            wal_buffers: bytes("wal-buffers", &self.wal_buffers, SizeUnit::Kilobyte, WAL_BUFFERS)?
                as usize,
            max_send_size: bytes(
                "max-send-size",
                &self.max_send_size,
                SizeUnit::Kilobyte,
                MAX_SEND_SIZE,
            )? as usize,
            retention: Policy {
                archive_mode,
                ..self.downstream.retention(self.restore.restorable()?)?
            },
            archive_command,
            slots: self.downstream.slots()?,
            feedback: self.downstream.feedback()?,
            restore: self.restore.resolve()?,
            max_wal_senders: if self.max_wal_senders <= MAX_WAL_SENDERS {
                self.max_wal_senders
            } else {
                let fault = format!(
                    "{} is outside the valid range (0 .. {MAX_WAL_SENDERS})",
                    self.max_wal_senders
                );
                return Err(mistake("max-wal-senders", fault));
            },
            wal_sender_timeout: time("wal-sender-timeout", &self.wal_sender_timeout)?,
            wal_receiver_timeout: time("wal-receiver-timeout", &self.wal_receiver_timeout)?,
            wal_receiver_status_interval: seconds(
                "wal-receiver-status-interval",
                &self.wal_receiver_status_interval,
            )?,
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

fn mistake(flag: &'static str, fault: impl std::fmt::Display) -> Mistake {
    Mistake { flag, fault: fault.to_string() }
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

/// As in PostgreSQL, an empty command means none.
fn archive_command(text: &str) -> Result<Option<Template>, Mistake> {
    let command = Some(text).filter(|text| !text.is_empty());
    let command = command.map(|text| Template::parse(text, &['f', 'p'])).transpose();
    command.map_err(|e| mistake("archive-command", e))
}

fn default_cores() -> NonZeroUsize {
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let cores = if cpus <= 2 { 1 } else { (cpus / 2).min(8) };
    NonZeroUsize::new(cores).unwrap_or(NonZeroUsize::MIN)
}

fn bytes(
    flag: &'static str,
    text: &str,
    unit: SizeUnit,
    range: RangeInclusive<u64>,
) -> Result<u64, Mistake> {
    let value = parse_bytes(text, unit).map_err(|e| mistake(flag, e))?;
    if range.contains(&value) {
        return Ok(value);
    }
    let (min, max) = (format_bytes(*range.start()), format_bytes(*range.end()));
    Err(mistake(flag, format!("{text} is outside the valid range ({min} .. {max})")))
}

fn time(flag: &'static str, text: &str) -> Result<Duration, Mistake> {
    parse_duration(text, TimeUnit::Millisecond).map_err(|e| mistake(flag, e))
}

/// As in PostgreSQL, at least 1 ms: without a pause nothing else gets done.
fn positive_time(flag: &'static str, text: &str) -> Result<Duration, Mistake> {
    let value = time(flag, text)?;
    if value.is_zero() {
        return Err(mistake(flag, format!("{text} is outside the valid range (1ms ..)")));
    }
    Ok(value)
}

/// The kernel's limits (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPCNT`); a timeout's milliseconds
/// are an `int` there.
const MAX_KEEPALIVE: Duration = Duration::from_secs(32_767);
const MAX_KEEPALIVES: u32 = 127;
const MAX_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// The kernel takes 15 bytes of a name (`TCP_CA_NAME_MAX`).
fn congestion(name: String) -> Result<Option<String>, Mistake> {
    let name = Some(name).filter(|name| !name.is_empty());
    match &name {
        Some(long) if long.len() > 15 || !long.bytes().all(|b| b.is_ascii_graphic()) => {
            Err(mistake("tcp-congestion", format!("\"{long}\" is no congestion control's name")))
        }
        _ => Ok(name),
    }
}

fn keepalive(flag: &'static str, text: &str) -> Result<Duration, Mistake> {
    at_most(flag, text, TimeUnit::Second, MAX_KEEPALIVE)
}

fn at_most(
    flag: &'static str,
    text: &str,
    unit: TimeUnit,
    max: Duration,
) -> Result<Duration, Mistake> {
    let value = parse_duration(text, unit).map_err(|e| mistake(flag, e))?;
    if value > max {
        return Err(mistake(flag, format!("{text} is outside the valid range (0 .. {max:?})")));
    }
    Ok(value)
}

fn seconds(flag: &'static str, text: &str) -> Result<Duration, Mistake> {
    parse_duration(text, TimeUnit::Second).map_err(|e| mistake(flag, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

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
