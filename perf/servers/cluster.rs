//! A PostgreSQL server: a primary by `initdb`, a standby by `pg_basebackup`.

use super::USER;
use super::programs::{Programs, run};
use super::workplace::{Workplace, free_port};
use crate::fault::{During, Fault, Outcome};
use crate::process::{Pid, signal};
use crate::wait::within;
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;
use walhub::wal::Lsn;

const PATIENCE: Duration = Duration::from_secs(120);

/// A data directory and, while it runs, its server. Dropped, it is shut down.
#[derive(Debug)]
pub(crate) struct Cluster {
    programs: Programs,
    name: String,
    data: PathBuf,
    sockets: PathBuf,
    port: u16,
    settings: Vec<String>,
    server: Option<Child>,
}

impl Cluster {
    /// A primary, not started.
    pub(super) fn primary(
        place: &Workplace,
        programs: &Programs,
        name: &str,
        max_wal_senders: usize,
        segment_mib: u64,
    ) -> Outcome<Self> {
        let cluster = Self::bare(place, programs, name, max_wal_senders)?;
        let (out, err) = place.log(name)?;
        run(cluster
            .programs
            .server("initdb")
            .args(["--no-locale", "--encoding=UTF8", "--auth=trust"])
            .arg(format!("--username={USER}"))
            .arg(format!("--wal-segsize={segment_mib}"))
            .arg("-D")
            .arg(&cluster.data)
            .stdout(out)
            .stderr(err))?;
        Ok(cluster)
    }

    /// A place, a port, and the settings that all servers of a comparison share.
    fn bare(
        place: &Workplace,
        programs: &Programs,
        name: &str,
        max_wal_senders: usize,
    ) -> Outcome<Self> {
        let settings = [
            // Syncs are what everybody has to pay.
            "fsync=on",
            "synchronous_commit=on",
            "wal_level=replica",
            "hot_standby=on",
            "listen_addresses=127.0.0.1",
            "shared_buffers=128MB",
            "max_connections=60",
            // No checkpoint and no vacuum falls into one measurement and not into another.
            "max_wal_size=16GB",
            "checkpoint_timeout=1h",
            "autovacuum=off",
            "wal_keep_size=16GB",
            "wal_retrieve_retry_interval=200ms",
        ];
        let mut settings: Vec<String> = settings.map(str::to_owned).to_vec();
        settings.push(format!("max_wal_senders={max_wal_senders}"));
        let account = programs.account();
        Ok(Self {
            programs: programs.clone(),
            name: name.to_owned(),
            data: place.folder(name, account)?.join("data"),
            sockets: place.folder(&format!("{name}-s"), account)?,
            port: free_port()?,
            settings,
            server: None,
        })
    }

