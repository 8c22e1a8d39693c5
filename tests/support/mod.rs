//! Real servers for tests and measurements: PostgreSQL and the hub, each in a folder and
//! on a port of its own.
//!
//! `tests/postgres`, `tests/bench` and `perf` include these files. What goes wrong is a
//! panic, as in any test. A process that was started ends with its [`process::Process`],
//! also while a panic unwinds; where panics abort, [`process::kill_descendants`] does it.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers fail by panicking, as the test itself does"
)]
#![expect(dead_code, reason = "nobody who includes these files uses all of them")]

pub(crate) mod cluster;
pub(crate) mod hub;
pub(crate) mod process;
pub(crate) mod programs;
pub(crate) mod scene;
pub(crate) mod skip;
pub(crate) mod wait;
