//! The primary's thread: it makes WAL, sends it, and reads replies. One thread does all of it, so
//! that no wake-up comes between a commit and its send.

use super::connection::{Connection, Fallen, Life};
use super::generator::Generator;
use super::session::{Extent, Server};
use super::{PrimaryProgress, ReceiverProgress};
use crate::bench::clock::Clock;
use crate::bench::schedule::Due;
use crate::bench::truth::Truth;
use crate::wal::Lsn;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

/// How often timeouts are checked.
const TICK: Duration = Duration::from_millis(100);

/// How long walreceivers have to get the remaining WAL when the primary stops.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Events taken at once.
const EVENTS: usize = 256;

const LISTENER: u64 = 0;
const BELL: u64 = 1;
/// Connections are numbered from here; the numbers are also their process IDs.
const FIRST_PID: u32 = 1000;

/// Orders to the thread.
#[derive(Debug)]
pub(super) enum Order {
    Begin,
    Pause,
    Report(Sender<PrimaryProgress>),
    Stop,
}

/// Everything the thread owns.
#[derive(Debug)]
pub(super) struct Engine {
    epoll: OwnedFd,
    listener: TcpListener,
    bell: Arc<OwnedFd>,
    orders: Receiver<Order>,
    connections: BTreeMap<u32, Connection>,
    next_pid: u32,
    server: Server,
    truth: Arc<Truth>,
    generator: Generator,
    clock: Clock,
    window: u64,
    /// The position of the slowest receiver, or of the last one there was. It limits a closed loop.
    floor: Lsn,
    fault: Option<String>,
    /// A connection may be waiting to be accepted.
    waiting: bool,
    /// No more connections are accepted.
    stopping: bool,
    last_tick: Instant,
}

/// What the thread starts with.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) listener: TcpListener,
    pub(super) bell: Arc<OwnedFd>,
    pub(super) orders: Receiver<Order>,
    pub(super) server: Server,
    pub(super) truth: Arc<Truth>,
    pub(super) generator: Generator,
    pub(super) clock: Clock,
    pub(super) window: u64,
}

