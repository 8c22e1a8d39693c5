//! The hub: the binary, as an operator would run it.

use super::workplace::{Workplace, free_port};
use crate::fault::{During, Fault, Outcome};
use crate::process::{Pid, signal};
use crate::wait::within;
use rustix::process::Signal;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// What it calls itself upstream.
pub(crate) const NAME: &str = "walhub";

/// A hub's directory and, while it runs, its process. Dropped, it is shut down.
#[derive(Debug)]
pub(crate) struct Hub {
    program: PathBuf,
    directory: PathBuf,
    upstream: String,
    port: u16,
    flags: Vec<String>,
    server: Option<Child>,
}

impl Hub {
    /// A hub that is going to stream from `upstream`; not started.
    pub(crate) fn new(
        place: &Workplace,
        program: &Path,
        upstream: &str,
        name: &str,
    ) -> Outcome<Self> {
        Ok(Self {
            program: program.to_owned(),
            directory: place.path(name),
            upstream: upstream.to_owned(),
            port: free_port()?,
            flags: vec!["--wal-retrieve-retry-interval=200ms".to_owned()],
            server: None,
        })
    }

    /// Sets a flag, `--name=value`, from the next start on.
    pub(crate) fn flag(&mut self, flag: &str) {
        let name = |flag: &str| flag.split('=').next().map(str::to_owned);
        self.flags.retain(|known| name(known) != name(flag));
        self.flags.push(flag.to_owned());
    }

    /// Starts it; it may not listen yet.
    pub(crate) fn spawn(&mut self, place: &Workplace) -> Outcome {
        let (out, err) = place.log(NAME)?;
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            let steers = |name: &str| name.starts_with("PG") || name.starts_with("WALHUB_");
            if name.to_str().is_some_and(steers) {
                command.env_remove(name);
            }
        }
        let server = command
            .arg("serve")
            .arg("--directory")
            .arg(&self.directory)
            .args(["--primary-conninfo", &self.upstream])
            .arg(format!("--port={}", self.port))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .during(self.program.display())?;
        self.server = Some(server);
        Ok(())
    }

    /// Starts it and waits until it listens.
    pub(crate) fn start(&mut self, place: &Workplace) -> Outcome {
        self.spawn(place)?;
        let Some(server) = &mut self.server else { return Ok(()) };
        let port = self.port;
        within(PATIENCE, "the hub listens", || {
            if let Some(status) = server.try_wait().during(NAME)? {
                return Err(Fault::new(format!("the hub did not start: {status}")));
            }
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(drop))
        })
    }

    /// SIGTERM, and its end.
    pub(crate) fn stop(&mut self) -> Outcome {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        signal(&server, Signal::TERM)?;
        let status = within(PATIENCE, "the hub ends", || server.try_wait().during(NAME))?;
        if status.success() {
            return Ok(());
        }
        Err(Fault::new(format!("the hub ended with {status}")))
    }

    /// Where its segments are.
    pub(crate) fn pg_wal(&self) -> PathBuf {
        self.directory.join("pg_wal")
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        self.server.as_ref().map_or(0, Child::id)
    }

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Whoever wants to know has called it himself.
        drop(self.stop());
    }
}
