//! What is shown while something runs.

mod status;

pub use status::{Progress, Status, Verbosity};
