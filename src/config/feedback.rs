//! What the upstream is told about the standbys.

use crate::upstream::apply::ReportApply;
use std::str::FromStr;
use std::time::Duration;

/// `--hot-standby-feedback`, `--feedback-max-age`, `--report-apply`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeedbackSettings {
    /// Whether the standbys' feedback is passed on.
    pub hot_standby_feedback: FeedbackSetting,
    /// How long one transaction ID of a standby may hold back the primary's vacuum; zero means
    /// forever.
    pub max_age: Duration,
    /// What is reported as replayed.
    pub report_apply: ReportApply,
}

/// `--hot-standby-feedback`. Each standby decides whether to send any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FeedbackSetting {
    /// The standbys' feedback is passed on.
    #[default]
    On,
    /// The upstream is told that nothing is needed.
    Off,
}

/// A value that is not one of the choices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value \"{value}\": expected {expected}")]
pub struct NoChoice {
    value: String,
    expected: &'static str,
}

impl FromStr for FeedbackSetting {
    type Err = NoChoice;

    fn from_str(text: &str) -> Result<Self, NoChoice> {
        match crate::wire::units::parse_bool(text) {
            Some(true) => Ok(Self::On),
            Some(false) => Ok(Self::Off),
            None => Err(NoChoice { value: text.to_owned(), expected: "\"on\" or \"off\"" }),
        }
    }
}

impl FromStr for ReportApply {
    type Err = NoChoice;

    fn from_str(text: &str) -> Result<Self, NoChoice> {
        match text {
            "none" => Ok(Self::None),
            "flush" => Ok(Self::Flush),
            "slowest" => Ok(Self::Slowest),
            _ => Err(NoChoice {
                value: text.to_owned(),
                expected: "\"none\", \"flush\" or \"slowest\"",
            }),
        }
    }
}
