//! The processes that belong to the server.

use std::collections::HashMap;
use std::fs;

/// The processes whose costs are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Servers {
    /// This one alone.
    One(u32),
    /// These and all their descendants.
    Families(Vec<u32>),
    /// Those of these and their descendants whose command line begins with one of these prefixes.
    Matching(Vec<u32>, Vec<String>),
}

impl Servers {
    /// The running ones, in the order of their PIDs.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = match self {
            Self::One(pid) => vec![*pid],
            Self::Families(roots) => families(roots),
            Self::Matching(roots, beginnings) => {
                let mut pids = families(roots);
                pids.retain(|pid| begins(*pid, beginnings));
                pids
            }
        };
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

fn families(roots: &[u32]) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for pid in numbers("/proc") {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = roots.to_vec();
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        let born = children.remove(pid).unwrap_or_default();
        found.extend(born);
        next += 1;
    }
    found
}

/// The entries of a directory that are numbers: processes of `/proc`, threads of a process. Empty
/// when it is gone.
pub(super) fn numbers(directory: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses and may contain anything.
    text.get(text.rfind(')')? + 1..)?.split_whitespace().nth(1)?.parse().ok()
}

/// Does the command line of a process begin with one of these prefixes?
fn begins(pid: u32, beginnings: &[String]) -> bool {
    let line = command_line(pid).unwrap_or_default();
    beginnings.iter().any(|beginning| line.starts_with(beginning))
}

/// The command line, with blanks between the arguments, as `ps` shows it.
fn command_line(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn descendants_are_found_and_chosen_by_their_command_line() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 987 & cat; kill $!"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let root = shell.id();
        let family = Servers::Families(vec![root]);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while family.pids().len() < 3 {
            assert!(std::time::Instant::now() < deadline, "{:?}", family.pids());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(family.pids().contains(&root));
        assert!(!family.pids().contains(&std::process::id()));
        let matching = |beginning: &str| {
            Servers::Matching(vec![root], vec!["nothing".to_owned(), beginning.to_owned()]).pids()
        };
        while matching("sleep 987").is_empty() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(matching("sleep 987").len(), 1);
        assert_eq!(matching("sh -c").len(), 1);
        assert!(matching("postgres: walsender").is_empty());
        drop(shell.stdin.take());
        shell.wait().unwrap();
    }
}
