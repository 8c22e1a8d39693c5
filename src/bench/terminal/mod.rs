//! What is shown while something runs.

mod board;
mod status;

pub use board::{Board, sparkline};
pub use status::{Progress, Status, Verbosity};

use std::io::{self, ErrorKind, Write as _};

/// Writes to the standard output. Whoever closed it, as `head` does, does not want to
/// know.
///
/// # Errors
/// It takes no more for another reason.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
