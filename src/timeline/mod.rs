//! The vocabulary of timelines: history files, and what they say about positions. No I/O.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod history;

pub use history::{Entry, Forks, History, HistoryFault, heirs};
