//! Can this host run the data cores? Checked once at start; the answer is one message that says
//! what to change.

use super::replies::Replies;
use io_uring::{IoUring, Probe, opcode};
use std::fmt;
use std::io;

/// The parts of a kernel's version that matter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct KernelVersion {
    /// 6 in 6.1.
    pub major: u32,
    /// 1 in 6.1.
    pub minor: u32,
}

impl KernelVersion {
    /// The first with deferred task work, which the rings are built on.
    pub const NEEDED: Self = Self { major: 6, minor: 1 };

    /// The first whose sends without a copy report whether there was one.
    const ZEROCOPY: Self = Self { major: 6, minor: 2 };

    /// Parses the output of `uname -r`; returns `None` when it is not a Linux release.
    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some(Self { major: next()?, minor: next()? })
    }

    fn running() -> Option<Self> {
        Self::parse(rustix::system::uname().release().to_str().ok()?)
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What [`probe`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// The running kernel; `None` when its release cannot be parsed.
    pub kernel: Option<KernelVersion>,
    /// Sends without a copy that report afterwards whether there was one.
    pub zerocopy: Support,
}

/// Does the kernel support something that the hub can do without?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// Yes.
    Yes,
    /// No.
    No,
}

/// Why there is no ring, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum RingRefused {
    /// Older than [`KernelVersion::NEEDED`].
    #[error("the kernel is too old: found Linux {found}, need {} or newer", KernelVersion::NEEDED)]
    KernelTooOld {
        /// The running kernel.
        found: KernelVersion,
    },
    /// Disabled for every process, or for this one.
    #[error(
        "io_uring is disabled: kernel.io_uring_disabled is {level}; {}",
        if *level == 1 {
            "set it to 0 with sysctl, or add the server's user to the group kernel.io_uring_group"
        } else {
            "set it to 0 with sysctl"
        }
    )]
    Disabled {
        /// The value of the sysctl.
        level: u32,
    },
    /// The system call is filtered.
    #[error(
        "io_uring is not permitted ({error}): allow io_uring_setup, io_uring_enter and \
         io_uring_register in the container's seccomp profile or the security policy"
    )]
    Filtered {
        /// The kernel's error.
        error: io::Error,
    },
    /// Locked memory is limited.
    #[error(
        "no memory for io_uring ({error}): raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)"
    )]
    Memory {
        /// The kernel's error.
        error: io::Error,
    },
    /// The kernel's version is new enough, but it was built or patched without something.
    #[error(
        "the kernel's io_uring lacks {missing}: found Linux {found}, need an unrestricted {} or newer",
        KernelVersion::NEEDED
    )]
    Lacks {
        /// What is missing.
        missing: String,
        /// The running kernel.
        found: String,
    },
    /// Anything else.
    #[error("cannot set up io_uring: {0}")]
    Other(#[from] io::Error),
}

impl RingRefused {
    /// What a failed `io_uring_setup` means.
    pub(super) fn setup(error: io::Error) -> Self {
        let sysctl = || std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
                match sysctl().and_then(|text| text.trim().parse().ok()) {
                    Some(level) if level > 0 => Self::Disabled { level },
                    _ => Self::Filtered { error },
                }
            }
            Some(libc::ENOMEM) => Self::Memory { error },
            Some(libc::EINVAL) => Self::lacks("single issuer rings with deferred task work"),
            _ => Self::Other(error),
        }
    }

    fn lacks(missing: impl Into<String>) -> Self {
        let found = rustix::system::uname().release().to_string_lossy().into_owned();
        Self::Lacks { missing: missing.into(), found }
    }
}

/// The operations that a data core uses.
const OPCODES: [(u8, &str); 7] = [
    (opcode::Recv::CODE, "RECV"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
];

/// Sets up a small ring and checks that it can do all that a data core needs.
pub fn probe() -> Result<Features, RingRefused> {
    let kernel = KernelVersion::running();
    if let Some(found) = kernel.filter(|found| *found < KernelVersion::NEEDED) {
        return Err(RingRefused::KernelTooOld { found });
    }
    let ring = setup(8)?;
    let mut supported = Probe::new();
    ring.submitter().register_probe(&mut supported)?;
    let missing = OPCODES.iter().filter(|(code, _)| !supported.is_supported(*code));
    let mut missing: Vec<&str> = missing.map(|(_, name)| *name).collect();
    let features = [
        (ring.params().is_feature_nodrop(), "completions that are never dropped"),
        (ring.params().is_feature_ext_arg(), "timeouts of waiting"),
    ];
    missing.extend(features.iter().filter(|(there, _)| !there).map(|(_, name)| *name));
    let replies = Replies::new(8, 64, 0)?;
    let ring_of_buffers = replies.register(&ring.submitter());
    if ring_of_buffers.and_then(|()| replies.unregister(&ring.submitter())).is_err() {
        missing.push("rings of provided buffers");
    }
    let zerocopy = supported.is_supported(opcode::SendZc::CODE)
        && kernel.is_some_and(|found| found >= KernelVersion::ZEROCOPY);
    if missing.is_empty() {
        Ok(Features { kernel, zerocopy: if zerocopy { Support::Yes } else { Support::No } })
    } else {
        Err(RingRefused::lacks(missing.join(", ")))
    }
}

/// A ring with the flags that all rings here have.
pub(super) fn setup(entries: u32) -> Result<IoUring, RingRefused> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    // One bad entry must not hold back the ones after it.
    builder.setup_submit_all().setup_clamp();
    // Operations in flight outnumber submissions: there is at least one receive per standby.
    builder.setup_cqsize(entries.saturating_mul(4));
    builder.build(entries).map_err(RingRefused::setup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_good_enough() {
        let features = probe().unwrap();
        assert!(features.kernel.is_some_and(|kernel| kernel >= KernelVersion::NEEDED));
    }

    #[test]
    fn reads_releases() {
        let version = |major, minor| Some(KernelVersion { major, minor });
        assert_eq!(KernelVersion::parse("6.18.44-fc-v669"), version(6, 18));
        assert_eq!(KernelVersion::parse("5.15-generic"), version(5, 15));
        assert_eq!(KernelVersion::parse("6"), None);
        assert_eq!(KernelVersion::parse("next-20260101"), None);
    }

    #[test]
    fn says_what_to_set() {
        let found = KernelVersion { major: 5, minor: 15 };
        let old = RingRefused::KernelTooOld { found }.to_string();
        assert_eq!(old, "the kernel is too old: found Linux 5.15, need 6.1 or newer");
        let denied = RingRefused::setup(io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(denied.contains("seccomp") || denied.contains("io_uring_disabled"), "{denied}");
        assert!(
            RingRefused::Disabled { level: 2 }
                .to_string()
                .contains("kernel.io_uring_disabled is 2")
        );
        let memory = RingRefused::setup(io::Error::from_raw_os_error(libc::ENOMEM)).to_string();
        assert!(memory.contains("LimitMEMLOCK"), "{memory}");
    }
}
