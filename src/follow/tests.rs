//! The task against a scripted server.

mod accepting;
mod copying;
mod hostile;
mod paused;

use super::{ENDS, ORDERS, Parts, System, UpstreamOrder, run};
use crate::cluster::instance::{InstanceId, InstancePath};
use crate::config::{Config, MissingSlot, OnGap, WeakProof};
use crate::control::tests::keeper_that;
use crate::data::handoff::{Inbox, Mailbox, ToCore, UpstreamHandoff, mailbox};
use crate::hub::{Hub, tests};
use crate::keeper::{Job, JobDone, KeeperClient, Lane, Note};
use crate::store::control_file::{Cluster, ControlFile};
use crate::store::course::{FenceNote, UpstreamNote};
use crate::store::evidence::{Difference, Evidence, WalSource};
use crate::store::holes::{Extent, Hole};
use crate::store::layout::Layout;
use crate::store::retention::Holds;
use crate::store::sealed_text::MAX_LEN;
use crate::upstream::end::UpstreamEnd;
use crate::upstream::login::Login;
use crate::upstream::position::Position;
use crate::wal::{Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use crate::wire::backend::{self, Column};
use crate::wire::backend_read::FromServer;
use crate::wire::copy::xlog_data_header;
use crate::wire::frame::next_frame;
use crate::wire::refusal::Refusal;
use crate::wire::time::PgTime;
use bytes::{Buf, BytesMut};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(10);

/// Messages that wait for the core.
const QUEUE: usize = 16;

/// What a job would have saved, in brief.
fn noted(job: &Job) -> String {
    match job {
        Job::SaveHistory { tli, .. } => format!("history {tli}"),
        Job::SaveControl(control) => {
            let cluster = control.cluster.as_ref().unwrap();
            format!("begin {} {} {}", cluster.system_id, cluster.timeline, cluster.start)
        }
        Job::SaveIdentity { .. } => "identity".to_owned(),
        Job::SetAside(_) => "aside".to_owned(),
        Job::SaveNote { note: Note::Fence, bytes: Some(bytes) } => {
            let fence = FenceNote::decode(bytes).unwrap();
            format!("fence {} {} {}", fence.tli, fence.record_end, fence.durable)
        }
        Job::SaveNote { note: Note::Fence, bytes: None } => "no fence".to_owned(),
        Job::SaveNote { note: Note::Upstream, bytes: Some(bytes) } => {
            let note = UpstreamNote::decode(bytes).unwrap();
            format!("upstream {}", note.primary_conninfo.reveal())
        }
        Job::SaveNote { note: Note::Evidence, bytes: Some(bytes) } => {
            let evidence = Evidence::decode(bytes).unwrap();
            let one = |difference: &Difference| {
                let cleared = if difference.cleared { " cleared" } else { "" };
                format!("evidence {} {}{cleared}", difference.tli, difference.at)
            };
            evidence.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Job::SaveNote { note: Note::Evidence, bytes: None } => "no evidence".to_owned(),
        Job::SaveNote { note: Note::Upstream, bytes: None } => "upstream of the flag".to_owned(),
        Job::SaveState(json) => {
            let state: serde_json::Value = serde_json::from_str(json).unwrap();
            state["state"].as_str().unwrap().to_owned()
        }
        job => format!("{job:?}"),
    }
}

/// What a keeper was asked to save, in brief. Nothing orders the jobs of its two lanes.
#[derive(Clone, Debug, Default)]
struct Saved {
    urgent: Vec<String>,
    /// States, for the state file.
    patient: Vec<String>,
}

/// A keeper that records its jobs.
fn note_taker(saved: &Arc<Mutex<Saved>>) -> KeeperClient {
    let saved = Arc::clone(saved);
    keeper_that(move |job| {
        let mut saved = saved.lock().unwrap();
        match job.lane() {
            Lane::Urgent => saved.urgent.push(noted(job)),
            Lane::Patient => saved.patient.push(noted(job)),
        }
        JobDone::Done(job.kind())
    })
}

/// A server: what it reports about itself, and where its WAL begins.
#[derive(Clone)]
struct Server {
    path: Option<InstancePath>,
    timeline: u32,
    xlogpos: &'static str,
    oldest: Lsn,
    has_slot: bool,
    cluster_name: &'static str,
    says_first: FirstWords,
    /// The value of every byte of its WAL; with `None` it sends no WAL.
    wal: Option<u8>,
    /// What it does when it is asked for WAL a second time on a connection.
    hostility: Option<hostile::Hostility>,
}

/// How a stream begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FirstWords {
    /// A keepalive, which is a message like any other.
    Keepalive,
    /// There is nothing to send yet.
    Nothing,
}

const SERVER: Server = Server {
    path: None,
    timeline: 1,
    xlogpos: "0/5000028",
    oldest: Lsn::INVALID,
    has_slot: true,
    cluster_name: "",
    says_first: FirstWords::Keepalive,
    wal: None,
    hostility: None,
};

/// Serves every connection by the script, and records the commands.
fn start(server: Arc<Mutex<Server>>, asked: Arc<Mutex<Vec<String>>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (server, asked) = (Arc::clone(&server), Arc::clone(&asked));
            std::thread::spawn(move || drop(converse(socket.unwrap(), &server, &asked)));
        }
    });
    port
}

