//! Who is connected: unique process IDs, their cancel keys, and which core streams
//! to whom.

use crate::core::handoff::Handback;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The live connections. PostgreSQL's clients build names of temporary slots from
/// the process ID, so no two live ones share it.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    next_pid: u32,
    live: HashMap<u32, Entry>,
    /// Streams of each core.
    load: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    key: u32,
    stream: Option<Stream>,
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

impl Registry {
    /// Nobody connected; `first_pid` is where numbers begin.
    pub fn new(cores: usize, first_pid: u32) -> Arc<Self> {
        let inner = Inner { next_pid: first_pid, live: HashMap::new(), load: vec![0; cores] };
        Arc::new(Self { inner: Mutex::new(inner) })
    }

    /// A number and a key for a new connection.
    pub fn register(self: &Arc<Self>) -> Result<Registered, getrandom::Error> {
        let key = getrandom::u32()?;
        let mut inner = self.lock();
        let pid = loop {
            // Positive as an int32, as process IDs are.
            let pid = match inner.next_pid {
                pid @ 1..=0x7FFF_FFFF => pid,
                _ => 1,
            };
            inner.next_pid = pid + 1;
            if !inner.live.contains_key(&pid) {
                break pid;
            }
        };
        inner.live.insert(pid, Entry { key, stream: None });
        drop(inner);
        Ok(Registered { registry: Arc::clone(self), pid, key })
    }

    /// The core with the fewest streams becomes the one of `pid`; its connection waits
    /// at the receiver until the stream ends.
    pub fn begin_stream(&self, pid: u32) -> (usize, oneshot::Receiver<Box<Handback>>) {
        let (back, ended) = oneshot::channel();
        let mut inner = self.lock();
        let core =
            inner.load.iter().enumerate().min_by_key(|(_, n)| **n).map_or(0, |(core, _)| core);
        if let Some(entry) = inner.live.get_mut(&pid) {
            entry.stream = Some(Stream { core, back });
            inner.change_load(core, |n| n + 1);
        }
        (core, ended)
    }

    /// Gives a connection back to its task; the connection itself when nobody waits.
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

    /// The core that streams to `pid`, when the key is the right one.
    pub fn cancel_target(&self, pid: u32, key: u32) -> Option<usize> {
        let inner = self.lock();
        let entry = inner.live.get(&pid).filter(|entry| entry.key == key)?;
        entry.stream.as_ref().map(|stream| stream.core)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn live_pids_are_unique_and_wrap() {
        let registry = Registry::new(1, i32::MAX.unsigned_abs());
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
    fn streams_go_to_the_core_with_the_fewest() {
        let registry = Registry::new(2, 1);
        let all: Vec<_> = (0..4).map(|_| registry.register().unwrap()).collect();
        let cores: Vec<_> = all.iter().map(|one| registry.begin_stream(one.pid).0).collect();
        assert_eq!(cores, [0, 1, 0, 1]);
        registry.closed(all[1].pid);
        registry.closed(all[1].pid);
        let next = registry.register().unwrap();
        assert_eq!(registry.begin_stream(next.pid).0, 1);
        drop(all);
        assert_eq!(registry.lock().load, [0, 1]);
    }

    #[test]
    fn only_the_right_key_cancels() {
        let registry = Registry::new(1, 1);
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
