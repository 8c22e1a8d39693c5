//! Replaces damaged segments by those of an archive that are proved.

use super::own::OwnSegments;
use crate::archive::another::CopyComparison;
use crate::archive::check::first_difference;
use crate::archive::copies::WithCopies;
use crate::archive::prove::{Head, Neighbours, Reason, prove};
use crate::archive::restore::{Fetched, RestoreCommand};
use crate::store::digest::{DigestComparison, compare, forget, hash_file};
use crate::store::disk::run_ready;
use crate::store::layout::Layout;
use crate::store::plain_disk::PlainDisk;
use crate::wal::{Lsn, SegmentName};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// What came of an attempt.
pub(super) enum Repaired {
    /// These segments were replaced.
    Yes(Vec<SegmentName>),
    /// The segment is whole, and the archive has the same bytes: its digest was of others, and is
    /// gone.
    DigestOnly,
    /// Nothing was changed.
    No(String),
}

/// Fetches the segments of a damaged record, and replaces those that differ from the archive's when
/// all of them are proved then. When their neighbours turn out to be damaged too, these are fetched
/// with them. A damaged file stays under its name until the new one, which is durable, takes it; a
/// link in `damaged` keeps its bytes.
pub(super) fn repair(
    layout: &Layout,
    own: &OwnSegments,
    command: &RestoreCommand,
    (mut first, mut last): (SegmentName, SegmentName),
    head: Head,
) -> io::Result<Repaired> {
    let mut theirs = Theirs { own, files: BTreeMap::new(), fetched: BTreeSet::new() };
    loop {
        if let Some(why) = theirs.fetch(layout, command, (first, last))? {
            return Ok(Repaired::No(why));
        }
        match theirs.damage(first, head) {
            Err(error) => return Ok(Repaired::No(error.to_string())),
            Ok(None) => break,
            Ok(Some((from, to, _))) if from.no < first.no || to.no > last.no => {
                (first, last) = (first.min(from), last.max(to));
            }
            Ok(Some((_, _, what))) => {
                return Ok(Repaired::No(format!("with what the archive has: {what}")));
            }
        }
    }
    if theirs.files.is_empty() {
        let forgotten = run_ready(forget(&PlainDisk, layout, first));
        forgotten.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?;
        return Ok(Repaired::DigestOnly);
    }
    if let Some(why) = theirs.other_history(layout)? {
        return Ok(Repaired::No(why));
    }
    let names = theirs.files.keys().copied().collect();
    theirs.install(layout)?;
    Ok(Repaired::Yes(names))
}

/// Our segments, with those from the archive in their places.
struct Theirs<'a> {
    own: &'a OwnSegments,
    /// Those that differ from ours.
    files: BTreeMap<SegmentName, PathBuf>,
    fetched: BTreeSet<SegmentName>,
}

