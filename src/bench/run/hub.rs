//! The hub of a run: `walhub serve` as a child process.

use super::RunFault;
use super::interrupt::Interrupt;
use super::scratch::Scratch;
use crate::bench::standbys::identify;
use crate::wire::conninfo::Conninfo;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A hub that does not answer within this time never will.
const START: Duration = Duration::from_secs(20);
/// A hub always ends within five seconds; this allows some more.
const END: Duration = Duration::from_secs(8);

/// The subcommand of `walhub bench` that becomes the hub; see [`become_hub`].
pub const CHILD: &str = "hub-of-this-run";

/// Options of the hub.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// The walhub to run; `None` means this program.
    pub program: Option<PathBuf>,
    /// Flags of `walhub serve`, each with its value if it has one. A later flag replaces an earlier
    /// one, and what the run itself sets.
    pub flags: Vec<Vec<String>>,
    /// Where its temporary directory is.
    pub directory: Option<PathBuf>,
}

/// A running hub. Dropping it kills it.
#[derive(Debug)]
pub(super) struct HubProcess {
    child: Child,
    conninfo: Conninfo,
    log: PathBuf,
    /// Removed after the hub has ended.
    _scratch: Scratch,
}

impl HubProcess {
    /// Starts it with `primary` as its upstream, for `standbys` standbys, and waits until it
    /// serves.
    pub(super) fn start(
        options: &HubOptions,
        primary: SocketAddr,
        standbys: usize,
        interrupt: &Interrupt,
    ) -> Result<Self, RunFault> {
        let system = |what: &'static str| move |error| RunFault::System(what, error);
        let scratch = Scratch::create(options.directory.as_deref())
            .map_err(system("create a temporary directory"))?;
        let log = scratch.path().join("log");
        let output = File::create(&log).map_err(system("create the hub's log"))?;
        let errors = output.try_clone().map_err(system("open the hub's log twice"))?;
        let port = free_port().map_err(system("find a free port"))?;
        let program = match &options.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(system("find this program"))?,
        };
        let mut command = Command::new(program);
        // The arguments alone define a run, not the environment of some other hub.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("WALHUB_") {
                command.env_remove(name);
            }
        }
        let own = [
            format!("--max-wal-senders={}", standbys + 100),
            "--wal-retrieve-retry-interval=100ms".to_owned(),
        ];
        let flags = own.into_iter().map(|flag| vec![flag]).chain(options.flags.iter().cloned());
        let child = command
            .args(["bench", CHILD, "serve", "--directory"])
            .arg(scratch.path().join("hub"))
            .arg("--primary-conninfo")
            .arg(format!("host={} port={} user=walhub", primary.ip(), primary.port()))
            .args(["--listen-addresses", "127.0.0.1", "--port", &port.to_string()])
            .args(last_of_each(flags.collect()).concat())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // Ctrl-C must reach only the run, which ends its hub itself.
            .process_group(0)
            .spawn()
            .map_err(system("start the hub"))?;
        let conninfo = format!("host=127.0.0.1 port={port} user=walhub");
        let conninfo = Conninfo::parse(&conninfo, &|_| None)
            .map_err(|fault| RunFault::Plan(fault.to_string()))?;
        let mut hub = Self { child, conninfo, log, _scratch: scratch };
        hub.wait_until_it_serves(interrupt)?;
        Ok(hub)
    }

    fn wait_until_it_serves(&mut self, interrupt: &Interrupt) -> Result<(), RunFault> {
        let deadline = Instant::now() + START;
        let target = [self.conninfo.clone()];
        loop {
            let answer = match identify(&target) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if let Some(end) = self.ended() {
                return Err(RunFault::Unreachable(end));
            }
            if interrupt.is_set() {
                return Err(RunFault::Interrupted);
            }
            if Instant::now() > deadline {
                let log = self.last_words();
                let text =
                    format!("the hub accepts no connection ({answer}); its log ends:\n{log}");
                return Err(RunFault::Unreachable(text));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) const fn conninfo(&self) -> &Conninfo {
        &self.conninfo
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The message when it has ended too early.
    pub(super) fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => {
                Some(format!("the hub ended ({status}); its log ends:\n{}", self.last_words()))
            }
            Err(error) => Some(format!("could not check on the hub: {error}")),
        }
    }

    fn last_words(&self) -> String {
        const LINES: usize = 10;
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(LINES)).copied().collect::<Vec<_>>().join("\n")
    }

    /// Stops it cleanly; returns what went wrong, if anything.
    pub(super) fn stop(mut self) -> Option<String> {
        if let Some(end) = self.ended() {
            return Some(end);
        }
        // It is our child and was not waited for, so the PID is still its own.
        if let Err(error) = kill_process(Pid::from_child(&self.child), Signal::TERM) {
            return Some(format!("could not send SIGTERM to the hub: {error}"));
        }
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(Some(status)) => return bad_end(status),
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => return Some(format!("could not wait for the hub: {error}")),
            }
        }
        Some(format!("the hub did not end within {END:?} after SIGTERM"))
    }
}

fn bad_end(status: ExitStatus) -> Option<String> {
    (!status.success()).then(|| format!("the hub did not end cleanly ({status})"))
}

impl Drop for HubProcess {
    fn drop(&mut self) {
        // Both fail only when it has already ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `walhub serve` takes each flag once: the last one of each name is kept.
fn last_of_each(mut flags: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let name = |flag: &[String]| {
        let word = flag.first().map_or("", String::as_str);
        word.split('=').next().unwrap_or_default().to_owned()
    };
    let names: Vec<String> = flags.iter().map(|flag| name(flag)).collect();
    let mut place = 0;
    flags.retain(|flag| {
        place += 1;
        !names.get(place..).unwrap_or_default().contains(&name(flag))
    });
    flags
}

/// A port that is free now. If another process takes it before the hub does, the hub reports that.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Becomes `walhub` with these arguments, in a process that ends when its parent does. Otherwise a
/// hub would run on after its run was killed.
///
/// # Errors
/// The program cannot be found or run.
pub fn become_hub(arguments: &[OsString]) -> io::Error {
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
        return error.into();
    }
    match std::env::current_exe() {
        Ok(program) => Command::new(program).arg0("walhub").args(arguments).exec(),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_flag_takes_the_place_of_an_earlier_one() {
        let flags = |texts: &[&str]| -> Vec<Vec<String>> {
            texts.iter().map(|text| text.split(' ').map(str::to_owned).collect()).collect()
        };
        let given = flags(&["--a=1", "--b=2", "--a 3", "--c", "--bb=4", "--a=5"]);
        assert_eq!(last_of_each(given), flags(&["--b=2", "--c", "--bb=4", "--a=5"]));
        assert!(last_of_each(Vec::new()).is_empty());
    }
}
