//! The control thread as a client sees it, with a data core that only takes and returns sockets.

use super::{Control, Running, SPARE_CONNECTIONS, listener, run};
use crate::cluster::instance::InstanceId;
use crate::config::Config;
use crate::data::handoff::{Handback, Inbox, StandbyHandoff, ToControl, ToCore, mailbox};
use crate::follow;
use crate::hub::{Hub, tests};
use crate::keeper::{Job, JobDone, KeeperClient, Order, QUEUE, queue};
use crate::standby::client::StreamEnd;
use crate::standby::refusals;
use crate::store::retention::Holds;
use crate::wal::{Lsn, TimelineId};
use crate::watermark::Cell;
use bytes::BytesMut;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

const PATIENCE: Duration = Duration::from_secs(10);

/// A keeper that claims to save everything at once. It runs on a thread of its own, which ends with
/// the last client.
pub(super) fn forgetful() -> KeeperClient {
    keeper_that(|job| JobDone::Done(job.kind()))
}

/// A keeper with these answers.
pub(crate) fn keeper_that(answer: impl Fn(&Job) -> JobDone + Send + 'static) -> KeeperClient {
    let (client, mut orders) = queue(QUEUE);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            while let Some(Order { job, reply }) = orders.next().await {
                reply.send(answer(&job));
            }
        });
    });
    client
}

