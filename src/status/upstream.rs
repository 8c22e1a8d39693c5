//! Where the WAL comes from, and whether it may come.

use super::form;
use crate::wal::{Lsn, TimelineId};
use crate::wire::date::date_millis;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// The connection upstream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// `streaming`, `disconnected`, ...
    pub state: String,
    /// Since when.
    #[serde(with = "form::plain")]
    pub since: SystemTime,
    /// In words.
    pub text: String,
    /// The host.
    pub host: Option<String>,
    /// The timeline that is streamed.
    #[serde(default, with = "form::optional")]
    pub timeline: Option<TimelineId>,
    /// The position from which it is streamed.
    #[serde(default, with = "form::optional")]
    pub start_lsn: Option<Lsn>,
    /// What the upstream or the archive that WAL comes from, or came from last, has shown of the
    /// hub's WAL.
    #[serde(default)]
    pub proof: Option<ProofStatus>,
    /// How often since the start WAL was taken from a source whose proof was weak.
    #[serde(default)]
    pub weak_joins: u64,
}

/// Whether somebody has to act on a state of this name, or whether it resolves by itself.
pub fn needs_an_operator(state: &str) -> bool {
    matches!(
        state,
        "upstream refused"
            | "upstream not proved"
            | "no space"
            | "gap"
            | "diverged"
            | "archive differs"
    )
}

/// What a source has shown of the hub's WAL before any was taken from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProofStatus {
    /// Is it a proof?
    pub outcome: ProofOutcome,
    /// The timeline.
    #[serde(with = "form::plain")]
    pub timeline: TimelineId,
    /// WAL was compared from there on; none when that is unknown or nothing was.
    #[serde(default, with = "form::optional")]
    pub from_lsn: Option<Lsn>,
    /// And up to there.
    #[serde(with = "form::plain")]
    pub to_lsn: Lsn,
    /// In words.
    pub text: String,
}

/// What equal WAL proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProofOutcome {
    /// One history.
    Proved,
    /// Nothing: two histories may look the same that far.
    Weak,
}

/// Which upstream is followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowedUpstream {
    /// Without its password.
    pub conninfo: String,
    /// Where it was set.
    pub set_by: SetBy,
    /// What the flag says, without its password.
    pub flag: String,
}

/// Where the upstream in force was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetBy {
    /// `--primary-conninfo`.
    Flag,
    /// `walhub ctl`.
    Ctl,
}

/// A fence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FenceStatus {
    /// The timeline.
    #[serde(with = "form::plain")]
    pub timeline: TimelineId,
    /// The end of the last whole record that the hub has. Everything the hub acknowledged lies
    /// before it, so a standby at this position has all of that.
    #[serde(with = "form::plain")]
    pub lsn: Lsn,
    /// The last byte that is durable: part of a record may lie past `lsn`.
    #[serde(with = "form::plain")]
    pub durable_lsn: Lsn,
    /// When it was set.
    #[serde(with = "form::plain")]
    pub since: SystemTime,
}

/// Evidence of another history, which keeps the hub from receiving.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvidenceStatus {
    /// The timeline.
    #[serde(with = "form::plain")]
    pub timeline: TimelineId,
    /// The position that differs.
    #[serde(with = "form::plain")]
    pub lsn: Lsn,
    /// The source that had other bytes there.
    pub upstream: String,
    /// When that was found.
    #[serde(with = "form::plain")]
    pub since: SystemTime,
    /// What differed.
    pub detail: String,
    /// What this hub has from there on, in hexadecimal; the first bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub our_bytes: Option<String>,
    /// What the source had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub their_bytes: Option<String>,
    /// Another source was seen to have ours there: nothing is received from `upstream` alone.
    #[serde(default)]
    pub cleared: bool,
    /// What other sources had elsewhere: each is barred by its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Self>,
}

impl EvidenceStatus {
    /// What follows from it.
    pub const fn consequence(&self) -> &'static str {
        match self.cleared {
            true => {
                "it stands against this source alone, which is not followed before it has ours there"
            }
            false => "nothing is received before a source has ours there",
        }
    }
}

/// Where WAL was set aside and another history goes on under the same numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeamStatus {
    /// The timeline.
    #[serde(with = "form::plain")]
    pub timeline: TimelineId,
    /// Both histories have what is before: `walhub ctl confirm seam` names it.
    #[serde(with = "form::plain")]
    pub lsn: Lsn,
}

