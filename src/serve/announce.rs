//! The first lines of the log: what starts, where, for which upstream, and what in its settings
//! looks like a mistake.

use super::flags::ServeFlags;
use crate::config::Config;
use crate::wire::units::format_duration;
use clap::{Args, Command};
use std::time::Duration;
use tracing::{info, warn};

/// A timeout shorter than this ends healthy connections. A number without a unit counts
/// milliseconds, as in PostgreSQL, and is easily taken for seconds.
const SHORT: Duration = Duration::from_secs(1);

/// Logs that the hub starts, and warns of settings that no operator means.
pub(super) fn announce(config: &Config) {
    info!(
        "starting walhub {} (PID {}) in directory \"{}\", upstream \"{}\"",
        env!("CARGO_PKG_VERSION"),
        std::process::id(),
        config.directory.display(),
        config.primary_conninfo.shown()
    );
    for warning in short_timeouts(config) {
        warn!("{warning}");
    }
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in unknown(variables) {
        warn!("environment variable {name} is ignored: walhub serve has no flag of that name");
    }
}

fn short_timeouts(config: &Config) -> Vec<String> {
    let timeouts = [
        ("wal-sender-timeout", config.wal_sender_timeout),
        ("wal-receiver-timeout", config.wal_receiver_timeout),
    ];
    let short = timeouts.into_iter().filter(|(_, time)| !time.is_zero() && *time < SHORT);
    let warnings = short.map(|(flag, time)| {
        format!(
            "--{flag} is {}, which ends healthy connections; a number without a unit counts \
             milliseconds",
            format_duration(time)
        )
    });
    warnings.collect()
}

/// The variables that look like flags of `walhub serve` and are none.
fn unknown(names: impl Iterator<Item = String>) -> Vec<String> {
    let command = ServeFlags::augment_args(Command::new("serve"));
    let known = |name: &str| {
        command.get_arguments().any(|arg| arg.get_env().is_some_and(|env| env == name))
    };
    names.filter(|name| name.starts_with("WALHUB_") && !known(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_that_nobody_means_is_warned_of() {
        let mut config = crate::hub::tests::config("host=/nonexistent user=walhub");
        config.wal_sender_timeout = Duration::ZERO;
        config.wal_receiver_timeout = SHORT;
        assert!(short_timeouts(&config).is_empty());
        config.wal_sender_timeout = Duration::from_millis(5);
        let warnings = short_timeouts(&config);
        assert!(warnings.len() == 1, "{warnings:?}");
        assert!(warnings[0].starts_with("--wal-sender-timeout is 5ms, "), "{warnings:?}");
    }

    #[test]
    fn a_misspelt_variable_is_named() {
        let names = ["WALHUB_DIRECTORY", "WALHUB_WAL_KEEPSIZE", "WALHUB_CREATE_SLOT", "PGHOST"];
        let found = unknown(names.into_iter().map(str::to_owned));
        assert_eq!(found, ["WALHUB_WAL_KEEPSIZE"]);
    }
}
