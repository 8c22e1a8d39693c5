//! Signals, on a thread of their own. The first one begins the shutdown. A second one ends the
//! process whatever stage the shutdown has reached, and so does this thread when the shutdown
//! takes too long.
//!
//! The control thread cannot do this: it ends before the cores are waited for, and a core waits
//! for its disk, which may never answer.

use crate::log;
use std::io;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{error, warn};

/// Exit status of a shutdown that was cut short.
const CUT_SHORT: i32 = 1;

/// Why the shutdown is cut short.
#[derive(Debug, PartialEq, Eq)]
enum CutShort {
    /// This signal came after the first.
    Again(&'static str),
    /// It takes too long.
    TooLong,
}

/// Catches SIGTERM and SIGINT from now on and returns a channel that reports the first one.
/// After that the process lives for at most `limit`.
pub(super) fn start(limit: Duration) -> io::Result<oneshot::Receiver<&'static str>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _on_it = runtime.enter();
        Signals::new()?
    };
    let (tell, first) = oneshot::channel();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        match runtime.block_on(watch(signals, tell, limit)) {
            CutShort::Again(signal) => warn!("received {signal} again, exiting at once"),
            CutShort::TooLong => error!(
                "the shutdown did not finish within {limit:?}, perhaps because a disk does not \
                 respond; exiting"
            ),
        }
        log::exit(CUT_SHORT)
    })?;
    Ok(first)
}

/// Reports the first signal and returns when the shutdown has to be cut short.
async fn watch(
    mut signals: Signals,
    tell: oneshot::Sender<&'static str>,
    limit: Duration,
) -> CutShort {
    let first = signals.next().await;
    if tell.send(first).is_err() {
        warn!("received {first} while already shutting down");
    }
    match timeout(limit, signals.next()).await {
        Ok(signal) => CutShort::Again(signal),
        Err(_) => CutShort::TooLong,
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, getpid, kill_process};

    /// A single test, because a process has its signals only once.
    #[test]
    fn the_first_is_told_the_second_cuts_short_and_so_does_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for (first, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
                let (tell, told) = oneshot::channel();
                let watching =
                    tokio::spawn(watch(Signals::new().unwrap(), tell, Duration::from_secs(20)));
                kill_process(getpid(), first).unwrap();
                assert_eq!(told.await.unwrap(), name);
                // The receiver of the first one is gone.
                kill_process(getpid(), Signal::INT).unwrap();
                assert_eq!(watching.await.unwrap(), CutShort::Again("SIGINT"));
            }
            let (tell, told) = oneshot::channel();
            let limit = Duration::from_millis(20);
            let watching = tokio::spawn(watch(Signals::new().unwrap(), tell, limit));
            kill_process(getpid(), Signal::TERM).unwrap();
            assert_eq!(told.await.unwrap(), "SIGTERM");
            assert_eq!(watching.await.unwrap(), CutShort::TooLong);
        });
    }
}