fn converse(
    mut socket: TcpStream,
    server: &Mutex<Server>,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
    socket.read_exact(&mut startup)?;
    let mut out = BytesMut::new();
    backend::auth_ok(&mut out);
    backend::parameter_status(&mut out, "server_version", "15.18");
    if let Some(path) = &server.lock().unwrap().path {
        backend::parameter_status(&mut out, "walhub.instance_path", &path.to_string());
    }
    backend::backend_key_data(&mut out, 1, 2);
    backend::ready_for_query(&mut out);
    let (mut unread, mut streams) = (BytesMut::new(), 0);
    loop {
        socket.write_all(&out)?;
        out.clear();
        while next_frame(&unread, 1 << 20).unwrap().is_none() {
            let mut bytes = [0; 4096];
            match socket.read(&mut bytes)? {
                0 => return Ok(()),
                n => unread.extend_from_slice(&bytes[..n]),
            }
        }
        let frame = next_frame(&unread, 1 << 20).unwrap().unwrap();
        let (tag, text) = (frame.tag, String::from_utf8_lossy(frame.body).replace('\0', ""));
        unread.advance(frame.len);
        match tag {
            b'Q' => {
                asked.lock().unwrap().push(text.clone());
                streams += u32::from(text.starts_with("START_REPLICATION"));
                let hostility = server.lock().unwrap().hostility.clone();
                if let Some(hostility) = hostility.filter(|_| streams == 2) {
                    return hostility.show(&mut socket, &text);
                }
                answer(&text, &mut server.lock().unwrap(), &mut out);
            }
            b'c' => {
                backend::copy_done(&mut out);
                backend::command_complete(&mut out, "START_STREAMING");
                backend::command_complete(&mut out, "START_REPLICATION");
                backend::ready_for_query(&mut out);
            }
            b'X' => return Ok(()),
            _ => {}
        }
    }
}

fn answer(text: &str, server: &mut Server, out: &mut BytesMut) {
    let row = |out: &mut BytesMut, values: &[&str]| {
        backend::row_description(out, &vec![Column::text("c"); values.len()]);
        let values: Vec<_> = values.iter().map(|value| Some(value.as_bytes())).collect();
        backend::data_row(out, &values);
        backend::command_complete(out, "DONE");
    };
    let words: Vec<_> = text.split(' ').collect();
    match words.as_slice() {
        ["IDENTIFY_SYSTEM"] => row(out, &["77", &server.timeline.to_string(), server.xlogpos]),
        ["SHOW", "wal_segment_size"] => row(out, &["16MB"]),
        ["SHOW", "data_directory_mode"] => row(out, &["0750"]),
        ["SHOW", "cluster_name"] => row(out, &[server.cluster_name]),
        ["SHOW", "synchronous_commit"] => row(out, &["on"]),
        ["TIMELINE_HISTORY", "3"] => row(out, &["00000003.history", "1\t0/3000000\tx\n"]),
        ["TIMELINE_HISTORY", _] => backend::error(out, &Refusal::error("58P01", "no file")),
        ["CREATE_REPLICATION_SLOT", ..] => {
            server.has_slot = true;
            row(out, &["s", "0/0", "", ""]);
        }
        ["START_REPLICATION", "SLOT", ..] if !server.has_slot => {
            backend::error(out, &Refusal::error("42704", "no slot"));
        }
        ["START_REPLICATION", .., start, "TIMELINE", _] => {
            backend::copy_both(out);
            let start = start.parse::<Lsn>().unwrap();
            if start >= server.oldest {
                if let Some(byte) = server.wal {
                    let end = server.xlogpos.parse::<Lsn>().unwrap();
                    let mut at = start;
                    while at < end {
                        let wal = (end.bytes_since(at) as usize).min(128 << 10);
                        out.extend_from_slice(&xlog_data_header(at, at, PgTime::new(0), wal));
                        out.resize(out.len() + wal, byte);
                        at = at.saturating_add(wal as u64);
                    }
                    return;
                }
                if server.says_first == FirstWords::Keepalive {
                    out.extend_from_slice(b"d\0\0\0\x16k");
                    out.extend_from_slice(&[0; 17]);
                }
                return;
            }
            backend::error(out, &Refusal::error("58P01", "segment removed"));
        }
        _ => backend::error(out, &Refusal::error("42601", "syntax error")),
    }
    backend::ready_for_query(out);
}

