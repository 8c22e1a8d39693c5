//! One core on a real ring, driven pass by pass, with Unix sockets as peers and the test as the
//! keeper.

use super::super::core::Next;
use super::super::handoff::{Mailbox, StandbyHandoff, ToControl, ToCore, UpstreamHandoff, mailbox};
use super::super::{CoreParts, DataCore, Receiver};
use crate::cluster::instance::InstanceId;
use crate::hub::{Hub, tests};
use crate::keeper::{Orders, queue};
use crate::ring::{Setup, Uring, Wait, chunks};
use crate::standby::client::Session;
use crate::store::evidence::WalSource;
use crate::store::slots::{SlotSession, SlotUse};
use crate::wal::synth::Synth;
use crate::wal::{Lsn, SegmentSize, TimelineId};
use crate::watermark::{Bell, Cell};
use bytes::BytesMut;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// The segment size of the hub's cluster.
pub(super) const SEGMENT: u64 = 16 << 20;

/// Where the WAL of every test begins.
pub(super) const START: Lsn = Lsn::new(4 * SEGMENT);

const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Bench {
    pub(super) core: DataCore<Uring>,
    pub(super) hub: Arc<Hub>,
    mailbox: Mailbox,
    /// The core's orders to the keeper.
    pub(super) orders: Orders,
    /// What the core tells the control thread.
    pub(super) news: mpsc::Receiver<ToControl>,
    /// The seam before which the next standbys stand.
    pub(super) seam: Option<Lsn>,
    next_pid: u32,
}

impl Bench {
    /// A core of a hub whose WAL of timeline 1 is durable up to `durable`, with none of it in the
    /// cache.
    pub(super) fn serving(durable: Lsn) -> Self {
        let hub = Arc::new(tests::hub("15.18"));
        hub.holds.begin(START);
        hub.push_cell(Arc::new(Cell::new(TimelineId::FIRST, START, durable)));
        Self::around(hub, |_| None)
    }

    /// A core with the receive role and an empty directory.
    pub(super) fn receiving() -> Self {
        let hub = Arc::new(tests::hub("15.18"));
        let of_hub = Arc::clone(&hub);
        Self::around(hub, |writer| Some(Receiver::new(of_hub, writer, None)))
    }

    fn around(
        hub: Arc<Hub>,
        receiver: impl FnOnce(crate::ring::ChunkWriter) -> Option<Receiver>,
    ) -> Self {
        let ring = Uring::new(Setup::default()).unwrap();
        let bell = Arc::new(Bell::new());
        let (ringing, waker) = (Arc::clone(&bell), ring.waker());
        let wake = move || {
            if ringing.rings_needed() {
                waker.wake();
            }
        };
        let (mailbox, inbox) = mailbox(256, Arc::new(wake));
        let (writer, mut readers) = chunks(8 << 20, 1).unwrap();
        let (keeper, orders) = queue(64);
        let (control, news) = mpsc::channel(64);
        let parts = CoreParts {
            index: 0,
            hub: Arc::clone(&hub),
            inbox,
            bell,
            chunks: readers.remove(0),
            keeper: keeper.for_core(Arc::new(mailbox.clone())),
            control,
            receiver: receiver(writer),
            peers: Vec::new(),
        };
        let core = DataCore::new(ring, parts);
        Self { core, hub, mailbox, orders, news, seam: None, next_pid: 1 }
    }

    pub(super) fn post(&self, message: ToCore) {
        assert!(self.mailbox.post(message).is_ok(), "the core's queue is full");
    }

    /// A standby that wants WAL from the beginning on.
    pub(super) fn standby(&mut self, change: impl FnOnce(&mut Session)) -> Peer {
        self.standby_with(None, change)
    }

    /// The same, with a slot.
    pub(super) fn standby_with(
        &mut self,
        slot: Option<SlotUse>,
        change: impl FnOnce(&mut Session),
    ) -> Peer {
        let slots = self.hub.holds.slots.lock().enter(self.next_pid);
        self.standby_of(slots, slot, change)
    }

    /// The same, of a session with temporary slots.
    pub(super) fn standby_of(
        &mut self,
        slots: SlotSession,
        slot: Option<SlotUse>,
        change: impl FnOnce(&mut Session),
    ) -> Peer {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut session = Session {
            pid: self.next_pid,
            user: "replicator".into(),
            application_name: "standby".into(),
            peer: "[local]".into(),
            wal_sender_timeout: Duration::from_secs(60),
            instance: None,
        };
        self.next_pid += 1;
        change(&mut session);
        let cell = self.hub.current_cell().unwrap();
        self.post(ToCore::Standby(Box::new(StandbyHandoff {
            socket: ours.into(),
            unread: BytesMut::new(),
            session,
            cell,
            start: START,
            seam: self.seam,
            hold: self.hub.holds.hold(START).unwrap().with_slot(slot),
            permit: self.hub.take_sender().unwrap(),
            slots,
        })));
        Peer::new(theirs)
    }

    /// A hub below this one.
    pub(super) fn hub_below(&mut self) -> Peer {
        self.standby(|session| session.instance = Some(InstanceId::new(0xB)))
    }

    /// An upstream whose stream begins at the beginning.
    pub(super) fn upstream(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.post(ToCore::Upstream(Box::new(UpstreamHandoff {
            socket: ours.into(),
            unread: BytesMut::new(),
            start: START,
            tli: TimelineId::FIRST,
            source: WalSource { name: "primary".into(), server: None },
        })));
        theirs
    }

    /// Runs the core, with the sleeps it wants, until `done`.
    pub(super) fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < end, "not in time: {what}");
            match self.core.pass().unwrap() {
                Next::Pass => {}
                Next::Sleep(wait) => {
                    // Its sockets wake it; the test's own check must not be late either.
                    let look = Instant::now() + Duration::from_millis(2);
                    let wait = match wait {
                        Wait::Until(at) => Wait::Until(at.min(look)),
                        Wait::Forever => Wait::Until(look),
                        Wait::No => Wait::No,
                    };
                    self.core.sleep(wait).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Runs passes until the core would sleep. Returns how it would.
    pub(super) fn run_to_sleep(&mut self) -> Wait {
        loop {
            match self.core.pass().unwrap() {
                Next::Pass => {}
                Next::Sleep(wait) => return wait,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// The other end of a stream.
pub(super) struct Peer {
    socket: UnixStream,
    unread: Vec<u8>,
}

impl Peer {
    fn new(socket: UnixStream) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self { socket, unread: Vec::new() }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// The next message, if it has arrived: its type and its body.
    pub(super) fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        self.is_closed();
        let length = u32::from_be_bytes(*self.unread.get(1..)?.first_chunk()?) as usize;
        let body = self.unread.get(5..=length)?.to_vec();
        let tag = self.unread[0];
        self.unread.drain(..=length);
        Some((tag, body))
    }

    /// Reads what has arrived. Has the core closed?
    pub(super) fn is_closed(&mut self) -> bool {
        let mut bytes = [0; 65536];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return true,
                Ok(n) => self.unread.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }
}

/// WAL from the beginning on, of whole records.
pub(super) fn wal(at_least: usize) -> Vec<u8> {
    let size = SegmentSize::new(SEGMENT).unwrap();
    let system = tests::hub("15.18").identity().unwrap().system_id;
    let mut synth = Synth::new(system, size, TimelineId::FIRST, 0xD110, START);
    while synth.position() < START.saturating_add(at_least as u64) {
        synth.record(&[7; 1000]);
    }
    synth.take_bytes().1
}
