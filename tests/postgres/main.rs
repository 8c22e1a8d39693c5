//! walhub between real PostgreSQL servers.
//!
//! Every test builds its own world in a folder of its own, on ports of its own, and
//! may run beside the others: a primary by `initdb`, standbys by `pg_basebackup`, the
//! hub as the binary that cargo built. The programs come from `tests/get-postgres`.
//! A test that fails prints the ends of all its logs and leaves the logs behind.
//!
//! The long forms of some tests are asked for by the environment: `WALHUB_KILLS`,
//! `WALHUB_PRIMARY_KILLS`, `WALHUB_IDLE_CYCLES`, `WALHUB_SIGSTOP_MB`,
//! `WALHUB_SLOT_ROUNDS`, `WALHUB_PG_MAJORS`. Each is explained in the module that reads it.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers fail by panicking, as the test itself does"
)]
#![expect(
    clippy::print_stderr,
    reason = "what a failed or skipped test has to say goes to the test's output"
)]

#[path = "../support/mod.rs"]
mod support;

use support::{cluster, hub, process, programs, scene, skip, wait};

mod client;
mod load;
mod log;
mod receivewal;
mod segments;

mod archive;
mod archive_histories;
mod archiving;
mod ctl;
mod damage;
mod disk_full;
mod doors;
mod failovers;
mod feedback;
mod fleet;
mod grace;
mod harness;
mod holes;
mod hostile;
mod idle;
mod kills;
mod majors;
mod measured;
mod proofs;
mod rebuilding;
mod refusals;
mod rollbacks;
mod shutdown;
mod slots;
mod streaming;
mod synthetic;
mod theirs;
mod topologies;
mod timelines;
mod two_hubs;
mod upstreams;
mod verifying;
mod zerocopy;
