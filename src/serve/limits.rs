//! Limits of the process and the host, compared with the settings at the start.

use crate::config::{Config, Zerocopy};
use crate::control::reserved_descriptors;
use crate::ring;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Clients that are connecting or disconnecting.
const IN_OR_OUT: u64 = 512;

/// Kernel memory that a standby's socket may hold with `TCP_NOTSENT_LOWAT` set, bytes.
const SOCKET_MEMORY: u64 = 300 << 10;

/// `CAP_IPC_LOCK`: locked memory is not counted.
const CAP_IPC_LOCK: u32 = 14;

/// What the host and the process' limits allow.
#[derive(Debug, Clone, Copy)]
struct Host {
    /// The most open files.
    descriptors: u64,
    /// Locked memory, bytes; `None` when there is no limit.
    locked: Option<u64>,
    /// `net.ipv4.tcp_mem`, its upper value, in pages.
    tcp_pages: Option<u64>,
    page_size: u64,
}

impl Host {
    fn found() -> Self {
        let locked = getrlimit(Resource::Memlock).current;
        Self {
            descriptors: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            locked: locked.filter(|_| !may_lock()),
            tcp_pages: tcp_memory_pages(),
            page_size: rustix::param::page_size() as u64,
        }
    }
}

/// Raises the soft limit on descriptors to the hard one and warns of limits that do not fit the
/// settings.
///
/// # Errors
/// The limit leaves no room for any client.
pub(super) fn check(config: &Config) -> Result<(), TooFewDescriptors> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current.is_some_and(|current| current < descriptors_wanted(config))
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        warn!("could not raise the limit on open files: {error}");
    }
    for warning in judge(config, Host::found())? {
        warn!("{warning}");
    }
    Ok(())
}

fn descriptors_wanted(config: &Config) -> u64 {
    config.max_wal_senders as u64 + other_descriptors(config)
}

/// Descriptors used for anything but standbys.
fn other_descriptors(config: &Config) -> u64 {
    reserved_descriptors(config.cores.get()) as u64 + IN_OR_OUT
}

/// Returns what does not fit together, and what to set.
fn judge(config: &Config, host: Host) -> Result<Vec<String>, TooFewDescriptors> {
    let mut warnings = Vec::new();
    let (allowed, wanted) = (host.descriptors, descriptors_wanted(config));
    let others = other_descriptors(config);
    if allowed <= others {
        return Err(TooFewDescriptors { allowed, others, cores: config.cores.get() });
    }
    if allowed < wanted {
        warnings.push(format!(
            "the limit on open files ({allowed}) does not allow --max-wal-senders {}: set \
             LimitNOFILE (systemd) or ulimit -n to at least {wanted}",
            config.max_wal_senders
        ));
    }
    if let Some(pages) = host.tcp_pages {
        let bytes = pages.saturating_mul(host.page_size);
        let needed = config.max_wal_senders as u64 * SOCKET_MEMORY;
        if bytes < needed {
            warnings.push(format!(
                "--max-wal-senders {} slow standbys could fill the host's TCP memory ({} MB): set \
                 the sysctl net.ipv4.tcp_mem to at least {} pages",
                config.max_wal_senders,
                bytes >> 20,
                needed.div_ceil(host.page_size)
            ));
        }
    }
    // Each data core's ring locks the cache separately.
    let locks = ring::cache_memory(config.wal_buffers) as u64 * config.cores.get() as u64;
    if may_do_without_copies(config)
        && let Some(limit) = host.locked.filter(|limit| *limit < locks)
    {
        warnings.push(format!(
            "the limit on locked memory ({} kB) is too small for --zerocopy with --wal-buffers: \
             set LimitMEMLOCK (systemd) or ulimit -l to at least {} kB; until then all WAL is \
             copied",
            limit >> 10,
            locks >> 10
        ));
    }
    Ok(warnings)
}

/// Can there be a client to which large pieces are sent without a copy?
fn may_do_without_copies(config: &Config) -> bool {
    match config.zerocopy {
        Zerocopy::Off => false,
        Zerocopy::On => !config.listen_addresses.is_empty(),
        Zerocopy::Auto => config.listen_addresses.iter().any(|ip| !ip.is_loopback()),
    }
}

/// The hub cannot run with so few open files.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit on open files ({allowed}) leaves no room for standbys with --cores {cores}: set \
     LimitNOFILE (systemd) or ulimit -n to more than {others} plus --max-wal-senders"
)]
pub struct TooFewDescriptors {
    allowed: u64,
    others: u64,
    cores: usize,
}

/// The upper value of `net.ipv4.tcp_mem`, in pages.
fn tcp_memory_pages() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").ok()?;
    text.split_whitespace().nth(2)?.parse().ok()
}

/// Does the process have the capability to lock as much memory as it likes?
fn may_lock() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (1 << CAP_IPC_LOCK) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const PLENTY: Host =
        Host { descriptors: 1 << 20, locked: None, tcp_pages: Some(1 << 20), page_size: 4096 };

    fn config() -> Config {
        let mut config = crate::hub::tests::config("host=/nonexistent user=walhub");
        config.max_wal_senders = 4000;
        config.wal_buffers = 64 << 20;
        config
    }

    #[test]
    fn a_host_with_plenty_is_not_warned_of() {
        assert_eq!(judge(&config(), PLENTY), Ok(Vec::new()));
    }

    #[test]
    fn too_few_descriptors_say_how_many() {
        let host = Host { descriptors: 2000, ..PLENTY };
        let warnings = judge(&config(), host).unwrap();
        let others = other_descriptors(&config());
        let wanted = (4000 + others).to_string();
        assert!(warnings.len() == 1 && warnings[0].contains("LimitNOFILE"), "{warnings:?}");
        assert!(warnings[0].ends_with(&wanted), "{warnings:?}");
        let host = Host { descriptors: others, ..PLENTY };
        let cores = config().cores.get();
        let fault = Err(TooFewDescriptors { allowed: others, others, cores });
        assert_eq!(judge(&config(), host), fault);
    }

    #[test]
    fn little_tcp_memory_says_how_many_pages() {
        let host = Host { tcp_pages: Some(1000), ..PLENTY };
        let warnings = judge(&config(), host).unwrap();
        assert!(warnings[0].contains("net.ipv4.tcp_mem to at least 300000 pages"), "{warnings:?}");
    }

    #[test]
    fn locked_memory_matters_only_where_something_is_not_copied() {
        let host = Host { locked: Some(8 << 20), ..PLENTY };
        let judged = |zerocopy, address: [u8; 4]| {
            let mut config = config();
            config.zerocopy = zerocopy;
            config.listen_addresses = vec![Ipv4Addr::from(address).into()];
            judge(&config, host).unwrap()
        };
        let (here, everywhere) = ([127, 0, 0, 1], [0, 0, 0, 0]);
        assert!(judged(Zerocopy::Auto, here).is_empty());
        assert!(judged(Zerocopy::Off, everywhere).is_empty());
        for warnings in [judged(Zerocopy::On, here), judged(Zerocopy::Auto, everywhere)] {
            assert!(warnings[0].contains("ulimit -l to at least 69632 kB"), "{warnings:?}");
        }
    }
}
