//! Ctrl-C: an interrupted run still produces a report.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Whether a signal asked for the end. A second signal ends the process at once.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    set: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on SIGINT and SIGTERM only set the flag.
    ///
    /// # Errors
    /// A thread or a signal handler could not be set up.
    pub fn catch() -> io::Result<Self> {
        let caught = Self::default();
        let set = Arc::clone(&caught.set);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut int, mut term) = {
            let _entered = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let wait = async move {
            loop {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                }
                if set.swap(true, Ordering::AcqRel) {
                    // The status that a shell reports for a program ended by SIGINT.
                    std::process::exit(130);
                }
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned());
        thread.spawn(move || runtime.block_on(wait))?;
        Ok(caught)
    }

    /// A signal asked for the end.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Waits until `instant`, or until a signal asks for the end.
    pub fn wait_until(&self, instant: Instant) {
        /// A person does not notice this delay.
        const LOOK: Duration = Duration::from_millis(50);
        while !self.is_set() {
            let left = instant.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }
}
