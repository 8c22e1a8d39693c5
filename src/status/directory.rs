//! What a hub's directory holds, whether the hub is running or not.

use super::form;
use super::hub::{SetAsideStatus, SetAsideTotal};
use super::scrub::ScrubStatus;
use super::text::confirmed_text;
use super::upstream::{AbandonedStatus, EvidenceStatus, SeamStatus, needs_an_operator};
use crate::cluster::instance::InstanceId;
use crate::wal::{Lsn, SegmentSize, SystemId, TimelineId};
use crate::wire::date::date_millis;
use serde::Serialize;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What is in a directory.
#[derive(Debug, Clone, Serialize)]
pub struct DirectoryStatus {
    /// The directory.
    pub directory: String,
    /// Whether a hub is running here.
    pub running: LockStatus,
    /// This hub's own ID.
    #[serde(with = "form::optional")]
    pub instance_id: Option<InstanceId>,
    /// Whose WAL it is; absent before the first upstream was seen.
    pub cluster: Option<RecordedCluster>,
    /// Complete segments: ranges without a hole.
    pub segments: Vec<SegmentSpan>,
    /// Open segments.
    pub open: Vec<String>,
    /// Spare files.
    pub spares: usize,
    /// Timelines with a history file.
    #[serde(with = "form::list")]
    pub histories: Vec<TimelineId>,
    /// Files marked to be archived; absent where nothing was ever archived.
    pub waiting_for_archive: Option<usize>,
    /// The end of the current timeline's WAL.
    pub end: Option<EndOfWal>,
    /// The marker of a failed sync.
    pub halted: Option<HaltedStatus>,
    /// The upstream as the hub last saw it.
    pub upstream: Option<serde_json::Value>,
    /// Where another source had other bytes.
    pub evidence: Option<EvidenceStatus>,
    /// What timelines had past their switchpoints, as long as no operator has confirmed it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub abandoned: Vec<AbandonedStatus>,
    /// What scrubs of the complete segments have found; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubStatus>,
    /// The newest of what was set aside, the newest first: nothing reads it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set_aside: Vec<SetAsideStatus>,
    /// All that was set aside; absent when nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_aside_total: Option<SetAsideTotal>,
    /// Where other histories go on, until an operator confirms it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seams: Vec<SeamStatus>,
    /// What is wrong, in words; empty when nothing is.
    pub wrong: Vec<String>,
}

/// Whether a hub is running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LockStatus {
    /// The lock is free.
    No,
    /// The lock is held; the process ID if the file holds it.
    Yes(Option<u32>),
    /// The lock file cannot be read.
    Unknown,
}

/// The cluster whose WAL it is.
#[derive(Debug, Clone, Serialize)]
pub struct RecordedCluster {
    /// As text: JSON readers round numbers of this size.
    #[serde(with = "form::plain")]
    pub system_id: SystemId,
    /// `wal_segment_size`.
    #[serde(with = "form::plain")]
    pub wal_segment_size: SegmentSize,
    /// The upstream's version in its own words.
    pub server_version: Option<String>,
    /// The timeline being received.
    #[serde(with = "form::plain")]
    pub timeline: TimelineId,
    /// Where this directory's WAL of it begins.
    #[serde(with = "form::plain")]
    pub start: Lsn,
    /// Timelines that ended here.
    pub sealed: Vec<SealedTimeline>,
}

/// A timeline that ended.
#[derive(Debug, Clone, Serialize)]
pub struct SealedTimeline {
    /// The timeline.
    #[serde(with = "form::plain")]
    pub timeline: TimelineId,
    /// Where this directory's WAL of it begins.
    #[serde(with = "form::plain")]
    pub start: Lsn,
    /// The switchpoint.
    #[serde(with = "form::plain")]
    pub end: Lsn,
}

/// Complete segments without a hole.
#[derive(Debug, Clone, Serialize)]
pub struct SegmentSpan {
    /// Their timeline.
    #[serde(with = "form::plain")]
    pub timeline: TimelineId,
    /// Name of the first.
    pub first: String,
    /// Name of the last.
    pub last: String,
    /// How many.
    pub count: u64,
    /// First position.
    #[serde(with = "form::plain")]
    pub start: Lsn,
    /// The first position after them.
    #[serde(with = "form::plain")]
    pub end: Lsn,
    /// What the digests of the first and the last say; absent when none says anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contents: Option<SpanContents>,
}

