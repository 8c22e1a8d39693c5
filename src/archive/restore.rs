//! `restore_command`: fetches one file of the archive, by PostgreSQL's rules.
//!
//! Source: `src/backend/access/transam/xlogarchive.c`, `RestoreArchivedFile`.

use super::shell::{self, CommandOutcome, OutputLevel};
use super::template::{Template, restore_values};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// `%r`, the oldest file that is still needed: a hub cannot name one. It replays nothing, and it
/// cannot know how far back its standbys will ask. PostgreSQL passes the same value as long as it
/// knows no restart point; every other file name sorts after it.
const OLDEST_NEEDED: &str = "000000000000000000000000";

/// The command, and the directory in which it runs.
#[derive(Debug, Clone)]
pub struct RestoreCommand {
    template: Template,
    directory: PathBuf,
}

/// The result of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// The file is here.
    Here,
    /// The archive has no such file, or not all of it yet.
    NotThere(Absence),
    /// The hub is stopping.
    Stopped,
}

/// What shows that the archive does not have a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// The command said so, or failed otherwise.
    #[error("the command ended with exit code {code}")]
    ExitCode {
        /// 1 to 125.
        code: i32,
    },
    /// The command succeeded and left no file.
    #[error("the command ended with exit code 0, but left no file at %p")]
    NoFile,
    /// It may still be copied into the archive.
    #[error("the command left {found} bytes, should be {expected}")]
    TooShort {
        /// Bytes of the file.
        found: u64,
        /// Bytes of a segment.
        expected: u64,
    },
}

/// The archive's answer is unusable; an operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum RestoreFault {
    /// The command could not be run, or was terminated.
    #[error("could not restore file \"{file}\" from archive: {reason}")]
    Broken {
        /// Which file.
        file: String,
        /// In PostgreSQL's words.
        reason: String,
    },
    /// It produced more than the file can hold.
    #[error("archive file \"{file}\" has wrong size: {found} instead of {expected}")]
    WrongSize {
        /// Which file.
        file: String,
        /// Bytes produced.
        found: u64,
        /// Bytes of a segment.
        expected: u64,
    },
    /// An operating system error.
    #[error("could not {action} \"{}\": {error}", path.display())]
    Io {
        /// The verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

impl RestoreCommand {
    /// The command runs in `directory`, as PostgreSQL's does in its data directory.
    pub fn new(template: Template, directory: &Path) -> Self {
        Self { template, directory: directory.to_owned() }
    }

    /// Has the command put `file` at `target`, a path inside the directory. Blocks. An existing
    /// target is removed first, and nothing is left there unless the file is [`Fetched::Here`]. If
    /// `size` is given, a shorter file counts as one that is still being copied to the archive.
    ///
    /// # Errors
    /// The command is broken, or the file is too long.
    pub fn fetch(
        &self,
        file: &str,
        target: &Path,
        size: Option<u64>,
        stop: &AtomicBool,
    ) -> Result<Fetched, RestoreFault> {
        self.fetch_logged(file, target, size, stop, OutputLevel::Info)
    }

    /// The same, and what the command prints is logged at this level.
    pub fn fetch_logged(
        &self,
        file: &str,
        target: &Path,
        size: Option<u64>,
        stop: &AtomicBool,
        level: OutputLevel,
    ) -> Result<Fetched, RestoreFault> {
        remove(target)?;
        let fetched = self.run(file, target, size, stop, level);
        if !matches!(fetched, Ok(Fetched::Here)) {
            remove(target)?;
        }
        fetched
    }

    fn run(
        &self,
        file: &str,
        target: &Path,
        size: Option<u64>,
        stop: &AtomicBool,
        level: OutputLevel,
    ) -> Result<Fetched, RestoreFault> {
        // A relative path means something else where the command runs.
        let path = match target.strip_prefix(&self.directory) {
            Ok(inside) => inside.to_owned(),
            Err(_) => std::path::absolute(target)
                .map_err(|error| failed("find the absolute path of", target, error))?,
        };
        let values = restore_values(OsStr::new(file), &path, OsStr::new(OLDEST_NEEDED));
        let line = self.template.expand(&values);
        let broken = |reason: String| RestoreFault::Broken { file: file.to_owned(), reason };
        let outcome = shell::run(&line, &self.directory, stop, level);
        match outcome.map_err(|error| broken(error.to_string()))? {
            CommandOutcome::Done => {}
            CommandOutcome::Failed { code } => {
                return Ok(Fetched::NotThere(Absence::ExitCode { code }));
            }
            CommandOutcome::Broken { reason } => return Err(broken(reason)),
            CommandOutcome::Stopped => return Ok(Fetched::Stopped),
        }
        let found = match fs::metadata(target) {
            // To read it could mean to wait for ever.
            Ok(meta) if !meta.is_file() => return Err(broken("it is not a plain file".to_owned())),
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Fetched::NotThere(Absence::NoFile));
            }
            Err(error) => return Err(failed("stat file", target, error)),
        };
        match size {
            Some(expected) if found > expected => {
                Err(RestoreFault::WrongSize { file: file.to_owned(), found, expected })
            }
            Some(expected) if found < expected => {
                Ok(Fetched::NotThere(Absence::TooShort { found, expected }))
            }
            _ => {
                copy_if_linked(target)
                    .map_err(|error| failed("copy the linked file", target, error))?;
                Ok(Fetched::Here)
            }
        }
    }
}

