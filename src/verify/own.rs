//! The segments and histories of a directory.

use crate::archive::prove::{Neighbours, SegmentFile};
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::layout::{FileKind, Layout};
use crate::timeline::History;
use crate::wal::page::PageRules;
use crate::wal::{Ancestor, Fork, SegmentName, TimelineId};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs::File;
use std::io;

pub(super) struct OwnSegments {
    layout: Layout,
    cluster: Cluster,
    complete: BTreeSet<SegmentName>,
    open: BTreeSet<SegmentName>,
    histories: BTreeMap<TimelineId, History>,
}

impl OwnSegments {
    /// Reads the names, the control file and the histories.
    pub(super) fn read(layout: &Layout) -> Result<Self, Box<dyn Error>> {
        let path = layout.control();
        let failed = |error: &dyn Error| format!("file \"{}\": {error}", path.display());
        let control = std::fs::read(&path).map_err(|error| failed(&error))?;
        let control = ControlFile::decode(&control).map_err(|fault| failed(&fault))?;
        let cluster = control.cluster.ok_or("the directory is empty: no cluster is known")?;
        let mut own = Self {
            layout: layout.clone(),
            cluster,
            complete: BTreeSet::new(),
            open: BTreeSet::new(),
            histories: BTreeMap::new(),
        };
        for entry in std::fs::read_dir(layout.wal())? {
            let name = entry?.file_name();
            match FileKind::of(&name.to_string_lossy(), own.cluster.segment_size) {
                FileKind::Segment(name) => {
                    own.complete.insert(name);
                }
                FileKind::Partial(name) => {
                    own.open.insert(name);
                }
                FileKind::History(tli) => {
                    let content = std::fs::read(layout.history(tli))?;
                    let history = History::parse(tli, content.into()).map_err(|fault| {
                        format!("history file \"{}\": {fault}", History::file_name(tli))
                    })?;
                    own.histories.insert(tli, history);
                }
                _ => {}
            }
        }
        Ok(own)
    }

    /// The complete segments, in the order of their positions.
    pub(super) fn complete(&self) -> Vec<SegmentName> {
        let mut names: Vec<_> = self.complete.iter().copied().collect();
        names.sort_unstable_by_key(|name| (name.no, name.tli));
        names
    }

    /// Is this one still being written?
    pub(super) fn is_open(&self, name: SegmentName) -> bool {
        !self.complete.contains(&name) && self.open.contains(&name)
    }

    /// The history of a timeline, or of one that descends from it.
    fn history(&self, tli: TimelineId) -> Option<&History> {
        let descends = || self.histories.values().rev().find(|history| history.contains(tli));
        self.histories.get(&tli).or_else(descends)
    }
}

impl Neighbours for OwnSegments {
    type File = File;

    fn rules(&self, tli: TimelineId) -> io::Result<PageRules> {
        let entries = self.history(tli).map(History::entries).unwrap_or_default();
        let before = entries.iter().take_while(|entry| entry.tli != tli);
        let ancestors: Vec<_> =
            before.map(|entry| Ancestor { tli: entry.tli, end: entry.end }).collect();
        Ok(PageRules {
            system: self.cluster.system_id,
            size: self.cluster.segment_size,
            tli,
            magic: None,
            fork: Fork::new(&ancestors),
        })
    }

    fn before(&self, name: SegmentName) -> Option<SegmentName> {
        let no = name.no.previous()?;
        let last = no.end(name.size).saturating_sub(1);
        let tli = self.history(name.tli).map_or(name.tli, |history| history.tli_at(last));
        Some(SegmentName { tli, no, ..name })
    }

    fn after(&self, name: SegmentName) -> SegmentName {
        let next = SegmentName { no: name.no.next(), ..name };
        let is_here = |name: &SegmentName| self.complete.contains(name) || self.open.contains(name);
        let children = self.histories.values().filter(|history| history.contains(name.tli));
        let mut names = children.map(|child| SegmentName { tli: child.tli(), ..next });
        if is_here(&next) { next } else { names.find(is_here).unwrap_or(next) }
    }

    fn open(&self, name: SegmentName) -> io::Result<Option<SegmentFile<File>>> {
        let path = match self.is_open(name) {
            true => self.layout.partial(name),
            false => self.layout.segment(name),
        };
        match File::open(path) {
            Ok(file) => Ok(Some(SegmentFile { name, file, upto: name.no.end(name.size) })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
