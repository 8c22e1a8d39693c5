//! The settings of a running hub, resolved: units applied, defaults filled in.
#![forbid(unsafe_code)]

mod feedback;
mod restore;
mod scrub;
mod slots;

pub use feedback::{FeedbackSetting, FeedbackSettings};
pub use restore::RestoreSettings;
pub use scrub::{SCRUB_RATES, ScrubSettings};
pub use slots::{AutoCreate, SlotSettings};

use crate::archive::template::Template;
use crate::store::retention::Policy;
use crate::upstream::position::StartFrom;
use crate::wire::conninfo::Conninfo;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Every setting of `walhub serve`. Names are those of the flags, which are PostgreSQL's where the
/// meaning is the same.
#[derive(Debug, Clone)]
pub struct Config {
    /// `--directory`: the hub's own directory, which holds `pg_wal`.
    pub directory: PathBuf,
    /// `--primary-conninfo`.
    pub primary_conninfo: Conninfo,
    /// `--primary-slot-name`: physical slot to use upstream.
    pub primary_slot_name: Option<String>,
    /// `--create-slot`: what to do about a missing slot.
    pub missing_slot: MissingSlot,
    /// `--start-from`: where an empty directory begins.
    pub start_from: StartFrom,
    /// `--on-gap`: what to do when the upstream no longer has our position.
    pub on_gap: OnGap,
    /// `--on-diverge`.
    pub on_diverge: OnDiverge,
    /// `--require-proof`: what to do about an upstream that cannot prove to have our history.
    pub weak_proof: WeakProof,
    /// `--listen-addresses`, loopback only.
    pub listen_addresses: Vec<IpAddr>,
    /// `--port`, also the number in the Unix sockets' names.
    pub port: u16,
    /// `--unix-socket-directories`.
    pub unix_socket_directories: Vec<PathBuf>,
    /// `--cores`: data cores.
    pub cores: NonZeroUsize,
    /// `--pin-cores`.
    pub pin_cores: PinCores,
    /// `--zerocopy`.
    pub zerocopy: Zerocopy,
    /// `--tcp-...`.
    pub tcp: TcpSettings,
    /// `--wal-buffers`, bytes.
    pub wal_buffers: usize,
    /// `--max-send-size`, bytes of one send.
    pub max_send_size: usize,
    /// `--wal-keep-size` and all other retention rules.
    pub retention: Policy,
    /// `--archive-command`, for every file that is received.
    pub archive_command: Option<Template>,
    /// Replication slots of standbys.
    pub slots: SlotSettings,
    /// What the upstream is told about the standbys.
    pub feedback: FeedbackSettings,
    /// The archive as a source of WAL.
    pub restore: Option<RestoreSettings>,
    /// How old WAL is read again.
    pub scrub: ScrubSettings,
    /// `--max-wal-senders`: most concurrent replication connections.
    pub max_wal_senders: usize,
    /// `--wal-sender-timeout`; zero disables it.
    pub wal_sender_timeout: Duration,
    /// `--wal-receiver-timeout`; zero disables it.
    pub wal_receiver_timeout: Duration,
    /// `--wal-receiver-status-interval`; zero sends only replies that are due anyway.
    pub wal_receiver_status_interval: Duration,
    /// `--wal-retrieve-retry-interval`: the least time between two upstream failures.
    pub wal_retrieve_retry_interval: Duration,
    /// `--cluster-name`: our application name upstream, unless the conninfo has one.
    pub cluster_name: String,
    /// `--log-level`.
    pub log_level: String,
    /// How long a client may take for its startup packet (PostgreSQL's default, 60 s).
    pub authentication_timeout: Duration,
}

/// PostgreSQL's `authentication_timeout`, for which there is no flag.
pub const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(60);

/// What to do when `--primary-slot-name` does not exist upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingSlot {
    /// Log it and try again later, as a standby does.
    Refuse,
    /// Create it, with its WAL reserved (`--create-slot`).
    Create,
}

impl std::str::FromStr for StartFrom {
    type Err = ConfigFault;