impl Theirs<'_> {
    /// Fetches what was not fetched before. Returns why a segment cannot be had.
    fn fetch(
        &mut self,
        layout: &Layout,
        command: &RestoreCommand,
        (first, last): (SegmentName, SegmentName),
    ) -> io::Result<Option<String>> {
        let mut name = first;
        while name.no <= last.no {
            if !self.own.is_open(name) && self.fetched.insert(name) {
                let (file, size) = (name.to_string(), Some(name.size.bytes()));
                let path = layout.restoring(&file);
                match command.fetch(&file, &path, size, &AtomicBool::new(false)) {
                    Ok(Fetched::Here) => {
                        if let Some(why) = self.take(layout, name, path)? {
                            return Ok(Some(why));
                        }
                    }
                    Ok(Fetched::NotThere(why)) => {
                        return Ok(Some(format!("the archive does not have \"{name}\": {why}")));
                    }
                    // Nothing here stops it.
                    Ok(Fetched::Stopped) => return Ok(Some("the command was ended".to_owned())),
                    Err(fault) => return Ok(Some(fault.to_string())),
                }
            }
            name = self.own.after(name);
        }
        Ok(None)
    }

    /// What is still damaged in `first` and in what was fetched.
    fn damage(
        &self,
        first: SegmentName,
        head: Head,
    ) -> io::Result<Option<(SegmentName, SegmentName, String)>> {
        let near = WithCopies::new(self.own, &self.files);
        let others = self.fetched.iter().filter(|name| **name != first);
        let heads = others.map(|name| (*name, Head::Unknown));
        for (name, head) in std::iter::once((first, head)).chain(heads) {
            let Some(segment) = near.open(name)? else { continue };
            let unproved = prove(&near, &segment, head)?.unproved;
            if let Some(Reason::Damaged { first, last, fault }) = unproved.map(|found| found.why)
                && !self.own.is_open(last)
            {
                return Ok(Some((first, last, fault.to_string())));
            }
        }
        Ok(None)
    }

    /// Keeps a fetched file if it differs from ours. Returns why it cannot be had instead.
    fn take(
        &mut self,
        layout: &Layout,
        name: SegmentName,
        path: PathBuf,
    ) -> io::Result<Option<String>> {
        let same = match self.own.open(name)? {
            Some(ours) => {
                let theirs = File::open(&path)?;
                // What cannot be read differs.
                let differs = first_difference(&theirs, &ours.file, name, Lsn::MAX);
                matches!(differs, Ok(None)) && ours.file.metadata()?.len() == name.size.bytes()
            }
            None => false,
        };
        match same {
            true => std::fs::remove_file(path).map(|()| None),
            false => {
                let found = hash_file(&File::open(&path)?, name, |_| Ok(()))?;
                self.files.insert(name, path);
                Ok(match compare(layout, name, &found)? {
                    DigestComparison::Unknown | DigestComparison::Same(_) => None,
                    DigestComparison::Differs(blocks) => {
                        Some(format!("in the archive, too, {blocks}"))
                    }
                })
            }
        }
    }

    /// Why what was fetched is of another history than ours, if our records show that. A segment with
    /// a digest of ours needs no other proof.
    fn other_history(&self, layout: &Layout) -> io::Result<Option<String>> {
        for (name, path) in &self.files {
            let theirs = File::open(path)?;
            let found = hash_file(&theirs, *name, |_| Ok(()))?;
            if matches!(compare(layout, *name, &found)?, DigestComparison::Same(_)) {
                continue;
            }
            let Some(ours) = self.own.open(*name)? else { continue };
            let rules = self.own.rules(name.tli)?;
            let (name, ours) = (*name, &ours.file);
            let compared = CopyComparison { name, rules: &rules, ours, copy: &theirs };
            if let Some(at) = compared.other_record()? {
                return Ok(Some(format!(
                    "the archive's \"{name}\" has another history: our record at {at} is whole"
                )));
            }
        }
        Ok(None)
    }

    fn install(mut self, layout: &Layout) -> io::Result<()> {
        let folder = layout.damaged();
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync(layout.root())?,
        }
        while let Some((name, path)) = self.files.pop_first() {
            File::open(&path)?.sync_all()?;
            let ours = layout.segment(name);
            keep(&ours, &folder.join(name.to_string()))?;
            sync(&folder)?;
            std::fs::rename(path, ours)?;
            sync(layout.wal())?;
        }
        Ok(())
    }
}

impl Drop for Theirs<'_> {
    fn drop(&mut self) {
        for path in self.files.values() {
            // A start removes it, too.
            drop(std::fs::remove_file(path));
        }
    }
}

/// Gives a damaged file a second name. One that was damaged before has another.
fn keep(file: &Path, kept: &Path) -> io::Result<()> {
    let mut number = 0;
    let mut name = kept.to_owned();
    loop {
        match std::fs::hard_link(file, &name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                number += 1;
                name = Layout::numbered(kept, number);
            }
            linked => return linked,
        }
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
