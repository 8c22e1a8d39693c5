//! A request to a hub: one line of JSON.
//!
//! ```text
//! {"version":1,"command":"status"}
//! {"version":1,"command":{"unfence":{"upstream":"host=db2 user=replicator"}}}
//! ```

use crate::wire::secret::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The version of requests and answers. It changes when a field changes its meaning or is removed;
/// answers may gain fields without it.
pub const VERSION: u32 = 1;

/// No request is longer, including its newline.
pub const MAX_REQUEST: usize = 64 << 10;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What to do.
    pub command: HubCommand,
}

/// What a hub can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HubCommand {
    /// The hub's state.
    Status,
    /// The connected standbys, and those that have diverged.
    Standbys,
    /// The replication slots.
    Slots,
    /// What old WAL would be removed next, and who keeps it.
    Retention,
    /// Read all complete segments again, and say how far that is.
    Verify,
    /// The same at a rate of its own.
    VerifyAt {
        /// The most bytes in a second.
        bytes_per_second: u64,
    },
    /// Drop a replication slot that is not in use.
    DropSlot {
        /// Its name.
        name: String,
    },
    /// Which upstream it follows.
    Upstream,
    /// Follow another upstream.
    SetUpstream {
        /// Its connection string.
        #[serde(with = "text")]
        conninfo: Secret,
    },
    /// Follow the upstream of `--primary-conninfo` again.
    ResetUpstream,
    /// Stop receiving and acknowledging.
    Fence,
    /// Receive again.
    Unfence {
        /// Another upstream, in the same step.
        #[serde(default, with = "optional_text")]
        upstream: Option<Secret>,
    },
    /// Something is known; without a position, what there is to confirm.
    Confirm {
        /// What is; `None` for what was abandoned, which earlier versions call so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        what: Option<Confirmable>,
        /// The switchpoint, or the seam.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lsn: Option<String>,
        /// Standbys that are refused at the seam and do not have the former WAL.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        let_in: Vec<String>,
    },
    /// Nobody needs what was set aside under this name any more.
    ConfirmAside {
        /// Its name, as in `status`.
        name: String,
    },
    /// Which history is the true one where a difference was found.
    AcceptHistory {
        /// Whose it is.
        history: TrueHistory,
        /// Where the difference was found.
        lsn: String,
    },
}

/// What an operator can confirm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confirmable {
    /// It is known what was abandoned there.
    Abandoned,
    /// No standby has the former WAL past the seam any more.
    Seam,
}

/// Whose history is the true one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TrueHistory {
    /// The hub's
    Ours,
    /// The upstream's
    Theirs,
}

/// Why a line is not a request.
#[derive(Debug, thiserror::Error)]
pub enum NoRequest {
    /// Not JSON, or not of this form.
    #[error("invalid request: {0}")]
    Invalid(#[from] serde_json::Error),
    /// Of another version.
    #[error("the request has version {0}, this hub knows version {VERSION}")]
    Version(u32),
}

impl Request {
    /// A request of this version.
    pub const fn new(command: HubCommand) -> Self {
        Self { version: VERSION, command }
    }

    /// Its line, with the newline.
    pub fn encode(&self) -> Vec<u8> {
        // Plain enums and text: serialization cannot fail.
        let mut line = serde_json::to_vec(self).expect("a request is always JSON");
        line.push(b'\n');
        line
    }

    /// Reads a line, with or without its newline.
    pub fn parse(line: &[u8]) -> Result<Self, NoRequest> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // A request of another version need not be understood to name its version.
        let Versioned { version } = serde_json::from_slice(line)?;
        if version != VERSION {
            return Err(NoRequest::Version(version));
        }
        Ok(serde_json::from_slice(line)?)
    }
}

