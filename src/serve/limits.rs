//! Limits of the process and the host, held against the settings at the start.

use crate::config::Config;
use crate::control::RESERVED_DESCRIPTORS;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Descriptors besides the standbys': those that the control thread reserves, and the
/// clients that are on their way in or out.
const OTHER_DESCRIPTORS: u64 = RESERVED_DESCRIPTORS as u64 + 512;

/// Kernel memory that a standby's socket may hold with `TCP_NOTSENT_LOWAT` set, bytes.
const SOCKET_MEMORY: u64 = 300 << 10;

/// Raises the soft limit on descriptors to the hard one and warns where a limit does
/// not go with `--max-wal-senders`.
///
/// # Errors
/// The limit leaves no room for any client.
pub(super) fn check(config: &Config) -> Result<(), TooFewDescriptors> {
    let wanted = config.max_wal_senders as u64 + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    let allowed = limit.maximum.unwrap_or(u64::MAX);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        warn!("could not raise the limit on open files: {error}");
    }
    if allowed <= OTHER_DESCRIPTORS {
        return Err(TooFewDescriptors { allowed });
    }
    if allowed < wanted {
        warn!(
            "the limit on open files ({allowed}) does not allow --max-wal-senders {}: set \
             LimitNOFILE (systemd) or ulimit -n to at least {wanted}",
            config.max_wal_senders
        );
    }
    if let Some(pages) = tcp_memory_pages() {
        let bytes = pages * rustix::param::page_size() as u64;
        let needed = config.max_wal_senders as u64 * SOCKET_MEMORY;
        if bytes < needed {
            warn!(
                "--max-wal-senders {} slow standbys could fill the host's TCP memory ({} MB): set \
                 the sysctl net.ipv4.tcp_mem to at least {} pages",
                config.max_wal_senders,
                bytes >> 20,
                needed / rustix::param::page_size() as u64
            );
        }
    }
    Ok(())
}

/// The hub cannot run with so few open files.
#[derive(Debug, thiserror::Error)]
#[error(
    "the limit on open files ({allowed}) leaves no room for standbys: set LimitNOFILE (systemd) or \
     ulimit -n to more than {OTHER_DESCRIPTORS} plus --max-wal-senders"
)]
pub struct TooFewDescriptors {
    allowed: u64,
}

/// The upper value of `net.ipv4.tcp_mem`, in pages.
fn tcp_memory_pages() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").ok()?;
    text.split_whitespace().nth(2)?.parse().ok()
}
