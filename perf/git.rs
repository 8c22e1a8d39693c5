//! What git says of a folder.

use std::path::Path;
use std::process::Command;

/// A work tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkTree {
    /// Its commit, abbreviated.
    pub(crate) head: String,
    /// No tracked file differs from it.
    pub(crate) clean: bool,
}

/// The work tree that `folder` lies in.
pub(crate) fn work_tree(folder: &Path) -> Option<WorkTree> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let head = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no", ":/"])?;
    Some(WorkTree { head, clean: changes.is_empty() })
}
