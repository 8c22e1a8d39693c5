//! The hub: the binary that cargo built, as an operator would run it.

use super::process::Process;
use super::scene::{Port, Scene};
use super::wait::{self, PATIENCE};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use walhub::store::slots::{Generation, SlotRecord};
use walhub::wal::lsn::Lsn;

/// One hub with its directory. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Hub<'a> {
    scene: &'a Scene,
    program: PathBuf,
    name: String,
    directory: PathBuf,
    upstream: String,
    flags: Vec<String>,
    port: Port,
    log: PathBuf,
    server: Option<Process>,
    /// When it was started last.
    launched: SystemTime,
    /// The hard limit on open files, if it is not the tests' own.
    descriptors: Option<u32>,
    /// Where it logs, if not to a file of the scene.
    stderr: Option<File>,
}

impl<'a> Hub<'a> {
    /// A hub that is going to stream from `upstream`.
    pub(crate) fn new(scene: &'a Scene, name: &str, upstream: &str) -> Self {
        Self {
            scene,
            program: built(),
            name: name.to_owned(),
            directory: scene.path(name),
            upstream: upstream.to_owned(),
            // Tests do not wait five seconds for the next try, nor minutes for old WAL to go.
            flags: ["--wal-retrieve-retry-interval=200ms", "--reconnect-grace=1s"]
                .map(str::to_owned)
                .to_vec(),
            port: Port::reserve(),
            log: scene.path(&format!("{name}.log")),
            server: None,
            launched: UNIX_EPOCH,
            descriptors: None,
            stderr: None,
        }
    }

    /// A running hub with the usual flags.
    pub(crate) fn run(scene: &'a Scene, name: &str, upstream: &str) -> Self {
        Self::new(scene, name, upstream).started()
    }

