//! The live connections: unique process IDs, their cancel keys, and which core streams to which
//! client.

use crate::cluster::instance::InstanceId;
use crate::data::handoff::Handback;
use crate::hub::Hub;
use crate::standby::client::Session;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::oneshot;

/// Streams that the first data core gets before others get any: it need not be woken when WAL is
/// durable, and one submission of sends keeps it from receiving for no longer than a wake-up takes.
/// Its receive role counts as this many streams.
const FIRST_CORES: usize = 32;

/// WAL bytes per second at which the first data core is busy enough without new streams.
const BUSY: u64 = 100 << 20;

/// How far back traffic counts as recent.
const RECENT: Duration = Duration::from_secs(1);

/// The live connections. PostgreSQL's clients build names of temporary slots from the process ID,
/// so no two live connections share one.
pub struct Registry {
    hub: Arc<Hub>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    next_pid: u32,
    live: HashMap<u32, Entry>,
    /// Streams of each core.
    load: Vec<usize>,
    traffic: Traffic,
}

/// What each core has sent, sampled when a stream begins.
#[derive(Debug)]
struct Traffic {
    at: Instant,
    sent: Vec<u64>,
    /// WAL bytes per second at the last sample.
    rate: Vec<u64>,
}

impl Traffic {
    fn look(&mut self, sent: impl Iterator<Item = u64>, now: Instant) {
        let past = now.saturating_duration_since(self.at);
        if past < RECENT {
            return;
        }
        let sent: Vec<u64> = sent.collect();
        let rate = |(n, sent): (usize, &u64)| {
            let before = self.sent.get(n).copied().unwrap_or_default();
            sent.saturating_sub(before) * 1000 / u64::try_from(past.as_millis()).unwrap_or(u64::MAX)
        };
        self.rate = sent.iter().enumerate().map(rate).collect();
        (self.sent, self.at) = (sent, now);
    }
}

/// The core for a new stream: the first as long as it is nearly idle, then the one with the fewest
/// streams; among those with nearly as few, the one that has recently sent least.
fn choose(streams: &[usize], rate: &[u64]) -> usize {
    let rate = |core: usize| rate.get(core).copied().unwrap_or_default();
    let weight = |core: usize, n: usize| if core == 0 { n + FIRST_CORES } else { n };
    if streams.first().is_some_and(|n| *n < FIRST_CORES) && rate(0) < BUSY {
        return 0;
    }
    let weights = || streams.iter().enumerate().map(|(core, n)| (core, weight(core, *n)));
    let fewest = weights().map(|(_, weight)| weight).min().unwrap_or_default();
    let like = weights().filter(|(_, weight)| *weight <= fewest + fewest / 8);
    like.min_by_key(|(core, weight)| (rate(*core), *weight)).map_or(0, |(core, _)| core)
}

#[derive(Debug)]
struct Entry {
    key: u32,
    stream: Option<Stream>,
    client: Option<Client>,
}

/// Who is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The number in BackendKeyData.
    pub pid: u32,
    /// The user name it gave.
    pub user: String,
    /// Its `application_name`.
    pub application_name: String,
    /// Where it comes from.
    pub peer: String,
    /// Its ID when it is a hub.
    pub instance: Option<InstanceId>,
    /// When it was let in.
    pub since: SystemTime,
}

#[derive(Debug)]
struct Stream {
    core: usize,
    back: oneshot::Sender<Box<Handback>>,
}