    /// A standby from a base backup of this server, which must run; not started.
    pub(super) fn standby(&self, place: &Workplace, name: &str, senders: usize) -> Outcome<Self> {
        let mut standby = Self::bare(place, &self.programs, name, senders)?;
        let (out, err) = place.log(name)?;
        run(self
            .programs
            .client("pg_basebackup")
            .args(["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "-D"])
            .arg(&standby.data)
            .args(["-d", &self.conninfo()])
            .stdout(out)
            .stderr(err))?;
        standby.settings.push(format!("primary_conninfo={}", self.conninfo()));
        Ok(standby)
    }

    /// Sets where the WAL of a primary that never ran begins (`pg_resetwal`).
    pub(super) fn begin_wal_at(&self, place: &Workplace, segment: &str) -> Outcome {
        let (out, err) = place.log(&self.name)?;
        let mut command = self.programs.server("pg_resetwal");
        run(command.args(["-l", segment, "-D"]).arg(&self.data).stdout(out).stderr(err))
    }

    /// Starts the server and waits until it answers.
    pub(super) fn start(&mut self, place: &Workplace) -> Outcome {
        let (out, err) = place.log(&self.name)?;
        let mut command = self.programs.server("postgres");
        command.arg("-D").arg(&self.data).arg("-p").arg(self.port.to_string());
        command.arg("-k").arg(&self.sockets);
        for setting in &self.settings {
            command.arg("-c").arg(setting);
        }
        let server = command.stdout(out).stderr(err).spawn().during(&self.name)?;
        let server = self.server.insert(server);
        let (pid, lock) = (server.id(), self.data.join("postmaster.pid"));
        within(PATIENCE, &format!("{} is ready", self.name), || {
            if let Some(status) = server.try_wait().during(&self.name)? {
                return Err(Fault::new(format!("{} did not start: {status}", self.name)));
            }
            Ok(says_ready(&lock, pid).then_some(()))
        })
    }

    /// A fast shutdown.
    pub(super) fn stop(&mut self) -> Outcome {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        signal(&server, Signal::INT)?;
        within(PATIENCE, &format!("{} stops", self.name), || {
            server.try_wait().during(&self.name).map(|status| status.map(drop))
        })
    }

    /// One command through psql; what psql -At prints.
    pub(crate) fn sql(&self, command: &str) -> Outcome<String> {
        let output = self.psql(command).output().during("psql")?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(Fault::new(format!("{}: {command}: {}", self.name, complaint.trim())))
    }

    fn psql(&self, command: &str) -> Command {
        let mut psql = self.programs.client("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &self.conninfo(), "-c", command]);
        psql
    }

    /// Writes at least so much WAL, in commits of 4 MiB.
    pub(crate) fn write_wal(&self, mib: u64) -> Outcome {
        let message = "repeat(md5(i::text), 2048)";
        let commits = mib.div_ceil(4);
        self.sql(&format!(
            "do $$ begin for c in 1..{commits} loop \
             perform pg_logical_emit_message(true, 'walhub', {message}) \
             from generate_series(1, 64) i; commit; end loop; end $$"
        ))
        .map(drop)
    }

    /// How far the WAL of a primary is flushed.
    pub(crate) fn flush_lsn(&self) -> Outcome<Lsn> {
        self.lsn("select pg_current_wal_flush_lsn()")
    }

    /// The beginning of the segment in which the flushed WAL ends.
    pub(crate) fn segment_start(&self) -> Outcome<Lsn> {
        let size = self.sql("select pg_size_bytes(current_setting('wal_segment_size'))")?;
        let size: u64 = size.parse().during("wal_segment_size")?;
        let at = self.flush_lsn()?;
        Ok(at.saturating_sub(at.raw() % size))
    }

    fn lsn(&self, query: &str) -> Outcome<Lsn> {
        let text = self.sql(query)?;
        text.parse().during(format_args!("{query}: {text}"))
    }

    /// Waits until somebody who calls himself so streams from here and has flushed all.
    pub(crate) fn wait_follower(&self, name: &str) -> Outcome {
        let query = format!(
            "select count(*) from pg_stat_replication where application_name = '{name}' \
             and state = 'streaming' and flush_lsn >= pg_current_wal_flush_lsn()"
        );
        within(
            PATIENCE,
            &format!("{name} streams"),
            || Ok((self.sql(&query)? != "0").then_some(())),
        )
    }

    /// How to reach it over TCP.
    pub(crate) fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user={USER} dbname=postgres", self.port)
    }

    /// Its Unix socket: the one who commits does not share the standbys' way.
    pub(crate) fn socket(&self) -> PathBuf {
        self.sockets.join(format!(".s.PGSQL.{}", self.port))
    }

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The postmaster.
    pub(crate) fn pid(&self) -> Pid {
        self.server.as_ref().map_or(0, Child::id)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Whoever wants to know has called it himself.
        drop(self.stop());
    }
}

/// What pg_ctl looks at: the eighth line of the lock file, with the process's number.
fn says_ready(lock: &Path, pid: u32) -> bool {
    let text = fs::read_to_string(lock).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.first() == Some(&pid.to_string().as_str())
        && matches!(lines.get(7), Some(&("ready" | "standby")))
}
