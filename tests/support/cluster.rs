//! Real PostgreSQL servers: a primary by `initdb`, standbys by `pg_basebackup`.

use super::process::Process;
use super::programs::Programs;
use super::scene::{Port, Scene};
use super::wait::{self, PATIENCE};
use rustix::process::Signal;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use walhub::wal::lsn::Lsn;

/// One server with its data directory. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Cluster<'a> {
    pub(crate) programs: &'static Programs,
    scene: &'a Scene,
    name: String,
    data: PathBuf,
    sockets: PathBuf,
    port: Port,
    settings: Vec<String>,
    server: Option<Process>,
    backup: OnceLock<PathBuf>,
}

/// What tells a primary from another at its birth.
pub(crate) struct Birth {
    pub(crate) programs: &'static Programs,
    pub(crate) segment_mib: u64,
    pub(crate) authentication: &'static str,
}

impl Default for Birth {
    fn default() -> Self {
        Self { programs: Programs::usual(), segment_mib: 16, authentication: "trust" }
    }
}

/// The password of the superuser, for clusters that ask for one.
pub(crate) const PASSWORD: &str = "correct horse";

impl<'a> Cluster<'a> {
    /// A primary with 16 MiB segments that trusts everybody.
    pub(crate) fn primary(scene: &'a Scene, name: &str) -> Self {
        Self::born(scene, name, &Birth::default())
    }

    /// A primary with segments of another size.
    pub(crate) fn primary_with_segments(scene: &'a Scene, name: &str, segment_mib: u64) -> Self {
        Self::born(scene, name, &Birth { segment_mib, ..Birth::default() })
    }

    pub(crate) fn born(scene: &'a Scene, name: &str, birth: &Birth) -> Self {
        Self::unborn(scene, name, birth).started()
    }

    /// A primary that has never been started.
    pub(crate) fn unborn(scene: &'a Scene, name: &str, birth: &Birth) -> Self {
        let cluster = Self::bare(scene, name, birth.programs);
        let (_, out, err) = scene.log(&format!("{name}-initdb"));
        // initdb makes the directory itself, inside one that it may write to.
        let password = cluster.sockets.join("password");
        fs::write(&password, PASSWORD).unwrap();
        let status = birth
            .programs
            .server("initdb")
            .args(["--no-sync", "--username=postgres", "--no-locale", "--encoding=UTF8"])
            .arg(format!("--auth={}", birth.authentication))
            .arg(format!("--pwfile={}", password.display()))
            .arg(format!("--wal-segsize={}", birth.segment_mib))
            .arg("-D")
            .arg(&cluster.data)
            .stdout(out)
            .stderr(err)
            .status()
            .unwrap();
        assert!(status.success(), "initdb: {status}");
        cluster
    }

    /// A server that is going to be: a place, a port, the settings of every test.
    fn bare(scene: &'a Scene, name: &str, programs: &'static Programs) -> Self {
        let home = scene.folder(name, programs.account());
        let sockets = scene.folder(&format!("{name}-s"), programs.account());
        let settings = [
            // Nobody pulls the plug of this machine; what the hub syncs is not at stake.
            "fsync=off",
            "listen_addresses=127.0.0.1",
            "shared_buffers=16MB",
            "max_connections=40",
            "max_wal_senders=20",
            // All WAL stays, to be compared with what others received.
            "wal_keep_size=8GB",
            "max_wal_size=4GB",
            "checkpoint_timeout=1h",
            "autovacuum=off",
            "wal_retrieve_retry_interval=200ms",
            "wal_receiver_status_interval=1s",
            "log_checkpoints=off",
        ];
        Self {
            programs,
            scene,
            name: name.to_owned(),
            data: home.join("data"),
            sockets,
            port: Port::reserve(),
            settings: settings.map(str::to_owned).to_vec(),
            server: None,
            backup: OnceLock::new(),
        }
    }

