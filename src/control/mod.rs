//! Engine: the control thread. It listens, talks with clients before and after their streams, and
//! connects to the upstream. It is one thread that runs tokio.

mod connection;
pub mod ctl;
mod history;
mod inquiry;
pub mod listener;
pub mod registry;
mod retention;
pub mod unix_socket;

use self::listener::{Bound, Listener};
use self::registry::Registry;
use crate::data::handoff::{Mailbox, ToControl};
use crate::data::readback::MAX_OPEN;
use crate::follow::{self, CopyRequests, System, UpstreamOrder};
use crate::hub::Hub;
use crate::keeper::KeeperClient;
use crate::restorer::Restorer;
use crate::standby::refusals;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, watch};

/// Connections allowed beyond `max_wal_senders`: those that have not yet said what they want, and
/// those being refused.
const SPARE_CONNECTIONS: usize = 256;

/// Descriptors that are not for clients, besides those for files that the cores read.
const RESERVED_DESCRIPTORS: usize = 256;

/// Descriptors that are not for clients, with `cores` data cores: segments that are read for
/// standbys and those being written, the upstream, commands, listening sockets, rings.
pub const fn reserved_descriptors(cores: usize) -> usize {
    RESERVED_DESCRIPTORS + cores * MAX_OPEN
}

/// Is the hub shutting down?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// No.
    Serving,
    /// Yes: no client is admitted, idle connections end, no upstream is asked for WAL.
    Stopping,
}

/// What the control thread is made of.
pub struct Control {
    /// What all engines share.
    pub hub: Arc<Hub>,
    /// One per data core; the first core receives from the upstream.
    pub mailboxes: Vec<Mailbox>,
    /// Saves what must survive a restart.
    pub keeper: KeeperClient,
    /// The archive, if there is one.
    pub restorer: Option<Arc<Restorer>>,
    /// Segments that are wanted from an upstream.
    pub copies: CopyRequests,
    /// The sockets to listen on.
    pub bound: Bound,
    /// News from the cores.
    pub news: mpsc::Receiver<ToControl>,
    /// Set when the hub is to stop.
    pub running: watch::Receiver<Running>,
}

/// What the tasks of the control thread share.
struct Shared {
    hub: Arc<Hub>,
    registry: Arc<Registry>,
    mailboxes: Vec<Mailbox>,
    keeper: KeeperClient,
    restorer: Option<Arc<Restorer>>,
    running: watch::Receiver<Running>,
    connections: Arc<AtomicUsize>,
    /// Orders for the task that keeps the hub connected.
    orders: mpsc::Sender<UpstreamOrder>,
    started: Instant,
    started_at: SystemTime,
}

impl Shared {
    fn is_stopping(&self) -> bool {
        *self.running.borrow() == Running::Stopping
    }

    /// Completes when the hub shuts down.
    async fn stopping(&self) {
        let mut running = self.running.clone();
        // An error means that the sender is gone, which also counts as a stop.
        drop(running.wait_for(|running| *running == Running::Stopping).await);
    }
}