impl Engine {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edge = EventFlags::IN | EventFlags::ET;
        parts.listener.set_nonblocking(true)?;
        epoll::add(&epoll, &parts.listener, EventData::new_u64(LISTENER), edge)?;
        epoll::add(&epoll, &parts.bell, EventData::new_u64(BELL), EventFlags::IN)?;
        Ok(Self {
            epoll,
            floor: parts.truth.end(),
            listener: parts.listener,
            bell: parts.bell,
            orders: parts.orders,
            connections: BTreeMap::new(),
            next_pid: FIRST_PID,
            server: parts.server,
            truth: parts.truth,
            generator: parts.generator,
            clock: parts.clock,
            window: parts.window,
            fault: None,
            waiting: true,
            stopping: false,
            last_tick: Instant::now(),
        })
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) -> PrimaryProgress {
        if let Err(error) = rustix::thread::set_current_timer_slack(NonZeroU64::new(1)) {
            tracing::debug!("commits may be late by the timer's slack of 50 us: {error}");
        }
        while self.obey() == Going::On {
            if let Err(error) = self.turn() {
                self.fail(format!("the synthetic primary: {error}"));
            }
        }
        self.say_goodbye();
        self.report()
    }

    fn obey(&mut self) -> Going {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Begin) => self.generator.begin(self.clock.now()),
                Ok(Order::Pause) => self.generator.pause(self.clock.now()),
                Ok(Order::Report(to)) => {
                    let report = self.report();
                    // The caller may have given up.
                    drop(to.send(report));
                }
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return Going::Stops,
                Err(TryRecvError::Empty) => return Going::On,
            }
        }
    }

    /// Makes WAL, sends it, waits for events, handles them.
    fn turn(&mut self) -> io::Result<()> {
        let limit = self.limit();
        self.generator.make(limit)?;
        self.send();
        let now = Instant::now();
        if now >= self.last_tick + TICK {
            self.tick(now);
        }
        let timeout = self.idle_for(now);
        self.listen(timeout)
    }

    /// How far a closed loop may go.
    fn limit(&mut self) -> Lsn {
        let slowest = self.connections.values().filter_map(Connection::stream);
        if let Some(slowest) = slowest.map(|(_, stream)| stream.sent).min() {
            self.floor = slowest;
        }
        self.floor.saturating_add(self.window / 2)
    }

    fn send(&mut self) {
        let extent = self.extent();
        let (server, truth) = (&mut self.server, &self.truth);
        let mut fallen: Option<Fallen> = None;
        self.connections.retain(|_, connection| {
            if !connection.wants_turn(extent) {
                return true;
            }
            let goes = connection.write(server, truth, &mut fallen);
            keep(server, connection, goes)
        });
        if let Some(fallen) = fallen {
            self.fail(format!(
                "a receiver was more than the window of WAL behind, and the load does not wait \
                 for it: {}",
                fallen.refusal.message
            ));
        }
    }

    /// Stops the load; the first reason is kept.
    fn fail(&mut self, why: String) {
        self.generator.pause(self.clock.now());
        self.fault.get_or_insert(why);
    }

    fn tick(&mut self, now: Instant) {
        self.last_tick = now;
        let server = &mut self.server;
        self.connections.retain(|_, connection| {
            let goes = Ok(connection.tick(now));
            keep(server, connection, goes)
        });
        if self.waiting {
            self.accept();
        }
    }

    /// How long there is nothing to do unless an event comes.
    fn idle_for(&mut self, now: Instant) -> Duration {
        let extent = self.extent();
        if self.connections.values().any(|connection| connection.wants_turn(extent)) {
            return Duration::ZERO;
        }
        let tick = (self.last_tick + TICK).saturating_duration_since(now);
        match self.generator.due() {
            Due::At(due) => due.since(self.clock.now()).min(tick),
            Due::AtOnce if self.generator.end() < self.limit() => Duration::ZERO,
            Due::AtOnce | Due::Paused => tick,
        }
    }

    fn listen(&mut self, timeout: Duration) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))
        {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            match event.data.u64() {
                LISTENER => self.accept(),
                BELL => {
                    // The read resets the counter; the orders are in the channel.
                    rustix::io::read(&self.bell, &mut [0; 8])?;
                }
                pid => self.heard(pid as u32, event.flags),
            }
        }
        Ok(())
    }

    fn heard(&mut self, pid: u32, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(&pid) else { return };
        if flags.contains(EventFlags::OUT) {
            connection.may_write();
        }
        let goes = if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            connection.read(&mut self.server, &self.truth)
        } else {
            Ok(Life::Goes)
        };
        if !keep(&mut self.server, connection, goes) {
            self.connections.remove(&pid);
        }
    }

    fn accept(&mut self) {
        self.waiting = false;
        loop {
            match self.listener.accept() {
                // A connection that cannot be served is closed, and its client sees that.
                Ok((socket, _)) => drop(self.admit(socket)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // Most likely there are no more file descriptors: retry later.
                    self.waiting = true;
                    return;
                }
            }
        }
    }

    fn admit(&mut self, socket: TcpStream) -> io::Result<()> {
        if self.stopping {
            return Ok(());
        }
        let pid = self.next_pid;
        self.next_pid = self.next_pid.checked_add(1).unwrap_or(FIRST_PID);
        let connection = Connection::new(socket, pid)?;
        let both = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, connection.socket(), EventData::new_u64(u64::from(pid)), both)?;
        self.connections.insert(pid, connection);
        Ok(())
    }

    /// Sends what is left, for a limited time, and then the end of the stream.
    fn say_goodbye(&mut self) {
        // A walreceiver that is told to leave reconnects at once.
        self.stopping = true;
        let deadline = Instant::now() + LAST_WORDS;
        let extent = self.extent();
        let behind = |connection: &Connection| {
            connection.stream().is_some_and(|(_, stream)| !stream.caught_up(extent))
        };
        while self.connections.values().any(behind) && Instant::now() < deadline {
            self.send();
            if self.listen(Duration::from_millis(10)).is_err() {
                return;
            }
        }
        for connection in self.connections.values_mut() {
            connection.shut_down();
        }
        while !self.connections.is_empty() && Instant::now() < deadline {
            self.send();
            if self.listen(Duration::from_millis(10)).is_err() {
                return;
            }
        }
    }

    fn extent(&self) -> Extent {
        Extent { oldest: self.truth.oldest(), end: self.truth.end() }
    }

    fn report(&mut self) -> PrimaryProgress {
        let streams = self.connections.values().filter_map(Connection::stream);
        let receivers = streams.map(|(session, stream)| {
            let positions = stream.talk.positions();
            ReceiverProgress {
                application_name: session.application_name.clone(),
                sent: stream.sent,
                write: positions.write,
                flush: positions.flush,
                apply: positions.apply,
            }
        });
        PrimaryProgress {
            bytes: self.generator.bytes,
            commits: self.generator.made,
            end: self.generator.end(),
            receivers: receivers.collect(),
            late: self.generator.take_late(),
            finished: self.generator.finished(),
            fault: self.fault.clone(),
        }
    }
}

/// Does the thread continue?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    On,
    Stops,
}

/// Does the connection stay? If not, what it held is released.
fn keep(server: &mut Server, connection: &Connection, goes: io::Result<Life>) -> bool {
    // A broken connection ends; its client knows why.
    let stays = matches!(goes, Ok(Life::Goes));
    if !stays {
        connection.forget(server);
    }
    stays
}
