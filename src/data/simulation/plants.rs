//! Mistakes put in on purpose, to see that the simulation finds them. The shipped code
//! knows nothing of them: they are made by what surrounds it, so that the core behaves
//! as if it had made them.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    /// None.
    Honest,
    /// What was offered counts as sent.
    CountsTheOffered,
    /// A header that was cut goes on one byte too early.
    ResumesHeaderElsewhere,
    /// What is received is published, durable or not.
    IgnoresTheLimit,
    /// An fdatasync says that it is done before it is.
    SyncLies,
    /// The core that publishes wakes nobody.
    WakesNobody,
    /// A message is posted to a core that falls asleep, and no bell is rung.
    PostsInSilence,
    /// The pin is gone when the send begins.
    DropsPinEarly,
    /// A reply's buffer goes back twice.
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
    /// A connection that is reset holds its memory on.
    NeverResets,
    /// The poll for room says at once that there is some, and nobody polls again.
    NeverPolls,
}
