//! Work for a primary.

use crate::cluster::{Cluster, PASSWORD};
use crate::process::Process;
use crate::scene::Scene;

/// pgbench in the background, until dropped.
pub(crate) struct Load(Process);

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
        let mut pgbench = primary.programs.client("pgbench");
        pgbench.args(["-n", "-c", "2", "-T", "3600", &primary.conninfo()]);
        pgbench.env("PGPASSWORD", PASSWORD).stdout(out).stderr(err);
        Self(Process::start(&mut pgbench))
    }

    /// Ends it; nothing of it is under way afterwards.
    pub(crate) fn stop(self, primary: &Cluster<'_>) {
        drop(self.0);
        crate::wait::until("pgbench's sessions are gone", || {
            primary
                .count("select count(*) from pg_stat_activity where application_name = 'pgbench'")
                == 0
        });
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