struct Bench {
    hub: Arc<Hub>,
    address: SocketAddr,
    inbox: Inbox,
    news: mpsc::Sender<ToControl>,
    running: watch::Sender<Running>,
    thread: JoinHandle<()>,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = tests::config("host=/nonexistent user=walhub");
        config.listen_addresses = vec!["127.0.0.1".parse().unwrap()];
        change(&mut config);
        let hub =
            Hub::new(Arc::new(config), InstanceId::new(0xE), Arc::new(Holds::new(Lsn::INVALID)));
        let hub = Arc::new(hub);
        hub.set_identity(tests::hub("15.18").identity().unwrap());
        let tli = TimelineId::FIRST;
        hub.push_cell(Arc::new(Cell::new(tli, Lsn::new(1 << 24), Lsn::new(5 << 24))));
        Self::around(hub)
    }

    fn around(hub: Arc<Hub>) -> Self {
        // The tests that run in parallel open some thousand connections.
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        let bound = listener::bind(&hub.config).unwrap();
        let address = bound.addresses().first().copied();
        let (post, inbox) = mailbox(16, Arc::new(|| {}));
        let (news, from_cores) = mpsc::channel(16);
        let (running, is_running) = watch::channel(Running::Serving);
        let control = Control {
            hub: Arc::clone(&hub),
            mailboxes: vec![post],
            keeper: forgetful(),
            restorer: None,
            copies: follow::copies().1,
            bound,
            news: from_cores,
            running: is_running,
        };
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(control)).unwrap();
        });
        let address = address.unwrap_or_else(|| "127.0.0.1:1".parse().unwrap());
        Self { hub, address, inbox, news, running, thread }
    }

    fn connect(&self) -> Client<TcpStream> {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { socket, unread: BytesMut::new() }
    }

    fn log_in(&self) -> Client<TcpStream> {
        let mut client = self.connect();
        client.send(&startup(&[("user", "r"), ("replication", "true")]));
        client.until(b'Z');
        client
    }

    fn next(&self) -> ToCore {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.inbox.take() {
                Some(message) => return message,
                None => assert!(Instant::now() < end, "nothing for the core"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn next_standby(&self) -> StandbyHandoff {
        match self.next() {
            ToCore::Standby(handoff) => *handoff,
            other => panic!("{other:?}"),
        }
    }

    fn give_back(&self, handoff: StandbyHandoff, ended: StreamEnd, unread: &[u8]) {
        let StandbyHandoff { session, permit, socket, .. } = handoff;
        let unread = BytesMut::from(unread);
        let handback = Handback { unread, session, ended, permit, socket };
        self.news.blocking_send(ToControl::StandbyEnded(Box::new(handback))).unwrap();
    }

    /// The cores have gone, and so the control thread ends.
    fn ended(self) {
        drop(self.news);
        self.thread.join().unwrap();
    }

    fn stop(self) {
        self.running.send(Running::Stopping).unwrap();
        self.ended();
    }
}

struct Client<S> {
    socket: S,
    unread: BytesMut,
}

impl<S: Read + Write> Client<S> {
    fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// Messages up to and including the first of this type.
    fn until(&mut self, tag: u8) -> Vec<(u8, Vec<u8>)> {
        let mut messages = Vec::new();
        loop {
            while self.unread.len() >= 5 {
                let len = u32::from_be_bytes(self.unread[1..5].try_into().unwrap()) as usize + 1;
                if self.unread.len() < len {
                    break;
                }
                let message = self.unread.split_to(len);
                messages.push((message[0], message[5..].to_vec()));
                if message[0] == tag {
                    return messages;
                }
            }
            let mut bytes = [0; 4096];
            let n = self.socket.read(&mut bytes).unwrap();
            assert!(n > 0, "closed before {:?}: {messages:?}", char::from(tag));
            self.unread.extend_from_slice(&bytes[..n]);
        }
    }

    /// The answer in message types.
    fn tags(&mut self, tag: u8) -> String {
        self.until(tag).iter().map(|(tag, _)| char::from(*tag)).collect()
    }

    /// Returns the SQLSTATE and text of the error, and checks that the connection then ends.
    fn fatal(&mut self) -> String {
        let (_, body) = self.until(b'E').pop().unwrap();
        let text = error_text(&body);
        self.closed();
        text
    }

    fn closed(&mut self) {
        assert!(self.unread.is_empty(), "{:?}", self.unread);
        let mut rest = Vec::new();
        match self.socket.read_to_end(&mut rest) {
            Ok(_) => assert_eq!(rest, b"", "silence"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

impl Client<TcpStream> {
    /// Has the server closed by now, without a message?
    fn is_closed(&mut self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let read = self.socket.read(&mut [0]);
        self.socket.set_nonblocking(false).unwrap();
        match read {
            Ok(n) => {
                assert_eq!(n, 0, "silence");
                true
            }
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn error_text(body: &[u8]) -> String {
    let fields: Vec<_> = body.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
    let field = |code| fields.iter().find_map(|f| f.strip_prefix(code)).unwrap_or_default();
    format!("{} {} {}", field('S'), field('C'), field('M'))
}

fn packet(version: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32 + 8).to_be_bytes().to_vec();
    bytes.extend(version.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn startup(params: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for text in params.iter().flat_map(|(name, value)| [name, value]) {
        body.extend(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    packet(3 << 16, &body)
}

fn query(text: &str) -> Vec<u8> {
    let mut bytes = vec![b'Q'];
    bytes.extend((text.len() as u32 + 5).to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
const CANCEL: u32 = 80_877_102;

#[test]
fn encryption_is_declined_once_each_and_the_welcome_is_complete() {
    let bench = Bench::new();
    let mut client = bench.connect();
    for request in [GSS, SSL] {
        client.send(&packet(request, b""));
        let mut answer = [0];
        client.socket.read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"N");
    }
    let name = ("application_name", "s\n1");
    client.send(&startup(&[("user", "r"), ("replication", "on"), name]));
    let welcome = client.until(b'Z');
    let has =
        |status: &str| welcome.iter().any(|(tag, body)| *tag == b'S' && body == status.as_bytes());
    assert_eq!(welcome[0], (b'R', vec![0; 4]));
    assert!(has("application_name\0s?1\0") && has("server_version\x0015.18\0"));
    assert!(has("walhub.instance_path\x000000000000000000000000000000000e\0"));
    assert_eq!(welcome[welcome.len() - 2].0, b'K');

    let mut client = bench.connect();
    client.send(&packet(SSL, b""));
    client.socket.read_exact(&mut [0]).unwrap();
    client.send(&packet(SSL, b""));
    assert!(client.fatal().starts_with("FATAL 0A000 unsupported frontend protocol 1234.5679"));
    let mut client = bench.connect();
    client.send(&[packet(SSL, b""), startup(&[("user", "r"), ("replication", "on")])].concat());
    assert_eq!(client.fatal(), "FATAL 08P01 received unencrypted data after SSL request");
    bench.stop();
}

#[test]
fn those_who_may_not_come_in() {
    let bench = Bench::with(|config| {
        config.max_wal_senders = 1;
        config.authentication_timeout = Duration::from_millis(200);
    });
    for silent in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\0\0\x07", b"\x7f\0\0\0", b""] {
        let mut client = bench.connect();
        client.send(silent);
        client.closed();
    }
    let fatal = |params: &[(&str, &str)]| {
        let mut client = bench.connect();
        client.send(&startup(params));
        client.fatal()
    };
    let replication = ("replication", "true");
    assert_eq!(
        fatal(&[replication]),
        "FATAL 28000 no PostgreSQL user name specified in startup packet"
    );
    assert!(fatal(&[("user", "r"), ("replication", "foo")]).starts_with("FATAL 22023"));
    assert_eq!(
        fatal(&[("user", "r"), ("database", "postgres")]),
        "FATAL 0A000 walhub serves replication connections only"
    );
    let timeout = ("options", "-c wal_sender_timeout=soon");
    assert!(fatal(&[("user", "r"), replication, timeout]).starts_with("FATAL 22023"));
    let own = format!("-c walhub.instance_id={}", bench.hub.instance);
    assert!(fatal(&[("user", "r"), replication, ("options", &own)]).starts_with("FATAL 55000"));
    let first = bench.log_in();
    assert_eq!(
        fatal(&[("user", "r"), replication]),
        "FATAL 53300 number of requested standby connections exceeds max_wal_senders (currently 1)"
    );
    drop(first);
    // It said nothing: its place is free again once its task has seen the end.
    let end = Instant::now() + PATIENCE;
    while bench.hub.senders() > 0 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(bench.log_in());
    bench.stop();
}

#[test]
fn nobody_is_served_before_the_cluster_is_known() {
    let mut config = tests::config("host=/nonexistent user=walhub");
    config.listen_addresses = vec!["127.0.0.1".parse().unwrap()];
    let hub = Hub::new(Arc::new(config), InstanceId::new(1), Arc::new(Holds::new(Lsn::INVALID)));
    let bench = Bench::around(Arc::new(hub));
    let mut client = bench.connect();
    client.send(&startup(&[("user", "r"), ("replication", "true")]));
    assert_eq!(client.fatal(), "FATAL 57P03 the database system is starting up");
    bench.stop();
}

#[test]
fn a_socket_goes_to_the_core_and_comes_back_with_every_byte_in_order() {
    let bench = Bench::new();
    let mut client = bench.log_in();
    let pipelined = [query("IDENTIFY_SYSTEM"), query("START_REPLICATION 0/4000000 TIMELINE 1")];
    client.send(&pipelined.concat());
    client.send(b"d\0\0\0\x05r");
    assert_eq!(client.tags(b'Z'), "TDCZ");
    let mut handoff = bench.next_standby();
    assert_eq!((handoff.start, handoff.cell.tli()), (Lsn::new(4 << 24), TimelineId::FIRST));
    assert_eq!(handoff.hold.position(), handoff.start);
    // What was not read yet is in the socket, which is in blocking mode.
    let mut socket = TcpStream::from(handoff.socket);
    socket.write_all(b"W\0\0\0\x07\0\0\0").unwrap();
    let mut status = [0; 6];
    let read = handoff.unread.len();
    status[..read].copy_from_slice(&handoff.unread);
    socket.read_exact(&mut status[read..]).unwrap();
    assert_eq!(status, *b"d\0\0\0\x05r");
    assert_eq!(client.tags(b'W'), "W");

    // It comes back in the middle of a message after the client's CopyDone.
    handoff.socket = socket.into();
    let next = query("SHOW wal_segment_size");
    let (head, tail) = next.split_at(7);
    bench.give_back(handoff, StreamEnd::ClientDone, &[b"d\0\0\0\x05r", head].concat());
    client.send(tail);
    assert_eq!(client.tags(b'Z'), "CCZ");
    assert_eq!(client.tags(b'Z'), "TDCZ");
    assert_eq!(bench.hub.holds.count(), 0);

    client.send(&query("START_REPLICATION 0/4000000 TIMELINE 1"));
    let handoff = bench.next_standby();
    let (next, at) = (TimelineId::new(2).unwrap(), Lsn::new(5 << 24));
    bench.give_back(handoff, StreamEnd::Timeline { next, at }, b"");
    assert_eq!(client.tags(b'Z'), "TDCCZ");

    client.send(&query("START_REPLICATION 0/4000000 TIMELINE 1"));
    let handoff = bench.next_standby();
    let pid = handoff.session.pid;
    drop(handoff);
    bench.news.blocking_send(ToControl::StandbyClosed { pid }).unwrap();
    client.closed();
    bench.stop();
}

#[test]
fn a_cancel_request_with_the_right_key_reaches_the_core() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.send(&startup(&[("user", "r"), ("replication", "true")]));
    let welcome = client.until(b'Z');
    let key = &welcome.iter().find(|(tag, _)| *tag == b'K').unwrap().1;
    client.send(&query("START_REPLICATION 0/4000000"));
    let handoff = bench.next_standby();
    let mut wrong = key.clone();
    wrong[7] ^= 1;
    for key in [&wrong, key] {
        let mut canceller = bench.connect();
        canceller.send(&packet(CANCEL, key));
        canceller.closed();
    }
    let ToCore::Cancel { pid } = bench.next() else { panic!("no cancel") };
    assert_eq!(pid, handoff.session.pid);
    assert!(bench.inbox.is_empty());
    bench.give_back(handoff, StreamEnd::Failed(refusals::cancelled()), b"");
    let answer = client.until(b'Z');
    assert_eq!(error_text(&answer[0].1), "ERROR 57014 canceling statement due to user request");
    bench.stop();
}

/// Starts like libpq: it asks for encryption, and treats anything but the answer to that as an
/// error.
fn refused_after_ssl_request(client: &mut Client<TcpStream>) -> String {
    client.send(&packet(SSL, b""));
    let mut answer = [0];
    client.socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"N");
    client.send(&startup(&[("user", "r"), ("replication", "true")]));
    client.fatal()
}

#[test]
fn clients_hear_of_the_shutdown_after_their_startup_packet() {
    let bench = Bench::new();
    let mut streaming = bench.log_in();
    streaming.send(&query("START_REPLICATION 0/4000000"));
    let handoff = bench.next_standby();
    let mut early = bench.connect();
    early.send(&packet(GSS, b""));
    early.socket.read_exact(&mut [0]).unwrap();
    let mut silent = bench.connect();
    bench.running.send(Running::Stopping).unwrap();
    let mut late = bench.connect();
    for client in [&mut early, &mut late] {
        assert_eq!(
            refused_after_ssl_request(client),
            "FATAL 57P03 the database system is shutting down"
        );
    }
    let begun = Instant::now();
    silent.closed();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let pid = handoff.session.pid;
    drop(handoff);
    bench.news.blocking_send(ToControl::StandbyClosed { pid }).unwrap();
    bench.ended();
}

/// A core may still say how the upstream's stream ended.
#[test]
fn the_control_thread_waits_for_the_cores_though_nobody_is_connected() {
    let bench = Bench::new();
    bench.running.send(Running::Stopping).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(!bench.thread.is_finished());
    bench.ended();
}

#[test]
fn too_many_clients_hear_so_after_their_startup_packet() {
    let bench = Bench::with(|config| config.max_wal_senders = 1);
    let silent: Vec<_> = (0..270).map(|_| bench.connect()).collect();
    let mut client = bench.connect();
    assert_eq!(
        refused_after_ssl_request(&mut client),
        "FATAL 53300 sorry, too many clients already"
    );
    drop(silent);
    bench.stop();
}

#[test]
fn a_flood_of_clients_is_bounded() {
    let bench = Bench::with(|config| config.max_wal_senders = 0);
    let mut flood: Vec<_> = (0..SPARE_CONNECTIONS * 2 + 20).map(|_| bench.connect()).collect();
    // Silent clients lose their places long before authentication_timeout. Which ones do is open: a
    // full backlog lets later clients pass earlier ones.
    let deadline = Instant::now() + PATIENCE;
    while flood.len() > SPARE_CONNECTIONS {
        assert!(Instant::now() < deadline, "{} clients are still there", flood.len());
        flood.retain_mut(|client| !client.is_closed());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(flood.len(), SPARE_CONNECTIONS, "and nobody else has");
    bench.stop();
}

#[test]
fn messages_that_are_too_long_end_the_session() {
    let bench = Bench::new();
    let mut client = bench.log_in();
    client.send(b"Q\x7f\xff\xff\xff");
    client.send(&[b'x'; 100]);
    let (_, body) = client.until(b'E').pop().unwrap();
    assert_eq!(error_text(&body), "FATAL 08P01 invalid message length");
    let mut other = bench.log_in();
    other.send(&query(&" ".repeat(60_000)));
    assert_eq!(other.tags(b'Z'), "EZ");
    bench.stop();
}

/// Whoever hears that its connection ends may come back at once.
#[test]
fn a_place_and_temporary_slots_are_free_before_the_last_words() {
    let bench = Bench::with(|config| config.max_wal_senders = 1);
    let log_in = || {
        let mut client = bench.log_in();
        client.send(&query("CREATE_REPLICATION_SLOT t TEMPORARY PHYSICAL"));
        assert_eq!(client.tags(b'Z'), "TDCZ");
        client
    };
    for _ in 0..300 {
        let mut client = log_in();
        client.send(b"Q\x7f\xff\xff\xff");
        client.until(b'E');
        assert_eq!(bench.hub.senders(), 0);
        assert!(bench.hub.holds.slots.lock().is_empty());
    }
    let mut client = log_in();
    bench.running.send(Running::Stopping).unwrap();
    client.until(b'E');
    assert_eq!(bench.hub.senders(), 0);
    assert!(bench.hub.holds.slots.lock().is_empty());
    bench.ended();
}

#[test]
fn at_the_end_idle_clients_are_told_and_streams_are_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::with(|config| {
        config.unix_socket_directories = vec![directory.path().to_owned()];
        config.port = 5599;
        config.listen_addresses.clear();
    });
    let path = directory.path().join(".s.PGSQL.5599");
    let log_in = || {
        let socket = UnixStream::connect(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client { socket, unread: BytesMut::new() };
        client.send(&startup(&[("user", "r"), ("replication", "true")]));
        client.until(b'Z');
        client
    };
    let (mut idle, mut streaming) = (log_in(), log_in());
    streaming.send(&query("START_REPLICATION 0/4000000"));
    let handoff = bench.next_standby();
    assert_eq!(handoff.session.peer, "[local]");
    bench.running.send(Running::Stopping).unwrap();
    assert_eq!(idle.fatal(), "FATAL 57P01 terminating connection due to administrator command");
    std::thread::sleep(Duration::from_millis(50));
    assert!(!bench.thread.is_finished());
    let pid = handoff.session.pid;
    drop(handoff);
    bench.news.blocking_send(ToControl::StandbyClosed { pid }).unwrap();
    streaming.closed();
    bench.ended();
    assert!(!path.exists());
}