    fn from_str(text: &str) -> Result<Self, ConfigFault> {
        match text {
            "current" => Ok(Self::Current),
            "oldest" => Ok(Self::Oldest),
            lsn => lsn.parse().map(Self::At).map_err(|_| ConfigFault::StartFrom(lsn.to_owned())),
        }
    }
}

/// What to do about an upstream whose WAL is ours as far as it could be compared, which was not far
/// enough to prove that it has our history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeakProof {
    /// Follow it, and say so.
    #[default]
    Accept,
    /// Do not follow it.
    Refuse,
}

/// What to do when the upstream no longer has our position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnGap {
    /// Keep serving what we have, keep asking, and log it loudly.
    Stop,
    /// Set our WAL aside and begin again at the upstream's position.
    RestartAtCurrent,
}

impl std::str::FromStr for OnGap {
    type Err = ConfigFault;

    fn from_str(text: &str) -> Result<Self, ConfigFault> {
        match text {
            "stop" => Ok(Self::Stop),
            "restart-at-current" => Ok(Self::RestartAtCurrent),
            other => Err(ConfigFault::OnGap(other.to_owned())),
        }
    }
}

/// What to do about an upstream that has another history than ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDiverge {
    /// Receive nothing from it, until an operator says which history is the true one.
    Stop,
    /// Give up ours for that of a server out of recovery that has had another one for so long.
    Follow {
        /// How long.
        after: Duration,
    },
}

/// The values of `--on-diverge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DivergeChoice {
    /// [`OnDiverge::Stop`].
    Stop,
    /// [`OnDiverge::Follow`].
    Follow,
}

impl std::str::FromStr for DivergeChoice {
    type Err = ConfigFault;

    fn from_str(text: &str) -> Result<Self, ConfigFault> {
        match text {
            "stop" => Ok(Self::Stop),
            "follow" => Ok(Self::Follow),
            other => Err(ConfigFault::OnDiverge(other.to_owned())),
        }
    }
}

/// The CPUs to which the data cores are bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinCores {
    /// One each, where enough CPUs stay free for everything else.
    Auto,
    /// None.
    Off,
    /// These, in this order.
    To(Vec<usize>),
}

impl std::str::FromStr for PinCores {
    type Err = ConfigFault;

    /// Numbers and ranges, separated by commas, as in `taskset -c`.
    fn from_str(text: &str) -> Result<Self, ConfigFault> {
        let list = || {
            let mut cpus = Vec::new();
            for part in text.split(',').map(str::trim) {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
                // The kernel's own limit.
                if last > 8191 {
                    return None;
                }
                cpus.extend(first..=last);
            }
            (!cpus.is_empty()).then_some(Self::To(cpus))
        };
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => list().ok_or_else(|| ConfigFault::PinCores(text.to_owned())),
        }
    }
}

/// Which standbys are sent large pieces without a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zerocopy {
    /// Those on other hosts, as long as the kernel really avoids the copy.
    Auto,
    /// All that are connected by TCP.
    On,
    /// None.
    Off,
}

impl std::str::FromStr for Zerocopy {
    type Err = ConfigFault;

    fn from_str(text: &str) -> Result<Self, ConfigFault> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            other => Err(ConfigFault::Zerocopy(other.to_owned())),
        }
    }
}

