//! The message of a panic goes to the log like everything else. The process ends right after it, in
//! builds that unwind too: half a hub is worse than none. So the hook waits for the log as long as
//! the end of the process does.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use tracing::error;

/// Logs panics from now on.
pub(super) fn log_them() {
    std::panic::set_hook(Box::new(|info| {
        log(info);
        super::finish();
        std::process::abort();
    }));
}

fn log(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload_as_str().unwrap_or("an object");
    error!("thread '{name}' panicked at {place}: {message}");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        super::last_line(&backtrace.to_string());
    }
}
