//! `walhub ctl` as a client sees it: limits, deadlines, orders and their answers.

use super::*;
use crate::control::listener::Bound;
use crate::control::registry::Registry;
use crate::control::tests::forgetful;
use crate::control::{Control, Running};
use crate::ctl::address::Address;
use crate::data::figures::{About, Figures, Inquiry, ReceiverFigures};
use crate::data::handoff::{Inbox, ToControl, ToCore, mailbox};
use crate::follow;
use crate::hub::Hub;
use crate::keeper::{Job, queue};
use crate::store::asides::{Confirmations, KnownAsides, all_set_aside};
use crate::store::layout::Layout;
use crate::store::slots::{Create, Origin};
use crate::upstream::end::UpstreamEnd;
use crate::upstream::position::Position;
use crate::wal::{Lsn, TimelineId};
use crate::watermark::Cell;
use crate::wire::command::SlotLifetime;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Stream;
use tokio::sync::{mpsc, watch};

const DURABLE: Lsn = Lsn::new(0x500_2000);

/// A control thread with a core that only answers questions.
struct Scene {
    directory: tempfile::TempDir,
    hub: Arc<Hub>,
    running: watch::Sender<Running>,
    thread: std::thread::JoinHandle<()>,
}

/// How the core behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Core {
    Answers,
    Hangs,
    /// Its stream has just ended for that reason when it is recalled.
    FindsAnotherHistory,
}

impl Scene {
    fn new(core: Core) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let hub = Arc::new(crate::hub::tests::hub("15.18"));
        hub.push_cell(Arc::new(Cell::new(TimelineId::FIRST, Lsn::new(0x500_0000), DURABLE)));
        let start = Lsn::new(0x500_0000);
        hub.set_position(Position::At { tli: TimelineId::FIRST, durable: DURABLE, start });
        let (post, inbox) = mailbox(16, Arc::new(|| {}));
        let (news, from_cores) = mpsc::channel(16);
        let (running, is_running) = watch::channel(Running::Serving);
        let control = Control {
            hub: Arc::clone(&hub),
            mailboxes: vec![post],
            keeper: forgetful(),
            restorer: None,
            copies: follow::copies().1,
            bound: Bound::default().with_ctl(CtlSocket::open(directory.path()).unwrap()),
            news: from_cores,
            running: is_running,
        };
        let stop = running.subscribe();
        std::thread::spawn(move || {
            play(core, &inbox, &news, &stop);
        });
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(crate::control::run(control)).unwrap();
        });
        Self { directory, hub, running, thread }
    }

    fn connect(&self) -> Stream {
        let address = Address::of(self.directory.path(), "walhub.ctl").unwrap();
        let socket = Stream::connect(address.path()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    }

    fn ask(&self, line: &[u8]) -> serde_json::Value {
        let mut socket = self.connect();
        socket.write_all(line).unwrap();
        read_answer(&mut socket)
    }

    fn stop(self) {
        self.running.send(Running::Stopping).unwrap();
        self.thread.join().unwrap();
        assert!(!self.directory.path().join("walhub.ctl").exists());
    }
}

fn read_answer(socket: &mut Stream) -> serde_json::Value {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        assert_eq!(socket.read(&mut byte).unwrap(), 1, "{:?}", String::from_utf8_lossy(&line));
        line.extend(byte);
    }
    serde_json::from_slice(&line).unwrap()
}

