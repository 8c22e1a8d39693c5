//! The envelope of a hub's answers: one line of JSON, `{"version":1,"status":{...}}` or another of
//! [`Said`]. Its content is the model of [`status`](crate::status).

use super::request::VERSION;
use crate::status::text;
use crate::status::{
    AbandonedStatus, EvidenceStatus, FenceStatus, FollowedUpstream, HubStatus, RetentionStatus,
    ScrubStatus, SeamStatus, SetAsideStatus, SlotStatus, StandbysStatus,
};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// The content.
    #[serde(flatten)]
    pub said: Said,
    /// To `confirm`: the seams that are left to confirm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seams: Option<Vec<SeamStatus>>,
    /// To `confirm`: what was set aside and is not wholly confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<Vec<SetAsideStatus>>,
    /// What came of an order, in words for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The kinds of answer from a hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// To `status`.
    Status(Box<HubStatus>),
    /// To `standbys`.
    Standbys(StandbysStatus),
    /// To `slots`.
    Slots(Vec<SlotStatus>),
    /// To `retention`; null before the first WAL.
    Retention(Option<RetentionStatus>),
    /// To `verify`.
    Scrub(ScrubStatus),
    /// To `drop_slot`.
    Dropped(Dropped),
    /// To `upstream`, `set_upstream` and `reset_upstream`.
    Upstream(FollowedUpstream),
    /// To `fence` and `unfence`: the current fence; null when there is none.
    Fence(Option<FenceStatus>),
    /// To `confirm`: what was abandoned and is left to confirm.
    Abandoned(Vec<AbandonedStatus>),
    /// To `accept_history`: the evidence that is left; null when there is none.
    Evidence(Option<EvidenceStatus>),
    /// A refusal.
    Error(Failure),
}

impl Said {
    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Status(status) => text::write_hub(status, out),
            Self::Standbys(standbys) => text::write_standbys(standbys, out),
            Self::Slots(slots) => text::write_slots(slots, out),
            Self::Retention(retention) => text::write_retention(retention.as_ref(), out),
            Self::Scrub(scrub) => text::write_scrub(scrub, out),
            Self::Dropped(dropped) => writeln!(out, "dropped slot {}", dropped.slot_name),
            Self::Upstream(upstream) => text::write_upstream(upstream, out),
            Self::Fence(fence) => text::write_fence(fence.as_ref(), out),
            Self::Abandoned(abandoned) => text::write_unconfirmed(abandoned, &[], &[], out),
            Self::Evidence(evidence) => text::write_evidence(evidence.as_ref(), out),
            Self::Error(_) => Ok(()),
        }
    }
}

/// A slot that was dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its name.
    pub slot_name: String,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Why not.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// Without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// With a hint.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// Why a line is not an answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// Not JSON, or not of this form.
    #[error("invalid answer from the hub: {0}")]
    Invalid(#[from] serde_json::Error),
    /// Of another version.
    #[error("the hub's answer has version {0}, this program knows version {VERSION}")]
    Version(u32),
}

impl Answer {
    /// An answer of this version.
    pub const fn new(said: Said) -> Self {
        Self { version: VERSION, said, seams: None, set_aside: None, note: None }
    }

    /// With the seams that are left to confirm.
    pub fn with_seams(self, seams: Vec<SeamStatus>) -> Self {
        Self { seams: Some(seams), ..self }
    }

    /// With what was set aside and is not wholly confirmed.
    pub fn with_set_aside(self, set_aside: Vec<SetAsideStatus>) -> Self {
        Self { set_aside: Some(set_aside), ..self }
    }

    /// With what came of the order.
    pub fn with_note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    /// Writes it for people; an error goes to another stream.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        match (&self.said, &self.note) {
            // The note says more than that there is no fence.
            (Said::Fence(None), Some(note)) => writeln!(out, "{note}"),
            (Said::Abandoned(abandoned), _) => {
                let seams = self.seams.as_deref().unwrap_or_default();
                let set_aside = self.set_aside.as_deref().unwrap_or_default();
                text::write_unconfirmed(abandoned, seams, set_aside, out)
            }
            (said, Some(note)) => {
                said.write_text(out)?;
                writeln!(out, "{note}")
            }
            (said, None) => said.write_text(out),
        }
    }

    /// Its line, with the newline.
    pub fn encode(&self) -> Vec<u8> {
        // Plain structs with text keys: serialization cannot fail.
        let mut line = serde_json::to_vec(self).expect("an answer is always JSON");
        line.push(b'\n');
        line
    }

    /// Reads a line, with or without its newline.
    pub fn parse(line: &[u8]) -> Result<Self, NoAnswer> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(line)?;
        if version != VERSION {
            return Err(NoAnswer::Version(version));
        }
        Ok(serde_json::from_slice(line)?)
    }
}

#[cfg(test)]
mod tests;
