//! Messages to a core from a task that can wait until there is room in its queue.

use super::{Mailbox, ToCore};
use crate::data::figures::{About, Figures, Inquiry};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long room in a full queue is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a core may take to answer a question. A core that sends to thousands reads its queue
/// every few milliseconds.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

impl Mailbox {
    /// Puts a message into the queue, and waits 5 s for room in it. Drops the message and returns
    /// `None` when the core makes no room, or when the message is no longer `wanted`.
    pub async fn deliver(&self, message: ToCore, wanted: impl Fn() -> bool) -> Option<()> {
        let delivered = timeout(PATIENCE, self.post_when_there_is_room(message, wanted)).await;
        delivered.unwrap_or_else(|_| {
            tracing::warn!("a data core's queue stays full");
            None
        })
    }

    /// Puts a message into the queue, however long it is full.
    pub async fn insist(&self, message: ToCore) {
        // It is always wanted.
        self.post_when_there_is_room(message, || true).await;
    }

    /// Returns `None` when the message is not wanted, which is asked before each attempt.
    async fn post_when_there_is_room(
        &self,
        mut message: ToCore,
        wanted: impl Fn() -> bool,
    ) -> Option<()> {
        loop {
            // From here on, no message is taken out unnoticed.
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            if !wanted() {
                return None;
            }
            match self.post(message) {
                Ok(()) => return Some(()),
                Err(back) => message = back,
            }
            room.await;
        }
    }

    /// The core's answer to a question; `None` when it gives none in time.
    pub async fn ask(&self, about: About) -> Option<Figures> {
        let (answer, told) = oneshot::channel();
        let asked = async {
            self.deliver(ToCore::Tell(Inquiry { about, answer }), || true).await?;
            told.await.ok()
        };
        timeout(ANSWER_DEADLINE, asked).await.ok().flatten()
    }
}
