//! Waking a core that sleeps in its ring.

use super::Fd;
use std::io;

/// Wakes one core, from any thread. Cheap to clone. A wake-up is a system call, so check the
/// core's bell first.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Fd,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        // Blocking on purpose: a ring that punts the read of a non-blocking descriptor may
        // complete it with EAGAIN at once. A writer would block only at 2^64-2 unread wake-ups.
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        Ok(Self { event: Fd::new(event) })
    }

    /// Ends the core's sleep, or the next one if it is not asleep.
    pub fn wake(&self) {
        loop {
            match rustix::io::write(&self.event, &1u64.to_ne_bytes()) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return,
                Err(error) => panic!("an eventfd takes every wake-up: {error}"),
            }
        }
    }

    /// A waker for a simulated ring.
    #[cfg(all(test, not(walhub_loom)))]
    pub(crate) fn simulated() -> Self {
        Self::new().expect("the test has a descriptor left")
    }

    /// Has it fired since the last call?
    #[cfg(all(test, not(walhub_loom)))]
    pub(crate) fn has_fired(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut event = [PollFd::new(&self.event, PollFlags::IN)];
        let fired = poll(&mut event, Some(&now)).is_ok_and(|ready| ready > 0);
        fired && rustix::io::read(&self.event, &mut [0; 8]).is_ok()
    }

    pub(super) fn event(&self) -> &Fd {
        &self.event
    }
}