struct Scene {
    hub: Arc<Hub>,
    mailbox: Mailbox,
    inbox: Inbox,
    ends: mpsc::Sender<UpstreamEnd>,
    server: Arc<Mutex<Server>>,
    asked: Arc<Mutex<Vec<String>>>,
    saved: Arc<Mutex<Saved>>,
    orders: mpsc::Sender<UpstreamOrder>,
}

impl Scene {
    fn new(server: Server, change: impl FnOnce(&mut Config)) -> Self {
        Self::with(server, Holds::new(Lsn::INVALID), change)
    }

    fn with(server: Server, holds: Holds, change: impl FnOnce(&mut Config)) -> Self {
        let (server, asked) = (Arc::new(Mutex::new(server)), Arc::default());
        let port = start(Arc::clone(&server), Arc::clone(&asked));
        let mut config = tests::config(&format!("host=127.0.0.1 port={port} user=me"));
        config.wal_retrieve_retry_interval = Duration::from_millis(30);
        change(&mut config);
        let hub = Arc::new(Hub::new(Arc::new(config), InstanceId::new(0xE), Arc::new(holds)));
        let saved = Arc::default();
        let (mailbox, inbox) = mailbox(QUEUE, Arc::new(|| {}));
        let (ends, ended) = mpsc::channel(ENDS);
        let (orders, ordered) = mpsc::channel(ORDERS);
        let parts = Parts {
            environment: System { hub: Arc::clone(&hub), receiver: mailbox.clone() },
            hub: Arc::clone(&hub),
            cores: vec![mailbox.clone()],
            keeper: note_taker(&saved),
            archive: None,
        };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(run(parts, ended, ordered));
        });
        Self { hub, mailbox, inbox, ends, server, asked, saved, orders }
    }

    fn next(&self) -> ToCore {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = self.inbox.take() {
                return message;
            }
            assert!(Instant::now() < end, "{:?}", self.saved());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn stream(&self) -> UpstreamHandoff {
        loop {
            match self.next() {
                ToCore::Upstream(handoff) => return *handoff,
                ToCore::BeginAnew => assert_eq!(self.hub.position(), Position::Empty),
                other => panic!("{other:?}"),
            }
        }
    }

    fn saved(&self) -> Saved {
        self.saved.lock().unwrap().clone()
    }

    /// Waits until this was saved.
    fn wait_for(&self, what: &str) {
        self.wait_until(what, || {
            let Saved { urgent, patient } = self.saved();
            urgent.iter().chain(&patient).any(|saved| saved == what)
        });
    }

    fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done() {
            let state = self.hub.course.standing().state;
            assert!(Instant::now() < end, "{what}: {state} {:?}", self.saved());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until these words are in the state's text.
    fn wait_for_state(&self, words: &str) {
        self.wait_until(words, || self.hub.course.standing().state.to_string().contains(words));
    }

    fn end(&self, end: UpstreamEnd) {
        self.ends.blocking_send(end).unwrap();
    }
}

#[test]
fn an_empty_directory_begins_with_everything_saved_first() {
    let server = Server { timeline: 3, has_slot: false, ..SERVER };
    let scene = Scene::new(server, |config| {
        config.primary_slot_name = Some("s".to_owned());
        config.missing_slot = MissingSlot::Create;
    });
    let handoff = scene.stream();
    assert_eq!((handoff.start, handoff.tli.raw()), (Lsn::new(0x500_0000), 3));
    assert!(handoff.unread.is_empty() || handoff.unread.starts_with(b"d"));
    // Timeline 2 is not saved: it has no file.
    assert_eq!(scene.saved().urgent[..2], ["history 3", "begin 77 3 0/5000000"]);
    scene.wait_for("connecting");
    let asked = scene.asked.lock().unwrap().join("; ");
    assert_eq!(
        asked,
        "IDENTIFY_SYSTEM; SHOW wal_segment_size; SHOW data_directory_mode; TIMELINE_HISTORY 3; \
         SHOW cluster_name; TIMELINE_HISTORY 2; SHOW synchronous_commit; CREATE_REPLICATION_SLOT \"s\" PHYSICAL ( RESERVE_WAL ); \
         START_REPLICATION SLOT \"s\" 0/5000000 TIMELINE 3"
    );
    assert_eq!(scene.hub.identity().unwrap().data_directory_mode, "0750");

    // The next connection asks for what the receive role wants.
    let position = Position::At {
        tli: handoff.tli,
        durable: Lsn::new(0x500_4000),
        start: Lsn::new(0x500_2000),
    };
    scene.hub.set_position(position);
    scene.server.lock().unwrap().xlogpos = "0/5004000";
    scene.end(UpstreamEnd::TimedOut);
    assert_eq!(scene.stream().start, Lsn::new(0x500_2000));
    scene.wait_for("disconnected");

    // The server is behind us: the hub waits for it, without a stream.
    scene.server.lock().unwrap().xlogpos = "0/5002000";
    scene.end(UpstreamEnd::TimedOut);
    scene.wait_for("waiting for upstream");
    scene.server.lock().unwrap().xlogpos = "0/5004000";
    scene.stream();
}

#[test]
fn an_upstream_with_nothing_to_send_is_in_time_for_any_timeout() {
    let server = Server { says_first: FirstWords::Nothing, ..SERVER };
    let scene = Scene::new(server, |config| {
        config.wal_receiver_timeout = Duration::from_millis(700);
    });
    assert!(scene.stream().unread.is_empty());
    assert!(!scene.saved().patient.contains(&"disconnected".to_owned()), "{:?}", scene.saved());
}

#[test]
fn the_overlap_is_given_up_before_a_gap_is_declared() {
    let scene = Scene::new(SERVER, |config| config.on_gap = OnGap::RestartAtCurrent);
    let handoff = scene.stream();
    // Our last record begins in segment 4, and our end is in segment 5.
    let position = Position::At {
        tli: handoff.tli,
        durable: Lsn::new(0x500_0028),
        start: Lsn::new(0x4FF_E000),
    };
    scene.hub.set_position(position);
    scene.server.lock().unwrap().oldest = Lsn::new(0x500_0000);
    scene.end(UpstreamEnd::TimedOut);
    assert_eq!(scene.stream().start, Lsn::new(0x500_0000));
    assert!(!scene.saved().patient.contains(&"gap".to_owned()));

    {
        let mut server = scene.server.lock().unwrap();
        server.oldest = Lsn::new(0x700_0000);
        server.xlogpos = "0/7000100";
    }
    scene.end(UpstreamEnd::TimedOut);
    assert_eq!(scene.stream().start, Lsn::new(0x700_0000));
    scene.wait_for("gap");
    let mut saved = scene.saved().urgent;
    saved.retain(|what| what == "aside" || what.starts_with("begin"));
    assert_eq!(saved[1..], ["aside", "begin 77 1 0/7000000"]);
}

/// A server with our WAL may come back.
#[test]
fn our_wal_is_moved_aside_only_at_a_gap_that_lasts() {
    let scene = Scene::new(SERVER, |config| {
        config.on_gap = OnGap::RestartAtCurrent;
        config.retention.grace = Duration::from_secs(3600);
    });
    let tli = scene.stream().tli;
    let (durable, start) = (Lsn::new(0x500_0028), Lsn::new(0x500_0000));
    scene.hub.set_position(Position::At { tli, durable, start });
    {
        let mut server = scene.server.lock().unwrap();
        server.oldest = Lsn::new(0x700_0000);
        server.xlogpos = "0/7000100";
    }
    scene.end(UpstreamEnd::TimedOut);
    scene.wait_until("it is asked again and again", || {
        let asked = scene.asked.lock().unwrap();
        asked.iter().filter(|asked| asked.starts_with("START_REPLICATION 0/5000000")).count() > 4
    });
    scene.wait_for("gap");
    assert!(!scene.saved().urgent.contains(&"aside".to_owned()), "{:?}", scene.saved());
    scene.server.lock().unwrap().oldest = Lsn::INVALID;
    assert_eq!(scene.stream().start, start);
}

/// A stream from 0/5002000 on, with 16 kB of our own WAL in the open segment, all of one
/// byte.
fn receiving(directory: &std::path::Path, ours: u8) -> Scene {
    receiving_with(directory, ours, Holds::new(Lsn::INVALID))
}

fn receiving_with(directory: &std::path::Path, ours: u8, holds: Holds) -> Scene {
    receiving_as(directory, ours, holds, |_| {})
}

fn receiving_as(
    directory: &std::path::Path,
    ours: u8,
    holds: Holds,
    change: impl FnOnce(&mut Config),
) -> Scene {
    let layout = Layout::new(directory);
    std::fs::create_dir(layout.wal()).unwrap();
    let size = SegmentSize::new(16 << 20).unwrap();
    let no = Lsn::new(0x500_0000).segment(size);
    let name = SegmentName { tli: TimelineId::FIRST, no, size };
    std::fs::write(layout.partial(name), [ours; 0x4000]).unwrap();
    let server = Server { xlogpos: "0/5004000", ..SERVER };
    let scene = Scene::with(server, holds, |config| {
        config.directory = directory.to_owned();
        change(config);
    });
    let tli = scene.stream().tli;
    let (durable, start) = (Lsn::new(0x500_4000), Lsn::new(0x500_2000));
    scene.hub.set_position(Position::At { tli, durable, start });
    scene
}

#[test]
fn a_difference_is_kept_until_a_source_has_our_bytes_at_that_place() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    scene.server.lock().unwrap().wal = Some(0xBB);
    scene.end(UpstreamEnd::Diverged { at: Lsn::new(0x500_2100), detail: "other".to_owned() });
    scene.wait_for("diverged");
    assert_eq!(scene.saved().urgent.last().unwrap(), "evidence 1 0/5002100");

    // The hub asks repeatedly for that position, and for no stream.
    let asked = |text: &str| scene.asked.lock().unwrap().iter().filter(|a| *a == text).count();
    let question = "START_REPLICATION 0/5000000 TIMELINE 1";
    let standing = || scene.hub.course.standing().state.to_string();
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let end = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < end, "{what}: {} {:?}", standing(), scene.saved());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let before = asked(question);
    wait("it is asked again", &|| asked(question) >= before + 2);
    assert!(standing().contains("another history from 0/5000000 on"), "{}", standing());

    // It has removed WAL at that position, which proves nothing.
    scene.server.lock().unwrap().oldest = Lsn::new(0x500_2000);
    wait("it cannot show it", &|| standing().contains("segment removed"));
    assert!(standing().starts_with("diverged:"), "{}", standing());
    assert!(scene.inbox.is_empty());
    let places: Vec<_> = scene.hub.course.evidence().iter().map(|found| found.at).collect();
    assert_eq!(places, [Lsn::new(0x500_2100)]);

    // A source with our bytes.
    {
        let mut server = scene.server.lock().unwrap();
        server.oldest = Lsn::INVALID;
        server.wal = Some(0xAA);
    }
    assert_eq!(scene.stream().start, Lsn::new(0x500_2000));
    assert!(scene.saved().urgent.contains(&"no evidence".to_owned()), "{:?}", scene.saved());
    assert!(scene.hub.course.evidence().is_empty());
}

