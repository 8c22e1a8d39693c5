//! The threads of the data cores. Each makes its own ring and then waits for its parts.

use super::{ServeFault, pin};
use crate::data::handoff::{Inbox, Mailbox, ToControl, mailbox};
use crate::data::{CoreParts, DataCore, Peer, Receiver};
use crate::hub::Hub;
use crate::keeper::KeeperClient;
use crate::log;
use crate::ring::{ChunkReader, Setup, Uring, Waker};
use crate::watermark::Bell;
use std::io;
use std::sync::Arc;
use std::sync::mpsc as threads;
use std::thread::JoinHandle;
use tokio::sync::mpsc;
use tracing::error;

/// Messages that may wait for a core. There is room for a whole fleet that reconnects at once.
const INBOX: usize = 8192;

/// A data core's thread before it runs.
pub(super) struct CoreThread {
    waker: Waker,
    bell: Arc<Bell>,
    parts: threads::Sender<CoreParts>,
    thread: JoinHandle<()>,
}

impl CoreThread {
    /// Starts the thread. Returns when it has its ring.
    pub(super) fn start(index: usize, cpu: Option<usize>) -> Result<Self, ServeFault> {
        let (say, made) = threads::channel();
        let (parts, wait) = threads::channel::<CoreParts>();
        let thread = std::thread::Builder::new()
            .name(format!("data-{index}"))
            .spawn(move || {
                if let Some(cpu) = cpu {
                    pin::bind_to(cpu);
                }
                let ring = match Uring::new(Setup::default()) {
                    Ok(ring) => ring,
                    Err(refused) => return drop(say.send(Err(refused))),
                };
                if say.send(Ok(ring.waker())).is_err() {
                    return;
                }
                // The sender is gone: the hub failed to start.
                let Ok(parts) = wait.recv() else { return };
                if let Err(error) = DataCore::new(ring, parts).run() {
                    error!("io_uring: {error}; terminating");
                    log::exit(1);
                }
            })
            .map_err(|e| ServeFault::Io("start a thread", e))?;
        let gone = || ServeFault::Io("start a thread", io::ErrorKind::BrokenPipe.into());
        let waker = made.recv().map_err(|_| gone())??;
        Ok(Self { waker, bell: Arc::new(Bell::new()), parts, thread })
    }

    /// Wakes the core if it sleeps. Any thread may call it.
    pub(super) fn waking(&self) -> impl Fn() + Send + Sync + use<> {
        let (bell, waker) = (Arc::clone(&self.bell), self.waker.clone());
        move || {
            if bell.rings_needed() {
                waker.wake();
            }
        }
    }

    /// Makes the queue of messages to the core.
    pub(super) fn mailbox(&self) -> (Mailbox, Inbox) {
        mailbox(INBOX, Arc::new(self.waking()))
    }

    /// The core as another core wakes it.
    pub(super) fn peer(&self) -> Peer {
        Peer { bell: self.bell.clone(), waker: self.waker.clone() }
    }
}

/// What all cores get.
pub(super) struct SharedParts<'a> {
    pub(super) hub: &'a Arc<Hub>,
    pub(super) keeper: &'a KeeperClient,
    pub(super) news: mpsc::Sender<ToControl>,
    /// All cores but the first, which has the receive role and wakes them.
    pub(super) peers: Vec<Peer>,
}

impl SharedParts<'_> {
    /// Gives each core its parts; core 0 gets the receive role.
    pub(super) fn hand_over(
        self,
        cores: Vec<CoreThread>,
        queues: Vec<(Mailbox, Inbox)>,
        readers: Vec<ChunkReader>,
        receiver: Receiver,
    ) -> Vec<JoinHandle<()>> {
        let (mut receiver, mut peers) = (Some(receiver), self.peers);
        let mut threads = Vec::new();
        for (index, ((core, (mailbox, inbox)), chunks)) in
            cores.into_iter().zip(queues).zip(readers).enumerate()
        {
            let parts = CoreParts {
                index,
                hub: Arc::clone(self.hub),
                inbox,
                bell: core.bell,
                chunks,
                keeper: self.keeper.for_core(Arc::new(mailbox)),
                control: self.news.clone(),
                receiver: receiver.take(),
                peers: std::mem::take(&mut peers),
            };
            if core.parts.send(parts).is_err() {
                error!("data core {index} ended during the start");
            }
            threads.push(core.thread);
        }
        threads
    }
}
