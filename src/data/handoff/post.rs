//! Messages to a core from a task that can wait until there is room in its queue.

use super::{Mailbox, ToCore};
use crate::data::figures::{About, Figures, Inquiry};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How often, and at what interval, a full queue is tried.
const POST_ATTEMPTS: u32 = 1000;
const POST_PAUSE: Duration = Duration::from_millis(5);

/// How long a core may take to answer a question. A core that sends to thousands reads its queue
/// every few milliseconds.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

impl Mailbox {
    /// Puts a message into the queue, and waits 5 s for room in it. Drops the message and returns
    /// `None` when the core makes no room, or when the message is no longer `wanted`.
    pub async fn deliver(&self, mut message: ToCore, wanted: impl Fn() -> bool) -> Option<()> {
        for _ in 0..POST_ATTEMPTS {
            if !wanted() {
                return None;
            }
            match self.post(message) {
                Ok(()) => return Some(()),
                Err(back) => message = back,
            }
            tokio::time::sleep(POST_PAUSE).await;
        }
        tracing::warn!("a data core's queue stays full");
        None
    }

    /// Puts a message into the queue, however long it is full.
    pub async fn insist(&self, mut message: ToCore) {
        while let Err(back) = self.post(message) {
            message = back;
            tokio::time::sleep(POST_PAUSE).await;
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
