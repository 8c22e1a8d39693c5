//! Fetches the right bytes of a damaged segment, from the archive or else from an upstream.

use super::look::OwnFiles;
use super::pace::Pace;
use crate::archive::another::CopyComparison;
use crate::archive::check::first_difference;
use crate::archive::copies::WithCopies;
use crate::archive::prove::{Head, Neighbours as _, SegmentFile, prove};
use crate::archive::restore::{Fetched, RestoreCommand};
use crate::follow::{CopyClient, CopyPart};
use crate::hub::Hub;
use crate::hub::course::Upstream;
use crate::keeper::KeeperClient;
use crate::store::digest::{DigestComparison, compare, hash_file};
use crate::store::layout::Layout;
use crate::wal::{Lsn, SegmentName};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RepairOutcome {
    /// This one's file has taken the place of ours.
    Replaced(String),
    /// This one has our bytes, and all records are whole: only the digest says something else.
    DigestOnly(String),
    /// Nothing was changed.
    No(String),
}

/// What the archive has of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArchivedCopy {
    /// Our bytes.
    Same,
    /// Others.
    Differs,
    /// There is no command that would show it, or it does not have the segment.
    Unknown,
}

/// Repairs segments.
pub(super) struct Repairer {
    pub(super) hub: Arc<Hub>,
    /// With an archive.
    pub(super) command: Option<RestoreCommand>,
    pub(super) upstreams: CopyClient,
    pub(super) layout: Layout,
    pub(super) keeper: KeeperClient,
    /// Bytes that come from an upstream in a second.
    pub(super) rate: u64,
    /// Set to end the running command: the hub shuts down.
    pub(super) stop: Arc<AtomicBool>,
}

/// Hosts that did not answer in this scrub. They are not asked again in it: each question may take
/// as long as a connection may.
pub(super) type UnreachableHosts = BTreeSet<String>;

/// Where a copy comes from.
enum CopySource<'a> {
    Archive(&'a RestoreCommand),
    Upstream {
        upstream: Arc<Upstream>,
        host: usize,
        /// What it is called.
        name: String,
    },
}

impl fmt::Display for CopySource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive(_) => f.write_str("the archive"),
            Self::Upstream { name, .. } => write!(f, "the upstream {name}"),
        }
    }
}

impl Repairer {
    /// Replaces a segment by another copy when that is what our digest says, or without a digest
    /// when all of it is proved. The archive is asked first: that costs the upstream nothing.
    pub(super) fn repair(
        &self,
        own: &OwnFiles<'_>,
        name: SegmentName,
        unreachable: &mut UnreachableHosts,
    ) -> RepairOutcome {
        let fetched = self.layout.mending(name);
        let mut reasons = Vec::new();
        for source in self.sources() {
            let outcome = self.attempt(own, name, &fetched, &source, unreachable);
            if !matches!(outcome, Ok(RepairOutcome::Replaced(_))) {
                // A start removes it, too.
                drop(std::fs::remove_file(&fetched));
            }
            match outcome {
                Ok(RepairOutcome::No(why)) => reasons.push(why),
                Ok(outcome) => return outcome,
                Err(error) => reasons.push(format!("{source}: {error}")),
            }
        }
        RepairOutcome::No(reasons.join("; "))
    }