#[test]
fn another_source_clears_a_difference_for_all_but_its_author() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    let at = Lsn::new(0x500_2100);
    // A source that is gone had other WAL there; this server has ours.
    let gone = host("gone:5432");
    scene.server.lock().unwrap().wal = Some(0xAA);
    scene.hub.course.set_evidence(differed(gone.clone(), at, false));
    scene.end(UpstreamEnd::TimedOut);
    assert_eq!(scene.stream().start, Lsn::new(0x500_2000));
    assert!(scene.saved().urgent.contains(&"evidence 1 0/5002100 cleared".to_owned()));
    assert!(!scene.saved().urgent.contains(&"no evidence".to_owned()), "{:?}", scene.saved());
    let standing = scene.hub.course.evidence();
    assert!(standing.against(&gone).is_some(), "{standing:?}");
    assert_eq!(scene.hub.holds.oldest_hold(), None, "nothing is kept for it");

    // It is asked for our WAL as everybody is, not for the place, and the evidence stays as it is.
    let asked = |text: &str| scene.asked.lock().unwrap().iter().filter(|a| *a == text).count();
    let question = "START_REPLICATION 0/5000000 TIMELINE 1";
    let before = asked(question);
    scene.end(UpstreamEnd::TimedOut);
    scene.stream();
    assert_eq!(asked(question), before + 1);

    // A difference of its own stands beside what stands against the other.
    scene.server.lock().unwrap().wal = Some(0xBB);
    let other = Lsn::new(0x500_3000);
    scene.end(UpstreamEnd::Diverged { at: other, detail: "other".to_owned() });
    scene.wait_for("evidence 1 0/5003000, evidence 1 0/5002100 cleared");
    let before = asked(question);
    scene.wait_until("it is asked for its own", || asked(question) >= before + 2);
    assert!(scene.inbox.is_empty());

    // It has our bytes there, and then nothing is left but the other's.
    scene.server.lock().unwrap().wal = Some(0xAA);
    scene.stream();
    let standing = scene.hub.course.evidence();
    assert_eq!(*standing, differed(gone, at, true));
}

