//! The primary and a client of its protocol.

use super::*;
use crate::bench::profile::{Figures, Profile, Rate};
use crate::wal::{PageRules, TimelineId, Walker};
use crate::wire::backend_read::FromServer;
use crate::wire::copy::{FromReceiver, FromSender, ReplyRequest, StatusReply};
use crate::wire::frame::next_frame;
use crate::wire::frontend;
use crate::wire::time::PgTime;
use bytes::{Buf, BytesMut};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

const MIB: u64 = 1 << 20;
const START: Lsn = Lsn::new(16 * MIB);

fn plan(figures: &Figures, window: u64) -> PrimaryPlan {
    PrimaryPlan {
        listen: ([127, 0, 0, 1], 0).into(),
        server_version: ServerVersion::new(15).unwrap(),
        system_id: SystemId::new(7),
        segment_size: SegmentSize::new(MIB).unwrap(),
        start: START,
        load: Load::new(Profile::Custom, figures).unwrap(),
        window,
        write_wal: None,
        clock: Clock::start(),
        truth: Arc::new(Truth::new(START, window)),
        commits: Arc::new(Commits::new(1 << 20)),
    }
}

fn figures(rate: Rate) -> Figures {
    Figures { rate: Some(rate), ..Figures::default() }
}

/// A replication client.
struct Client {
    socket: TcpStream,
    unread: BytesMut,
}

