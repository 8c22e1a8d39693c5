//! Work for a primary.

use crate::cluster::{Cluster, PASSWORD};
use crate::process;
use crate::scene::Scene;
use rustix::process::Signal;
use std::process::Child;

/// pgbench in the background, until dropped.
pub(crate) struct Load(Child);

/// pgbench's tables, about 15 MiB.
pub(crate) fn prepare(scene: &Scene, primary: &Cluster<'_>) {
    let (_, out, err) = scene.log("pgbench-init");
    let status = primary
        .programs
        .client("pgbench")
        .args(["-i", "-q", &primary.conninfo()])
        .stdout(out)
        .stderr(err)
        .status()
        .unwrap();
    assert!(status.success(), "pgbench -i: {status}");
}

impl Load {
    /// Small transactions from two sessions, as fast as they go.
    pub(crate) fn start(scene: &Scene, primary: &Cluster<'_>) -> Self {
        let (_, out, err) = scene.log("pgbench");
        let child = primary
            .programs
            .client("pgbench")
            .args(["-n", "-c", "2", "-T", "3600", &primary.conninfo()])
            .env("PGPASSWORD", PASSWORD)
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Ends it; nothing of it is under way afterwards.
    pub(crate) fn stop(self, primary: &Cluster<'_>) {
        drop(self);
        crate::wait::until("pgbench's sessions are gone", || {
            primary
                .count("select count(*) from pg_stat_activity where application_name = 'pgbench'")
                == 0
        });
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        process::signal(process::pid_of(&self.0), Signal::KILL);
        drop(self.0.wait());
    }
}

/// About so many MiB of WAL, in records of 8 kB, a commit for each 4 MiB.
pub(crate) fn write_mib(primary: &Cluster<'_>, mib: u64) {
    let mut left = mib;
    while left > 0 {
        let now = left.min(4);
        let records = now * 128;
        primary.sql(&format!(
            "select count(pg_logical_emit_message(true, 'load', repeat(md5(n::text), 256))) \
             from generate_series(1, {records}) n"
        ));
        left -= now;
    }
}

/// Fills the current segment with zeros to its end and begins the next.
pub(crate) fn switch_segment(primary: &Cluster<'_>) {
    primary.sql("select pg_logical_emit_message(true, 'switch', ''); select pg_switch_wal()");
}
