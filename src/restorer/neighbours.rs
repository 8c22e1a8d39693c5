//! Where the segments are that come before and after one that was restored: among the fetched, on
//! the hub's disk, or in the archive.

use super::Inner;
use super::fetched::UnprovedSegment;
use crate::archive::check::ReadAt;
use crate::archive::prove::{Neighbours, SegmentFile};
use crate::archive::restore::Fetched;
use crate::hub::chain::{segment_after, segment_before};
use crate::hub::page_rules::page_rules;
use crate::wal::page::PageRules;
use crate::wal::{SegmentName, TimelineId};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tracing::debug;

/// A segment's file.
pub(super) enum NeighbourFile {
    Fetched(Arc<UnprovedSegment>),
    /// One of the hub's own.
    Own(File),
}

impl ReadAt for NeighbourFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::Fetched(fetched) => fetched.read_at(buffer, offset),
            Self::Own(file) => ReadAt::read_at(file, buffer, offset),
        }
    }
}

impl Neighbours for Inner {
    type File = NeighbourFile;

    fn rules(&self, tli: TimelineId) -> io::Result<PageRules> {
        page_rules(&self.hub, tli).map_err(io::Error::other)
    }

    fn before(&self, name: SegmentName) -> Option<SegmentName> {
        segment_before(&self.hub, name)
    }

    fn after(&self, name: SegmentName) -> SegmentName {
        segment_after(&self.hub, name)
    }

    fn open(&self, name: SegmentName) -> io::Result<Option<SegmentFile<NeighbourFile>>> {
        let upto = name.no.end(name.size);
        // What is durable of an open one was checked when it was received. It may get its final
        // name at any time, so that one is looked for after it.
        if let Some(cell) = self.hub.cell_of(name.tli)
            && cell.durable() > name.no.start(name.size)
            && let Some(file) = open(&self.layout.partial(name))?
        {
            let upto = cell.durable().min(upto);
            return Ok(Some(SegmentFile { name, file: NeighbourFile::Own(file), upto }));
        }
        if let Some(file) = open(&self.layout.segment(name))? {
            return Ok(Some(SegmentFile { name, file: NeighbourFile::Own(file), upto }));
        }
        let fetched = self.obtain(name)?;
        Ok(fetched.map(|file| SegmentFile { name, file: NeighbourFile::Fetched(file), upto }))
    }
}

impl Inner {
    /// A segment's file from the archive, fetched now or a short while ago.
    pub(super) fn obtain(&self, name: SegmentName) -> io::Result<Option<Arc<UnprovedSegment>>> {
        self.fetched.get(name, || {
            let path = self.unique_path(name);
            let fetched = self.fetch(&name.to_string(), path.path(), Some(name.size.bytes()));
            match fetched.map_err(io::Error::other)? {
                Fetched::Here => UnprovedSegment::open(path).map(Some),
                Fetched::NotThere(why) => {
                    debug!("archive file \"{name}\" does not exist: {why}");
                    Ok(None)
                }
                Fetched::Stopped => Ok(None),
            }
        })
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
