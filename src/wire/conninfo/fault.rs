//! What can be wrong with a connection string.

/// Why walhub cannot use a connection string.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConninfoFault {
    /// A word without `=`.
    #[error("missing \"=\" after a word in the connection string (quote values with spaces)")]
    MissingEquals,
    /// A quote without its end.
    #[error("unterminated quoted string in connection string")]
    UnterminatedQuote,
    /// An IPv6 address that is not `[address]`.
    #[error("malformed IPv6 host address in URI: expected \"[address]\"")]
    Bracket,
    /// Not `name=value`.
    #[error("URI query parameters must have the form name=value")]
    Parameter,
    /// `%` without two hexadecimal digits, or bytes that are not valid text.
    #[error("invalid percent-encoded token in URI")]
    PercentEncoding,
    /// Not an option of libpq.
    #[error("invalid connection option \"{0}\"")]
    UnknownOption(String),
    /// A value that the option does not allow.
    #[error("invalid {option} value: \"{value}\"")]
    InvalidValue {
        /// The option.
        option: &'static str,
        /// The value given.
        value: String,
    },
    /// Not a number.
    #[error("invalid integer value \"{value}\" for connection option \"{option}\"")]
    InvalidInteger {
        /// The option.
        option: &'static str,
        /// The value given.
        value: String,
    },
    /// Not from 1 to 65535.
    #[error("invalid port number: \"{0}\"")]
    InvalidPort(String),
    /// The same in a URI. What stands there may be part of a password, so it is not shown.
    #[error(
        "invalid port number (a password with \"/\" or \"@\" must be percent-encoded in a URI)"
    )]
    InvalidUriPort,
    /// Lists of different lengths.
    #[error("could not match {given} {what} to {hosts} hosts")]
    HostCount {
        /// What the shorter or longer list holds.
        what: &'static str,
        /// Its length.
        given: usize,
        /// How many hosts there are.
        hosts: usize,
    },
    /// An option that walhub cannot honour with any value (the value may be a secret).
    #[error("connection option \"{option}\" {why}")]
    UnsupportedOption {
        /// The option.
        option: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// A value that walhub cannot honour.
    #[error("{option} \"{value}\" {why}")]
    Unsupported {
        /// The option.
        option: &'static str,
        /// The value given.
        value: String,
        /// Why not.
        why: &'static str,
    },
}
