//! The SQLSTATEs that walhub sends or acts upon, under PostgreSQL's names
//! (`errcodes.txt`).

/// `00000`
pub const SUCCESSFUL_COMPLETION: &str = "00000";
/// `08006`
pub const CONNECTION_FAILURE: &str = "08006";
/// `08P01`
pub const PROTOCOL_VIOLATION: &str = "08P01";
/// `0A000`
pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
/// `22023`
pub const INVALID_PARAMETER_VALUE: &str = "22023";
/// `25001`
pub const ACTIVE_SQL_TRANSACTION: &str = "25001";
/// `28000`
pub const INVALID_AUTHORIZATION_SPECIFICATION: &str = "28000";
/// `28P01`
pub const INVALID_PASSWORD: &str = "28P01";
/// `42501`
pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// `42601`
pub const SYNTAX_ERROR: &str = "42601";
/// `42602`
pub const INVALID_NAME: &str = "42602";
/// `42622`
pub const NAME_TOO_LONG: &str = "42622";
/// `42704`
pub const UNDEFINED_OBJECT: &str = "42704";
/// `42710`
pub const DUPLICATE_OBJECT: &str = "42710";
/// `53100`
pub const DISK_FULL: &str = "53100";
/// `53300`
pub const TOO_MANY_CONNECTIONS: &str = "53300";
/// `53400`
pub const CONFIGURATION_LIMIT_EXCEEDED: &str = "53400";
/// `55000`
pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
/// `55006`
pub const OBJECT_IN_USE: &str = "55006";
/// `57014`
pub const QUERY_CANCELED: &str = "57014";
/// `57P01`
pub const ADMIN_SHUTDOWN: &str = "57P01";
/// `57P02`
pub const CRASH_SHUTDOWN: &str = "57P02";
/// `57P03`
pub const CANNOT_CONNECT_NOW: &str = "57P03";
/// `58030`
pub const IO_ERROR: &str = "58030";
/// `58P01`
pub const UNDEFINED_FILE: &str = "58P01";
/// `XX000`
pub const INTERNAL_ERROR: &str = "XX000";
/// `XX001`
pub const DATA_CORRUPTED: &str = "XX001";
