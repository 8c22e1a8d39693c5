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

    /// The next WAL, or none when the primary sent a keepalive.
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
