//! What is shown while a command runs.

mod live_lines;
mod status;

pub use live_lines::{LiveLines, sparkline};
pub use status::{Progress, Status, Verbosity};

use std::io::{self, ErrorKind, Write as _};

/// Writes to the standard output. A closed output, as with `head`, is not an error.
///
/// # Errors
/// Writing fails for any other reason.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