fn host(name: &str) -> WalSource {
    WalSource { name: name.to_owned(), server: None }
}

fn differed(source: WalSource, at: Lsn, cleared: bool) -> Evidence {
    let (tli, since) = (TimelineId::FIRST, SystemTime::UNIX_EPOCH);
    let (detail, bytes) = ("other".to_owned(), None);
    Evidence::from(Difference { tli, at, source, since, detail, bytes, cleared })
}

#[test]
fn a_server_that_differed_is_compared_under_another_name_too() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    {
        let mut server = scene.server.lock().unwrap();
        server.cluster_name = "main";
        server.wal = Some(0xBB);
    }
    let known = WalSource { server: Some("cluster_name main".to_owned()), ..host("db1:5432") };
    scene.hub.course.set_evidence(differed(known.clone(), Lsn::new(0x500_2100), true));
    scene.end(UpstreamEnd::TimedOut);
    scene.wait_for_state("another history from 0/5000000 on");
    assert!(scene.inbox.is_empty());

    // It has our bytes: its other name is still to be looked at.
    scene.server.lock().unwrap().wal = Some(0xAA);
    scene.stream();
    assert!(scene.hub.course.evidence().against(&known).is_some());
}

/// A hub that follows a server of timeline 3, which left timeline 1 at 0/3000000, where a segment
/// begins. Both have WAL up to 0/3000200; the hub's last of timeline 1 is 16 kB of one byte.
fn behind_a_fork(directory: &std::path::Path, ours: u8) -> Scene {
    let layout = Layout::new(directory);
    std::fs::create_dir(layout.wal()).unwrap();
    let size = SegmentSize::new(16 << 20).unwrap();
    let no = Lsn::new(0x200_0000).segment(size);
    let name = SegmentName { tli: TimelineId::FIRST, no, size };
    std::fs::write(layout.segment(name), vec![ours; 16 << 20]).unwrap();
    let server = Server { timeline: 3, xlogpos: "0/3000200", ..SERVER };
    let scene = Scene::new(server, |config| config.directory = directory.to_owned());
    assert_eq!(scene.stream().tli.raw(), 3);
    scene
}