/// What digests say of a range of segments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SpanContents {
    /// The time in the first time-stamped record, of one of the first 64 segments.
    #[serde(with = "form::optional")]
    pub first_time: Option<SystemTime>,
    /// Where that record begins.
    #[serde(with = "form::optional")]
    pub first_time_lsn: Option<Lsn>,
    /// The time in the last time-stamped record, of one of the last 64 segments.
    #[serde(with = "form::optional")]
    pub last_time: Option<SystemTime>,
    /// Where that record begins.
    #[serde(with = "form::optional")]
    pub last_time_lsn: Option<Lsn>,
    /// The next transaction ID at the end of the last segment.
    pub next_xid: Option<u32>,
    /// Its epoch.
    pub next_xid_epoch: Option<u32>,
    /// When the last segment was completed.
    #[serde(with = "form::optional")]
    pub last_completed: Option<SystemTime>,
}

impl SpanContents {
    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let time = |time: Option<SystemTime>| time.map_or_else(|| UNKNOWN.to_owned(), date_millis);
        let (from, to) = (time(self.first_time), time(self.last_time));
        writeln!(out, "  written:             from {from} to {to}")?;
        writeln!(out, "  completed:           {}", time(self.last_completed))?;
        if let Some(xid) = self.next_xid {
            let epoch = self.next_xid_epoch.map_or_else(|| UNKNOWN.to_owned(), |n| n.to_string());
            writeln!(out, "  next transaction ID: {xid}, epoch {epoch}")?;
        }
        Ok(())
    }
}

const UNKNOWN: &str = "unknown";

/// The end of the WAL.
#[derive(Debug, Clone, Serialize)]
pub struct EndOfWal {
    /// Its timeline.
    #[serde(with = "form::plain")]
    pub timeline: TimelineId,
    /// End of the last whole record, where pg_waldump stops.
    #[serde(with = "form::plain")]
    pub record_end: Lsn,
    /// Start of that record.
    #[serde(with = "form::optional")]
    pub last_record: Option<Lsn>,
    /// What a start would serve.
    #[serde(with = "form::plain")]
    pub durable: Lsn,
    /// Where a start would ask the upstream to begin, at the latest.
    #[serde(with = "form::plain")]
    pub resume: Lsn,
    /// What ended the walk.
    pub ended_by: Option<String>,
}

/// The marker of a failed sync.
#[derive(Debug, Clone, Serialize)]
pub struct HaltedStatus {
    /// Everything below was durable before; a start trusts nothing from there on.
    #[serde(with = "form::optional")]
    pub durable: Option<Lsn>,
    /// What happened.
    pub reason: String,
}