    /// Another binary than the one that cargo built.
    pub(crate) fn with_program(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// A flag, as `--name=value`.
    pub(crate) fn flag(mut self, flag: &str) -> Self {
        self.set_flag(flag);
        self
    }

    /// Sets a flag from the next start on, as `--name=value`, whatever it was before.
    pub(crate) fn set_flag(&mut self, flag: &str) {
        let name = |flag: &str| flag.split('=').next().map(str::to_owned);
        self.flags.retain(|known| name(known) != name(flag));
        self.flags.push(flag.to_owned());
    }

    /// Leaves a flag out from the next start on.
    pub(crate) fn remove_flag(&mut self, name: &str) {
        self.flags.retain(|flag| flag.split('=').next() != Some(name));
    }

    /// May have so many open files at most.
    pub(crate) fn with_descriptors(mut self, most: u32) -> Self {
        self.descriptors = Some(most);
        self
    }

    /// Logs to this.
    pub(crate) fn logging_to(mut self, stderr: impl Into<OwnedFd>) -> Self {
        self.stderr = Some(stderr.into().into());
        self
    }

    /// Keeps its files elsewhere.
    pub(crate) fn in_directory(mut self, directory: &Path) -> Self {
        self.directory = directory.to_owned();
        self
    }

    /// Points it at another server, from the next start on.
    pub(crate) fn set_upstream(&mut self, upstream: &str) {
        self.upstream = upstream.to_owned();
    }

    pub(crate) fn started(mut self) -> Self {
        self.start();
        self
    }

    /// Starts it and waits until it listens.
    pub(crate) fn start(&mut self) {
        self.launch();
        wait::until(&format!("{} listens", self.name), || {
            self.assert_running();
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port())).is_ok()
        });
    }

    /// Starts it; it may not listen yet.
    pub(crate) fn launch(&mut self) {
        assert!(self.server.is_none(), "{} runs already", self.name);
        self.launched = SystemTime::now();
        self.server = Some(self.spawn());
    }

    fn spawn(&self) -> Process {
        let (_, out, err) = self.scene.log(&self.name);
        let err = self.stderr.as_ref().map_or(err, |file| file.try_clone().unwrap().into());
        let mut command = match self.descriptors {
            None => unsteered(Command::new(&self.program)),
            Some(most) => limited(&self.program, most),
        };
        command
            .arg("serve")
            .arg("--directory")
            .arg(&self.directory)
            .args(["--primary-conninfo", &self.upstream])
            .arg(format!("--port={}", self.port()))
            .args(&self.flags)
            .stdout(out)
            .stderr(err);
        Process::start(&mut command)
    }

    /// Starts it and expects that it ends by itself; what it logged.
    pub(crate) fn refuses_to_start(&self) -> String {
        let server = self.spawn();
        let status = server.wait_end(PATIENCE, &format!("{} gives up", self.name));
        assert!(!status.success(), "{} ended with {status}", self.name);
        self.log_text()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        drop(self.server.take().unwrap());
    }

    /// Sends a signal and goes on.
    pub(crate) fn signal(&self, signal: Signal) {
        self.server.as_ref().unwrap().signal(signal);
    }

    /// Waits until it has ended by itself; how it ended and how long that took.
    pub(crate) fn wait_exit(&mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        let server = self.server.take().unwrap();
        let status = server.wait_end(PATIENCE, &format!("{} exits", self.name));
        (status, begun.elapsed())
    }

    /// SIGTERM, and a clean exit.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let (status, _) = self.wait_exit();
        assert!(status.success(), "{} ended with {status}", self.name);
    }

    pub(crate) fn assert_running(&mut self) {
        let ended = self.server.as_mut().unwrap().ended();
        assert!(ended.is_none(), "{} has ended: {ended:?}", self.name);
    }

    /// Everything it ever logged.
    pub(crate) fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for a line that holds all these words, in any case.
    pub(crate) fn wait_log(&self, words: &[&str]) -> String {
        wait::eventually(&format!("{} logs {words:?}", self.name), || self.logged(words))
    }

    /// The first line that holds all these words, in any case.
    pub(crate) fn logged(&self, words: &[&str]) -> Option<String> {
        let text = self.log_text();
        let has = |line: &str, word: &&str| line.to_lowercase().contains(&word.to_lowercase());
        text.lines().find(|line| words.iter().all(|word| has(line, word))).map(str::to_owned)
    }

    /// What `walhub inspect --json` says of its directory.
    pub(crate) fn inspect(&self) -> Inspection {
        let mut command = unsteered(Command::new(&self.program));
        let output = command.arg("inspect").arg(&self.directory).arg("--json").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let said = format!("{} {text} {}", output.status, String::from_utf8_lossy(&output.stderr));
        let found = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {said}"));
        let found = Inspection(found);
        let code = if found.wrong().is_empty() { 0 } else { 2 };
        assert_eq!(output.status.code(), Some(code), "inspect: {said}");
        found
    }

    /// `walhub ctl --json`; its exit status, and its answer.
    pub(crate) fn ask(&self, args: &[&str]) -> (i32, Value) {
        let output = self.ctl().arg("--json").args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let answer = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        (output.status.code().unwrap(), answer)
    }

    /// The same, done.
    pub(crate) fn told(&self, args: &[&str]) -> Value {
        let (status, answer) = self.ask(args);
        assert_eq!(status, 0, "walhub ctl {args:?}: {answer}");
        answer
    }

    /// `walhub ctl` for this hub.
    pub(crate) fn ctl(&self) -> Command {
        let mut command = unsteered(Command::new(&self.program));
        command.arg("ctl").arg("-D").arg(&self.directory);
        command
    }

    /// Waits until `inspect` reports this state of the upstream connection. What the hub wrote
    /// before its last start does not count.
    pub(crate) fn wait_state(&self, state: &str) {
        let launched = self.launched.duration_since(UNIX_EPOCH).unwrap().as_millis();
        wait::until(&format!("{} is in state {state}", self.name), || {
            let seen = self.inspect();
            seen.upstream_state() == state && u128::from(seen.upstream_since_ms()) >= launched
        });
    }

    /// Memory that it alone holds, in KiB.
    pub(crate) fn private_kib(&self) -> u64 {
        self.server.as_ref().unwrap().private_kib()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.server.as_ref().unwrap().pid().as_raw_nonzero().get().cast_unsigned()
    }

    /// How a standby reaches it.
    pub(crate) fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres", self.port())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its replication slots, by the newest of the files that they are kept in.
    pub(crate) fn slot_names(&self) -> Vec<String> {
        self.slots_on_disk().iter().map(|slot| slot.name.to_string()).collect()
    }

    /// Where a slot is, by the same file.
    pub(crate) fn slot_on_disk(&self, name: &str) -> Option<Lsn> {
        let slots = self.slots_on_disk();
        slots.iter().find(|slot| slot.name.as_str() == name)?.restart_lsn
    }

    fn slots_on_disk(&self) -> Vec<SlotRecord> {
        let read = |n| fs::read(self.directory.join(format!("slots.{n}"))).ok();
        let whole = [0, 1].into_iter().filter_map(|n| Generation::decode(&read(n)?).ok());
        let newest = whole.max_by_key(|generation| generation.number);
        newest.map(|generation| generation.slots).unwrap_or_default()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn pg_wal(&self) -> PathBuf {
        self.directory.join("pg_wal")
    }
}

