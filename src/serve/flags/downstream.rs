//! Flags about what standbys need: retention, slots, feedback.

use super::{Mistake, bytes, mistake, seconds};
use crate::config::{AutoCreate, FeedbackSettings, HotStandbyFeedback, SlotSettings};
use crate::store::retention::{ArchiveMode, HighWatermark, Policy, Restorable};
use crate::upstream::apply::ReportApply;
use crate::wire::units::SizeUnit;
use clap::Args;

/// PostgreSQL's own upper limit (`MAX_BACKENDS`).
const MAX_SLOTS: usize = 262_143;

/// What is kept for standbys, and what the upstream is told of them.
#[derive(Debug, Args)]
pub struct DownstreamFlags {
    /// WAL kept for standbys that are not connected (never less than 16 segments)
    #[arg(long, value_name = "SIZE", default_value = "1GB", env = "WALHUB_WAL_KEEP_SIZE")]
    pub wal_keep_size: String,

    /// Segments completed within this time are kept, too; 0 for no such rule
    #[arg(long, value_name = "TIME", default_value = "0", env = "WALHUB_WAL_KEEP_TIME")]
    pub wal_keep_time: String,

    /// The most WAL kept for connected standbys and for slots; what needs more loses it. -1 or
    /// "none" for no limit
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "-1",
        allow_hyphen_values = true,
        env = "WALHUB_MAX_SLOT_WAL_KEEP_SIZE"
    )]
    pub max_slot_wal_keep_size: String,

    /// Invalidate slots that nobody has used for so long; 0 for never
    #[arg(
        long,
        value_name = "TIME",
        default_value = "0",
        env = "WALHUB_IDLE_REPLICATION_SLOT_TIMEOUT"
    )]
    pub idle_replication_slot_timeout: String,

    /// How full the disk may be, in percent of it used (90%) or as the SIZE left free: above that,
    /// WAL goes that is kept only by rules, then that of slots nobody uses, then receiving pauses.
    /// "none" for no limit
    #[arg(
        long,
        value_name = "PERCENT|SIZE",
        default_value = "none",
        env = "WALHUB_DISK_HIGH_WATERMARK"
    )]
    pub disk_high_watermark: String,

    /// Replication slots of standbys at one time
    #[arg(long, value_name = "N", default_value_t = 4000, env = "WALHUB_MAX_REPLICATION_SLOTS")]
    pub max_replication_slots: usize,

    /// Create a slot when a standby asks to start with one whose name fits PATTERN (with * and ?);
    /// at most N of them; one that is unused for TIME (1d unless given, 0 for ever) is dropped.
    /// Empty for none
    #[arg(
        long,
        value_name = "PATTERN[,limit=N][,ttl=TIME]",
        default_value = "",
        env = "WALHUB_AUTO_CREATE_SLOTS"
    )]
    pub auto_create_slots: String,

    /// Pass the standbys' hot standby feedback on upstream: "on" or "off"
    #[arg(long, value_name = "on|off", default_value = "on", env = "WALHUB_HOT_STANDBY_FEEDBACK")]
    pub hot_standby_feedback: String,

    /// How long one transaction of a standby's feedback may hold back the primary's vacuum; 0 for
    /// as long as the standby wants
    #[arg(long, value_name = "TIME", default_value = "0", env = "WALHUB_FEEDBACK_MAX_AGE")]
    pub feedback_max_age: String,

    /// The replay position reported upstream: "none" (0/0), "flush" (what is durable here), or
    /// "slowest" (what all connected standbys have replayed)
    #[arg(long, value_name = "WHAT", default_value = "flush", env = "WALHUB_REPORT_APPLY")]
    pub report_apply: String,
}

impl DownstreamFlags {
    fn auto_create(&self) -> Result<Option<AutoCreate>, Mistake> {
        match self.auto_create_slots.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|e| mistake("auto-create-slots", e)),
        }
    }

    pub(super) fn retention(&self, restorable: Restorable) -> Result<Policy, Mistake> {
        let size =
            |flag, text: &str| bytes(flag, text, SizeUnit::Megabyte, 0..=u64::MAX >> 20 << 20);
        let max_slot = match self.max_slot_wal_keep_size.as_str() {
            "-1" | "none" => None,
            text => Some(size("max-slot-wal-keep-size", text)?),
        };
        let watermark = match self.disk_high_watermark.as_str() {
            "none" => None,
            text => {
                Some(text.parse::<HighWatermark>().map_err(|e| mistake("disk-high-watermark", e))?)
            }
        };
        Ok(Policy {
            wal_keep_size: size("wal-keep-size", &self.wal_keep_size)?,
            wal_keep_time: seconds("wal-keep-time", &self.wal_keep_time)?,
            max_slot_wal_keep_size: max_slot,
            idle_slot_timeout: seconds(
                "idle-replication-slot-timeout",
                &self.idle_replication_slot_timeout,
            )?,
            high_watermark: watermark,
            auto_created_ttl: self.auto_create()?.map(|auto| auto.ttl).unwrap_or_default(),
            archive_mode: ArchiveMode::Off,
            restorable,
        })
    }

    pub(super) fn slots(&self) -> Result<SlotSettings, Mistake> {
        let max = self.max_replication_slots;
        if max > MAX_SLOTS {
            let fault = format!("{max} is outside the valid range (0 .. {MAX_SLOTS})");
            return Err(mistake("max-replication-slots", fault));
        }
        Ok(SlotSettings { max, auto_create: self.auto_create()? })
    }

    pub(super) fn feedback(&self) -> Result<FeedbackSettings, Mistake> {
        let on = self.hot_standby_feedback.parse::<HotStandbyFeedback>();
        let apply = self.report_apply.parse::<ReportApply>();
        Ok(FeedbackSettings {
            hot_standby_feedback: on.map_err(|e| mistake("hot-standby-feedback", e))?,
            max_age: seconds("feedback-max-age", &self.feedback_max_age)?,
            report_apply: apply.map_err(|e| mistake("report-apply", e))?,
        })
    }
}
