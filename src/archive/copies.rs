//! Segments as they would be with copies in the place of some of them.

use super::prove::{Neighbours, SegmentFile};
use crate::wal::page::PageRules;
use crate::wal::{SegmentName, TimelineId};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// What is here, and copies of some segments that count in their place.
#[derive(Debug)]
pub struct WithCopies<'a, N> {
    own: &'a N,
    copies: &'a BTreeMap<SegmentName, PathBuf>,
}

impl<'a, N: Neighbours<File = File>> WithCopies<'a, N> {
    /// `copies` are whole files of their segments.
    pub const fn new(own: &'a N, copies: &'a BTreeMap<SegmentName, PathBuf>) -> Self {
        Self { own, copies }
    }
}

impl<N: Neighbours<File = File>> Neighbours for WithCopies<'_, N> {
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
        let Some(path) = self.copies.get(&name) else { return self.own.open(name) };
        let (file, upto) = (File::open(path)?, name.no.end(name.size));
        Ok(Some(SegmentFile { name, file, upto }))
    }
}
