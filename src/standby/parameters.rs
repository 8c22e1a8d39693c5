//! The parameter statuses that a client gets after AuthenticationOk: the upstream's, word for word,
//! where they describe the cluster; ours where they describe the hub or the client's own session.

use crate::cluster::identity::Identity;
use crate::cluster::instance::{INSTANCE_PATH, InstancePath};

/// Statuses whose value is not the upstream's: (name, value).
const FIXED: [(&str, &str); 4] = [
    // libpq's target_session_attrs uses these: a hub is a standby on which everybody may read and
    // nobody may write.
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "on"),
    // pg_receivewal and pg_basebackup refuse a server without it.
    ("integer_datetimes", "on"),
    // A hub has no superusers.
    ("is_superuser", "off"),
];

/// Values for an upstream that did not send any: those of a physical walsender.
const DEFAULTS: [(&str, &str); 6] = [
    ("client_encoding", "SQL_ASCII"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("server_encoding", "SQL_ASCII"),
    ("standard_conforming_strings", "on"),
    ("TimeZone", "GMT"),
];

/// The parameter statuses for one client, in sending order.
pub fn statuses(
    identity: &Identity,
    user: &str,
    application_name: &str,
    path: &InstancePath,
) -> Vec<(String, String)> {
    let own = |name: &str| -> Option<String> {
        match name {
            "application_name" => Some(application_name.to_owned()),
            "session_authorization" => Some(user.to_owned()),
            INSTANCE_PATH => Some(path.to_string()),
            _ => FIXED.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()),
        }
    };
    let mut all: Vec<(String, String)> = Vec::new();
    for (name, value) in &identity.parameters {
        all.push((name.clone(), own(name).unwrap_or_else(|| value.clone())));
    }
    let names = ["application_name", "session_authorization"].into_iter();
    for name in names.chain(FIXED.iter().map(|(n, _)| *n)).chain([INSTANCE_PATH]) {
        if !all.iter().any(|(n, _)| n == name) {
            all.push((name.to_owned(), own(name).unwrap_or_default()));
        }
    }
    for (name, value) in DEFAULTS {
        if !all.iter().any(|(n, _)| n == name) {
            all.push((name.to_owned(), value.to_owned()));
        }
    }
    all
}

/// A name as PostgreSQL keeps it: printable ASCII, at most 63 bytes. Such a name can
/// go into a log line.
pub fn clean_name(text: &str) -> String {
    text.bytes()
        .take(63)
        .map(|b| if (32..127).contains(&b) { char::from(b) } else { '?' })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cluster::instance::InstanceId;
    use crate::wal::{SegmentSize, SystemId};

    pub(crate) fn identity(server_version: &str) -> Identity {
        let parameters = [
            ("in_hot_standby", "off"),
            ("integer_datetimes", "on"),
            ("TimeZone", "Europe/Berlin"),
            ("is_superuser", "on"),
            ("application_name", "walhub"),
            ("session_authorization", "replicator"),
            ("server_version", server_version),
            ("scram_iterations", "4096"),
        ];
        Identity {
            system_id: SystemId::new(7_000_000_000_000_000_001),
            segment_size: SegmentSize::new(16 << 20).unwrap(),
            data_directory_mode: "0700".into(),
            parameters: parameters.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(),
        }
    }

    #[test]
    fn relays_the_cluster_and_replaces_the_session() {
        let path = InstancePath::empty().announced_by(InstanceId::new(0xAB));
        let all = statuses(&identity("15.18 (Debian)"), "alice", "standby1", &path);
        let get = |name: &str| {
            let found: Vec<_> = all.iter().filter(|(n, _)| n == name).collect();
            assert_eq!(found.len(), 1, "{name}");
            found[0].1.as_str()
        };
        assert_eq!(get("server_version"), "15.18 (Debian)");
        assert_eq!(get("TimeZone"), "Europe/Berlin");
        assert_eq!(get("scram_iterations"), "4096");
        assert_eq!(get("in_hot_standby"), "on");
        assert_eq!(get("default_transaction_read_only"), "off");
        assert_eq!(get("is_superuser"), "off");
        assert_eq!(get("application_name"), "standby1");
        assert_eq!(get("session_authorization"), "alice");
        assert_eq!(get("client_encoding"), "SQL_ASCII");
        assert_eq!(get("walhub.instance_path"), "000000000000000000000000000000ab");
    }

    #[test]
    fn names_are_cleaned() {
        assert_eq!(clean_name("a\nb\u{e9}"), "a?b??");
        assert_eq!(clean_name(&"x".repeat(80)).len(), 63);
    }
}