const LAST_OF_TIMELINE_1: &str = "START_REPLICATION 0/2000000 TIMELINE 1";

#[test]
fn who_left_our_timeline_before_a_difference_has_to_show_our_wal_up_to_there() {
    let directory = tempfile::tempdir().unwrap();
    let scene = behind_a_fork(directory.path(), 0xAA);
    let (durable, start) = (Lsn::new(0x300_0100), Lsn::new(0x2FF_E000));
    scene.hub.set_position(Position::At { tli: TimelineId::FIRST, durable, start });
    scene.server.lock().unwrap().wal = Some(0xBB);
    scene.end(UpstreamEnd::Diverged { at: Lsn::new(0x300_0050), detail: "other".to_owned() });
    scene.wait_for("evidence 1 0/3000050");
    scene.wait_for_state("another history from 0/2000000 on");
    assert!(
        !scene.saved().urgent.iter().any(|saved| saved.starts_with("Switch")),
        "{:?}",
        scene.saved()
    );

    scene.server.lock().unwrap().wal = Some(0xAA);
    scene.wait_until("it switches", || {
        scene.saved().urgent.iter().any(|saved| saved.starts_with("Switch"))
    });
    assert!(!scene.hub.course.evidence().is_empty(), "until our WAL from there on is set aside");
    assert!(scene.asked.lock().unwrap().iter().any(|asked| asked == LAST_OF_TIMELINE_1));
}

/// Whether the two have one history there is not known then.
#[test]
fn a_timeline_is_not_left_while_our_wal_before_the_fork_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let scene = behind_a_fork(directory.path(), 0xAA);
    let layout = Layout::new(directory.path());
    let size = SegmentSize::new(16 << 20).unwrap();
    let no = Lsn::new(0x200_0000).segment(size);
    let file = layout.segment(SegmentName { tli: TimelineId::FIRST, no, size });
    let away = directory.path().join("away");
    std::fs::rename(&file, &away).unwrap();
    let (durable, start) = (Lsn::new(0x300_0100), Lsn::new(0x2FF_E000));
    scene.hub.set_position(Position::At { tli: TimelineId::FIRST, durable, start });
    scene.server.lock().unwrap().wal = Some(0xAA);
    scene.end(UpstreamEnd::TimedOut);
    scene.wait_for_state("timeline 1 is not left at 0/3000000");
    assert!(
        !scene.saved().urgent.iter().any(|saved| saved.starts_with("Switch")),
        "{:?}",
        scene.saved()
    );
    assert!(scene.inbox.is_empty());

    std::fs::rename(&away, &file).unwrap();
    scene.wait_until("it switches", || {
        scene.saved().urgent.iter().any(|saved| saved.starts_with("Switch"))
    });
}

#[test]
fn an_upstream_behind_us_is_compared_and_then_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    {
        let mut server = scene.server.lock().unwrap();
        server.xlogpos = "0/5003000";
        server.wal = Some(0xAA);
    }
    scene.end(UpstreamEnd::TimedOut);
    scene.wait_for_state("waiting for upstream");
    assert!(scene.hub.course.evidence().is_empty());
    let asked = "START_REPLICATION 0/5000000 TIMELINE 1";
    assert!(scene.asked.lock().unwrap().iter().any(|text| text == asked));

    // It was rolled back, and wrote something else.
    scene.server.lock().unwrap().wal = Some(0xBB);
    scene.wait_for_state("another history from 0/5000000 on");
    scene.wait_for("evidence 1 0/5000000");

    // Its WAL is ours again.
    {
        let mut server = scene.server.lock().unwrap();
        server.xlogpos = "0/5004000";
        server.wal = Some(0xAA);
    }
    scene.stream();
    assert!(scene.hub.course.evidence().is_empty());
}

