//! What a damaged control file says. No checksum vouches for it.

use crate::cluster::instance::InstanceId;
use crate::store::control_file::{Cluster, ControlFile};
use crate::wal::{Lsn, TimelineId};
use serde_json::Value;

/// The first line is no longer than that.
const LINE: usize = 128;

/// The content, as far as it is JSON.
#[derive(Debug, Default)]
pub(super) struct Salvaged {
    /// All of it: only the first line is damaged, in what no checksum covers.
    whole: Option<ControlFile>,
    content: Option<Value>,
    /// Why it is no JSON.
    fault: Option<String>,
}

impl Salvaged {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let line = bytes.iter().take(LINE).position(|byte| *byte == b'\n');
        let body = line.and_then(|end| bytes.get(end + 1..)).unwrap_or_default();
        let whole = ControlFile::decode_any_version(bytes).ok();
        match serde_json::from_slice(body) {
            Ok(content) => Self { whole, content: Some(content), fault: None },
            Err(error) => Self { whole, content: None, fault: Some(error.to_string()) },
        }
    }

    /// The hub's ID. A wrong one does no harm: another would have to be drawn.
    pub(super) fn instance(&self) -> Option<InstanceId> {
        self.text("/instance_id")?.parse().ok()
    }

    pub(super) fn timeline(&self) -> Option<TimelineId> {
        let raw = self.value("/cluster/timeline")?.as_u64()?;
        TimelineId::new(u32::try_from(raw).ok()?)
    }

    /// `data_directory_mode`, of the two values that there are.
    pub(super) fn mode(&self) -> &str {
        match self.text("/cluster/data_directory_mode") {
            Some("0750") => "0750",
            _ => "0700",
        }
    }

    /// The upstream's parameters. What nothing vouches for is left out: the upstream shows them
    /// again.
    pub(super) fn parameters(&self, major: Option<u16>) -> Vec<(String, String)> {
        let cluster = self.whole.as_ref().and_then(|control| control.cluster.as_ref());
        if let Some(cluster) = cluster {
            return cluster.parameters.clone();
        }
        let Some(major) = major else { return Vec::new() };
        let said = self.server_version().filter(|version| is_of(version, major));
        let version = said.map_or_else(|| format!("{major}.0"), str::to_owned);
        vec![("server_version".to_owned(), version)]
    }

    /// What it says and cannot be, or is not so by the segments; a line each.
    pub(super) fn contradictions(&self, found: &Cluster, major: Option<u16>) -> Vec<String> {
        if let Some(fault) = &self.fault {
            return vec![format!("its content cannot be read: {fault}")];
        }
        if self.content.is_none() {
            return Vec::new();
        }
        let mut all = Vec::new();
        let mut differs = |field: &str, said: Option<String>, is: String| {
            if said.as_ref() != Some(&is) {
                let said = said.unwrap_or_else(|| "missing or unusable".to_owned());
                all.push(format!("its {field} is {said}, by the segments {is}"));
            }
        };
        let said = |field| self.value(field).map(|value| value.to_string().replace('"', ""));
        differs("system_id", said("/cluster/system_id"), found.system_id.to_string());
        let size = found.segment_size.bytes().to_string();
        differs("wal_segment_size", said("/cluster/wal_segment_size"), size);
        differs("timeline", said("/cluster/timeline"), found.timeline.to_string());
        if self.instance().is_none() {
            all.push("its instance_id is missing or unusable".to_owned());
        }
        let start = self.text("/cluster/start").and_then(|text| text.parse::<Lsn>().ok());
        match start {
            // Retention may have removed what was there first.
            Some(start)
                if start <= found.start && start == start.segment_start(found.segment_size) => {}
            _ => all.push(format!(
                "its start is {}, by the segments {} or before",
                said("/cluster/start").unwrap_or_else(|| "missing".to_owned()),
                found.start
            )),
        }
        if let (Some(major), version) = (major, self.server_version())
            && !version.is_some_and(|version| is_of(version, major))
        {
            let version = version.unwrap_or("missing");
            all.push(format!("its server_version is {version}, by the segments {major}"));
        }
        if all.is_empty() {
            all.push("what it says of the WAL is what the segments say".to_owned());
        }
        all
    }

    fn server_version(&self) -> Option<&str> {
        let parameters = self.value("/cluster/parameters")?.as_array()?;
        let pair = |pair: &'_ Value| pair.get(0).and_then(Value::as_str) == Some("server_version");
        parameters.iter().find(|one| pair(one))?.get(1)?.as_str()
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.value(field)?.as_str()
    }

    fn value(&self, field: &str) -> Option<&Value> {
        self.content.as_ref()?.pointer(field)
    }
}

/// Is this a version of that major, in PostgreSQL's form?
fn is_of(version: &str, major: u16) -> bool {
    let Some(rest) = version.strip_prefix(&major.to_string()) else { return false };
    let is_plain = version.bytes().all(|byte| (b' '..0x7F).contains(&byte));
    let forms = [".", " ", "devel", "beta", "rc"];
    is_plain && (rest.is_empty() || forms.iter().any(|form| rest.starts_with(form)))
}
