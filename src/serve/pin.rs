//! Which CPU each data core is bound to.

use crate::config::PinCores;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io;
use tracing::{debug, warn};

/// CPUs that stay free when the user has named none: one for the other threads, one for the
/// kernel's work and for other processes on the host. A core that is bound to a busy CPU waits
/// where it could have moved.
const LEFT_FREE: usize = 2;

/// `--pin-cores` cannot be followed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinFault {
    /// There are fewer CPUs than data cores.
    #[error("--pin-cores names {named} CPUs for {cores} data cores (--cores)")]
    TooFew {
        /// CPUs in the list.
        named: usize,
        /// Data cores.
        cores: usize,
    },
    /// A CPU is outside the affinity mask or the container's set.
    #[error("--pin-cores: this process may not run on CPU {cpu} (its CPUs are {available:?})")]
    NotOurs {
        /// The CPU.
        cpu: usize,
        /// The CPUs that it may run on.
        available: Vec<usize>,
    },
}

/// The CPUs that this process may run on: its affinity mask, within its cpuset.
pub(super) fn available() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// The CPU of each data core; `None` for a core that is not bound.
pub(super) fn plan(
    pin: &PinCores,
    cores: usize,
    available: &[usize],
) -> Result<Vec<Option<usize>>, PinFault> {
    match pin {
        PinCores::Auto if available.len() >= cores + LEFT_FREE => {
            // From the end of the list: devices tend to interrupt the first CPUs.
            Ok(available.iter().rev().take(cores).rev().copied().map(Some).collect())
        }
        PinCores::Auto | PinCores::Off => Ok(vec![None; cores]),
        PinCores::To(cpus) if cpus.len() < cores => {
            Err(PinFault::TooFew { named: cpus.len(), cores })
        }
        PinCores::To(cpus) => match cpus.iter().find(|cpu| !available.contains(cpu)) {
            Some(cpu) => Err(PinFault::NotOurs { cpu: *cpu, available: available.to_vec() }),
            None => Ok(cpus.iter().take(cores).copied().map(Some).collect()),
        },
    }
}

/// Binds the calling thread. If that fails, the core runs unbound.
pub(super) fn bind_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    match sched_setaffinity(None, &set) {
        Ok(()) => debug!("data core bound to CPU {cpu}"),
        Err(error) => warn!("could not bind a data core to CPU {cpu}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_leaves_two_cpus_free() {
        let plan = |cores, cpus: &[usize]| plan(&PinCores::Auto, cores, cpus).unwrap();
        assert_eq!(plan(1, &[0, 1]), [None]);
        assert_eq!(plan(1, &[3, 5, 9]), [Some(9)]);
        assert_eq!(plan(2, &[0, 1, 2]), [None, None]);
        assert_eq!(plan(2, &[0, 1, 2, 3]), [Some(2), Some(3)]);
    }

    #[test]
    fn a_list_is_followed_or_refused() {
        let to = |cpus: &[usize]| PinCores::To(cpus.to_vec());
        assert_eq!(plan(&to(&[1, 0, 1]), 2, &[0, 1]), Ok(vec![Some(1), Some(0)]));
        assert_eq!(plan(&to(&[1]), 2, &[0, 1]), Err(PinFault::TooFew { named: 1, cores: 2 }));
        let available = vec![0, 1];
        assert_eq!(plan(&to(&[2]), 1, &[0, 1]), Err(PinFault::NotOurs { cpu: 2, available }));
        assert_eq!(plan(&PinCores::Off, 2, &[0, 1, 2, 3]), Ok(vec![None, None]));
    }

    #[test]
    fn a_thread_is_bound_to_one_of_its_cpus() {
        let cpu = *available().unwrap().last().unwrap();
        std::thread::spawn(move || {
            bind_to(cpu);
            assert_eq!(available().unwrap(), [cpu]);
        })
        .join()
        .unwrap();
    }
}
