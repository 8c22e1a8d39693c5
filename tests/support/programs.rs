//! PostgreSQL's programs, as `tests/get-postgres` finds or fetches them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// The programs of one major version.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) major: u32,
    server: PathBuf,
    clients: PathBuf,
    waldump: Option<PathBuf>,
    account: Option<Account>,
}

/// Whom servers run as: PostgreSQL refuses to be root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Programs {
    /// PostgreSQL 15, which all tests but those about other majors use.
    pub(crate) fn usual() -> &'static Self {
        Self::of(15)
    }

    /// The programs of a major; asked for once a process.
    pub(crate) fn of(major: u32) -> &'static Self {
        static KNOWN: Mutex<BTreeMap<u32, &'static Programs>> = Mutex::new(BTreeMap::new());
        // A test that failed while it held the lock has not harmed the map.
        let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        known.entry(major).or_insert_with(|| Box::leak(Box::new(Self::find(major))))
    }

    fn find(major: u32) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/get-postgres");
        let output = Command::new(&script)
            .arg(major.to_string())
            .stderr(Stdio::inherit())
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        assert!(output.status.success(), "tests/get-postgres {major}: {}", output.status);
        let text = String::from_utf8(output.stdout).unwrap();
        let answers: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.split_once('=')).collect();
        Self {
            major,
            server: answers["server"].into(),
            clients: answers["clients"].into(),
            waldump: answers.get("waldump").map(PathBuf::from),
            account: answers.get("account").map(|name| Account::named(name)),
        }
    }

    /// Whom the servers run as, when that is somebody else than we are.
    pub(crate) fn account(&self) -> Option<Account> {
        self.account
    }

    /// `postgres`, `initdb`, `pg_ctl`.
    pub(crate) fn server(&self, program: &str) -> Command {
        self.command(self.server.join(program))
    }

    /// `psql`, `pgbench`, `pg_basebackup`, `pg_receivewal`.
    pub(crate) fn client(&self, program: &str) -> Command {
        self.command(self.clients.join(program))
    }

    /// `pg_waldump`, where there is one of this major.
    pub(crate) fn waldump(&self) -> Option<Command> {
        self.waldump.as_ref().map(|program| self.command(program))
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
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
    fn named(name: &str) -> Self {
        let id = |which: &str| {
            let output = Command::new("id").args([which, name]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
        };
        Self { uid: id("-u"), gid: id("-g") }
    }
}

/// Are the tests run by root? Some need a loop-mounted disk.
pub(crate) fn are_we_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    *ROOT.get_or_init(|| rustix::process::geteuid().is_root())
}
