//! `walhub.control`: who this hub is, whose WAL it holds, and which timeline it is on.
//!
//! Written (temporary name, fsync, rename, fsync of the directory) after what it names is
//! durable; recovery believes it rather than the newest file name.

use super::sealed_text::{Unreadable, seal, unseal};
use crate::cluster::instance::InstanceId;
use crate::wal::{Lsn, SegmentSize, SystemId, TimelineId};
use serde::{Deserialize, Serialize};

const KIND: &str = "control";
const VERSION: u32 = 1;

/// The control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// This hub's own ID, drawn for its directory.
    pub instance: InstanceId,
    /// The cluster; `None` before the first upstream was seen.
    pub cluster: Option<Cluster>,
}

/// The cluster whose WAL is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its system identifier.
    pub system_id: SystemId,
    /// `wal_segment_size`.
    pub segment_size: SegmentSize,
    /// `data_directory_mode` as reported by the upstream.
    pub data_directory_mode: String,
    /// The upstream's parameter statuses, `server_version` among them, in its order.
    pub parameters: Vec<(String, String)>,
    /// The timeline being received.
    pub timeline: TimelineId,
    /// Where this directory's WAL of that timeline begins: the start of a segment.
    pub start: Lsn,
    /// Timelines that ended here, oldest first.
    pub sealed: Vec<Sealed>,
}

/// A timeline whose end is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The timeline.
    pub tli: TimelineId,
    /// Where this directory's WAL of it begins.
    pub start: Lsn,
    /// The switchpoint; nothing from here on is served on this timeline.
    pub end: Lsn,
}

impl ControlFile {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let text = ControlText {
            instance_id: self.instance.to_string(),
            cluster: self.cluster.as_ref().map(|cluster| ClusterText {
                system_id: cluster.system_id.to_string(),
                wal_segment_size: cluster.segment_size.bytes(),
                data_directory_mode: cluster.data_directory_mode.clone(),
                parameters: cluster.parameters.clone(),
                timeline: cluster.timeline.raw(),
                start: cluster.start.to_string(),
                sealed: cluster
                    .sealed
                    .iter()
                    .map(|sealed| SealedText {
                        timeline: sealed.tli.raw(),
                        start: sealed.start.to_string(),
                        end: sealed.end.to_string(),
                    })
                    .collect(),
            }),
        };
        seal(KIND, VERSION, &text)
    }

    /// Reads the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        Self::read(VERSION, bytes)
    }

    /// Reads the file's bytes, whatever version they name: no checksum covers that.
    pub(super) fn decode_any_version(bytes: &[u8]) -> Result<Self, Unreadable> {
        match Self::decode(bytes) {
            Err(Unreadable::Version { found, .. }) => Self::read(found, bytes),
            read => read,
        }
    }

    fn read(version: u32, bytes: &[u8]) -> Result<Self, Unreadable> {
        let text: ControlText = unseal(KIND, version, bytes)?;
        let instance = text.instance_id.parse().map_err(|_| wrong("instance_id"))?;
        let cluster = text.cluster.map(ClusterText::parse).transpose()?;
        Ok(Self { instance, cluster })
    }
}

fn wrong(field: &str) -> Unreadable {
    Unreadable::Content(format!("invalid {field}"))
}

fn parse_timeline(raw: u32) -> Result<TimelineId, Unreadable> {
    TimelineId::new(raw).ok_or_else(|| wrong("timeline"))
}

fn parse_lsn(text: &str, field: &str) -> Result<Lsn, Unreadable> {
    text.parse().map_err(|_| wrong(field))
}

#[derive(Serialize, Deserialize)]
struct ControlText {
    instance_id: String,
    cluster: Option<ClusterText>,
}

#[derive(Serialize, Deserialize)]
struct ClusterText {
    // As text: JSON readers round numbers of this size.
    system_id: String,
    wal_segment_size: u64,
    data_directory_mode: String,
    parameters: Vec<(String, String)>,
    timeline: u32,
    start: String,
    sealed: Vec<SealedText>,
}

#[derive(Serialize, Deserialize)]
struct SealedText {
    timeline: u32,
    start: String,
    end: String,
}

impl ClusterText {
    fn parse(self) -> Result<Cluster, Unreadable> {
        let system_id = self.system_id.parse::<u64>().map_err(|_| wrong("system_id"))?;
        let segment_size = SegmentSize::new(self.wal_segment_size);
        let segment_size = segment_size.ok_or_else(|| wrong("wal_segment_size"))?;
        let start = parse_lsn(&self.start, "start")?;
        if start != start.segment_start(segment_size) {
            return Err(wrong("start"));
        }
        let sealed = self.sealed.into_iter().map(SealedText::parse);
        Ok(Cluster {
            system_id: SystemId::new(system_id),
            segment_size,
            data_directory_mode: self.data_directory_mode,
            parameters: self.parameters,
            timeline: parse_timeline(self.timeline)?,
            start,
            sealed: sealed.collect::<Result<_, _>>()?,
        })
    }
}

impl SealedText {
    fn parse(self) -> Result<Sealed, Unreadable> {
        Ok(Sealed {
            tli: parse_timeline(self.timeline)?,
            start: parse_lsn(&self.start, "sealed start")?,
            end: parse_lsn(&self.end, "sealed end")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let mut control = ControlFile { instance: InstanceId::new(7 << 90), cluster: None };
        assert_eq!(ControlFile::decode(&control.encode()), Ok(control.clone()));
        control.cluster = Some(Cluster {
            system_id: SystemId::new(u64::MAX),
            segment_size: SegmentSize::new(1 << 20).unwrap(),
            data_directory_mode: "0700".to_owned(),
            parameters: vec![("server_version".to_owned(), "15.18 (Debian \"x\")".to_owned())],
            timeline: TimelineId::new(4_000_000_000).unwrap(),
            start: Lsn::new(0xFF_0010_0000),
            sealed: vec![Sealed {
                tli: TimelineId::FIRST,
                start: Lsn::new(0x10_0000),
                end: Lsn::new(0xFF_0012_3456),
            }],
        });
        assert_eq!(ControlFile::decode(&control.encode()), Ok(control));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let text = |start: &str, size: u64| {
            seal(
                KIND,
                VERSION,
                &ControlText {
                    instance_id: InstanceId::new(1).to_string(),
                    cluster: Some(ClusterText {
                        system_id: "1".to_owned(),
                        wal_segment_size: size,
                        data_directory_mode: String::new(),
                        parameters: Vec::new(),
                        timeline: 1,
                        start: start.to_owned(),
                        sealed: Vec::new(),
                    }),
                },
            )
        };
        assert!(ControlFile::decode(&text("0/100000", 1 << 20)).is_ok());
        assert_eq!(ControlFile::decode(&text("0/100001", 1 << 20)), Err(wrong("start")));
        assert_eq!(ControlFile::decode(&text("0/0", 3 << 20)), Err(wrong("wal_segment_size")));
    }
}
