//! What a hub's upstream task reaches: the shipped task (`follow`) runs unchanged over the
//! simulated network, disk and archive.
//!
//! The task's futures are `Send`, because some of them run in tasks of their own. A world lives
//! on one thread, so what they reach is the world of their thread.

use crate::archive::Condition;
use crate::hub::Ground;
use crate::network::{Conn, End, Node};
use crate::plants::{Plant, PlantedFile};
use crate::shared::Shared;
use bytes::{Buf, Bytes, BytesMut};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;
use walhub::archive::check::ReadAt;
use walhub::data::handoff::{Mailbox, ToCore, UpstreamHandoff};
use walhub::follow::{Archive, Environment, HandOverFault, Stream};
use walhub::hub::Hub;
use walhub::restorer::RestoreResult;
use walhub::wal::{Lsn, SegmentName, TimelineId};
use walhub::wire::conninfo::{Conninfo, Host, TargetSessionAttrs};
use walhub::wire::frontend;

thread_local! {
    static SCENE: RefCell<Option<Rc<Scene>>> = const { RefCell::new(None) };
}

/// The world of a thread, as tasks see it.
pub(crate) struct Scene {
    shared: Rc<Shared>,
    hubs: Vec<Rc<Ground>>,
    /// Tasks that wait for bytes or for room.
    waiting: RefCell<Vec<Waker>>,
    /// Descriptors that stand for connections on their way to a core.
    handed_over: RefCell<BTreeMap<RawFd, Conn>>,
}

/// Until this is dropped, tasks of this thread reach the world.
pub(crate) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        SCENE.with(|scene| scene.borrow_mut().take());
    }
}

/// The tasks of this thread live in a world of these hubs from now on.
pub(crate) fn enter(shared: &Rc<Shared>, hubs: Vec<Rc<Ground>>) -> Entered {
    let (waiting, handed_over) = (RefCell::default(), RefCell::default());
    let scene = Scene { shared: Rc::clone(shared), hubs, waiting, handed_over };
    SCENE.with(|place| place.borrow_mut().replace(Rc::new(scene)));
    Entered
}

/// The world of this thread; `None` when it has ended.
fn scene() -> Option<Rc<Scene>> {
    SCENE.with(|scene| scene.borrow().clone())
}

fn here() -> Rc<Scene> {
    scene().expect("the world has not ended")
}

/// Whoever waits for bytes or for room looks again.
pub(crate) fn wake_all() {
    let waiting = here().waiting.take();
    waiting.into_iter().for_each(Waker::wake);
}

/// The connection that was handed over with this descriptor.
pub(crate) fn connection_of(descriptor: &OwnedFd) -> Conn {
    let conn = here().handed_over.borrow_mut().remove(&descriptor.as_raw_fd());
    conn.expect("a connection was handed over")
}

impl Scene {
    fn wait(&self, cx: &Context<'_>) {
        if !cx.waker().will_wake(Waker::noop()) {
            self.waiting.borrow_mut().push(cx.waker().clone());
        }
    }
}

/// Writes the log into the story of this thread's world.
pub(crate) struct Story;

impl io::Write for Story {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(scene) = scene() {
            scene.shared.trace(|| String::from_utf8_lossy(line).trim_end().to_owned());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One end of a simulated connection.
pub(crate) struct Socket {
    conn: Conn,
    end: End,
    login: Login,
    arrived: BytesMut,
    /// The mistake: a stream is asked for from here on, wherever the task wants it to begin.
    instead: Option<Lsn>,
}

/// Nobody reads what a client sends before its first command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Login {
    Due,
    Over,
}

impl Socket {
    fn new(conn: Conn, end: End, login: Login) -> Self {
        Self { conn, end, login, arrived: BytesMut::new(), instead: None }
    }

    /// Gives the connection away, with what was not read of it.
    fn leave(mut self) -> (Conn, BytesMut) {
        let arrived = std::mem::take(&mut self.arrived);
        let conn = self.conn;
        // Closing a connection that does not exist does nothing.
        self.conn = 0;
        (conn, arrived)
    }

