//! Flags about what standbys need: retention, slots, feedback.

use super::values::{Mistake, number, parsed, size, time};
use crate::config::{AutoCreate, FeedbackSettings, SlotSettings};
use crate::store::retention::{ArchiveMode, Policy, Restorable};
use crate::wire::units::{SizeUnit, TimeUnit};
use clap::Args;
use std::time::Duration;

/// PostgreSQL's own upper limit (`MAX_BACKENDS`).
const MAX_SLOTS: usize = 262_143;

/// A standby notices that its connection broke, and is back, within this time.
const LEAST_GRACE: Duration = Duration::from_secs(90);

/// The largest size in whole megabytes.
const MAX_KEPT: u64 = u64::MAX >> 20 << 20;

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

    /// Invalidate slots that have been unused for this long; 0 for never
    #[arg(
        long,
        value_name = "TIME",
        default_value = "0",
        env = "WALHUB_IDLE_REPLICATION_SLOT_TIMEOUT"
    )]
    pub idle_replication_slot_timeout: String,

    /// For so long after a disconnect a standby, or a slot's user, may come back and find its WAL,
    /// and everybody after a start, whatever the limits say [default: twice --wal-sender-timeout,
    /// at least 90s]
    #[arg(long, value_name = "TIME", env = "WALHUB_RECONNECT_GRACE")]
    pub reconnect_grace: Option<String>,

    /// How full the disk may be, in percent of it used (90%) or as the SIZE left free: above that
    /// the hub removes WAL that only rules keep, then it pauses receiving, and when that has not
    /// helped for the grace, slots that nobody uses lose their WAL. "none" for no limit
    #[arg(
        long,
        value_name = "PERCENT|SIZE",
        default_value = "none",
        env = "WALHUB_DISK_HIGH_WATERMARK"
    )]
    pub disk_high_watermark: String,

    /// How long WAL that was set aside stays after `walhub ctl confirm aside` has named it; 0 for
    /// ever. What nobody has confirmed always stays
    #[arg(long, value_name = "TIME", default_value = "30d", env = "WALHUB_KEEP_SET_ASIDE")]
    pub keep_set_aside: String,

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
            text => parsed("auto-create-slots", text).map(Some),
        }
    }

    pub(super) fn retention(
        &self,
        restorable: Restorable,
        wal_sender_timeout: Duration,
    ) -> Result<Policy, Mistake> {
        let kept = |flag, text: &str| size(flag, text, SizeUnit::Megabyte, 0..=MAX_KEPT);
        let max_slot = match self.max_slot_wal_keep_size.as_str() {
            "-1" | "none" => None,
            text => Some(kept("max-slot-wal-keep-size", text)?),
        };
        let watermark = match self.disk_high_watermark.as_str() {
            "none" => None,
            text => Some(parsed("disk-high-watermark", text)?),
        };
        Ok(Policy {
            wal_keep_size: kept("wal-keep-size", &self.wal_keep_size)?,
            wal_keep_time: time("wal-keep-time", &self.wal_keep_time, TimeUnit::Second)?,
            max_slot_wal_keep_size: max_slot,
            idle_slot_timeout: time(
                "idle-replication-slot-timeout",
                &self.idle_replication_slot_timeout,
                TimeUnit::Second,
            )?,
            high_watermark: watermark,
            grace: match &self.reconnect_grace {
                Some(text) => time("reconnect-grace", text, TimeUnit::Second)?,
                None => wal_sender_timeout.saturating_mul(2).max(LEAST_GRACE),
            },
            auto_created_ttl: self.auto_create()?.map(|auto| auto.ttl).unwrap_or_default(),
            keep_set_aside: time("keep-set-aside", &self.keep_set_aside, TimeUnit::Second)?,
            archive_mode: ArchiveMode::Off,
            restorable,
        })
    }

    pub(super) fn slots(&self) -> Result<SlotSettings, Mistake> {
        let max = number("max-replication-slots", self.max_replication_slots, 0..=MAX_SLOTS)?;
        Ok(SlotSettings { max, auto_create: self.auto_create()? })
    }

    pub(super) fn feedback(&self) -> Result<FeedbackSettings, Mistake> {
        Ok(FeedbackSettings {
            hot_standby_feedback: parsed("hot-standby-feedback", &self.hot_standby_feedback)?,
            max_age: time("feedback-max-age", &self.feedback_max_age, TimeUnit::Second)?,
            report_apply: parsed("report-apply", &self.report_apply)?,
        })
    }
}