    fn sources(&self) -> Vec<CopySource<'_>> {
        let (upstream, _) = self.hub.course.upstream();
        let archive = self.command.iter().map(CopySource::Archive);
        let hosts = upstream.conninfo.hosts.iter().enumerate().map(|(host, name)| {
            let (upstream, name) = (Arc::clone(&upstream), name.to_string());
            CopySource::Upstream { upstream, host, name }
        });
        archive.chain(hosts).collect()
    }

    fn attempt(
        &self,
        own: &OwnFiles<'_>,
        name: SegmentName,
        fetched: &Path,
        source: &CopySource<'_>,
        unreachable: &mut UnreachableHosts,
    ) -> io::Result<RepairOutcome> {
        let outcome = match source {
            CopySource::Archive(command) => self.fetch_archived(command, name, fetched),
            CopySource::Upstream { upstream, host, name: of } => match unreachable.contains(of) {
                true => Err(format!("{source} did not answer")),
                false => {
                    let answer = self.upstreams.ask(upstream, *host, name);
                    self.take(answer, fetched, || {
                        unreachable.insert(of.clone());
                    })?
                }
            },
        };
        if let Err(why) = outcome {
            return Ok(RepairOutcome::No(why));
        }
        let theirs = File::open(fetched)?;
        let ours = File::open(self.layout.segment(name))?;
        let differs = first_difference(&theirs, &ours, name, Lsn::MAX);
        if ours.metadata()?.len() == name.size.bytes() && matches!(differs, Ok(None)) {
            return Ok(match unproved(own, name, fetched)? {
                None => RepairOutcome::DigestOnly(source.to_string()),
                Some(what) => RepairOutcome::No(format!("{source} has the same bytes: {what}")),
            });
        }
        match compare(&self.layout, name, &hash_file(&theirs, name, |_| Ok(()))?)? {
            DigestComparison::Same(_) => {}
            DigestComparison::Differs(blocks) => {
                return Ok(RepairOutcome::No(format!("what {source} has is damaged: {blocks}")));
            }
            DigestComparison::Unknown => {
                if let Some(why) = self.doubt(source) {
                    return Ok(RepairOutcome::No(why));
                }
                let from = self.hub.holds.scrub.damage(name.tli, name.no).map(|found| found.from);
                let before = from.unwrap_or(Lsn::MAX);
                if let Some(at) = first_difference(&theirs, &ours, name, before)? {
                    let why = format!("{source} has other WAL at {at}, before what is damaged");
                    return Ok(RepairOutcome::No(why));
                }
                if let Some(what) = unproved(own, name, fetched)? {
                    return Ok(RepairOutcome::No(format!("with what {source} has: {what}")));
                }
                let rules = own.rules(name.tli)?;
                let compared = CopyComparison { name, rules: &rules, ours: &ours, copy: &theirs };
                if let Some(at) = compared.other_record()? {
                    let why = format!("{source} has another history: our record at {at} is whole");
                    return Ok(RepairOutcome::No(why));
                }
            }
        }
        theirs.sync_all()?;
        match self.keeper.mend(name.tli, name.no) {
            Ok(()) => Ok(RepairOutcome::Replaced(source.to_string())),
            Err(fault) => Ok(RepairOutcome::No(fault.to_string())),
        }
    }

    /// Why a source's copy does not count without a digest of ours: its records may be whole, and
    /// those of another history. An upstream's counts while it is followed and has proved that ours
    /// is its own.
    fn doubt(&self, source: &CopySource<'_>) -> Option<String> {
        let CopySource::Upstream { name, .. } = source else { return None };
        let is_proved = self.hub.course.proved_host().as_ref() == Some(name);
        (!is_proved).then(|| {
            format!(
                "{source} has not proved that it has this hub's history, and there is no digest"
            )
        })
    }

    /// Compares a segment with what the archive has of it.
    pub(super) fn archived_copy(&self, name: SegmentName) -> ArchivedCopy {
        let Some(command) = &self.command else { return ArchivedCopy::Unknown };
        let fetched = self.layout.mending(name);
        let compared = self.fetch_archived(command, name, &fetched).ok().and_then(|()| {
            let ours = File::open(self.layout.segment(name)).ok()?;
            first_difference(&File::open(&fetched).ok()?, &ours, name, Lsn::MAX).ok()
        });
        drop(std::fs::remove_file(&fetched));
        match compared {
            None => ArchivedCopy::Unknown,
            Some(None) => ArchivedCopy::Same,
            Some(Some(_)) => ArchivedCopy::Differs,
        }
    }

    fn fetch_archived(
        &self,
        command: &RestoreCommand,
        name: SegmentName,
        fetched: &Path,
    ) -> Result<(), String> {
        let (file, size) = (name.to_string(), Some(name.size.bytes()));
        match command.fetch(&file, fetched, size, &self.stop) {
            Ok(Fetched::Here) => Ok(()),
            Ok(Fetched::NotThere(why)) => {
                Err(format!("the archive does not have \"{name}\": {why}"))
            }
            Ok(Fetched::Stopped) => Err("the hub stops".to_owned()),
            Err(fault) => Err(fault.to_string()),
        }
    }

    /// Writes what a host sends. The inner error says why it has not sent all of the segment.
    fn take(
        &self,
        mut answer: tokio::sync::mpsc::Receiver<CopyPart>,
        fetched: &Path,
        unreachable: impl FnOnce(),
    ) -> io::Result<Result<(), String>> {
        let mut options = File::options();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(fetched)?;
        let mut pace = Pace::new();
        let stopped = || Ok(Err("the hub is shutting down".to_owned()));
        loop {
            match answer.blocking_recv() {
                Some(CopyPart::Wal(wal)) => {
                    file.write_all(&wal)?;
                    let rate = self.hub.holds.scrub.rate().unwrap_or(self.rate);
                    let wait = pace.read(wal.len() as u64, rate, Instant::now());
                    if self.hub.holds.scrub.pause(wait) {
                        return stopped();
                    }
                }
                Some(CopyPart::End) => return Ok(Ok(())),
                Some(CopyPart::Refused(why)) => return Ok(Err(why)),
                Some(CopyPart::Unreachable(why)) => {
                    unreachable();
                    return Ok(Err(why));
                }
                None => return stopped(),
            }
        }
    }
}
/// What is not proved of a segment with the bytes of a fetched file.
fn unproved(own: &OwnFiles<'_>, name: SegmentName, fetched: &Path) -> io::Result<Option<String>> {
    let copies = BTreeMap::from([(name, fetched.to_owned())]);
    let mended = WithCopies::new(own, &copies);
    let file = File::open(fetched)?;
    let segment = SegmentFile { name, file, upto: name.no.end(name.size) };
    let proof = prove(&mended, &segment, Head::Unknown)?;
    Ok(proof.unproved.map(|unproved| unproved.why.to_string()))
}