#[test]
fn a_weak_proof_is_followed_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    scene.server.lock().unwrap().wal = Some(0xAA);
    scene.end(UpstreamEnd::TimedOut);
    scene.stream();
    let weak = || {
        let (proof, joins) = scene.hub.course.proof();
        (proof.unwrap().from, joins)
    };
    scene.wait_until("it is counted", || weak() == (Some(Lsn::new(0x500_0000)), 1));
    // The upstream has removed what is older.
    scene.server.lock().unwrap().oldest = Lsn::new(0x500_2000);
    scene.end(UpstreamEnd::TimedOut);
    scene.stream();
    scene.wait_until("it is counted", || weak() == (None, 2));
}

#[test]
fn a_weak_proof_is_refused_where_a_proof_is_required() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving_as(directory.path(), 0xAA, Holds::new(Lsn::INVALID), |config| {
        config.weak_proof = WeakProof::Refuse;
    });
    scene.server.lock().unwrap().wal = Some(0xAA);
    scene.end(UpstreamEnd::TimedOut);
    scene.wait_for("upstream not proved");
    scene.wait_for_state("weak: WAL from 0/5000000 to 0/5004000 on timeline 1 is the same, but");
    assert!(scene.inbox.is_empty());
    assert_eq!(scene.hub.course.proof().1, 0);
}

#[test]
fn a_difference_before_our_timelines_first_segment_is_one_on_its_parent() {
    let directory = tempfile::tempdir().unwrap();
    let scene = behind_a_fork(directory.path(), 0xAA);
    let tli = TimelineId::new(3).unwrap();
    let (durable, start) = (Lsn::new(0x300_0100), Lsn::new(0x2FF_E000));
    scene.hub.set_position(Position::At { tli, durable, start });
    scene.server.lock().unwrap().wal = Some(0xAA);
    scene.end(UpstreamEnd::Diverged { at: Lsn::new(0x2FF_F100), detail: "other".to_owned() });
    scene.wait_for("evidence 1 0/2FFF100");
    assert_eq!(scene.stream().start, start);
    assert!(scene.saved().urgent.contains(&"no evidence".to_owned()), "{:?}", scene.saved());
}

#[test]
fn evidence_stays_while_our_own_history_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let scene = behind_a_fork(directory.path(), 0xAA);
    let tli = TimelineId::new(3).unwrap();
    let (durable, start) = (Lsn::new(0x300_0100), Lsn::new(0x2FF_E000));
    scene.hub.set_position(Position::At { tli, durable, start });
    scene.hub.set_history(tli, bytes::Bytes::from_static(b"x\n"));
    scene.server.lock().unwrap().wal = Some(0xAA);
    scene.end(UpstreamEnd::Diverged { at: Lsn::new(0x2FF_F100), detail: "other".to_owned() });
    scene.wait_for_state("history of our timeline 3");
    assert!(!scene.hub.course.evidence().is_empty());
    assert!(!scene.saved().urgent.contains(&"no evidence".to_owned()), "{:?}", scene.saved());
    assert!(scene.inbox.is_empty());
}

/// The WAL that it is about is still here, and with the missing segments back the next start finds
/// it again.
#[test]
fn evidence_stays_while_the_wal_that_it_is_about_lies_past_a_hole() {
    let directory = tempfile::tempdir().unwrap();
    let size = SegmentSize::new(16 << 20).unwrap();
    let (tli, no) = (TimelineId::FIRST, Lsn::new(0x400_0000).segment(size));
    let hole = Hole { tli, first: no, last: no, size };
    let extent = Extent { before_open: Some(hole), ..Extent::from(Lsn::INVALID) };
    let scene = receiving_with(directory.path(), 0xAA, Holds::of(extent));
    scene.server.lock().unwrap().wal = Some(0xBB);
    scene.end(UpstreamEnd::Diverged { at: Lsn::new(0x500_2100), detail: "other".to_owned() });
    scene.wait_for("diverged");
    // As a start leaves it that does not find the segment before the open one.
    let durable = hole.start();
    scene.hub.set_position(Position::At { tli, durable, start: durable });
    scene.wait_for_state("lies past missing segments (000000010000000000000004)");
    assert!(!scene.saved().urgent.contains(&"no evidence".to_owned()), "{:?}", scene.saved());
    assert!(!scene.hub.course.evidence().is_empty() && scene.inbox.is_empty());

    // Against its author alone it bars nobody else, and stays as well.
    let gone = WalSource { name: "gone:5432".to_owned(), server: None };
    scene.hub.course.set_evidence(differed(gone, Lsn::new(0x500_2100), true));
    assert_eq!(scene.stream().start, durable);
    assert!(!scene.hub.course.evidence().is_empty());
}