impl DirectoryStatus {
    /// The report for a person.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "Directory:             {}", self.directory)?;
        match &self.running {
            LockStatus::No => writeln!(out, "Hub:                   not running")?,
            LockStatus::Yes(Some(pid)) => {
                writeln!(out, "Hub:                   running, PID {pid}")?
            }
            LockStatus::Yes(None) => writeln!(out, "Hub:                   running")?,
            LockStatus::Unknown => writeln!(out, "Hub:                   unknown")?,
        }
        match self.instance_id {
            Some(id) => writeln!(out, "Instance ID:           {id}")?,
            None => writeln!(out, "Instance ID:           unknown")?,
        }
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
            if let Some(contents) = &range.contents {
                contents.write_text(out)?;
            }
        }
        for name in &self.open {
            writeln!(out, "Open segment:          {name}")?;
        }
        writeln!(out, "Spare files:           {}", self.spares)?;
        if let Some(waiting) = self.waiting_for_archive {
            let by = if waiting > 0 { " (archived by a hub with --archive-command)" } else { "" };
            writeln!(out, "Waiting for archive:   {waiting}{by}")?;
        }
        if let Some(end) = &self.end {
            end.write_text(out)?;
        }
        if let Some(upstream) = &self.upstream {
            writeln!(out, "Upstream, last seen:   {}", upstream_text(upstream))?;
        }
        for evidence in
            self.evidence.iter().flat_map(|first| std::iter::once(first).chain(&first.also))
        {
            let EvidenceStatus { timeline, lsn, upstream, detail, .. } = evidence;
            let since = date_millis(evidence.since);
            writeln!(out, "Evidence:              at {lsn} on timeline {timeline}: {detail}")?;
            writeln!(out, "  found:               at {upstream}, {since}")?;
            writeln!(out, "  so:                  {}", evidence.consequence())?;
        }
        for abandoned in &self.abandoned {
            writeln!(out, "Abandoned:             {}", abandoned.in_words())?;
        }
        for seam in &self.seams {
            writeln!(out, "Seam:                  {}", seam.in_words())?;
        }
        if let Some(scrub) = &self.scrub {
            writeln!(out, "Scrub:                 {}", scrub.in_words())?;
        }
        for aside in &self.set_aside {
            let SetAsideStatus { name, bytes, .. } = aside;
            let confirmed = confirmed_text(aside);
            writeln!(out, "Set aside:             {name}, {bytes} bytes, {confirmed}")?;
        }
        let shown = self.set_aside.len();
        if let Some(all) = self.set_aside_total.and_then(|total| total.beyond(shown)) {
            writeln!(out, "  in all:              {all}")?;
        }
        if self.wrong.is_empty() {
            return writeln!(out, "Nothing is wrong.");
        }
        for wrong in &self.wrong {
            writeln!(out, "WRONG:                 {wrong}")?;
        }
        Ok(())
    }

    /// The upstream's state in words, when somebody has to act on it.
    pub fn upstream_trouble(&self) -> Option<String> {
        let state = self.upstream.as_ref()?;
        let name = state.get("state").and_then(serde_json::Value::as_str)?;
        needs_an_operator(name).then(|| upstream_text(state))
    }

    /// The report for a program.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }
}

/// The content of `walhub.state` for a person: the state, what is known of it, and its time.
fn upstream_text(state: &serde_json::Value) -> String {
    let none = serde_json::Map::new();
    let fields = state.as_object().unwrap_or(&none);
    let text = |value: &serde_json::Value| match value.as_str() {
        Some(text) => text.to_owned(),
        None => value.to_string(),
    };
    let mut parts = vec![fields.get("state").map_or_else(|| "unknown".to_owned(), text)];
    let known = fields.iter().filter(|(name, _)| *name != "state" && *name != SINCE);
    parts.extend(known.map(|(name, value)| format!("{name} {}", text(value))));
    let since = fields.get(SINCE).and_then(serde_json::Value::as_u64);
    let since = since.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    parts.extend(since.map(|since| format!("since {}", date_millis(since))));
    parts.join(", ")
}

/// The time in `walhub.state`.
const SINCE: &str = "since_unix_ms";

impl RecordedCluster {
    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "System identifier:     {}", self.system_id)?;
        let version = self.server_version.as_deref().unwrap_or("unknown");
        writeln!(out, "Server version:        {version}")?;
        writeln!(out, "Bytes per WAL segment: {}", self.wal_segment_size.bytes())?;
        writeln!(out, "Timeline:              {}, since {}", self.timeline, self.start)?;
        for sealed in &self.sealed {
            let SealedTimeline { timeline, start, end } = sealed;
            writeln!(out, "Ended timeline:        {timeline}, {start} .. {end}")?;
        }
        Ok(())
    }
}

