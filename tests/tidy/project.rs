//! The project as a set of files: paths and texts, read from the disk or written in a test.

use crate::lex::{self, Token};
use std::collections::BTreeMap;
use std::path::Path;

/// All files that a rule may read, by their paths from the root with `/`.
#[derive(Debug, Default)]
pub(crate) struct Project {
    pub(crate) files: BTreeMap<String, String>,
}

/// Something that a rule forbids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What it is about, without anything that changes, such as a line number: it names the
    /// finding in the list of known exceptions.
    pub(crate) subject: String,
    /// Where it was found, and what would be right.
    pub(crate) detail: String,
}

impl Finding {
    pub(crate) fn new(subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { subject: subject.into(), detail: detail.into() }
    }
}

/// The folders that are read, and the extensions of the files read in them.
const FOLDERS: [&str; 6] = ["src", "tests", "perf", "benches", "docs", ".ci"];
const ENDINGS: [&str; 3] = [".rs", ".md", ".json"];

impl Project {
    /// Reads the project that this test was built in.
    pub(crate) fn here() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut project = Self::default();
        for folder in FOLDERS {
            project.read(root, Path::new(folder));
        }
        let readme = std::fs::read_to_string(root.join("README.md")).expect("a readable file");
        project.files.insert("README.md".to_owned(), readme);
        project
    }

    /// A project of these files.
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        Self { files: files.collect() }
    }

    fn read(&mut self, root: &Path, folder: &Path) {
        let Ok(entries) = std::fs::read_dir(root.join(folder)) else { return };
        for entry in entries {
            let entry = entry.expect("a readable folder");
            let path = folder.join(entry.file_name());
            let name = path.to_str().expect("a name in UTF-8").to_owned();
            if entry.path().is_dir() {
                if !name.ends_with("/target") {
                    self.read(root, &path);
                }
            } else if ENDINGS.iter().any(|ending| name.ends_with(ending)) {
                let text = std::fs::read_to_string(entry.path()).expect("a text in UTF-8");
                self.files.insert(name, text);
            }
        }
    }

    pub(crate) fn text(&self, path: &str) -> &str {
        self.files.get(path).map_or("", String::as_str)
    }

    /// The files of a folder (or the one file) with this extension.
    pub(crate) fn under<'a>(
        &'a self,
        folder: &'a str,
        ending: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let wanted = move |path: &str| path.starts_with(folder) && path.ends_with(ending);
        let files = self.files.iter().filter(move |(path, _)| wanted(path));
        files.map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The Markdown files for readers.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (&str, &str)> {
        self.under("docs/", ".md").chain(self.under("README.md", ".md"))
    }

    /// All Rust files as tokens.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&str, Vec<Token>)> {
        self.under("", ".rs").map(|(path, text)| (path, lex::tokens(text)))
    }
}