#[test]
fn evidence_goes_with_the_wal_that_it_is_about() {
    let directory = tempfile::tempdir().unwrap();
    let scene = receiving(directory.path(), 0xAA);
    scene.server.lock().unwrap().wal = Some(0xBB);
    scene.end(UpstreamEnd::Diverged { at: Lsn::new(0x500_2100), detail: "other".to_owned() });
    scene.wait_for("diverged");
    // As --on-gap restart-at-current leaves it.
    scene.hub.set_position(Position::Empty);
    assert_eq!(scene.stream().start, Lsn::new(0x500_0000));
    assert!(scene.saved().urgent.contains(&"no evidence".to_owned()), "{:?}", scene.saved());
}

#[test]
fn the_oldest_segment_is_searched_on_one_connection() {
    let server = Server { oldest: Lsn::new(0x300_0000), ..SERVER };
    let scene = Scene::new(server, |config| {
        config.start_from = crate::upstream::position::StartFrom::Oldest
    });
    assert_eq!(scene.stream().start, Lsn::new(0x300_0000));
    let asked = scene.asked.lock().unwrap().clone();
    assert_eq!(asked.iter().filter(|text| *text == "IDENTIFY_SYSTEM").count(), 1);
}

#[test]
fn hubs_above_are_noted_and_a_loop_is_refused() {
    let above = InstancePath::empty().announced_by(InstanceId::new(1));
    let scene = Scene::new(Server { path: Some(above.clone()), ..SERVER }, |_| {});
    assert!(matches!(scene.next(), ToCore::EndHubStreams));
    scene.stream();
    assert_eq!(scene.hub.above(), above);
    scene.server.lock().unwrap().path = Some(above.announced_by(scene.hub.instance));
    scene.end(UpstreamEnd::TimedOut);
    scene.wait_for("upstream refused");
    assert!(scene.inbox.is_empty());
    assert_eq!(scene.hub.above(), above, "its path is not ours");
}

#[test]
fn a_core_with_a_full_queue_hears_of_the_new_path_too() {
    let scene = Scene::new(SERVER, |_| {});
    scene.stream();
    while scene.mailbox.post(ToCore::Cancel { pid: 1 }).is_ok() {}
    scene.server.lock().unwrap().path =
        Some(InstancePath::empty().announced_by(InstanceId::new(1)));
    scene.end(UpstreamEnd::TimedOut);
    let end = Instant::now() + PATIENCE;
    while scene.hub.above() == InstancePath::empty() {
        assert!(Instant::now() < end, "{:?}", scene.saved());
        std::thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..QUEUE {
        assert!(matches!(scene.next(), ToCore::Cancel { .. }));
    }
    let mut told = vec![scene.next(), scene.next()];
    told.retain(|message| matches!(message, ToCore::EndHubStreams));
    assert_eq!(told.len(), 1);
}

/// What is kept about a server goes into the control file. A longer one could not be read at the
/// next start.
#[test]
fn parameters_that_are_kept_fit_into_the_control_file() {
    // JSON writes this byte as six bytes.
    let text = |len: usize| "\u{1}".repeat(len);
    let fits = |len: &usize| {
        let mut out = BytesMut::new();
        let message = FromServer::ParameterStatus { name: text(*len), value: text(*len) };
        Login::new("me", None).take(&message, &mut out).is_ok()
    };
    let longest = (1..1 << 20).find(|len| !fits(&(len + 1))).expect("some length is too long");
    let mut login = Login::new("me", None);
    let name = |n: usize| format!("{}{n}", text(longest - n.to_string().len()));
    let kept = (0..).find(|n| login.parameter(&name(*n), &text(longest)).is_err());
    assert!(kept > Some(15), "PostgreSQL's own are kept: {kept:?}");
    let cluster = Cluster {
        system_id: SystemId::new(u64::MAX),
        segment_size: SegmentSize::new(1 << 20).unwrap(),
        data_directory_mode: "0700".to_owned(),
        parameters: login.finish().unwrap().parameters,
        timeline: TimelineId::FIRST,
        start: Lsn::new(5 << 20),
        sealed: Vec::new(),
    };
    let control = ControlFile { instance: InstanceId::new(5), cluster: Some(cluster) };
    let bytes = control.encode();
    assert!(bytes.len() <= MAX_LEN, "{} bytes", bytes.len());
    assert_eq!(ControlFile::decode(&bytes).unwrap(), control);
}