/// Replaces what a command has linked (`ln`, `ln -s`) by a copy. The file may get a name in `pg_wal`,
/// and files there are written over later.
fn copy_if_linked(target: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(target)?;
    if !meta.is_symlink() && meta.nlink() == 1 {
        return Ok(());
    }
    let mut linked = File::open(target)?;
    fs::remove_file(target)?;
    let mut options = File::options();
    let mut copy = options.write(true).create_new(true).mode(0o600).open(target)?;
    io::copy(&mut linked, &mut copy).map(drop)
}

fn remove(path: &Path) -> Result<(), RestoreFault> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|error| failed("remove file", path, error)),
    }
}

fn failed(action: &'static str, path: &Path, error: io::Error) -> RestoreFault {
    RestoreFault::Io { action, path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "000000010000000000000003";

    struct Scene {
        root: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("pg_wal")).unwrap();
            fs::create_dir(root.path().join("archive")).unwrap();
            Self { root }
        }

        fn target(&self) -> PathBuf {
            self.root.path().join("pg_wal/x.tmp")
        }

        fn fetch(&self, command: &str) -> Result<Fetched, RestoreFault> {
            let template = Template::parse(command, &['f', 'p', 'r']).unwrap();
            let command = RestoreCommand::new(template, self.root.path());
            command.fetch(NAME, &self.target(), Some(4), &AtomicBool::new(false))
        }
    }

    #[test]
    fn a_file_comes_to_its_place() {
        let scene = Scene::new();
        fs::write(scene.target(), "what an earlier run left").unwrap();
        fs::write(scene.root.path().join("archive").join(NAME), "1234").unwrap();
        assert_eq!(scene.fetch("cp archive/%f %p").unwrap(), Fetched::Here);
        assert_eq!(fs::read(scene.target()).unwrap(), b"1234");
        let said = scene.fetch("printf '%%s' %p %r > said; exit 1").unwrap();
        assert_eq!(said, Fetched::NotThere(Absence::ExitCode { code: 1 }));
        let said = fs::read_to_string(scene.root.path().join("said")).unwrap();
        assert_eq!(said, format!("pg_wal/x.tmp{OLDEST_NEEDED}"));
    }

    #[test]
    fn what_is_linked_is_copied() {
        let scene = Scene::new();
        let archived = scene.root.path().join("archive").join(NAME);
        fs::write(&archived, "1234").unwrap();
        for link in ["ln archive/%f %p", "ln -s ../archive/%f %p"] {
            assert_eq!(scene.fetch(link).unwrap(), Fetched::Here);
            fs::write(scene.target(), "5678").unwrap();
            assert_eq!(fs::read(&archived).unwrap(), b"1234", "{link}");
            assert!(!fs::symlink_metadata(scene.target()).unwrap().is_symlink());
        }
    }

    #[test]
    fn what_is_not_there_leaves_nothing() {
        let scene = Scene::new();
        for (command, why) in [
            ("exit 1", Absence::ExitCode { code: 1 }),
            ("exit 125", Absence::ExitCode { code: 125 }),
            ("true", Absence::NoFile),
            ("printf 123 > %p", Absence::TooShort { found: 3, expected: 4 }),
            ("printf 1234 > %p; false", Absence::ExitCode { code: 1 }),
        ] {
            assert_eq!(scene.fetch(command).unwrap(), Fetched::NotThere(why), "{command}");
            assert!(!scene.target().exists(), "{command}");
        }
    }

    #[test]
    fn what_is_broken_is_said() {
        let scene = Scene::new();
        for (command, words) in [
            (
                "exit 126",
                "could not restore file \"000000010000000000000003\" from archive: command not executable",
            ),
            (
                "kill -9 $$",
                "could not restore file \"000000010000000000000003\" from archive: child process was terminated by signal 9",
            ),
            (
                "mkfifo %p",
                "could not restore file \"000000010000000000000003\" from archive: it is not a plain file",
            ),
            (
                "printf 12345 > %p",
                "archive file \"000000010000000000000003\" has wrong size: 5 instead of 4",
            ),
        ] {
            assert_eq!(scene.fetch(command).unwrap_err().to_string(), words);
            assert!(!scene.target().exists(), "{command}");
        }
    }
}
