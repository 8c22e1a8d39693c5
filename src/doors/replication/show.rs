//! SHOW: the settings that real clients ask for, and some more for people who use psql.

use crate::cluster::identity::Identity;
use crate::config::{Config, FeedbackSetting};
use crate::standby::refusals;
use crate::wire::refusal::Refusal;
use crate::wire::units::{format_bytes, format_duration};
use std::time::Duration;

/// What the answer needs to know about the client.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Its `application_name`.
    pub application_name: &'a str,
    /// Its own `wal_sender_timeout`.
    pub wal_sender_timeout: Duration,
}

/// The setting's real name, which heads the column, and its value. Names are case-insensitive, as
/// in PostgreSQL.
pub fn show(
    name: &str,
    identity: &Identity,
    config: &Config,
    asker: Asker<'_>,
) -> Result<(String, String), Refusal> {
    let lower = name.to_ascii_lowercase();
    let value = match lower.as_str() {
        "data_directory_mode" => identity.data_directory_mode.clone(),
        "wal_segment_size" => format_bytes(identity.segment_size.bytes()),
        "server_version" => identity.server_version().to_owned(),
        "server_version_num" => identity.server_version_num().to_string(),
        "transaction_read_only" | "in_hot_standby" | "hot_standby" | "integer_datetimes" => {
            "on".to_owned()
        }
        "default_transaction_read_only" | "is_superuser" => "off".to_owned(),
        "summarize_wal" if identity.server_major() >= 17 => "off".to_owned(),
        "application_name" => asker.application_name.to_owned(),
        "cluster_name" => config.cluster_name.clone(),
        "port" => config.port.to_string(),
        "max_wal_senders" => config.max_wal_senders.to_string(),
        "max_replication_slots" => config.slots.max.to_string(),
        "max_slot_wal_keep_size" => match config.retention.max_slot_wal_keep_size {
            Some(bytes) => format_bytes(bytes),
            None => "-1".to_owned(),
        },
        "idle_replication_slot_timeout" if identity.server_major() >= 18 => {
            format_duration(config.retention.idle_slot_timeout)
        }
        "hot_standby_feedback" => match config.feedback.hot_standby_feedback {
            FeedbackSetting::On => "on".to_owned(),
            FeedbackSetting::Off => "off".to_owned(),
        },
        "wal_keep_size" => format_bytes(config.retention.wal_keep_size),
        "wal_level" => "replica".to_owned(),
        "wal_block_size" => "8192".to_owned(),
        "wal_sender_timeout" => format_duration(asker.wal_sender_timeout),
        "wal_receiver_timeout" => format_duration(config.wal_receiver_timeout),
        "wal_retrieve_retry_interval" => format_duration(config.wal_retrieve_retry_interval),
        "wal_receiver_status_interval" => format_duration(config.wal_receiver_status_interval),
        "primary_slot_name" => config.primary_slot_name.clone().unwrap_or_default(),
        "primary_conninfo" | "data_directory" => {
            return Err(refusals::secret_setting(&lower, identity.server_major()));
        }
        _ => {
            let known = identity.parameters.iter();
            let found = known.rev().find(|(known, _)| known.eq_ignore_ascii_case(name));
            return found.cloned().ok_or_else(|| refusals::unknown_setting(name));
        }
    };
    Ok((lower, value))
}
