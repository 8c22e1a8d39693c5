//! Deliberate mistakes, to check that the simulation finds them. The shipped code does not know
//! about them: its environment makes them, so that the core behaves as if it had made them.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    /// None.
    Honest,
    /// WAL that was offered counts as sent.
    CountsTheOffered,
    /// A header that was cut continues one byte too early.
    ResumesHeaderElsewhere,
    /// Received WAL is published, durable or not.
    IgnoresTheLimit,
    /// An fdatasync reports success before it is done.
    SyncLies,
    /// The core that publishes wakes nobody.
    WakesNobody,
    /// A message is posted to a core that is falling asleep, and no bell is rung.
    PostsInSilence,
    /// The pin is gone when the send begins.
    DropsPinEarly,
    /// A reply's buffer is returned twice.
    ReturnsReplyTwice,
    /// The keeper answers before the segment has its name.
    NamesLate,
    /// A completion is lost.
    LosesCompletion,
    /// Nobody holds the WAL that a standby still needs.
    HoldsNothing,
    /// The memory of a send without a copy is given up when the socket has taken it.
    ReleasesEarly,
    /// The notification of a send without a copy never comes.
    LosesNotification,
    /// A connection that is reset still holds its memory.
    NeverResets,
    /// The poll for room says at once that there is some, and is not repeated.
    NeverPolls,
}
