//! Fetches the right bytes of a damaged segment from the archive.

use super::look::OwnFiles;
use crate::archive::check::first_difference;
use crate::archive::prove::{Head, Neighbours, SegmentFile, prove};
use crate::archive::restore::{Fetched, RestoreCommand};
use crate::keeper::KeeperClient;
use crate::store::digest::{DigestComparison, compare, hash_file};
use crate::store::layout::Layout;
use crate::wal::page::PageRules;
use crate::wal::{Lsn, SegmentName, TimelineId};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RepairOutcome {
    /// The archive's file has taken the place of ours.
    Replaced,
    /// The archive has our bytes, and all records are whole: only the digest says something else.
    DigestOnly,
    /// Nothing was changed.
    No(String),
}

/// Repairs segments.
pub(super) struct Repairer {
    pub(super) command: RestoreCommand,
    pub(super) layout: Layout,
    pub(super) keeper: KeeperClient,
    /// Set to end the running command: the hub shuts down.
    pub(super) stop: Arc<AtomicBool>,
}

impl Repairer {
    /// Replaces a segment by what the archive has when that is what our digest says, or without a
    /// digest when all of it is proved.
    pub(super) fn repair(&self, own: &OwnFiles<'_>, name: SegmentName) -> RepairOutcome {
        let fetched = self.layout.mending(name);
        let outcome = self.attempt(own, name, &fetched);
        if !matches!(outcome, Ok(RepairOutcome::Replaced)) {
            // A start removes it, too.
            drop(std::fs::remove_file(&fetched));
        }
        outcome.unwrap_or_else(|error| RepairOutcome::No(error.to_string()))
    }

    fn attempt(
        &self,
        own: &OwnFiles<'_>,
        name: SegmentName,
        fetched: &Path,
    ) -> io::Result<RepairOutcome> {
        let (file, size) = (name.to_string(), Some(name.size.bytes()));
        match self.command.fetch(&file, fetched, size, &self.stop) {
            Ok(Fetched::Here) => {}
            Ok(Fetched::NotThere | Fetched::Stopped) => {
                return Ok(RepairOutcome::No(format!("the archive does not have \"{name}\"")));
            }
            Err(fault) => return Ok(RepairOutcome::No(fault.to_string())),
        }
        let theirs = File::open(fetched)?;
        let ours = File::open(self.layout.segment(name))?;
        let differs = first_difference(&theirs, &ours, name, Lsn::MAX);
        if ours.metadata()?.len() == name.size.bytes() && matches!(differs, Ok(None)) {
            return Ok(match unproved(own, name, fetched)? {
                None => RepairOutcome::DigestOnly,
                Some(what) => RepairOutcome::No(format!("the archive has the same bytes: {what}")),
            });
        }
        match compare(&self.layout, name, &hash_file(&theirs, name, |_| Ok(()))?)? {
            DigestComparison::Same => {}
            DigestComparison::Differs(blocks) => {
                return Ok(RepairOutcome::No(format!("in the archive, too, {blocks}")));
            }
            DigestComparison::Unknown => {
                if let Some(what) = unproved(own, name, fetched)? {
                    return Ok(RepairOutcome::No(format!("with what the archive has: {what}")));
                }
            }
        }
        theirs.sync_all()?;
        match self.keeper.mend(name.tli, name.no) {
            Ok(()) => Ok(RepairOutcome::Replaced),
            Err(fault) => Ok(RepairOutcome::No(fault.to_string())),
        }
    }
}

/// What is not proved of a segment with the bytes of a fetched file.
fn unproved(own: &OwnFiles<'_>, name: SegmentName, fetched: &Path) -> io::Result<Option<String>> {
    let mended = Mended { own, name, path: fetched.to_owned() };
    let file = File::open(fetched)?;
    let segment = SegmentFile { name, file, upto: name.no.end(name.size) };
    let proof = prove(&mended, &segment, Head::Unknown)?;
    Ok(proof.unproved.map(|unproved| unproved.why.to_string()))
}

/// Our files, with a fetched one in the place of the damaged one.
struct Mended<'a> {
    own: &'a OwnFiles<'a>,
    name: SegmentName,
    path: PathBuf,
}

impl Neighbours for Mended<'_> {
    type File = File;

    fn rules(&self, tli: TimelineId) -> io::Result<PageRules> {
        self.own.rules(tli)
    }

    fn before(&self, name: SegmentName) -> Option<SegmentName> {
        self.own.before(name)
    }

    fn after(&self, name: SegmentName) -> SegmentName {
        self.own.after(name)
    }

    fn open(&self, name: SegmentName) -> io::Result<Option<SegmentFile<File>>> {
        if name != self.name {
            return self.own.open(name);
        }
        let upto = name.no.end(name.size);
        Ok(Some(SegmentFile { name, file: File::open(&self.path)?, upto }))
    }
}