/// The control thread lives as long as a sender of news exists.
fn play(
    core: Core,
    inbox: &Inbox,
    news: &mpsc::Sender<ToControl>,
    running: &watch::Receiver<Running>,
) {
    while *running.borrow() == Running::Serving {
        match inbox.take() {
            Some(ToCore::RecallUpstream) if core == Core::FindsAnotherHistory => {
                let (at, detail) = (Lsn::new(0x500_1000), "other".to_owned());
                let ended = UpstreamEnd::Diverged { at, detail };
                for end in [ended, UpstreamEnd::Recalled] {
                    news.blocking_send(ToControl::UpstreamEnded(end)).unwrap();
                }
            }
            Some(ToCore::RecallUpstream) if core == Core::Answers => {
                news.blocking_send(ToControl::UpstreamEnded(UpstreamEnd::Recalled)).unwrap();
            }
            Some(ToCore::Tell(Inquiry { about, answer })) if core == Core::Answers => {
                let receiver = ReceiverFigures {
                    tli: TimelineId::FIRST,
                    received: DURABLE,
                    written: DURABLE,
                    durable: DURABLE,
                    record_end: Lsn::new(0x500_0060),
                    needed: None,
                };
                let receiver = (about == About::Receiver).then_some(receiver);
                answer.send(Figures { receiver, ..Figures::default() }).unwrap();
            }
            Some(other) if core == Core::Answers => panic!("{other:?}"),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

const STATUS: &[u8] = b"{\"version\":1,\"command\":\"status\"}\n";

#[test]
fn status_and_refusals() {
    let scene = Scene::new(Core::Answers);
    let status = scene.ask(STATUS);
    let status = &status["status"];
    assert_eq!(status["system_id"], "7000000000000000001");
    assert_eq!((&status["durable_lsn"], &status["timeline"]), (&"0/5002000".into(), &1.into()));
    assert_eq!(status["fence"], serde_json::Value::Null);
    for (line, message) in [
        ("{\"version\":7,\"command\":\"x\"}\n", "the request has version 7"),
        ("nonsense\n", "invalid request"),
        (
            "{\"version\":1,\"command\":{\"drop_slot\":{\"name\":\"nosuch\"}}}\n",
            "replication slot \"nosuch\" does not exist",
        ),
        (
            "{\"version\":1,\"command\":{\"verify_at\":{\"bytes_per_second\":5}}}\n",
            "5 bytes in a second are outside the valid range (1MB .. 1048576MB)",
        ),
        (
            "{\"version\":1,\"command\":{\"set_upstream\":{\"conninfo\":\"hots=a\"}}}\n",
            "invalid upstream: invalid connection option \"hots\"",
        ),
    ] {
        let error = scene.ask(line.as_bytes());
        let text = error["error"]["message"].as_str().unwrap();
        assert!(text.contains(message), "{text}");
    }
    let rate = b"{\"version\":1,\"command\":{\"verify_at\":{\"bytes_per_second\":2097152}}}\n";
    assert!(scene.ask(rate)["scrub"].is_object());
    assert_eq!(scene.hub.holds.scrub.rate(), Some(2 << 20));
    scene.stop();
}

#[test]
fn status_says_what_was_seen_last_of_what_was_set_aside() {
    let scene = Scene::new(Core::Answers);
    let shown = || {
        let status = scene.ask(STATUS)["status"].clone();
        (status["set_aside"].clone(), status["set_aside_total"].clone())
    };
    assert_eq!(shown(), (serde_json::json!([]), serde_json::Value::Null));
    // Nothing of this is on the disk.
    let layout = Layout::new(scene.directory.path());
    std::fs::create_dir_all(layout.aside(3)).unwrap();
    let seen = all_set_aside(&layout, &Confirmations::default()).unwrap();
    std::fs::remove_dir(layout.aside(3)).unwrap();
    scene.hub.holds.asides.see(KnownAsides::of(seen));
    let (all, total) = shown();
    assert_eq!(all[0]["name"], "pg_wal.aside.3");
    assert_eq!(all[0]["confirmed"], serde_json::Value::Null);
    let left = scene.ask(b"{\"version\":1,\"command\":{\"confirm\":{}}}\n");
    assert_eq!(left["set_aside"][0]["name"], "pg_wal.aside.3");
    assert_eq!(total, serde_json::json!({"number": 1, "bytes": 0}));
    scene.stop();
}

#[test]
fn a_core_that_hangs_costs_a_deadline_and_status_is_told_without_it() {
    let scene = Scene::new(Core::Hangs);
    let status = scene.ask(STATUS);
    assert_eq!(status["status"]["received_lsn"], serde_json::Value::Null);
    assert_eq!(status["status"]["durable_lsn"], "0/5002000");
    let error = scene.ask(b"{\"version\":1,\"command\":\"standbys\"}\n");
    let text = error["error"]["message"].as_str().unwrap();
    assert!(text.contains("data core 0 did not answer"), "{text}");
    scene.stop();
}

#[test]
fn a_fence_stays_the_same_until_it_is_taken_down() {
    let scene = Scene::new(Core::Answers);
    let fence = b"{\"version\":1,\"command\":\"fence\"}\n";
    let first = scene.ask(fence);
    assert_eq!(first["fence"]["timeline"], 1);
    assert_eq!(first["fence"]["lsn"], "0/5000060");
    assert_eq!(first["fence"]["durable_lsn"], "0/5002000");
    assert_eq!(scene.ask(fence), first);
    assert_eq!(scene.hub.course.standing().state.name(), "fenced");
    let upstream = b"{\"version\":1,\"command\":{\"set_upstream\":{\"conninfo\":\
                     \"host=/nonexistent password=hunter2\"}}}\n";
    let set = scene.ask(upstream);
    let shown = set["upstream"]["conninfo"].as_str().unwrap();
    assert!(shown.contains("/nonexistent") && !shown.contains("hunter2"), "{shown}");
    assert_eq!(set["upstream"]["set_by"], "ctl");
    assert_eq!(scene.ask(STATUS)["status"]["upstream"]["state"], "fenced");
    let gone = scene.ask(b"{\"version\":1,\"command\":{\"unfence\":{}}}\n");
    assert_eq!(gone["fence"], serde_json::Value::Null);
    assert_ne!(scene.ask(STATUS)["status"]["upstream"]["state"], "fenced");
    let again = scene.ask(b"{\"version\":1,\"command\":{\"unfence\":{}}}\n");
    assert_eq!(again["fence"], serde_json::Value::Null);
    scene.stop();
}

/// An unset variable in a script would otherwise send the hub to whatever runs on its host.
#[test]
fn an_empty_upstream_is_refused() {
    let scene = Scene::new(Core::Answers);
    for command in [
        &br#"{"version":1,"command":{"set_upstream":{"conninfo":" "}}}"#[..],
        br#"{"version":1,"command":{"unfence":{"upstream":""}}}"#,
    ] {
        let said = scene.ask(&[command, b"\n"].concat());
        assert_eq!(said["error"]["message"], "invalid upstream: the connection string is empty");
    }
    let upstream = scene.ask(b"{\"version\":1,\"command\":\"upstream\"}\n");
    assert_eq!(upstream["upstream"]["set_by"], "flag");
    scene.stop();
}

/// A difference found at that moment is not lost with the stream that was given up.
#[test]
fn a_difference_that_was_found_before_an_order_is_kept() {
    let scene = Scene::new(Core::FindsAnotherHistory);
    let set =
        b"{\"version\":1,\"command\":{\"set_upstream\":{\"conninfo\":\"host=/nonexistent\"}}}\n";
    assert_eq!(scene.ask(set)["upstream"]["set_by"], "ctl");
    let status = scene.ask(STATUS);
    let evidence = &status["status"]["evidence"];
    assert_eq!((&evidence["lsn"], &evidence["detail"]), (&"0/5001000".into(), &"other".into()));
    scene.stop();
}

#[test]
fn floods_and_silence_hurt_nobody() {
    let scene = Scene::new(Core::Answers);
    // A line is refused as soon as it is too long.
    let mut socket = scene.connect();
    let flood = vec![b' '; MAX_REQUEST];
    socket.write_all(&flood).unwrap();
    let error = read_answer(&mut socket);
    let text = error["error"]["message"].as_str().unwrap();
    assert!(text.contains("longer than 65536 bytes"), "{text}");

    // Silent clients take all places, and the next one is told so at once.
    let silent: Vec<Stream> = (0..CLIENTS).map(|_| scene.connect()).collect();
    let busy = || {
        let mut socket = scene.connect();
        // The answer may be there before the question.
        drop(socket.write_all(STATUS));
        read_answer(&mut socket)
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while busy()["error"].is_null() {
        assert!(Instant::now() < deadline, "there is always room");
    }
    drop(silent);
    while busy()["status"].is_null() {
        assert!(Instant::now() < deadline, "there is no room again");
    }
    scene.stop();
}

/// Nobody but that work gives the slot up.
#[test]
fn a_drop_goes_on_when_its_client_has_no_more_time() {
    let hub = Arc::new(crate::hub::tests::hub("15.18"));
    let name = SlotName::parse("s").unwrap();
    {
        let mut slots = hub.holds.slots.lock();
        let (lifetime, origin) = (SlotLifetime::Persistent, Origin::Asked);
        let session = slots.enter(1);
        let create = Create { name: name.clone(), lifetime, origin, reserve: None, session };
        slots.create(create, 10).unwrap();
        slots.set_free(&name);
    }
    // Its queue has no place left.
    let (keeper, mut orders) = queue(1);
    keeper.note(Job::SaveState("state".to_owned()));
    let shared = Arc::new(Shared {
        registry: Registry::new(Arc::clone(&hub), 1, 1),
        hub: Arc::clone(&hub),
        mailboxes: Vec::new(),
        keeper,
        restorer: None,
        running: watch::channel(Running::Serving).1,
        connections: Arc::default(),
        orders: mpsc::channel(1).0,
        started: Instant::now(),
        started_at: std::time::SystemTime::now(),
    });
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async move {
        let service = CtlService { shared, ages: Mutex::default() };
        let asked = br#"{"version":1,"command":{"drop_slot":{"name":"s"}}}"#;
        let failure = service.answer(asked).await.unwrap_err();
        assert!(format!("{failure:?}").contains("the work continues"), "{failure:?}");
        assert!(hub.holds.slots.lock().get("s").unwrap().is_used());
        let state = orders.next().await.unwrap();
        assert!(matches!(state.job, Job::SaveState(_)));
        let drop_it = timeout(WORK, orders.next()).await.expect("the work continues").unwrap();
        assert_eq!(drop_it.job, Job::DropSlot(name));
    });
}
