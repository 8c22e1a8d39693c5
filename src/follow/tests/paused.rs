//! The task without sockets and threads, on paused time: as a simulation runs it.

use super::{SERVER, Server, answer};
use crate::archive::check::ReadAt;
use crate::cluster::instance::InstanceId;
use crate::follow::{Archive, ENDS, Environment, HandOverFault, ORDERS, Parts, Stream, run};
use crate::hub::{Hub, tests};
use crate::keeper::{JobDone, Order, Orders, queue};
use crate::restorer::RestoreResult;
use crate::store::retention::Holds;
use crate::upstream::end::UpstreamEnd;
use crate::wal::{Lsn, SegmentName, TimelineId};
use crate::wire::backend;
use crate::wire::conninfo::{Conninfo, Host};
use crate::wire::frame::next_frame;
use bytes::{Buf as _, Bytes, BytesMut};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

/// A world in which hosts refuse connections or are all the same server.
struct World {
    server: Option<Server>,
    /// Each attempt, and when.
    attempts: Mutex<Vec<(Instant, String)>>,
    streams: mpsc::UnboundedSender<Stream<DuplexStream>>,
}

/// A task in such a world. The test owns the rest of it.
struct Scene {
    world: Arc<World>,
    streams: mpsc::UnboundedReceiver<Stream<DuplexStream>>,
    ends: mpsc::Sender<UpstreamEnd>,
}

impl Environment for Arc<World> {
    type Socket = DuplexStream;
    type File = ();
    type Wal = Bytes;
    type Archive = NoArchive;

    async fn connect(&self, _: &Conninfo, host: &Host) -> io::Result<DuplexStream> {
        self.attempts.lock().unwrap().push((Instant::now(), host.to_string()));
        let server = self.server.clone().ok_or(io::ErrorKind::ConnectionRefused)?;
        let (ours, theirs) = duplex(64 << 10);
        tokio::spawn(serve(theirs, server));
        Ok(ours)
    }

    fn pair(&self) -> io::Result<(DuplexStream, DuplexStream)> {
        Ok(duplex(64 << 10))
    }

    async fn hand_over(&self, stream: Stream<DuplexStream>) -> Result<(), HandOverFault> {
        self.streams.send(stream).map_err(|_| HandOverFault::QueueFull)
    }

    fn open_own_wal(&self, _: SegmentName) -> io::Result<Option<Bytes>> {
        Ok(None)
    }

    fn has_archived(&self, _: SegmentName) -> io::Result<bool> {
        Ok(false)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        Ok(work())
    }
}

/// No archive: there is no value of it.
enum NoArchive {}

impl ReadAt for Bytes {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

impl Archive for NoArchive {
    type Wal = Bytes;
    type Restored = Bytes;

    async fn history(&self, _: TimelineId) -> Result<RestoreResult<Bytes>, RecvError> {
        match *self {}
    }

    fn segment(
        &self,
        _: Vec<SegmentName>,
    ) -> oneshot::Receiver<RestoreResult<(SegmentName, Bytes)>> {
        match *self {}
    }

    fn ahead(&self) -> u64 {
        match *self {}
    }

    fn open(restored: &Bytes) -> io::Result<Bytes> {
        Ok(restored.clone())
    }
}

/// Answers commands until the client leaves.
async fn serve(mut socket: DuplexStream, mut server: Server) {
    let startup = socket.read_u32().await.unwrap() as usize - 4;
    socket.read_exact(&mut vec![0; startup]).await.unwrap();
    let mut out = BytesMut::new();
    backend::auth_ok(&mut out);
    backend::parameter_status(&mut out, "server_version", "15.18");
    backend::ready_for_query(&mut out);
    let mut unread = BytesMut::new();
    while socket.write_all_buf(&mut out).await.is_ok() {
        let Some(frame) = next_frame(&unread, 1 << 20).unwrap() else {
            match socket.read_buf(&mut unread).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            }
        };
        let (tag, text) = (frame.tag, String::from_utf8_lossy(frame.body).replace('\0', ""));
        unread.advance(frame.len);
        if tag == b'Q' {
            answer(&text, &mut server, &mut out);
        }
    }
}

/// A keeper that saves everything at once.
async fn keep(mut orders: Orders<()>) {
    while let Some(Order { job, reply }) = orders.next().await {
        reply.send(JobDone::Done(job.kind()));
    }
}

impl Scene {
    /// Has the task follow these hosts.
    fn new(hosts: &str, server: Option<Server>) -> Self {
        let mut config = tests::config(&format!("host={hosts} user=me"));
        config.wal_retrieve_retry_interval = Duration::from_secs(5);
        let holds = Arc::new(Holds::new(Lsn::INVALID));
        let hub = Arc::new(Hub::new(Arc::new(config), InstanceId::new(0xE), holds));
        let (streams, handed_over) = mpsc::unbounded_channel();
        let world = Arc::new(World { server, attempts: Mutex::default(), streams });
        let (keeper, orders) = queue(16);
        tokio::spawn(keep(orders));
        let (ends, ended) = mpsc::channel(ENDS);
        let (steer, ordered) = mpsc::channel(ORDERS);
        let parts = Parts {
            hub,
            cores: Vec::new(),
            keeper,
            archive: None,
            environment: Arc::clone(&world),
        };
        tokio::spawn(async move {
            run(parts, ended, ordered).await;
            drop(steer);
        });
        Self { world, streams: handed_over, ends }
    }

    async fn stream(&mut self) -> Stream<DuplexStream> {
        let stream = timeout(Duration::from_secs(60), self.streams.recv()).await;
        stream.unwrap().expect("the world is there")
    }
}

#[tokio::test(start_paused = true)]
async fn hosts_that_refuse_are_asked_twice_and_then_at_the_interval() {
    let began = Instant::now();
    let scene = Scene::new("a,b", None);
    tokio::time::sleep(Duration::from_secs(12)).await;
    let attempts = scene.world.attempts.lock().unwrap();
    let asked: Vec<_> = attempts
        .iter()
        .map(|(at, host)| (at.duration_since(began).as_secs(), host.as_str()))
        .collect();
    let round = |second| [(second, "a:5432"), (second, "b:5432")];
    assert_eq!(asked, [round(0), round(0), round(5), round(10)].concat());
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_handed_over_and_asked_for_again_when_it_ends() {
    let began = Instant::now();
    let mut scene = Scene::new("a", Some(SERVER));
    let stream = scene.stream().await;
    assert_eq!((stream.start, stream.tli.raw()), (Lsn::new(0x500_0000), 1));
    assert!(stream.unread.starts_with(b"d"), "its first message came with it");
    scene.ends.send(UpstreamEnd::TimedOut).await.unwrap();
    assert_eq!(scene.stream().await.source.name, "a:5432");
    assert_eq!(Instant::now(), began, "nothing was waited for");
    assert_eq!(scene.world.attempts.lock().unwrap().len(), 2);
}