/// Sends a secret in clear over the socket: no other user can read there.
mod text {
    use super::{Deserialize, Deserializer, Secret, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Secret, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(text.reveal())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Secret, D::Error> {
        String::deserialize(from).map(Secret::new)
    }
}

/// The same for an optional secret.
mod optional_text {
    use super::{Deserialize, Deserializer, Secret, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        text: &Option<Secret>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        text.as_ref().map(Secret::reveal).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Secret>, D::Error> {
        Option::<String>::deserialize(from).map(|text| text.map(Secret::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_as_documented() {
        let conninfo = || Secret::new("host=b password='x'");
        for (command, line) in [
            (HubCommand::Status, r#"{"version":1,"command":"status"}"#),
            (HubCommand::Standbys, r#"{"version":1,"command":"standbys"}"#),
            (HubCommand::Verify, r#"{"version":1,"command":"verify"}"#),
            (
                HubCommand::VerifyAt { bytes_per_second: 1 << 20 },
                r#"{"version":1,"command":{"verify_at":{"bytes_per_second":1048576}}}"#,
            ),
            (
                HubCommand::DropSlot { name: "s".to_owned() },
                r#"{"version":1,"command":{"drop_slot":{"name":"s"}}}"#,
            ),
            (
                HubCommand::SetUpstream { conninfo: conninfo() },
                r#"{"version":1,"command":{"set_upstream":{"conninfo":"host=b password='x'"}}}"#,
            ),
            (
                HubCommand::Confirm {
                    what: None,
                    lsn: Some("0/3000148".to_owned()),
                    let_in: vec![],
                },
                r#"{"version":1,"command":{"confirm":{"lsn":"0/3000148"}}}"#,
            ),
            (
                HubCommand::Confirm {
                    what: Some(Confirmable::Seam),
                    lsn: Some("0/3000148".to_owned()),
                    let_in: vec![],
                },
                r#"{"version":1,"command":{"confirm":{"what":"seam","lsn":"0/3000148"}}}"#,
            ),
            (
                HubCommand::Confirm {
                    what: Some(Confirmable::Seam),
                    lsn: Some("0/3000148".to_owned()),
                    let_in: vec!["s".to_owned()],
                },
                concat!(
                    r#"{"version":1,"command":{"confirm":"#,
                    r#"{"what":"seam","lsn":"0/3000148","let_in":["s"]}}}"#
                ),
            ),
            (
                HubCommand::Confirm { what: None, lsn: None, let_in: vec![] },
                r#"{"version":1,"command":{"confirm":{}}}"#,
            ),
            (
                HubCommand::ConfirmAside { name: "pg_wal.aside.1".to_owned() },
                r#"{"version":1,"command":{"confirm_aside":{"name":"pg_wal.aside.1"}}}"#,
            ),
            (
                HubCommand::AcceptHistory {
                    history: TrueHistory::Ours,
                    lsn: "0/3000148".to_owned(),
                },
                concat!(
                    r#"{"version":1,"command":{"accept_history":"#,
                    r#"{"history":"ours","lsn":"0/3000148"}}}"#
                ),
            ),
            (
                HubCommand::Unfence { upstream: None },
                r#"{"version":1,"command":{"unfence":{"upstream":null}}}"#,
            ),
            (
                HubCommand::Unfence { upstream: Some(conninfo()) },
                r#"{"version":1,"command":{"unfence":{"upstream":"host=b password='x'"}}}"#,
            ),
        ] {
            let request = Request::new(command);
            assert_eq!(String::from_utf8(request.encode()).unwrap(), format!("{line}\n"));
            assert_eq!(Request::parse(line.as_bytes()).unwrap(), request);
            assert!(!format!("{request:?}").contains("password"));
        }
        let short = Request::parse(br#"{"version":1,"command":{"unfence":{}}}"#).unwrap();
        assert_eq!(short.command, HubCommand::Unfence { upstream: None });
    }

    #[test]
    fn what_is_no_request_says_why() {
        for (line, why) in [
            (r#"{"version":2,"command":"dance"}"#, "the request has version 2"),
            (r#"{"version":1,"command":"dance"}"#, "unknown variant `dance`"),
            (r#"{"version":1,"command":"status","also":1}"#, "unknown field `also`"),
            (r#"{"version":1,"command":{"unfence":{"uptream":"x"}}}"#, "unknown field `uptream`"),
            (r#"{"command":"status"}"#, "missing field `version`"),
            ("", "EOF"),
            ("GET / HTTP/1.1\r\n", "invalid request"),
        ] {
            let fault = Request::parse(line.as_bytes()).unwrap_err().to_string();
            assert!(fault.contains(why), "{line}: {fault}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Request::parse(&bytes));
        }
    }
}
