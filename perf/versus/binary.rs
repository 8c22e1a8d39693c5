//! The two binaries, and of which sources they are.

use crate::fault::{During, Fault, Outcome};
use crate::git;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// A walhub that is measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Binary {
    pub(super) path: PathBuf,
    /// HEAD of the work tree that it lies in, which is the best that can be known.
    pub(super) commit: String,
    /// Whether that work tree has no changes; unknown where there is none.
    pub(super) clean: Option<bool>,
    pub(super) bytes: u64,
    /// CRC-32C of the file: two results with the same one are of the same binary.
    pub(super) crc32c: String,
}

impl Binary {
    pub(super) fn at(path: &Path) -> Outcome<Self> {
        let path = path.canonicalize().during(path.display())?;
        let content = fs::read(&path).during(path.display())?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let tree = git::work_tree(folder);
        Ok(Self {
            commit: tree.as_ref().map_or_else(|| "unknown".to_owned(), |tree| tree.head.clone()),
            clean: tree.map(|tree| tree.clean),
            bytes: content.len() as u64,
            crc32c: format!("{:08x}", crc32c::crc32c(&content)),
            path,
        })
    }

    /// Two names for one binary are no comparison; a comparison of a binary with itself
    /// that somebody wants has a copy of it.
    pub(super) fn differs_from(&self, other: &Self) -> Outcome {
        if self.path == other.path {
            return Err(Fault::new(format!("both binaries are {}", self.path.display())));
        }
        Ok(())
    }

    /// In one line.
    pub(super) fn line(&self) -> String {
        let tree = match self.clean {
            Some(true) => "clean tree",
            Some(false) => "CHANGED tree",
            None => "no work tree",
        };
        let Self { path, commit, crc32c, .. } = self;
        format!("{commit} ({tree}), crc32c {crc32c}, {}", path.display())
    }
}