/// A live connection's entry, removed on drop.
#[derive(Debug)]
pub struct Registered {
    registry: Arc<Registry>,
    /// The process ID in BackendKeyData.
    pub pid: u32,
    /// The key in BackendKeyData.
    pub key: u32,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Registry {
    /// A registry without connections; process IDs begin at `first_pid`.
    pub fn new(hub: Arc<Hub>, cores: usize, first_pid: u32) -> Arc<Self> {
        let traffic = Traffic { at: Instant::now(), sent: Vec::new(), rate: Vec::new() };
        let load = vec![0; cores];
        let inner = Inner { next_pid: first_pid, live: HashMap::new(), load, traffic };
        Arc::new(Self { hub, inner: Mutex::new(inner) })
    }

    /// A process ID and a key for a new connection.
    pub fn register(self: &Arc<Self>) -> Result<Registered, getrandom::Error> {
        let key = getrandom::u32()?;
        let mut inner = self.lock();
        let pid = loop {
            // Process IDs are positive as an int32.
            let pid = match inner.next_pid {
                pid @ 1..=0x7FFF_FFFF => pid,
                _ => 1,
            };
            inner.next_pid = pid + 1;
            if !inner.live.contains_key(&pid) {
                break pid;
            }
        };
        inner.live.insert(pid, Entry { key, stream: None, client: None });
        drop(inner);
        Ok(Registered { registry: Arc::clone(self), pid, key })
    }

    /// Assigns the core with the least to do to `pid`. The returned receiver gets the connection
    /// when the stream ends.
    pub fn begin_stream(&self, pid: u32) -> (usize, oneshot::Receiver<Box<Handback>>) {
        let (back, ended) = oneshot::channel();
        let mut inner = self.lock();
        inner.traffic.look(self.hub.sent(), Instant::now());
        let core = choose(&inner.load, &inner.traffic.rate);
        if let Some(entry) = inner.live.get_mut(&pid) {
            entry.stream = Some(Stream { core, back });
            inner.change_load(core, |n| n + 1);
        }
        (core, ended)
    }

    /// Gives a connection back to its task; returns the connection when no task waits.
    pub fn hand_back(&self, handback: Box<Handback>) -> Result<(), Box<Handback>> {
        match self.lock().take_stream(handback.session.pid) {
            Some(stream) => stream.back.send(handback),
            None => Err(handback),
        }
    }

    /// The stream of `pid` ended with its connection.
    pub fn closed(&self, pid: u32) {
        drop(self.lock().take_stream(pid));
    }

    /// The core that streams to `pid`, if the key is right.
    pub fn cancel_target(&self, pid: u32, key: u32) -> Option<usize> {
        let inner = self.lock();
        let entry = inner.live.get(&pid).filter(|entry| entry.key == key)?;
        entry.stream.as_ref().map(|stream| stream.core)
    }

    /// How many streams there are.
    pub fn streams(&self) -> usize {
        self.lock().load.iter().sum()
    }

    /// All admitted clients, by process ID.
    pub fn clients(&self) -> Vec<Client> {
        let inner = self.lock();
        let mut clients: Vec<_> =
            inner.live.values().filter_map(|entry| entry.client.clone()).collect();
        drop(inner);
        clients.sort_unstable_by_key(|client| client.pid);
        clients
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registered {
    /// The connection was admitted.
    pub fn introduce(&self, session: &Session) {
        let client = Client {
            pid: self.pid,
            user: session.user.clone(),
            application_name: session.application_name.clone(),
            peer: session.peer.clone(),
            instance: session.instance,
            since: SystemTime::now(),
        };
        if let Some(entry) = self.registry.lock().live.get_mut(&self.pid) {
            entry.client = Some(client);
        }
    }
}

impl Inner {
    fn take_stream(&mut self, pid: u32) -> Option<Stream> {
        let stream = self.live.get_mut(&pid)?.stream.take()?;
        self.change_load(stream.core, |n| n.saturating_sub(1));
        Some(stream)
    }

    fn change_load(&mut self, core: usize, change: impl Fn(usize) -> usize) {
        if let Some(n) = self.load.get_mut(core) {
            *n = change(*n);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        drop(inner.take_stream(self.pid));
        inner.live.remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(cores: usize, first_pid: u32) -> Arc<Registry> {
        Registry::new(Arc::new(crate::hub::tests::hub("15.18")), cores, first_pid)
    }

    #[test]
    fn the_first_core_is_filled_first_and_then_spared() {
        assert_eq!(choose(&[0], &[]), 0);
        assert_eq!(choose(&[900], &[u64::MAX]), 0);
        assert_eq!(choose(&[31, 0, 0], &[0, 0, 0]), 0);
        assert_eq!(choose(&[32, 5, 0], &[0, 0, 0]), 2);
        // Standbys that catch up keep it busy.
        assert_eq!(choose(&[3, 0, 0], &[BUSY, 0, 0]), 1);
        // Its receive role counts.
        assert_eq!(choose(&[40, 60, 63], &[0, 0, 0]), 1);
        assert_eq!(choose(&[40, 80, 80], &[0, 1, 1]), 0);
    }

    #[test]
    fn among_equals_the_one_that_sent_least() {
        assert_eq!(choose(&[100, 80, 85], &[9, 9, 1]), 2);
        assert_eq!(choose(&[100, 80, 95], &[9, 9, 1]), 1);
    }

    #[test]
    fn the_rate_is_that_of_the_time_since_the_last_look() {
        let begun = Instant::now();
        let mut traffic = Traffic { at: begun, sent: Vec::new(), rate: Vec::new() };
        traffic.look([500, 0].into_iter(), begun + RECENT / 2);
        assert_eq!(traffic.rate, [0; 0], "too early to tell");
        traffic.look([4000, 0].into_iter(), begun + 2 * RECENT);
        assert_eq!(traffic.rate, [2000, 0]);
        traffic.look([4000, 700].into_iter(), begun + 3 * RECENT);
        assert_eq!(traffic.rate, [0, 700]);
    }

    #[test]
    fn live_pids_are_unique_and_wrap() {
        let registry = registry(1, i32::MAX.unsigned_abs());
        let last = registry.register().unwrap();
        assert_eq!(last.pid, i32::MAX.unsigned_abs());
        let first = registry.register().unwrap();
        assert_eq!(first.pid, 1);
        registry.lock().next_pid = 1;
        assert_eq!(registry.register().unwrap().pid, 2);
        drop(first);
        registry.lock().next_pid = 1;
        assert_eq!(registry.register().unwrap().pid, 1);
    }

    #[test]
    fn streams_are_counted_until_they_end() {
        let registry = registry(2, 1);
        let all: Vec<_> = (0..34).map(|_| registry.register().unwrap()).collect();
        let cores: Vec<_> = all.iter().map(|one| registry.begin_stream(one.pid).0).collect();
        assert_eq!(cores[31..], [0, 1, 1]);
        registry.closed(all[0].pid);
        registry.closed(all[0].pid);
        assert_eq!(registry.lock().load, [31, 2]);
        let next = registry.register().unwrap();
        assert_eq!(registry.begin_stream(next.pid).0, 0);
        drop(all);
        assert_eq!(registry.lock().load, [1, 0]);
    }

    #[test]
    fn only_the_right_key_cancels() {
        let registry = registry(1, 1);
        let one = registry.register().unwrap();
        assert_eq!(registry.cancel_target(one.pid, one.key), None, "not streaming");
        let ended = registry.begin_stream(one.pid).1;
        assert_eq!(registry.cancel_target(one.pid, one.key), Some(0));
        assert_eq!(registry.cancel_target(one.pid, one.key.wrapping_add(1)), None);
        assert_eq!(registry.cancel_target(one.pid + 1, one.key), None);
        registry.closed(one.pid);
        assert!(ended.blocking_recv().is_err(), "the task learns that the connection is gone");
    }
}
