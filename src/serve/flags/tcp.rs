//! Flags about TCP connections.

use super::values::{Mistake, mistake, number, time_at_most};
use crate::config::TcpSettings;
use crate::wire::units::TimeUnit;
use clap::Args;
use std::time::Duration;

/// The kernel's limits (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPCNT`); a timeout's milliseconds
/// are an `int` there.
const MAX_KEEPALIVE: Duration = Duration::from_secs(32_767);
const MAX_KEEPALIVES: u32 = 127;
const MAX_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// The kernel takes 15 bytes of a name (`TCP_CA_NAME_MAX`).
const MAX_CONGESTION: usize = 15;

/// How TCP connections are set up.
#[derive(Debug, Args)]
pub struct TcpFlags {
    /// Congestion control of TCP connections, clients' and upstream; the system's default if empty
    #[arg(long, value_name = "NAME", default_value = "", env = "WALHUB_TCP_CONGESTION")]
    pub tcp_congestion: String,

    /// Silence after which clients' connections are probed; 0 for the system's default
    #[arg(long, value_name = "TIME", default_value = "0", env = "WALHUB_TCP_KEEPALIVES_IDLE")]
    pub tcp_keepalives_idle: String,

    /// Time between two probes; 0 for the system's default
    #[arg(long, value_name = "TIME", default_value = "0", env = "WALHUB_TCP_KEEPALIVES_INTERVAL")]
    pub tcp_keepalives_interval: String,

    /// Probes that may be lost before a connection is given up; 0 for the system's default
    #[arg(long, value_name = "N", default_value_t = 0, env = "WALHUB_TCP_KEEPALIVES_COUNT")]
    pub tcp_keepalives_count: u32,

    /// Time that sent data may stay unacknowledged before a connection is given up; 0 for the
    /// system's default
    #[arg(long, value_name = "TIME", default_value = "0", env = "WALHUB_TCP_USER_TIMEOUT")]
    pub tcp_user_timeout: String,
}

impl TcpFlags {
    pub(super) fn resolve(&self) -> Result<TcpSettings, Mistake> {
        let keepalive =
            |flag, text: &str| time_at_most(flag, text, TimeUnit::Second, MAX_KEEPALIVE);
        Ok(TcpSettings {
            congestion: congestion(&self.tcp_congestion)?,
            keepalives_idle: keepalive("tcp-keepalives-idle", &self.tcp_keepalives_idle)?,
            keepalives_interval: keepalive(
                "tcp-keepalives-interval",
                &self.tcp_keepalives_interval,
            )?,
            keepalives_count: number(
                "tcp-keepalives-count",
                self.tcp_keepalives_count,
                0..=MAX_KEEPALIVES,
            )?,
            user_timeout: time_at_most(
                "tcp-user-timeout",
                &self.tcp_user_timeout,
                TimeUnit::Millisecond,
                MAX_USER_TIMEOUT,
            )?,
        })
    }
}

fn congestion(name: &str) -> Result<Option<String>, Mistake> {
    if name.len() > MAX_CONGESTION || !name.bytes().all(|b| b.is_ascii_graphic()) {
        let fault = format!("\"{name}\" is not the name of a congestion control algorithm");
        return Err(mistake("tcp-congestion", fault));
    }
    Ok(Some(name.to_owned()).filter(|name| !name.is_empty()))
}
