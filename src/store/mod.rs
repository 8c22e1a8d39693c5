//! Stage 2: where WAL rests. It decides what is written when, what may be published, what stays,
//! and what a start finds.
//!
//! Everything here is either pure (`append`, `retention`, `layout`, the file formats)
//! or runs over the [`disk::Disk`] trait, so that the tests can give it a disk that
//! tears, loses and fails. The engine that does the work beside the data cores is
//! [`crate::keeper`].
#![forbid(unsafe_code)]

pub mod abandoned;
pub mod append;
pub mod archive_status;
pub mod aside;
pub mod asides;
pub mod clean;
pub mod control_file;
mod count;
pub mod course;
pub mod digest;
pub mod cut;
pub mod directory;
pub mod disk;
pub mod durable;
mod end;
pub mod evidence;
pub mod fault;
#[cfg(test)]
pub(crate) mod faulty_disk;
mod histories;
pub mod holes;
pub mod inspect;
pub mod kept;
pub mod layout;
pub mod notes;
pub mod now;
pub mod plain_disk;
pub mod rebuild;
pub mod recover;
pub mod retention;
pub mod scrub;
pub mod sealed_text;
pub mod seams;
pub mod slots;
pub mod switch;
pub mod tail;

pub use fault::StoreFault;
pub use recover::{Recovered, RecoveredWal, recover};
