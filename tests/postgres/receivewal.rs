//! pg_receivewal, the most demanding receiver: its files can be compared.

use crate::process::Process;
use crate::programs::Programs;
use crate::scene::Scene;
use crate::segments::complete_segments;
use crate::wait;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use walhub::wal::lsn::Lsn;

/// A running pg_receivewal. Dropped, it is killed.
pub(crate) struct Receiver {
    folder: PathBuf,
    process: Process,
}

impl Receiver {
    /// Receives into a folder of that name, as `conninfo` says, with more options.
    pub(crate) fn start(
        scene: &Scene,
        programs: &Programs,
        name: &str,
        conninfo: &str,
        options: &[&str],
    ) -> Self {
        let folder = scene.folder(name, programs.account());
        let (_, out, err) = scene.log(name);
        let mut command = programs.client("pg_receivewal");
        command.args(["-v", "--status-interval=1", "-d", conninfo, "-D"]).arg(&folder);
        let process = Process::start(command.args(options).stdout(out).stderr(err));
        Self { folder, process }
    }

    /// `pg_receivewal --create-slot`.
    pub(crate) fn create_slot(programs: &Programs, conninfo: &str, slot: &str) {
        let status = programs
            .client("pg_receivewal")
            .args(["--create-slot", "--if-not-exists", "--slot", slot, "-d", conninfo])
            .status()
            .unwrap();
        assert!(status.success(), "pg_receivewal --create-slot: {status}");
    }

    /// Waits until it streams: then there is a file.
    pub(crate) fn wait_begun(&self) {
        wait::until("pg_receivewal has begun", || {
            std::fs::read_dir(&self.folder).unwrap().next().is_some()
        });
    }

    /// Waits until it has so many complete segments.
    pub(crate) fn wait_segments(&self, count: usize) {
        let what = format!("{} holds {count} segments", self.folder.display());
        wait::until(&what, || complete_segments(&self.folder).len() >= count);
    }

    /// Waits until this segment is complete.
    pub(crate) fn wait_segment(&self, name: &str) {
        let what = format!("{} holds {name}", self.folder.display());
        wait::until(&what, || self.folder.join(name).exists());
    }

    /// Waits until it has reached its `--endpos` and ended.
    pub(crate) fn wait_end(&mut self) {
        let status = wait::eventually("pg_receivewal ends", || self.process.ended());
        assert!(status.success(), "pg_receivewal into {}: {status}", self.folder.display());
    }

    /// SIGINT, its clean end.
    pub(crate) fn stop(&mut self) {
        self.process.signal(Signal::INT);
        self.wait_end();
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// `--endpos` for everything before `lsn`.
pub(crate) fn until_lsn(lsn: Lsn) -> String {
    format!("--endpos={lsn}")
}