impl Drop for Hub<'_> {
    fn drop(&mut self) {
        drop(self.server.take());
        if !thread::panicking() {
            let log = self.log_text();
            assert!(!log.contains("panicked at"), "{} panicked", self.name);
        }
    }
}

/// The binary that cargo built for this test.
fn built() -> PathBuf {
    option_env!("CARGO_BIN_EXE_walhub").map(PathBuf::from).unwrap_or_default()
}

/// That binary, with nothing in the environment that could steer it.
pub(crate) fn command() -> Command {
    unsteered(Command::new(built()))
}

/// A binary with a limit on open files.
fn limited(program: &Path, descriptors: u32) -> Command {
    let mut shell = Command::new("/bin/sh");
    let script = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
    shell.args(["-c", &script]).arg(program);
    unsteered(shell)
}

fn unsteered(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let steers = |name: &str| name.starts_with("PG") || name.starts_with("WALHUB_");
        if name.to_str().is_some_and(steers) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// The answer of `walhub inspect --json`.
pub(crate) struct Inspection(Value);

impl Inspection {
    /// End of the last complete record.
    pub(crate) fn record_end(&self) -> Lsn {
        self.lsn("record_end")
    }

    /// Start of the last complete record.
    pub(crate) fn last_record(&self) -> Lsn {
        self.lsn("last_record")
    }

    /// streaming, waiting, gap, diverged, ...
    pub(crate) fn upstream_state(&self) -> String {
        self.0["upstream"]["state"].as_str().unwrap_or_default().to_owned()
    }

    /// When it came to that state, in milliseconds since 1970.
    fn upstream_since_ms(&self) -> u64 {
        self.0["upstream"]["since_unix_ms"].as_u64().unwrap_or_default()
    }

    pub(crate) fn system_id(&self) -> String {
        self.0["cluster"]["system_id"].as_str().unwrap_or_default().to_owned()
    }

    /// Where another source had other bytes.
    pub(crate) fn evidence(&self) -> Option<Lsn> {
        self.0["evidence"]["lsn"].as_str().map(|at| at.parse().unwrap())
    }

    /// What is wrong with the directory.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let wrong = self.0["wrong"].as_array().into_iter().flatten();
        wrong.map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
    }

    /// What the digests say of the first range of segments.
    pub(crate) fn contents(&self) -> &Value {
        &self.0["segments"][0]["contents"]
    }

    fn lsn(&self, field: &str) -> Lsn {
        let text =
            self.0["end"][field].as_str().unwrap_or_else(|| panic!("no {field} in {}", self.0));
        text.parse().unwrap()
    }
}
