//! What is said about a directory: for a program (JSON) and for a person.

use crate::store::control_file::Cluster;
use crate::store::evidence::Evidence;
use crate::store::tail::Tail;
use crate::wal::TimelineId;
use crate::wire::date::date_millis;
use serde::Serialize;
use std::io::{self, Write};

/// What is in a directory.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The directory.
    pub directory: String,
    /// Is a hub running here?
    pub running: Running,
    /// This hub's own ID.
    pub instance_id: Option<String>,
    /// Whose WAL it is; none before the first upstream was seen.
    pub cluster: Option<ClusterReport>,
    /// Complete segments: ranges without a hole.
    pub segments: Vec<RangeReport>,
    /// Open segments.
    pub open: Vec<String>,
    /// Spare files.
    pub spares: usize,
    /// Timelines with a history file.
    pub histories: Vec<u32>,
    /// Files that wait for the archive, by their marks; none where nothing was ever archived.
    pub waiting_for_archive: Option<usize>,
    /// The end of the current timeline's WAL.
    pub end: Option<EndReport>,
    /// The marker of a failed sync.
    pub halted: Option<HaltedReport>,
    /// The upstream as the hub saw it last.
    pub upstream: Option<serde_json::Value>,
    /// Where another source had other bytes.
    pub evidence: Option<EvidenceReport>,
    /// What is wrong, in words; empty when nothing is.
    pub wrong: Vec<String>,
}

/// Is a hub running?
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Running {
    /// Nobody holds the lock.
    No,
    /// Somebody does; the process ID if the file tells it.
    Yes(Option<u32>),
    /// The lock file cannot be read.
    Unknown,
}

/// Whose WAL it is.
#[derive(Debug, Clone, Serialize)]
pub struct ClusterReport {
    /// As text: JSON readers round numbers of this size.
    pub system_id: String,
    /// In bytes.
    pub wal_segment_size: u64,
    /// The upstream's version in its own words.
    pub server_version: Option<String>,
    /// The timeline being received.
    pub timeline: u32,
    /// Where this directory's WAL of it begins.
    pub start: String,
    /// Timelines that ended here.
    pub sealed: Vec<SealedReport>,
}

/// A timeline that ended.
#[derive(Debug, Clone, Serialize)]
pub struct SealedReport {
    /// The timeline.
    pub timeline: u32,
    /// Where this directory's WAL of it begins.
    pub start: String,
    /// The switchpoint.
    pub end: String,
}

/// Complete segments without a hole.
#[derive(Debug, Clone, Serialize)]
pub struct RangeReport {
    /// Their timeline.
    pub timeline: u32,
    /// Name of the first.
    pub first: String,
    /// Name of the last.
    pub last: String,
    /// How many.
    pub count: u64,
    /// First position.
    pub start: String,
    /// Behind the last position.
    pub end: String,
}

/// The end of the WAL.
#[derive(Debug, Clone, Serialize)]
pub struct EndReport {
    /// Its timeline.
    pub timeline: u32,
    /// End of the last whole record, where pg_waldump stops.
    pub record_end: String,
    /// Start of that record.
    pub last_record: Option<String>,
    /// What a start would serve.
    pub durable: String,
    /// Where a start would ask the upstream to begin, at the latest.
    pub resume: String,
    /// What ended the walk.
    pub ended_by: Option<String>,
}

/// The marker of a failed sync.
#[derive(Debug, Clone, Serialize)]
pub struct HaltedReport {
    /// Everything below was durable before; a start believes nothing behind it.
    pub durable: Option<String>,
    /// What happened.
    pub reason: String,
}

/// Evidence of another history, which keeps the hub from receiving.
#[derive(Debug, Clone, Serialize)]
pub struct EvidenceReport {
    /// The timeline.
    pub timeline: u32,
    /// The position that differs.
    pub at: String,
    /// Who had other bytes there.
    pub upstream: String,
    /// When that was found.
    pub since: String,
    /// What differed.
    pub detail: String,
}

