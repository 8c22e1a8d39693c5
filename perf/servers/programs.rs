//! PostgreSQL's programs, as `tests/get-postgres` finds or fetches them.

use crate::fault::{During, Fault, Outcome};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MAJOR: &str = "15";

/// Where PostgreSQL's programs are and whom its servers run as.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    server: PathBuf,
    clients: PathBuf,
    account: Option<Account>,
}

/// Whom servers run as: PostgreSQL refuses to be root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Programs {
    pub(crate) fn find() -> Outcome<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/get-postgres");
        let mut command = Command::new(&script);
        let output = command
            .arg(MAJOR)
            .stderr(Stdio::inherit())
            .output()
            .during(format_args!("{}", script.display()))?;
        if !output.status.success() {
            return Err(Fault::new(format!("tests/get-postgres {MAJOR}: {}", output.status)));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let answers: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.split_once('=')).collect();
        let folder = |name| {
            answers.get(name).map(PathBuf::from).ok_or_else(|| Fault::new(format!("no {name}")))
        };
        Ok(Self {
            server: folder("server")?,
            clients: folder("clients")?,
            account: answers.get("account").map(|name| Account::named(name)).transpose()?,
        })
    }

    /// Whom the servers run as, when that is somebody else than we are.
    pub(super) fn account(&self) -> Option<Account> {
        self.account
    }

    /// `postgres`, `initdb`.
    pub(super) fn server(&self, program: &str) -> Command {
        self.command(&self.server.join(program))
    }

    /// `psql`, `pg_basebackup`, `pg_receivewal`.
    pub(crate) fn client(&self, program: &str) -> Command {
        self.command(&self.clients.join(program))
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Nothing of the caller's environment may point a tool elsewhere.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG")) {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C").env("TZ", "UTC").current_dir("/").stdin(Stdio::null());
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid).env("HOME", "/nonexistent");
        }
        command
    }
}

impl Account {
    fn named(name: &str) -> Outcome<Self> {
        let id = |which: &str| {
            let output = Command::new("id").args([which, name]).output().during("id")?;
            let text = String::from_utf8_lossy(&output.stdout);
            text.trim().parse().during(format_args!("id {which} {name}"))
        };
        Ok(Self { uid: id("-u")?, gid: id("-g")? })
    }
}

/// Runs a program to its end.
pub(super) fn run(command: &mut Command) -> Outcome {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().during(&name)?;
    if status.success() { Ok(()) } else { Err(Fault::new(format!("{name}: {status}"))) }
}
