//! Waiting for something to become true: by a deadline, asking again and again.

use crate::fault::{Fault, Outcome};
use std::thread;
use std::time::{Duration, Instant};

/// Asks every few milliseconds until there is an answer, for at most `limit`.
pub(crate) fn within<T>(
    limit: Duration,
    what: &str,
    mut ask: impl FnMut() -> Outcome<Option<T>>,
) -> Outcome<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(Fault::new(format!("not within {limit:?}: {what}")));
        }
        thread::sleep(Duration::from_millis(5));
    }
}