impl EvidenceReport {
    pub(super) fn of(evidence: &Evidence) -> Self {
        Self {
            timeline: evidence.tli.raw(),
            at: evidence.at.to_string(),
            upstream: evidence.upstream.clone(),
            since: date_millis(evidence.since),
            detail: evidence.detail.clone(),
        }
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { timeline, at, upstream, since, detail } = self;
        writeln!(out, "Evidence:              at {at} on timeline {timeline}: {detail}")?;
        writeln!(out, "  found:               at {upstream}, {since}")?;
        writeln!(out, "  so:                  nothing is received before a source has ours there")
    }
}

impl Report {
    /// The report for a person.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or("unknown".to_owned());
        writeln!(out, "Directory:             {}", self.directory)?;
        match &self.running {
            Running::No => writeln!(out, "Hub:                   not running")?,
            Running::Yes(Some(pid)) => writeln!(out, "Hub:                   running, PID {pid}")?,
            Running::Yes(None) => writeln!(out, "Hub:                   running")?,
            Running::Unknown => writeln!(out, "Hub:                   unknown")?,
        }
        writeln!(out, "Instance ID:           {}", or_unknown(&self.instance_id))?;
        match &self.cluster {
            Some(cluster) => cluster.write_text(out)?,
            None => writeln!(out, "System identifier:     not known yet")?,
        }
        for range in &self.segments {
            writeln!(
                out,
                "Complete segments:     {} .. {} ({}, {} .. {})",
                range.first, range.last, range.count, range.start, range.end
            )?;
        }
        for name in &self.open {
            writeln!(out, "Open segment:          {name}")?;
        }
        writeln!(out, "Spare files:           {}", self.spares)?;
        if let Some(waiting) = self.waiting_for_archive {
            writeln!(out, "Waiting for archive:   {waiting}")?;
        }
        if let Some(end) = &self.end {
            end.write_text(out)?;
        }
        if let Some(upstream) = &self.upstream {
            writeln!(out, "Upstream, last seen:   {upstream}")?;
        }
        if let Some(evidence) = &self.evidence {
            evidence.write_text(out)?;
        } else if self.wrong.is_empty() {
            return writeln!(out, "Nothing is wrong.");
        }
        for wrong in &self.wrong {
            writeln!(out, "WRONG:                 {wrong}")?;
        }
        Ok(())
    }

    /// The report for a program.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }
}

impl ClusterReport {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let version = cluster.parameters.iter().find(|(name, _)| name == "server_version");
        Self {
            system_id: cluster.system_id.to_string(),
            wal_segment_size: cluster.segment_size.bytes(),
            server_version: version.map(|(_, value)| value.clone()),
            timeline: cluster.timeline.raw(),
            start: cluster.start.to_string(),
            sealed: cluster
                .sealed
                .iter()
                .map(|sealed| SealedReport {
                    timeline: sealed.tli.raw(),
                    start: sealed.start.to_string(),
                    end: sealed.end.to_string(),
                })
                .collect(),
        }
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "System identifier:     {}", self.system_id)?;
        let version = self.server_version.as_deref().unwrap_or("unknown");
        writeln!(out, "Server version:        {version}")?;
        writeln!(out, "Bytes per WAL segment: {}", self.wal_segment_size)?;
        writeln!(out, "Timeline:              {}, since {}", self.timeline, self.start)?;
        for sealed in &self.sealed {
            let (timeline, start, end) = (sealed.timeline, &sealed.start, &sealed.end);
            writeln!(out, "Ended timeline:        {timeline}, {start} .. {end}")?;
        }
        Ok(())
    }
}

impl EndReport {
    pub(super) fn of(timeline: TimelineId, tail: &Tail) -> Self {
        Self {
            timeline: timeline.raw(),
            record_end: tail.record_end.to_string(),
            last_record: tail.last_record.map(|lsn| lsn.to_string()),
            durable: tail.durable().to_string(),
            resume: tail.resume.to_string(),
            ended_by: tail.ended_by.map(|fault| fault.to_string()),
        }
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let last = self.last_record.as_deref().unwrap_or("none");
        writeln!(out, "End of WAL:            {} (last record at {last})", self.record_end)?;
        writeln!(out, "A start would serve:   up to {}", self.durable)?;
        writeln!(out, "A start would ask for: {}", self.resume)?;
        if let Some(fault) = &self.ended_by {
            writeln!(out, "The walk ended with:   {fault}")?;
        }
        Ok(())
    }
}
