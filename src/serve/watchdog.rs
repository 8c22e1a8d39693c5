//! Signals, on a thread of their own, from the first moment of a start. The first SIGTERM or SIGINT
//! begins the shutdown. A second one ends the process whatever stage the shutdown has reached, and
//! so does this thread when the shutdown takes too long. SIGHUP is logged and changes nothing.
//!
//! The control thread cannot do this: it begins when the directory is recovered and ends before the
//! cores are waited for, and both the recovery and a core wait for a disk, which may never answer.

use crate::log;
use std::io;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

/// Exit status of a shutdown that was cut short.
const CUT_SHORT: i32 = 1;

/// The same signal within this time of the first is the same request: `timeout` and some service
/// managers signal the process and its group.
const SAME_REQUEST: Duration = Duration::from_millis(200);

/// Why the shutdown is cut short.
#[derive(Debug, PartialEq, Eq)]
enum CutShort {
    /// This signal came after the first.
    Again(&'static str),
    /// It takes too long.
    TooLong,
}

/// Catches SIGTERM, SIGINT and SIGHUP from now on and returns a channel that reports the first
/// SIGTERM or SIGINT. After that the process lives for at most `limit`.
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
    let since = Instant::now();
    let again = async {
        loop {
            let signal = signals.next().await;
            if signal != first || since.elapsed() >= SAME_REQUEST {
                return signal;
            }
        }
    };
    match timeout(limit, again).await {
        Ok(signal) => CutShort::Again(signal),
        Err(_) => CutShort::TooLong,
    }
}

/// SIGTERM and SIGINT, and SIGHUP, which PostgreSQL's tools send for a reload.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal that ends the hub.
    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.term.recv() => return "SIGTERM",
                _ = self.int.recv() => return "SIGINT",
                _ = self.hup.recv() => info!(
                    "received SIGHUP, ignored: there is no configuration file to reload; restart \
                     the hub to change a setting"
                ),
            }
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
                // The receiver of the first one is gone. The same one at once is the same request,
                // and SIGHUP ends nothing.
                kill_process(getpid(), first).unwrap();
                kill_process(getpid(), Signal::HUP).unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
                assert!(!watching.is_finished());
                tokio::time::sleep(SAME_REQUEST).await;
                kill_process(getpid(), first).unwrap();
                assert_eq!(watching.await.unwrap(), CutShort::Again(name));
            }
            // Another one counts at once.
            let (tell, told) = oneshot::channel();
            let watching =
                tokio::spawn(watch(Signals::new().unwrap(), tell, Duration::from_secs(20)));
            kill_process(getpid(), Signal::HUP).unwrap();
            kill_process(getpid(), Signal::TERM).unwrap();
            assert_eq!(told.await.unwrap(), "SIGTERM");
            kill_process(getpid(), Signal::INT).unwrap();
            assert_eq!(watching.await.unwrap(), CutShort::Again("SIGINT"));
            let (tell, told) = oneshot::channel();
            let limit = Duration::from_millis(20);
            let watching = tokio::spawn(watch(Signals::new().unwrap(), tell, limit));
            kill_process(getpid(), Signal::TERM).unwrap();
            assert_eq!(told.await.unwrap(), "SIGTERM");
            assert_eq!(watching.await.unwrap(), CutShort::TooLong);
        });
    }
}