impl Client {
    fn connect(primary: &Primary, params: &[(&str, &str)]) -> Self {
        let socket = TcpStream::connect(primary.address()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Self { socket, unread: BytesMut::new() };
        client.say(frontend::ssl_request);
        client.fill();
        assert_eq!(client.unread.split_to(1), &b"N"[..]);
        client.say(|out| frontend::startup(out, params));
        client
    }

    fn replication(primary: &Primary, name: &str) -> Self {
        let params = [("user", "me"), ("replication", "true"), ("application_name", name)];
        let mut client = Self::connect(primary, &params);
        client.until_ready();
        client
    }

    fn say(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        write(&mut out);
        self.socket.write_all(&out).unwrap();
    }

    fn fill(&mut self) {
        let mut buffer = vec![0; 256 << 10];
        let count = self.socket.read(&mut buffer).unwrap();
        assert!(count > 0, "the primary closed the connection");
        self.unread.extend_from_slice(&buffer[..count]);
    }

    fn next<T>(&mut self, take: impl FnOnce(FromServer<'_>) -> T) -> T {
        loop {
            if let Some(frame) = next_frame(&self.unread, 1 << 20).unwrap() {
                let taken = take(FromServer::parse(frame).unwrap());
                let len = frame.len;
                self.unread.advance(len);
                return taken;
            }
            self.fill();
        }
    }

    /// Rows and errors up to ReadyForQuery, in short.
    fn until_ready(&mut self) -> String {
        let mut words = Vec::new();
        loop {
            let word = self.next(|message| match message {
                FromServer::DataRow(row) => {
                    let text = |value: &Option<&[u8]>| {
                        value.map_or("NULL".into(), |value| {
                            String::from_utf8_lossy(value).into_owned()
                        })
                    };
                    Some(row.iter().map(text).collect::<Vec<_>>().join("|"))
                }
                FromServer::Error(error) => Some(format!("{} {}", error.sqlstate, error.message)),
                FromServer::CopyBoth => Some("copy".into()),
                FromServer::CopyDone => Some("done".into()),
                FromServer::ReadyForQuery => None,
                _ => Some(String::new()),
            });
            match word {
                None => return words.join(" "),
                Some(word) if word.is_empty() => {}
                Some(word) => words.push(word),
            }
        }
    }

    fn ask(&mut self, query: &str) -> String {
        self.say(|out| frontend::query(out, query));
        self.until_ready()
    }

    fn start_replication(&mut self, start: Lsn) {
        self.say(|out| frontend::query(out, &format!("START_REPLICATION {start} TIMELINE 1")));
        self.next(|message| assert_eq!(message, FromServer::CopyBoth));
    }

    /// The next WAL, or `None` when the primary sent a keepalive.
    fn receive(&mut self) -> Option<(Lsn, Vec<u8>)> {
        self.next(|message| {
            let FromServer::CopyData(payload) = message else { panic!("{message:?}") };
            match FromSender::parse(payload).unwrap() {
                FromSender::XLogData { start, wal, .. } => Some((start, wal.to_vec())),
                FromSender::Keepalive { .. } => None,
            }
        })
    }

    fn reply(&mut self, at: Lsn, reply: ReplyRequest) {
        let status =
            StatusReply { write: at, flush: at, apply: at, client_time: PgTime::new(0), reply };
        assert!(FromReceiver::parse(&status.encode()[5..]).is_ok());
        self.socket.write_all(&status.encode()).unwrap();
    }
}

fn walker() -> Walker {
    let rules = PageRules {
        system: SystemId::new(7),
        size: SegmentSize::new(MIB).unwrap(),
        tli: TimelineId::FIRST,
        magic: Some(0xD110),
        fork: None,
    };
    Walker::new(rules, START)
}

#[test]
fn the_wal_streams_is_valid_and_has_all_commits() {
    let plan = plan(&Figures { total: Some(4 * MIB), ..figures(Rate::Max) }, 64 * MIB);
    let commits = Arc::clone(&plan.commits);
    let primary = start(plan).unwrap();
    let mut client = Client::replication(&primary, "a");
    client.start_replication(START);
    primary.begin();
    let (mut walker, mut at) = (walker(), START);
    while at < START.saturating_add(4 * MIB) {
        let Some((start, wal)) = client.receive() else { continue };
        assert_eq!(start, at);
        assert!(wal.len() <= 128 << 10);
        walker.feed(&wal).unwrap();
        at = start.saturating_add(wal.len() as u64);
        assert!(at <= commits.known(), "commits are known before their WAL is there");
    }
    client.reply(at, ReplyRequest::Yes);
    assert_eq!(client.receive(), None, "the keepalive asked for");
    let progress = primary.progress();
    assert_eq!((progress.end, progress.finished, progress.fault), (at, true, None));
    assert_eq!((walker.record_end(), commits.known()), (at, at));
    assert_eq!(progress.commits, commits.count());
    assert!(progress.commits >= 510, "{progress:?}", progress = progress.commits);
    let [receiver] = &progress.receivers[..] else { panic!("{:?}", progress.receivers) };
    assert_eq!((receiver.application_name.as_str(), receiver.sent, receiver.flush), ("a", at, at));
    let mut seen = Vec::new();
    commits.collect(0, at, &mut seen);
    assert_eq!(seen.last().unwrap().end, at);
    assert_eq!(primary.stop().bytes, progress.bytes);
}

#[test]
fn answers_are_those_of_postgres() {
    let primary = start(plan(&Figures::default(), 64 * MIB)).unwrap();
    let end = primary.progress().end;
    let mut client = Client::replication(&primary, "standby1");
    for (query, answer) in [
        ("IDENTIFY_SYSTEM", format!("7|1|{end}|NULL").as_str()),
        ("SHOW wal_segment_size", "1MB"),
        ("SHOW data_directory_mode", "0700"),
        ("SHOW Server_Version", "15.0 (walhub bench)"),
        ("SHOW application_name", "standby1"),
        ("SHOW wal_sender_timeout", "1min"),
        ("SHOW summarize_wal", "42704 unrecognized configuration parameter \"summarize_wal\""),
        (
            "TIMELINE_HISTORY 1",
            "58P01 could not open file \"pg_wal/00000001.history\": No such file or directory",
        ),
        ("CREATE_REPLICATION_SLOT s PHYSICAL RESERVE_WAL", "s|0/0|NULL|NULL"),
        ("READ_REPLICATION_SLOT s", format!("physical|{end}|1").as_str()),
        ("READ_REPLICATION_SLOT t", "NULL|NULL|NULL"),
        ("CREATE_REPLICATION_SLOT t TEMPORARY PHYSICAL", "t|0/0|NULL|NULL"),
        ("READ_REPLICATION_SLOT t", "physical|NULL|NULL"),
        ("DROP_REPLICATION_SLOT nosuch", "42704 replication slot \"nosuch\" does not exist"),
        ("READ_REPLICATION_SLOT t", "NULL|NULL|NULL"),
        (
            "START_REPLICATION 0/1000000 TIMELINE 2",
            "XX000 requested timeline 2 is not in this server's history",
        ),
        (
            "START_REPLICATION SLOT nosuch 0/1000000",
            "42704 replication slot \"nosuch\" does not exist",
        ),
        (
            "START_REPLICATION 0/F00000",
            "copy 58P01 requested WAL segment 00000001000000000000000F has already been removed",
        ),
        (
            "START_REPLICATION SLOT s 0/2000000",
            format!(
                "copy XX000 requested starting point 0/2000000 is ahead of the WAL flush \
                 position of this server {end}"
            )
            .as_str(),
        ),
        ("DROP_REPLICATION_SLOT s", ""),
        ("SELECT 1", "0A000 cannot execute SQL commands in WAL sender for physical replication"),
        ("BASE_BACKUP", "0A000 a synthetic primary has no data directory for BASE_BACKUP"),
    ] {
        assert_eq!(client.ask(query), answer, "{query}");
    }
}

#[test]
fn only_physical_replication_is_let_in() {
    let primary = start(plan(&Figures::default(), 64 * MIB)).unwrap();
    for replication in ["false", "database"] {
        let mut client = Client::connect(&primary, &[("user", "me"), ("replication", replication)]);
        client.next(|message| {
            let FromServer::Error(error) = message else { panic!("{message:?}") };
            assert_eq!((error.sqlstate.as_str(), error.severity.as_str()), ("0A000", "FATAL"));
        });
        assert_eq!(client.socket.read(&mut [0; 1]).unwrap(), 0);
    }
    let params = [("user", "me"), ("replication", "1"), ("wal_sender_timeout", "soon")];
    let mut client = Client::connect(&primary, &params);
    client.next(|message| {
        let FromServer::Error(error) = message else { panic!("{message:?}") };
        assert_eq!(error.sqlstate, "22023");
    });
}

#[test]
fn a_stream_ends_in_good_order_on_either_side() {
    let primary = start(plan(&Figures::default(), 64 * MIB)).unwrap();
    let end = primary.progress().end;
    let mut client = Client::replication(&primary, "a");
    assert_eq!(client.ask("CREATE_REPLICATION_SLOT s PHYSICAL"), "s|0/0|NULL|NULL");
    client.say(|out| frontend::query(out, "START_REPLICATION SLOT s 0/1000000"));
    client.next(|message| assert_eq!(message, FromServer::CopyBoth));
    let (start, wal) = client.receive().unwrap();
    assert_eq!((start, start.saturating_add(wal.len() as u64)), (START, end));
    let mut other = Client::replication(&primary, "b");
    let refused = other.ask("START_REPLICATION SLOT s 0/1000000");
    assert_eq!(refused, "55006 replication slot \"s\" is active for PID 1000");

    client.reply(end, ReplyRequest::No);
    client.say(frontend::copy_done);
    assert_eq!(client.until_ready(), "done");
    assert_eq!(client.ask("READ_REPLICATION_SLOT s"), format!("physical|{end}|1"));

    client.start_replication(end);
    let progress = primary.stop();
    assert!(progress.receivers.is_empty());
    client.next(|message| {
        assert_eq!(message, FromServer::CommandComplete("COPY 0".into()));
    });
    assert_eq!(client.socket.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_silent_receiver_is_asked_and_given_up() {
    let primary = start(plan(&Figures::default(), 64 * MIB)).unwrap();
    let params = [("user", "me"), ("replication", "1"), ("options", "-c wal_sender_timeout=400ms")];
    let mut client = Client::connect(&primary, &params);
    client.until_ready();
    client.start_replication(primary.progress().end);
    let begun = Instant::now();
    client.next(|message| {
        let FromServer::CopyData(payload) = message else { panic!("{message:?}") };
        let Ok(FromSender::Keepalive { reply, .. }) = FromSender::parse(payload) else { panic!() };
        assert_eq!(reply, ReplyRequest::Yes);
    });
    assert_eq!(client.socket.read(&mut [0; 1]).unwrap(), 0, "closed without a word");
    assert!(begun.elapsed() >= Duration::from_millis(400));
}

#[test]
fn a_fixed_rate_is_an_open_loop() {
    let plan = plan(
        &Figures {
            commit_size: Some("1kB-10kB".parse().unwrap()),
            total: Some(MIB),
            ..figures(Rate::PerSecond(8 * MIB))
        },
        64 * MIB,
    );
    let (commits, clock) = (Arc::clone(&plan.commits), plan.clock);
    let primary = start(plan).unwrap();
    let origin = primary.progress().end;
    assert_eq!(primary.progress().bytes, 0, "nothing before the load begins");
    let before = clock.now();
    primary.begin();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !primary.progress().finished {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut all = Vec::new();
    commits.collect(0, Lsn::MAX, &mut all);
    let began = all[0].due;
    assert!(began >= before);
    for pair in all.windows(2) {
        // It is due when the time for the WAL before it has passed, however late it was made.
        let bytes = pair[0].end.bytes_since(origin);
        let due = began.after(Duration::from_secs_f64(bytes as f64 / (8.0 * MIB as f64)));
        assert!(pair[1].due.0.abs_diff(due.0) < 1000, "{pair:?}");
    }
    assert!(clock.now() >= all.last().unwrap().due, "nothing comes before it is due");
    assert_eq!(primary.stop().bytes, all.last().unwrap().end.bytes_since(origin));
}

#[test]
fn a_closed_loop_waits_for_its_slowest_receiver() {
    let window = 2 * MIB;
    let primary = start(plan(&figures(Rate::Max), window)).unwrap();
    let stands = |from: Lsn| {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut end = primary.progress().end;
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let now = primary.progress().end;
            if now == end && now.bytes_since(from) >= window / 2 {
                return now;
            }
            assert!(Instant::now() < deadline, "{now}");
            end = now;
        }
    };
    primary.begin();
    let alone = stands(START);
    assert!(alone.bytes_since(START) < window, "with nobody there, too");

    let mut client = Client::replication(&primary, "slow");
    client.start_replication(START);
    let mut at = START;
    while at < START.saturating_add(64 * MIB) {
        if let Some((start, wal)) = client.receive() {
            assert_eq!(start, at);
            at = start.saturating_add(wal.len() as u64);
        }
    }
    let sent = |primary: &Primary| primary.progress().receivers[0].sent;
    let end = stands(at);
    assert!(end.bytes_since(sent(&primary)) < window, "the socket is full and the loop waits");
    assert_eq!(primary.progress().fault, None);
}

#[test]
fn an_open_loop_names_the_receiver_that_it_left_behind() {
    let window = MIB;
    let figures = Figures { total: Some(256 * MIB), ..figures(Rate::PerSecond(4096 * MIB)) };
    let primary = start(plan(&figures, window)).unwrap();
    let mut client = Client::replication(&primary, "slow");
    client.start_replication(START);
    primary.begin();
    let deadline = Instant::now() + Duration::from_secs(20);
    while primary.progress().fault.is_none() {
        assert!(Instant::now() < deadline, "{:?}", primary.progress());
        // It reads nothing until its socket is full and the window has passed; then it must get
        // something.
        if primary.progress().finished {
            client.fill();
        }
    }
    let fault = primary.progress().fault.unwrap();
    assert!(fault.contains("has already been removed"), "{fault}");
    let refused = loop {
        let refused = client.next(|message| match message {
            FromServer::Error(error) => Some(error),
            _ => None,
        });
        if let Some(error) = refused {
            break error;
        }
    };
    assert_eq!(refused.sqlstate, "58P01");
    client.until_ready();
    assert_eq!(client.ask("SHOW wal_level"), "replica", "the connection goes on");
}

#[test]
fn impossible_plans_are_refused() {
    let refused = |change: &dyn Fn(&mut PrimaryPlan)| {
        let mut plan = plan(&Figures::default(), 64 * MIB);
        change(&mut plan);
        start(plan).unwrap_err().to_string()
    };
    assert!(refused(&|plan| plan.start = Lsn::new(17)).contains("start of a segment"));
    assert!(refused(&|plan| plan.start = Lsn::new(17 * MIB)).contains("the truth begins"));
    assert!(refused(&|plan| plan.window = 8 << 10).contains("too large"));
}