/// TCP settings of client connections. `None` and zero mean the system's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpSettings {
    /// `--tcp-congestion`; applies to the upstream's connection too.
    pub congestion: Option<String>,
    /// `--tcp-keepalives-idle`.
    pub keepalives_idle: Duration,
    /// `--tcp-keepalives-interval`.
    pub keepalives_interval: Duration,
    /// `--tcp-keepalives-count`.
    pub keepalives_count: u32,
    /// `--tcp-user-timeout`.
    pub user_timeout: Duration,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFault {
    /// `--start-from`.
    #[error(
        "invalid value \"{0}\": expected \"current\", \"oldest\" or an LSN such as 16/B374D848"
    )]
    StartFrom(String),
    /// `--on-gap`.
    #[error("invalid value \"{0}\": expected \"stop\" or \"restart-at-current\"")]
    OnGap(String),
    /// `--on-diverge`.
    #[error("invalid value \"{0}\": expected \"stop\" or \"follow\"")]
    OnDiverge(String),
    /// `--pin-cores`.
    #[error("invalid value \"{0}\": expected \"auto\", \"off\" or a list of CPUs such as 2,4-7")]
    PinCores(String),
    /// `--zerocopy`.
    #[error("invalid value \"{0}\": expected \"auto\", \"on\" or \"off\"")]
    Zerocopy(String),
    /// `--listen-addresses`: not an address.
    #[error("invalid listen address \"{0}\": expected \"localhost\" or a loopback IP address")]
    ListenAddress(String),
    /// `--listen-addresses`: reachable from other hosts.
    #[error(
        "refusing to listen on \"{0}\": this version authenticates nobody (\"trust\"), and WAL is \
         the whole database; only loopback addresses and Unix sockets are allowed"
    )]
    ListenElsewhere(String),
}

/// Reads `--listen-addresses`: comma-separated, loopback only; empty means none.
pub fn listen_addresses(text: &str) -> Result<Vec<IpAddr>, ConfigFault> {
    let mut addresses = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name {
            "localhost" => {
                addresses.extend([Ipv4Addr::LOCALHOST.into(), IpAddr::from(Ipv6Addr::LOCALHOST)]);
            }
            "*" => return Err(ConfigFault::ListenElsewhere(name.to_owned())),
            _ => match name.parse::<IpAddr>() {
                Ok(ip) if ip.to_canonical().is_loopback() => addresses.push(ip),
                Ok(_) => return Err(ConfigFault::ListenElsewhere(name.to_owned())),
                Err(_) => return Err(ConfigFault::ListenAddress(name.to_owned())),
            },
        }
    }
    let mut seen = Vec::new();
    addresses.retain(|ip| {
        !seen.contains(ip) && {
            seen.push(*ip);
            true
        }
    });
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::Lsn;

    #[test]
    fn listens_on_loopback_only() {
        assert_eq!(listen_addresses("").unwrap(), Vec::<IpAddr>::new());
        assert_eq!(
            listen_addresses("127.0.0.1, ::1,localhost,127.0.0.2").unwrap(),
            ["127.0.0.1", "::1", "127.0.0.2"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        for elsewhere in ["*", "0.0.0.0", "::", "10.0.0.1", "127.0.0.1,192.168.1.1"] {
            let fault = listen_addresses(elsewhere).unwrap_err();
            assert!(matches!(fault, ConfigFault::ListenElsewhere(_)), "{elsewhere}");
        }
        assert!(matches!(listen_addresses("db1"), Err(ConfigFault::ListenAddress(_))));
    }

    #[test]
    fn reads_choices() {
        assert_eq!("current".parse(), Ok(StartFrom::Current));
        assert_eq!("oldest".parse(), Ok(StartFrom::Oldest));
        assert_eq!("0/3000000".parse(), Ok(StartFrom::At(Lsn::new(0x300_0000))));
        assert!("newest".parse::<StartFrom>().is_err());
        assert_eq!("stop".parse(), Ok(OnGap::Stop));
        assert_eq!("restart-at-current".parse(), Ok(OnGap::RestartAtCurrent));
        assert!("go".parse::<OnGap>().is_err());
        assert_eq!("follow".parse(), Ok(DivergeChoice::Follow));
        let fault = "go".parse::<DivergeChoice>().unwrap_err().to_string();
        assert_eq!(fault, "invalid value \"go\": expected \"stop\" or \"follow\"");
        assert_eq!("on".parse(), Ok(Zerocopy::On));
        assert!("yes".parse::<Zerocopy>().is_err());
        assert_eq!("auto".parse(), Ok(PinCores::Auto));
        assert_eq!("7, 2-4".parse(), Ok(PinCores::To(vec![7, 2, 3, 4])));
        for list in ["", "3-", "4-2", "1,,2", "-1", "9000", "all"] {
            assert!(list.parse::<PinCores>().is_err(), "{list}");
        }
    }
}