impl SeamStatus {
    /// One sentence, which ends with the command that confirms it.
    pub fn in_words(&self) -> String {
        let Self { timeline, lsn } = self;
        format!(
            "another history of timeline {timeline} goes on from {lsn}; a standby that connects past \
             it is refused; when none has the former WAL: walhub ctl confirm seam {lsn}"
        )
    }
}

/// A timeline that the hub has switched to, or was to switch to, by the archive's word alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArchiveTimelineStatus {
    /// The timeline.
    #[serde(with = "form::plain")]
    pub timeline: TimelineId,
    /// The one that it follows.
    #[serde(with = "form::plain")]
    pub from_timeline: TimelineId,
    /// The switchpoint.
    #[serde(with = "form::plain")]
    pub lsn: Lsn,
    /// When the hub has switched; null when it has gone back, and does not follow it on the archive's
    /// word any more.
    #[serde(default, with = "form::optional")]
    pub since: Option<SystemTime>,
}

impl ArchiveTimelineStatus {
    /// One sentence, which ends with the command that goes back, if there is a way.
    pub fn in_words(&self) -> String {
        let Self { timeline, from_timeline, lsn, since } = self;
        match since {
            Some(since) => format!(
                "timeline {timeline} follows timeline {from_timeline} at {lsn} since {} on the \
                 archive's word alone; until an upstream is followed on it, the way back to timeline \
                 {from_timeline} is: walhub ctl accept-history ours {lsn}",
                date_millis(*since)
            ),
            None => format!(
                "timeline {timeline}, which follows timeline {from_timeline} at {lsn}, is not followed \
                 on the archive's word any more"
            ),
        }
    }
}

/// What a timeline had past its switchpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AbandonedStatus {
    /// The timeline that ended.
    #[serde(with = "form::plain")]
    pub timeline: TimelineId,
    /// Its switchpoint: `walhub ctl confirm abandoned` names it.
    #[serde(with = "form::plain")]
    pub start_lsn: Lsn,
    /// The end of its last whole record that was here.
    #[serde(with = "form::plain")]
    pub end_lsn: Lsn,
    /// The timeline that followed.
    #[serde(with = "form::plain")]
    pub next_timeline: TimelineId,
    /// Whole records; null when they could not be counted.
    pub records: Option<u64>,
    /// Transactions that commit in them; null when they could not be counted.
    pub commits: Option<u64>,
    /// The earliest time of such a commit.
    #[serde(default, with = "form::optional")]
    pub first_commit_time: Option<SystemTime>,
    /// The latest one.
    #[serde(default, with = "form::optional")]
    pub last_commit_time: Option<SystemTime>,
    /// When it was abandoned.
    #[serde(with = "form::plain")]
    pub since: SystemTime,
    /// The folder that keeps it, below the hub's directory.
    pub kept_in: String,
    /// How many standbys that were connected then had been sent part of it; null when that is not
    /// known.
    #[serde(default)]
    pub standbys: Option<u64>,
    /// How far they had been sent WAL; null when none had.
    #[serde(default, with = "form::optional")]
    pub sent_lsn: Option<Lsn>,
}

impl AbandonedStatus {
    /// One sentence, which ends with the command that confirms it.
    pub fn in_words(&self) -> String {
        let Self { timeline, start_lsn, end_lsn, next_timeline, kept_in, .. } = self;
        let content = match (self.records, self.commits) {
            (Some(records), Some(commits)) => {
                let (records, commits) = (counted(records, "record"), counted(commits, "commit"));
                format!("up to {end_lsn}, {records}, {commits}")
            }
            _ => "which could not be counted".to_owned(),
        };
        let times = match (self.first_commit_time, self.last_commit_time) {
            (Some(first), Some(last)) => {
                format!(" from {} to {}", date_millis(first), date_millis(last))
            }
            _ => String::new(),
        };
        let goes_on = match next_timeline == timeline {
            true => "another history".to_owned(),
            false => format!("timeline {next_timeline}"),
        };
        let holders = match (self.standbys, self.sent_lsn) {
            (None, _) => String::new(),
            (Some(standbys), Some(sent)) => {
                let standbys = counted(standbys, "connected standby");
                format!("; {standbys} had been sent WAL past that, up to {sent}")
            }
            (Some(_), None) => "; no connected standby had been sent any of it".to_owned(),
        };
        format!(
            "WAL of timeline {timeline} past {start_lsn}, {content}{times}; abandoned for {goes_on} \
             at {}, kept in {kept_in}{holders}; walhub ctl confirm abandoned {start_lsn}",
            date_millis(self.since)
        )
    }
}

fn counted(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}
