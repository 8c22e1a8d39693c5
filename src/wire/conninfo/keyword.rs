//! Every connection option of libpq 18, and how walhub treats it.

/// A connection option.
pub(super) struct ConninfoKeyword {
    pub(super) name: &'static str,
    /// The environment variable that gives it when the string does not.
    pub(super) env: Option<&'static str>,
    pub(super) stance: Stance,
}

/// How walhub treats an option.
#[derive(Clone, Copy)]
pub(super) enum Stance {
    /// It does what libpq does.
    Honoured,
    /// It has no bearing on an unencrypted replication connection, or only weakens what is
    /// impossible anyway.
    Harmless,
    /// Some values ask only for what walhub does anyway. The other valid values are refused for
    /// the reason given.
    Choice { fine: &'static [&'static str], refused: &'static [&'static str], why: &'static str },
    /// Ignoring it would do something other than was asked.
    Refused { why: &'static str },
    /// It describes how to use TLS. Without TLS that would be a lie, unless the string says that no
    /// TLS is wanted.
    Tls,
}

const NO_TLS: &str = "demands TLS, which walhub does not speak yet";
const NO_GSS: &str = "demands GSSAPI, which walhub does not speak";
const NO_SERVICE: &str = "names a connection service file, which walhub does not read";
const NO_KEYS: &str = "is no substitute for the password here";
const IN_ORDER: &str = "is not supported: hosts are tried in the order given";
const NO_METHODS: &str = "restricts authentication, which walhub cannot do yet";
const NO_PEER: &str = "checks the server's owner, which walhub cannot do yet";
const ONLY_30: &str = "demands a newer protocol than 3.0, the one walhub speaks";

/// The option with that name. Names match exactly.
pub(super) fn find(name: &str) -> Option<&'static ConninfoKeyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

const fn keyword(name: &'static str, env: &'static str, stance: Stance) -> ConninfoKeyword {
    ConninfoKeyword { name, env: Some(env), stance }
}

const fn unlisted(name: &'static str, stance: Stance) -> ConninfoKeyword {
    ConninfoKeyword { name, env: None, stance }
}

use Stance::{Choice, Harmless, Honoured, Refused, Tls};

/// In the order of libpq's own table.
pub(super) const KEYWORDS: &[ConninfoKeyword] = &[
    keyword("service", "PGSERVICE", Refused { why: NO_SERVICE }),
    unlisted("servicefile", Refused { why: NO_SERVICE }),
    keyword("user", "PGUSER", Honoured),
    keyword("password", "PGPASSWORD", Honoured),
    keyword("passfile", "PGPASSFILE", Honoured),
    keyword(
        "channel_binding",
        "PGCHANNELBINDING",
        Choice { fine: &["disable", "prefer"], refused: &["require"], why: NO_TLS },
    ),
    keyword("connect_timeout", "PGCONNECT_TIMEOUT", Honoured),
    keyword("dbname", "PGDATABASE", Honoured),
    keyword("host", "PGHOST", Honoured),
    keyword("hostaddr", "PGHOSTADDR", Honoured),
    keyword("port", "PGPORT", Honoured),
    keyword("client_encoding", "PGCLIENTENCODING", Harmless),
    keyword("options", "PGOPTIONS", Honoured),
    keyword("application_name", "PGAPPNAME", Honoured),
    unlisted("fallback_application_name", Honoured),
    unlisted("keepalives", Honoured),
    unlisted("keepalives_idle", Honoured),
    unlisted("keepalives_interval", Honoured),
    unlisted("keepalives_count", Honoured),
    unlisted("tcp_user_timeout", Honoured),
    keyword("sslmode", "PGSSLMODE", Honoured),
    keyword(
        "sslnegotiation",
        "PGSSLNEGOTIATION",
        Choice { fine: &["postgres"], refused: &["direct"], why: NO_TLS },
    ),
    keyword("sslcompression", "PGSSLCOMPRESSION", Harmless),
    keyword("sslcert", "PGSSLCERT", Tls),
    keyword("sslkey", "PGSSLKEY", Tls),
    keyword(
        "sslcertmode",
        "PGSSLCERTMODE",
        Choice { fine: &["disable", "allow"], refused: &["require"], why: NO_TLS },
    ),
    unlisted("sslpassword", Tls),
    keyword("sslrootcert", "PGSSLROOTCERT", Tls),
    keyword("sslcrl", "PGSSLCRL", Tls),
    keyword("sslcrldir", "PGSSLCRLDIR", Tls),
    keyword("sslsni", "PGSSLSNI", Harmless),
    keyword("requirepeer", "PGREQUIREPEER", Refused { why: NO_PEER }),
    keyword("require_auth", "PGREQUIREAUTH", Refused { why: NO_METHODS }),
    keyword(
        "min_protocol_version",
        "PGMINPROTOCOLVERSION",
        Choice { fine: &["3.0"], refused: &["3.2", "latest"], why: ONLY_30 },
    ),
    keyword(
        "max_protocol_version",
        "PGMAXPROTOCOLVERSION",
        Choice { fine: &["3.0", "3.2", "latest"], refused: &[], why: ONLY_30 },
    ),
    keyword("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Harmless),
    keyword("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Harmless),
    keyword(
        "gssencmode",
        "PGGSSENCMODE",
        Choice { fine: &["disable", "prefer"], refused: &["require"], why: NO_GSS },
    ),
    keyword("krbsrvname", "PGKRBSRVNAME", Harmless),
    keyword("gsslib", "PGGSSLIB", Harmless),
    keyword("gssdelegation", "PGGSSDELEGATION", Harmless),
    // walhub's own connection is physical whatever this says.
    unlisted("replication", Harmless),
    keyword("target_session_attrs", "PGTARGETSESSIONATTRS", Honoured),
    keyword(
        "load_balance_hosts",
        "PGLOADBALANCEHOSTS",
        Choice { fine: &["disable"], refused: &["random"], why: IN_ORDER },
    ),
    unlisted("scram_client_key", Refused { why: NO_KEYS }),
    unlisted("scram_server_key", Refused { why: NO_KEYS }),
    // A server that insists on OAuth is refused by name at authentication.
    unlisted("oauth_issuer", Harmless),
    unlisted("oauth_client_id", Harmless),
    unlisted("oauth_client_secret", Harmless),
    unlisted("oauth_scope", Harmless),
    unlisted("sslkeylogfile", Harmless),
];