    /// The bytes with another start in them, if this is the command that begins a stream.
    fn with_other_start(&self, bytes: &[u8]) -> Option<BytesMut> {
        let instead = self.instead?;
        let text = std::str::from_utf8(bytes.get(5..bytes.len() - 1)?).ok()?;
        let mut words: Vec<_> = text.split(' ').collect();
        if words.first() != Some(&"START_REPLICATION") {
            return None;
        }
        let start = words.iter_mut().find(|word| word.parse::<Lsn>().is_ok())?;
        let instead = instead.to_string();
        *start = &instead;
        let mut out = BytesMut::new();
        frontend::query(&mut out, &words.join(" "));
        Some(out)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(scene) = scene() {
            scene.shared.network.borrow_mut().close(self.conn, self.end);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (me, scene) = (self.get_mut(), here());
        if me.arrived.is_empty() {
            let received = {
                let mut network = scene.shared.network.borrow_mut();
                network.receive(me.conn, me.end, &mut me.arrived)
            };
            match received {
                None => return Poll::Ready(Ok(())),
                Some(0) => {
                    scene.wait(cx);
                    return Poll::Pending;
                }
                Some(_) => {}
            }
        }
        let len = me.arrived.len().min(out.remaining());
        out.put_slice(&me.arrived[..len]);
        me.arrived.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let (me, scene) = (self.get_mut(), here());
        if me.login == Login::Due {
            me.login = Login::Over;
            return Poll::Ready(Ok(bytes.len()));
        }
        let mut network = scene.shared.network.borrow_mut();
        if !network.is_open(me.conn) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if let Some(other) = me.with_other_start(bytes) {
            network.send_all(me.conn, me.end, &other);
            return Poll::Ready(Ok(bytes.len()));
        }
        match network.send(me.conn, me.end, bytes) {
            0 => {
                scene.wait(cx);
                Poll::Pending
            }
            sent => Poll::Ready(Ok(sent)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        here().shared.network.borrow_mut().close(self.conn, self.end);
        Poll::Ready(Ok(()))
    }
}

/// The surroundings of one hub's task.
pub(crate) struct Surroundings {
    pub(crate) hub: usize,
    pub(crate) receiver: Mailbox,
}

/// Whom a host's name means: `s1` the second server, `h0` the first hub.
fn node_of(host: &Host) -> Node {
    let name = host.to_string();
    let name = name.trim_end_matches(":5432");
    let (kind, number) = name.split_at(1);
    let number = number.parse().unwrap();
    if kind == "s" { Node::Server(number) } else { Node::Hub(number) }
}

/// A connection string of these hosts.
pub(crate) fn conninfo_of(hosts: &[Node], target: TargetSessionAttrs) -> String {
    let name = |node: &Node| match node {
        Node::Server(number) => format!("s{number}"),
        Node::Hub(number) => format!("h{number}"),
        Node::Archive(_) => panic!("an archive is no host"),
    };
    let names: Vec<_> = hosts.iter().map(name).collect();
    let target = match target {
        TargetSessionAttrs::Primary => "primary",
        _ => "any",
    };
    let hosts = names.join(",");
    format!("host={hosts} user=hub passfile=/hub/none target_session_attrs={target}")
}

impl Environment for Surroundings {
    type Socket = Socket;
    type File = PlantedFile;
    type Wal = Image;
    type Archive = Restores;

    async fn connect(&self, _: &Conninfo, host: &Host) -> io::Result<Socket> {
        let (scene, node) = (here(), node_of(host));
        let conn = scene.shared.connect(Node::Hub(self.hub), node);
        let conn = conn.ok_or(io::ErrorKind::ConnectionRefused)?;
        let mut socket = Socket::new(conn, End::Client, Login::Due);
        let ground = &scene.hubs[self.hub];
        ground.model.borrow_mut().asked_archive = false;
        if scene.shared.plant == Plant::AsksWithoutOverlap {
            socket.instead = ground.model.borrow().published.map(|(_, durable)| durable);
        }
        Ok(socket)
    }

    fn pair(&self) -> io::Result<(Socket, Socket)> {
        let (here, archive) = (Node::Hub(self.hub), Node::Archive(self.hub));
        let scene = self::here();
        let mut network = scene.shared.network.borrow_mut();
        let conn = network.connect(here, archive);
        network.accept(archive);
        let end = |end| Socket::new(conn, end, Login::Over);
        Ok((end(End::Server), end(End::Client)))
    }

    async fn hand_over(&self, stream: Stream<Socket>) -> Result<(), HandOverFault> {
        let Stream { socket, mut unread, start, tli, source } = stream;
        let start = socket.instead.unwrap_or(start);
        let (conn, arrived) = socket.leave();
        unread.extend_from_slice(&arrived);
        let socket: OwnedFd = File::open("/dev/null").map_err(HandOverFault::Socket)?.into();
        here().handed_over.borrow_mut().insert(socket.as_raw_fd(), conn);
        let handoff = UpstreamHandoff { socket, unread, start, tli, source };
        let message = ToCore::Upstream(Box::new(handoff));
        let delivered = self.receiver.deliver(message, || true).await;
        if delivered.is_none() {
            here().shared.network.borrow_mut().close(conn, End::Client);
        }
        delivered.ok_or(HandOverFault::QueueFull)
    }

    fn open_own_wal(&self, name: SegmentName) -> io::Result<Option<Image>> {
        let scene = here();
        if scene.shared.plant == Plant::ReadsTheirsForOurs {
            let truth = scene.shared.truth.borrow();
            let (from, to) = (name.no.start(name.size), name.no.end(name.size));
            let to = to.min(truth.end(name.tli));
            return Ok((from < to).then(|| Image::from(truth.bytes(name.tli, from, to))));
        }
        if scene.shared.plant == Plant::AsksWithoutOverlap {
            return Ok(None);
        }
        Ok(scene.hubs[self.hub].own_file(name).map(Image::from))
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

/// What a file of WAL holds.
#[derive(Clone)]
pub(crate) struct Image(Arc<Vec<u8>>);

impl From<Vec<u8>> for Image {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Arc::new(bytes))
    }
}

impl ReadAt for Image {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.0.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

/// A segment that a hub waits for.
pub(crate) struct Fetch {
    names: Vec<SegmentName>,
    answer: oneshot::Sender<RestoreResult<(SegmentName, Image)>>,
}

/// The archive, as one hub reaches it.
pub(crate) struct Restores {
    pub(crate) hub: usize,
}

impl Archive for Restores {
    type Wal = Image;
    type Restored = Image;

    async fn history(&self, tli: TimelineId) -> Result<RestoreResult<Bytes>, RecvError> {
        let scene = here();
        scene.hubs[self.hub].model.borrow_mut().asked_archive = true;
        let truth = scene.shared.truth.borrow();
        Ok(Ok(scene.shared.archive.borrow_mut().history(&truth, tli)))
    }

    fn segment(
        &self,
        names: Vec<SegmentName>,
    ) -> oneshot::Receiver<RestoreResult<(SegmentName, Image)>> {
        let (answer, fetched) = oneshot::channel();
        here().hubs[self.hub].fetches.borrow_mut().push_back(Fetch { names, answer });
        fetched
    }

    fn ahead(&self) -> u64 {
        2
    }

    fn open(restored: &Image) -> io::Result<Image> {
        Ok(restored.clone())
    }
}

impl Ground {
    /// Our own file of a segment, complete or not.
    fn own_file(&self, name: SegmentName) -> Option<Vec<u8>> {
        let paths = [self.layout.segment(name), self.layout.partial(name)];
        paths.iter().find_map(|path| self.disk.disk.views(path).0)
    }

    /// The archive has had its time for the oldest fetch.
    pub(crate) fn complete_fetch(&self, hub: &Hub) {
        let Some(Fetch { names, answer }) = self.fetches.borrow_mut().pop_front() else { return };
        // The task may have something better to do by now.
        drop(answer.send(self.fetch(names, hub)));
    }

    fn fetch(&self, names: Vec<SegmentName>, hub: &Hub) -> RestoreResult<(SegmentName, Image)> {
        let (shared, cell) = (&self.shared, hub.current_cell());
        let held = cell.as_ref().map_or(Lsn::INVALID, |cell| cell.durable());
        let found = names.into_iter().find_map(|name| {
            let (truth, wanted) = (shared.truth.borrow(), (name.tli, name.no));
            let file = shared.archive.borrow_mut().segment(&truth, wanted, held);
            file.map(|(file, condition)| (name, file, condition))
        });
        let Some((name, mut file, condition)) = found else { return Ok(None) };
        if file.len() as u64 != name.size.bytes() {
            return Err(format!("\"{name}\" has the wrong size: {}", file.len()));
        }
        if condition == Condition::Half {
            shared.seen("half a segment in the archive");
        }
        if shared.plant == Plant::ArchiveWinsSilently
            && let Some(cell) = cell
            && let Some(ours) = self.own_file(SegmentName { tli: cell.tli(), ..name })
        {
            let len = held.bytes_since(name.no.start(name.size)).min(name.size.bytes()) as usize;
            file[..len].copy_from_slice(&ours[..len]);
        }
        self.fetched.borrow_mut().insert(name.to_string(), condition);
        Ok(Some((name, Image::from(file))))
    }

    /// Was the last copy of a segment that the archive gave a good one?
    pub(crate) fn was_good(&self, file: &str) -> bool {
        self.fetched.borrow().get(file) == Some(&Condition::Good)
    }
}
