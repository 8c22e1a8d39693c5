//! WAL pages: 8 KiB blocks with a header each.

/// `XLOG_BLCKSZ` of every server we speak with; checked in long headers.
pub const PAGE_SIZE: usize = 8192;
