//! Why the receive role does not go on with WAL that is on disk.

use crate::ring::Full;

/// The cache does not take the newest WAL.
#[derive(Debug, thiserror::Error)]
pub enum CacheFault {
    /// It gives no chunk to begin with.
    #[error("could not fill the cache: {0}")]
    Closed(#[from] Full),
    /// There is no room for all of it.
    #[error("could not fill the cache: readers hold all of it")]
    Held,
}

/// The receive role stays on its timeline.
#[derive(Debug, thiserror::Error)]
pub enum NoSwitch {
    /// A stream is still there.
    #[error("the stream of the ended timeline is still there")]
    Streaming,
    /// The next timeline's WAL is not in the cache.
    #[error(transparent)]
    Cache(#[from] CacheFault),
    /// The core that was told does not receive.
    #[error("this core does not receive")]
    OtherCore,
}
