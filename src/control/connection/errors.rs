//! The errors that a client is sent, in the log. The number that one connection may log is
//! limited: a client that asks for nonsense without end must not fill the log, and must not hide
//! what others were refused.

use crate::standby::client::Session;
use crate::wire::backend_read::FromServer;
use crate::wire::frame::next_frame;
use crate::wire::refusal::one_line;
use std::time::{Duration, Instant};

/// How many errors a connection may log at once.
const BURST: u32 = 10;

/// The time after which it may log one more.
const INTERVAL: Duration = Duration::from_secs(10);

/// What one connection has logged.
#[derive(Debug)]
pub(super) struct ErrorLog {
    pid: u32,
    left: u32,
    since: Instant,
    not_logged: u64,
}

impl ErrorLog {
    pub(super) const fn new(pid: u32, now: Instant) -> Self {
        Self { pid, left: BURST, since: now, not_logged: 0 }
    }

    /// Logs the errors among these whole messages to the client.
    pub(super) fn note(&mut self, session: &Session, mut sent: &[u8], now: Instant) {
        while let Ok(Some(frame)) = next_frame(sent, sent.len()) {
            let len = frame.len;
            if let Ok(FromServer::Error(error)) = FromServer::parse(frame)
                && self.admits(now)
            {
                self.tell_not_logged();
                tracing::info!(
                    pid = session.pid,
                    peer = session.peer,
                    application_name = session.application_name,
                    "{}",
                    one_line(&error.to_string())
                );
            }
            sent = sent.get(len..).unwrap_or_default();
        }
    }

    /// Counts an error and returns whether it is logged.
    fn admits(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).as_secs() / INTERVAL.as_secs();
        if passed > 0 {
            self.left = self.left.saturating_add(u32::try_from(passed).unwrap_or(BURST)).min(BURST);
            self.since = now;
        }
        if self.left == 0 {
            self.not_logged += 1;
            return false;
        }
        self.left -= 1;
        true
    }

    fn tell_not_logged(&mut self) {
        if self.not_logged > 0 {
            tracing::info!(
                pid = self.pid,
                "{} errors of this connection were not logged",
                self.not_logged
            );
        }
        self.not_logged = 0;
    }
}

impl Drop for ErrorLog {
    /// However the connection ends, what was not logged is counted in the log.
    fn drop(&mut self) {
        self.tell_not_logged();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_logged_then_one_for_each_interval_and_the_rest_is_counted() {
        let begun = Instant::now();
        let mut log = ErrorLog::new(7, begun);
        assert_eq!((0..1000).filter(|_| log.admits(begun)).count(), BURST as usize);
        assert_eq!(log.not_logged, 990);
        assert!(!log.admits(begun + INTERVAL - Duration::from_millis(1)));
        let later = begun + INTERVAL;
        assert!(log.admits(later) && !log.admits(later));
        let much_later = later + 1000 * INTERVAL;
        assert_eq!((0..1000).filter(|_| log.admits(much_later)).count(), BURST as usize);
        log.tell_not_logged();
        assert_eq!(log.not_logged, 0);
    }
}