impl EndOfWal {
    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let last = self.last_record.map_or_else(|| "none".to_owned(), |lsn| lsn.to_string());
        writeln!(out, "End of WAL:            {} (last record at {last})", self.record_end)?;
        writeln!(out, "A start would serve:   up to {}", self.durable)?;
        writeln!(out, "A start would ask for: {}", self.resume)?;
        if let Some(fault) = &self.ended_by {
            writeln!(out, "The walk ended with:   {fault}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(raw: u64) -> Lsn {
        Lsn::new(raw)
    }

    /// A directory of which everything is known.
    fn full() -> DirectoryStatus {
        let (first, second) = (TimelineId::FIRST, TimelineId::new(2).unwrap());
        DirectoryStatus {
            directory: "/d".to_owned(),
            running: LockStatus::Yes(Some(7)),
            instance_id: Some(InstanceId::new(5)),
            cluster: Some(RecordedCluster {
                system_id: SystemId::new(9),
                wal_segment_size: SegmentSize::new(1 << 20).unwrap(),
                server_version: Some("17.2".to_owned()),
                timeline: second,
                start: lsn(0x30_0000),
                sealed: vec![SealedTimeline {
                    timeline: first,
                    start: lsn(0x10_0000),
                    end: lsn(0x30_0060),
                }],
            }),
            segments: vec![SegmentSpan {
                timeline: second,
                first: "000000020000000000000003".to_owned(),
                last: "000000020000000000000004".to_owned(),
                count: 2,
                start: lsn(0x30_0000),
                end: lsn(0x50_0000),
                contents: None,
            }],
            open: vec!["000000020000000000000005".to_owned()],
            spares: 1,
            histories: vec![second],
            waiting_for_archive: Some(3),
            end: Some(EndOfWal {
                timeline: second,
                record_end: lsn(0x50_0060),
                last_record: Some(lsn(0x50_0028)),
                durable: lsn(0x50_0060),
                resume: lsn(0x50_0000),
                ended_by: Some("zeros".to_owned()),
            }),
            halted: Some(HaltedStatus { durable: Some(lsn(0x50_0000)), reason: "io".to_owned() }),
            upstream: Some(serde_json::json!({"state": "gap"})),
            evidence: Some(EvidenceStatus {
                timeline: second,
                lsn: lsn(0x50_0028),
                upstream: "a:5432".to_owned(),
                since: std::time::UNIX_EPOCH,
                detail: "other".to_owned(),
                our_bytes: None,
                their_bytes: None,
                cleared: false,
                also: vec![],
            }),
            abandoned: vec![],
            seams: vec![],
            scrub: None,
            set_aside: vec![],
            set_aside_total: None,
            wrong: vec!["much".to_owned()],
        }
    }

    #[test]
    fn people_read_the_upstream_in_words() {
        let state = serde_json::json!({"state": "gap", "at": "0/5", "since_unix_ms": 1000});
        assert_eq!(upstream_text(&state), "gap, at 0/5, since 1970-01-01T00:00:01.000Z");
        assert_eq!(upstream_text(&serde_json::json!(7)), "unknown");
    }

    #[test]
    fn programs_read_the_same_as_before() {
        let json = serde_json::to_string(&full()).unwrap();
        let before = concat!(
            r#"{"directory":"/d","running":{"yes":7},"instance_id":"00000000000000000000000000000005","#,
            r#""cluster":{"system_id":"9","wal_segment_size":1048576,"server_version":"17.2","#,
            r#""timeline":2,"start":"0/300000","sealed":[{"timeline":1,"start":"0/100000","end":"0/300060"}]},"#,
            r#""segments":[{"timeline":2,"first":"000000020000000000000003","#,
            r#""last":"000000020000000000000004","count":2,"start":"0/300000","end":"0/500000"}],"#,
            r#""open":["000000020000000000000005"],"spares":1,"histories":[2],"waiting_for_archive":3,"#,
            r#""end":{"timeline":2,"record_end":"0/500060","last_record":"0/500028","#,
            r#""durable":"0/500060","resume":"0/500000","ended_by":"zeros"},"#,
            r#""halted":{"durable":"0/500000","reason":"io"},"upstream":{"state":"gap"},"#,
            r#""evidence":{"timeline":2,"lsn":"0/500028","upstream":"a:5432","since":"1970-01-01T00:00:00.000Z","detail":"other","cleared":false},"wrong":["much"]}"#,
        );
        assert_eq!(json, before);
        let unused = DirectoryStatus {
            running: LockStatus::No,
            instance_id: None,
            cluster: None,
            halted: None,
            end: None,
            ..full()
        };
        let json = serde_json::to_string(&unused).unwrap();
        assert!(
            json.starts_with(
                r#"{"directory":"/d","running":"no","instance_id":null,"cluster":null,"#
            )
        );
    }
}