/// Runs until the hub stops and every connection has ended; the caller limits the time for the
/// latter. Requires a current-thread runtime with I/O and time.
pub async fn run(control: Control) -> io::Result<()> {
    let Control { hub, mailboxes, keeper, restorer, copies, mut bound, mut news, running } =
        control;
    let (orders, ordered) = mpsc::channel(follow::ORDERS);
    let first_pid = getrandom::u32().unwrap_or_default() >> 1;
    let shared = Arc::new(Shared {
        registry: Registry::new(Arc::clone(&hub), mailboxes.len(), first_pid),
        hub,
        mailboxes,
        keeper,
        restorer,
        running,
        connections: Arc::new(AtomicUsize::new(0)),
        orders,
        started: Instant::now(),
        started_at: SystemTime::now(),
    });
    for address in bound.addresses() {
        tracing::info!(%address, "listening");
    }
    let mut ctl_socket = bound.take_ctl();
    let asked = ctl_socket.as_mut().map(ctl::CtlSocket::enter).transpose()?.flatten();
    let ctl = asked.map(|listener| tokio::spawn(ctl::run(Arc::clone(&shared), listener)));
    let (listeners, paths) = bound.enter()?;
    for listener in listeners {
        tokio::spawn(accept(Arc::clone(&shared), listener));
    }
    let (upstream_ended, ends) = mpsc::channel(follow::ENDS);
    // A hub has at least one core.
    let system = || System { hub: Arc::clone(&shared.hub), receiver: shared.mailboxes[0].clone() };
    let parts = follow::Parts {
        environment: system(),
        hub: Arc::clone(&shared.hub),
        cores: shared.mailboxes.clone(),
        keeper: shared.keeper.clone(),
        archive: shared.restorer.clone(),
    };
    let upstream = tokio::spawn(follow::run(parts, ends, ordered));
    let copying = tokio::spawn(follow::copy_segments(Arc::clone(&shared.hub), system(), copies));
    let retention = tokio::spawn(retention::run(Arc::clone(&shared)));
    let mut cores = Cores::Running;
    loop {
        let message = tokio::select! {
            message = news.recv(), if matches!(cores, Cores::Running) => message,
            () = shared.stopping(), if !shared.is_stopping() => continue,
            () = tokio::time::sleep(Duration::from_millis(5)), if shared.is_stopping() => {
                // Until the cores have gone, one may still say how the upstream's stream ended,
                // which the task that keeps the hub connected writes down.
                let Cores::Gone(at) = cores else { continue };
                let late = at.elapsed() >= LAST_WORDS;
                if late || shared.connections.load(Ordering::Relaxed) == 0 {
                    break;
                }
                continue;
            }
        };
        match message {
            Some(ToControl::StandbyEnded(handback)) => {
                if let Err(handback) = shared.registry.hand_back(handback) {
                    let pid = handback.session.pid;
                    tracing::warn!(pid, "no task is waiting for this connection; closing it");
                }
            }
            Some(ToControl::StandbyClosed { pid }) => shared.registry.closed(pid),
            // There is one stream at a time, so there is always room.
            Some(ToControl::UpstreamEnded(end)) => drop(upstream_ended.try_send(end)),
            // The cores end within milliseconds; idle connections must still be told that the hub
            // is shutting down.
            None if shared.is_stopping() => cores = Cores::Gone(Instant::now()),
            None => break,
        }
    }
    upstream.abort();
    copying.abort();
    retention.abort();
    if let Some(ctl) = ctl {
        ctl.abort();
    }
    drop((paths, ctl_socket));
    Ok(())
}

/// Are there cores that may still send news?
enum Cores {
    Running,
    Gone(Instant),
}

/// How long a connection may take to be told that the hub is shutting down, after all streams have
/// ended.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Accepts clients until the runtime ends. While the hub stops they are told so.
async fn accept(shared: Arc<Shared>, listener: Listener) {
    // Clients must never use up the descriptors that WAL is written through.
    let reserved = reserved_descriptors(shared.hub.config.cores.get());
    let affordable = descriptors().saturating_sub(reserved + SPARE_CONNECTIONS);
    let most = shared.hub.config.max_wal_senders.saturating_add(SPARE_CONNECTIONS).min(affordable);
    loop {
        let (socket, peer) = listener.accept().await;
        let counted = Counted::new(&shared.connections);
        let count = shared.connections.load(Ordering::Relaxed);
        if count > most.saturating_add(SPARE_CONNECTIONS) {
            // Even a refusal has a cost.
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            if count > most {
                tracing::warn!(peer, "sorry, too many clients already");
                connection::turn_away(&shared, socket, refusals::too_many_clients()).await;
            } else {
                connection::serve(shared, socket, peer).await;
            }
            drop(counted);
        });
    }
}

/// How many descriptors this process may open.
fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// One connection in the count; dropping it removes it.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod tests;
