//! What is shown while something runs.

mod board;
mod status;

pub use board::{Board, sparkline};
pub use status::{Progress, Status, Verbosity};