    /// A standby from a base backup of this server, which streams from `upstream`.
    pub(crate) fn standby(&self, name: &str, upstream: &str) -> Cluster<'a> {
        self.standby_with(name, upstream, "")
    }

    /// The same, with a replication slot there.
    pub(crate) fn standby_with(&self, name: &str, upstream: &str, slot: &str) -> Cluster<'a> {
        let mut standby = self.new_standby(name, upstream);
        standby.set(&format!("primary_slot_name={slot}"));
        standby.started()
    }

    /// A standby that has never been started.
    pub(crate) fn new_standby(&self, name: &str, upstream: &str) -> Cluster<'a> {
        let backup = self.backup.get_or_init(|| self.take_backup());
        let mut standby = self.copy_of(backup, name);
        standby.make_standby();
        standby.set(&format!("primary_conninfo={upstream} application_name={name}"));
        standby
    }

    /// Its next start is a standby's.
    pub(crate) fn make_standby(&self) {
        let signal = self.data.join("standby.signal");
        fs::write(&signal, "").unwrap();
        self.give_to_account(&signal);
    }

    /// A server from a base backup of this one as it is now; it is not started yet.
    pub(crate) fn backup(&self, name: &str) -> Cluster<'a> {
        self.copy_of(&self.take_backup(), name)
    }

    /// A standby from a base backup of this server as it is now.
    pub(crate) fn backup_standby(&self, name: &str, upstream: &str) -> Cluster<'a> {
        let mut standby = self.backup(name);
        standby.make_standby();
        standby.set(&format!("primary_conninfo={upstream} application_name={name}"));
        standby.started()
    }

    /// Starts a base backup, which gets its WAL by this command; recovery ends with the WAL.
    pub(crate) fn restored(mut self, restore_command: &str) -> Self {
        let signal = self.data.join("recovery.signal");
        fs::write(&signal, "").unwrap();
        self.give_to_account(&signal);
        self.set(&format!("restore_command={restore_command}"));
        self.started()
    }

    /// Forgets the base backup: the next standby begins at a later one.
    pub(crate) fn backup_again(&mut self) {
        self.backup = OnceLock::new();
    }

    fn take_backup(&self) -> PathBuf {
        let folder = self.scene.folder(&format!("{}-backup", self.name), self.programs.account());
        let count = fs::read_dir(&folder).unwrap().count();
        let backup = folder.join(count.to_string());
        let (_, out, err) = self.scene.log(&format!("{}-basebackup", self.name));
        let status = self
            .programs
            .client("pg_basebackup")
            .args(["--no-sync", "--checkpoint=fast", "--wal-method=stream", "-D"])
            .arg(&backup)
            .args(["-d", &self.conninfo()])
            .stdout(out)
            .stderr(err)
            .status()
            .unwrap();
        assert!(status.success(), "pg_basebackup: {status}");
        backup
    }

    /// A server of its own over a copy of this one's files, which must not be in use.
    pub(crate) fn copy_of_files(&self, name: &str) -> Cluster<'a> {
        assert!(self.server.is_none(), "the files of {} are in use", self.name);
        self.copy_of(&self.data, name)
    }

    /// A copy of this one's files, which must not be in use: a snapshot of its storage.
    pub(crate) fn snapshot(&self, name: &str) -> PathBuf {
        assert!(self.server.is_none(), "the files of {} are in use", self.name);
        let snapshot = self.scene.folder(name, self.programs.account()).join("data");
        copy_all(&self.data, &snapshot);
        snapshot
    }

    /// Puts the files of a snapshot in the place of this server's, which must not run.
    pub(crate) fn roll_back_to(&self, snapshot: &Path) {
        assert!(self.server.is_none(), "the files of {} are in use", self.name);
        fs::remove_dir_all(&self.data).unwrap();
        copy_all(snapshot, &self.data);
    }

    fn copy_of(&self, data: &Path, name: &str) -> Cluster<'a> {
        let copy = Self::bare(self.scene, name, self.programs);
        copy_all(data, &copy.data);
        copy
    }

    fn give_to_account(&self, path: &Path) {
        if let Some(account) = self.programs.account() {
            std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid)).unwrap();
        }
    }

    /// Sets a configuration parameter from the next start on.
    pub(crate) fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    pub(crate) fn started(mut self) -> Self {
        self.start();
        self
    }

    /// Starts the server and waits until it answers.
    pub(crate) fn start(&mut self) {
        assert!(self.server.is_none(), "{} runs already", self.name);
        let (_, out, err) = self.scene.log(&self.name);
        let mut command = self.programs.server("postgres");
        command.arg("-D").arg(&self.data).arg("-p").arg(self.port.number().to_string());
        command.arg("-k").arg(&self.sockets);
        for setting in &self.settings {
            command.arg("-c").arg(setting);
        }
        self.server = Some(Process::start(command.stdout(out).stderr(err)));
        wait::until(&format!("{} is ready", self.name), || {
            let ended = self.server.as_mut().and_then(Process::ended);
            assert!(ended.is_none(), "{} did not start: {ended:?}", self.name);
            self.says_ready()
        });
    }

    /// What pg_ctl looks at: the eighth line of the lock file, with our process's id.
    fn says_ready(&self) -> bool {
        let pid = self.pid();
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.first() == Some(&pid.to_string().as_str())
            && matches!(lines.get(7), Some(&("ready" | "standby")))
    }

    /// `pg_ctl stop -m fast`, and how long it took.
    pub(crate) fn stop_fast(&mut self) -> Duration {
        let begun = Instant::now();
        let server = self.server.take().unwrap();
        server.signal(Signal::INT);
        let status = server.wait_end(PATIENCE, &format!("{} stops", self.name));
        assert!(status.success(), "{}: {status}", self.name);
        begun.elapsed()
    }

    /// kill -9 of all its processes.
    pub(crate) fn kill(&mut self) {
        drop(self.server.take().unwrap());
    }

    /// Lets a server that was stopped begin again in this WAL file, by `pg_resetwal`.
    pub(crate) fn reset_wal(&self, file: &str) {
        assert!(self.server.is_none(), "{} runs", self.name);
        let (_, out, err) = self.scene.log(&format!("{}-resetwal", self.name));
        let mut command = self.programs.server("pg_resetwal");
        command.args(["-l", file, "-D"]).arg(&self.data);
        let status = command.stdout(out).stderr(err).status().unwrap();
        assert!(status.success(), "pg_resetwal: {status}");
    }

    /// Makes the files of a server that was stopped, and has gone astray, those of a standby of
    /// `source`, by `pg_rewind`.
    pub(crate) fn rewind_to(&self, source: &Cluster<'_>) {
        assert!(self.server.is_none(), "{} runs", self.name);
        let (_, out, err) = self.scene.log(&format!("{}-rewind", self.name));
        let mut command = self.programs.server("pg_rewind");
        command.arg("-D").arg(&self.data).args(["--source-server", &source.conninfo()]);
        let status = command.stdout(out).stderr(err).status().unwrap();
        assert!(status.success(), "pg_rewind: {status}");
    }

    /// SIGSTOP to all its processes.
    pub(crate) fn freeze(&self) {
        self.server.as_ref().unwrap().signal_family(Signal::STOP);
    }

    /// SIGCONT to all its processes.
    pub(crate) fn thaw(&self) {
        self.server.as_ref().unwrap().signal_family(Signal::CONT);
    }

    /// Ends recovery: the next timeline begins.
    pub(crate) fn promote(&self) {
        assert_eq!(self.sql("select pg_promote(wait_seconds => 60)"), "t");
    }

    /// One command through psql; the rows as psql -At prints them.
    pub(crate) fn sql(&self, command: &str) -> String {
        self.try_sql(command).unwrap_or_else(|error| panic!("{}: {command}: {error}", self.name))
    }

    /// One command through psql; its complaint when it fails.
    pub(crate) fn try_sql(&self, command: &str) -> Result<String, String> {
        let output = self
            .programs
            .client("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &self.conninfo(), "-c", command])
            .env("PGCONNECT_TIMEOUT", "10")
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// A number that a query gives.
    pub(crate) fn count(&self, query: &str) -> u64 {
        self.sql(query).parse().unwrap()
    }

    /// How far the WAL of a primary is flushed.
    pub(crate) fn flush_lsn(&self) -> Lsn {
        self.sql("select pg_current_wal_flush_lsn()").parse().unwrap()
    }

    /// How far a standby has replayed.
    pub(crate) fn replay_lsn(&self) -> Lsn {
        let text = self.sql("select coalesce(pg_last_wal_replay_lsn(), '0/0')");
        text.parse().unwrap()
    }

    /// The process of the standby's walreceiver, while it streams.
    pub(crate) fn walreceiver(&self) -> Option<String> {
        let query = "select pid from pg_stat_wal_receiver where status = 'streaming'";
        Some(self.sql(query)).filter(|pid| !pid.is_empty())
    }

    /// Waits until this standby's walreceiver streams; gives its process.
    pub(crate) fn wait_streaming(&self) -> String {
        wait::eventually(&format!("{} streams", self.name), || self.walreceiver())
    }

    /// Waits until this standby has replayed up to `lsn`.
    pub(crate) fn wait_replayed(&self, lsn: Lsn) {
        wait::until(&format!("{} replays {lsn}", self.name), || self.replay_lsn() >= lsn);
    }

    /// A number that depends on every row of pgbench's tables.
    pub(crate) fn fingerprint(&self) -> String {
        let tables = ["accounts", "branches", "tellers", "history"].map(|table| {
            format!("select sum(hashtextextended(t::text, 0)) s from pgbench_{table} t")
        });
        self.sql(&format!(
            "select string_agg(s::text, ' ') from ({}) x",
            tables.join(" union all ")
        ))
    }

    /// A new line for pg_hba.conf, in force at once, before all others.
    pub(crate) fn let_in(&self, line: &str) {
        let path = self.data.join("pg_hba.conf");
        let rest = fs::read_to_string(&path).unwrap();
        let mut file = fs::File::create(&path).unwrap();
        write!(file, "{line}\n{rest}").unwrap();
        self.sql("select pg_reload_conf()");
    }

    /// How to reach it over TCP.
    pub(crate) fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port.number())
    }

    /// How to reach it over its Unix socket.
    pub(crate) fn unix_conninfo(&self) -> String {
        format!("host={} port={} user=postgres", self.sockets.display(), self.port.number())
    }

    /// The postmaster's process.
    pub(crate) fn pid(&self) -> u32 {
        self.server.as_ref().unwrap().pid().as_raw_nonzero().get().cast_unsigned()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    pub(crate) fn pg_wal(&self) -> PathBuf {
        self.data.join("pg_wal")
    }
}

fn copy_all(from: &Path, to: &Path) {
    let status = Command::new("cp").args(["-a", "--reflink=auto"]).args([from, to]).status();
    assert!(status.unwrap().success(), "cp -a {}", from.display());
}

/// The primary's standbys have all it has, and the same rows.
pub(crate) fn assert_converged(primary: &Cluster<'_>, standbys: &[&Cluster<'_>]) {
    let end = primary.flush_lsn();
    let expected = primary.fingerprint();
    for standby in standbys {
        standby.wait_replayed(end);
        assert_eq!(standby.fingerprint(), expected, "{} differs", standby.name);
    }
}
