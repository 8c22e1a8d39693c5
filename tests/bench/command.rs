//! The binary, run to its end or in the background.

use crate::support::process::{Process, family};
use rustix::process::{Pid, Signal};
use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A command that has ended.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {:?}\n{}\n{}", self.code, self.stdout, self.stderr)
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walhub"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn walhub(args: &[&str]) -> Finished {
    let output = command(args).output().unwrap();
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) fn bench(args: &[&str]) -> Finished {
    walhub(&[&["bench"], args].concat())
}

/// Into a pipe that nobody reads any more.
pub(crate) fn bench_without_output(args: &[&str]) -> Finished {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command(&[&["bench"], args].concat()).stdout(writer).output().unwrap();
    Finished {
        code: output.status.code(),
        stdout: String::new(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A command that runs; dropped, it is killed.
pub(crate) struct Running {
    process: Process,
    lines: Receiver<String>,
    seen: String,
}

pub(crate) fn bench_in_background(args: &[&str]) -> Running {
    let mut process = Process::start(&mut command(&[&["bench"], args].concat()));
    let (to, lines) = channel();
    let errors = process.child().stderr.take().unwrap();
    let output = process.child().stdout.take().unwrap();
    let other = to.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            drop(to.send(line));
        }
    });
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            drop(other.send(line));
        }
    });
    Running { process, lines, seen: String::new() }
}

impl Running {
    pub(crate) fn pid(&self) -> Pid {
        self.process.pid()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for a line with `part`, of either output.
    pub(crate) fn wait_for_line(&mut self, part: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("no \"{part}\" in\n{}", self.seen));
            self.seen += &format!("{line}\n");
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Waits for its end; both outputs are in `stdout`.
    pub(crate) fn finish(mut self) -> Finished {
        let status = self.process.child().wait().unwrap();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(10)) {
            self.seen += &format!("{line}\n");
        }
        let stdout = std::mem::take(&mut self.seen);
        Finished { code: status.code(), stdout, stderr: String::new() }
    }
}

/// The descendants of a process that are hubs.
pub(crate) fn hubs_of(parent: Pid) -> Vec<Pid> {
    let mut family = family(parent);
    family.retain(|pid| arguments(*pid).iter().any(|argument| argument == "serve"));
    family
}

/// The temporary directory of a hub.
pub(crate) fn scratch_of(hub: Pid) -> PathBuf {
    let arguments = arguments(hub);
    let flag = arguments.iter().position(|argument| argument == "--directory").unwrap();
    PathBuf::from(&arguments[flag + 1]).parent().unwrap().to_owned()
}

fn arguments(pid: Pid) -> Vec<String> {
    let mut bytes = Vec::new();
    let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
    fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    text.split('\0').map(ToOwned::to_owned).collect()
}
