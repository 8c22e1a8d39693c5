//! A replication client that speaks the protocol byte by byte, so that it can also
//! break it. It shares no code with the product: a mistake in a codec must not hide.

use crate::wait;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};
use walhub::wal::lsn::Lsn;

/// A connection, after whatever happened so far.
pub(crate) struct Client {
    socket: TcpStream,
    unread: Vec<u8>,
    /// What the server told in ParameterStatus.
    pub(crate) parameters: BTreeMap<String, String>,
}

/// One message of the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

/// An ErrorResponse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) severity: String,
    pub(crate) sqlstate: String,
    pub(crate) message: String,
}

/// A run of WAL from the stream.
#[derive(Debug)]
pub(crate) struct Wal {
    pub(crate) start: Lsn,
    pub(crate) bytes: Vec<u8>,
}

impl Wal {
    pub(crate) fn end(&self) -> Lsn {
        self.start.saturating_add(self.bytes.len() as u64)
    }
}

/// The rows of a query, NULL as none.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

const PATIENCE: Duration = Duration::from_secs(20);

impl Client {
    /// A bare TCP connection: nothing is sent.
    pub(crate) fn dial(port: u16) -> Self {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, unread: Vec::new(), parameters: BTreeMap::new() }
    }

    /// A replication connection, ready for commands.
    pub(crate) fn connect(port: u16) -> Self {
        let parameters = [("user", "postgres"), ("replication", "true")];
        wait::eventually("the server lets clients in", || {
            match Self::try_connect(port, &parameters) {
                Ok(client) => Some(client),
                // cannot_connect_now: it is starting up.
                Err(error) if error.sqlstate == "57P03" => None,
                Err(error) => panic!("{error:?}"),
            }
        })
    }

    /// A connection with these startup parameters, or the server's refusal.
    pub(crate) fn try_connect(port: u16, parameters: &[(&str, &str)]) -> Result<Self, ServerError> {
        let mut client = Self::dial(port);
        client.send(&startup_packet(0x0003_0000, parameters));
        client.read_greeting()?;
        Ok(client)
    }

    /// Reads on until the server is ready for commands.
    pub(crate) fn read_greeting(&mut self) -> Result<(), ServerError> {
        loop {
            let message = self.read_message().expect("the server closed during startup");
            match message.tag {
                b'R' => assert_eq!(message.body, [0; 4], "authentication was asked for"),
                b'S' => self.note_parameter(&message.body),
                b'K' => assert_eq!(message.body.len(), 8, "BackendKeyData of protocol 3.0"),
                b'E' => return Err(ServerError::parse(&message.body)),
                b'Z' => return Ok(()),
                b'v' | b'N' => {}
                other => panic!("unexpected message {:?} during startup", char::from(other)),
            }
        }
    }

    fn note_parameter(&mut self, body: &[u8]) {
        let text = String::from_utf8_lossy(body);
        let mut parts = text.split('\0');
        let name = parts.next().unwrap_or_default().to_owned();
        self.parameters.insert(name, parts.next().unwrap_or_default().to_owned());
    }

    /// Sends bytes as they are. A server that has closed is no error here.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        drop(self.socket.write_all(bytes));
    }

    /// Sends one message.
    pub(crate) fn send_message(&mut self, tag: u8, body: &[u8]) {
        self.send(&message(tag, body));
    }

    /// Sends a command and leaves the answer unread.
    pub(crate) fn send_query(&mut self, text: &str) {
        self.send_message(b'Q', &terminated(text));
    }

    /// A command's rows, or the first error; ready for commands again.
    pub(crate) fn query(&mut self, text: &str) -> Result<Rows, ServerError> {
        self.send_query(text);
        let mut rows = Rows::new();
        let mut failure = None;
        loop {
            let message = self.read_message().expect("the server closed during a command");
            match message.tag {
                b'D' => rows.push(parse_row(&message.body)),
                b'E' => {
                    let error = ServerError::parse(&message.body);
                    if error.severity != "ERROR" {
                        return Err(error);
                    }
                    failure.get_or_insert(error);
                }
                b'Z' => return failure.map_or(Ok(rows), Err),
                b'S' => self.note_parameter(&message.body),
                b'T' | b'C' | b'N' | b'W' | b'I' => {}
                other => panic!("unexpected message {:?} in an answer", char::from(other)),
            }
        }
    }

    /// The one field of a one-row answer.
    pub(crate) fn query_value(&mut self, text: &str) -> String {
        let rows = self.query(text).unwrap();
        rows[0][0].clone().unwrap()
    }

    /// `START_REPLICATION`, up to the server's CopyBothResponse.
    pub(crate) fn start_replication(&mut self, at: Lsn, timeline: u32) -> Result<(), ServerError> {
        self.send_query(&format!("START_REPLICATION PHYSICAL {at} TIMELINE {timeline}"));
        let answer = self.read_message().expect("the server closed at START_REPLICATION");
        match answer.tag {
            b'W' => Ok(()),
            b'E' => Err(ServerError::parse(&answer.body)),
            other => panic!("unexpected message {:?} at START_REPLICATION", char::from(other)),
        }
    }

    /// A column of a one-row answer.
    pub(crate) fn query_value_of(&mut self, text: &str, column: usize) -> String {
        let rows = self.query(text).unwrap();
        rows[0][column].clone().unwrap()
    }

    /// `START_REPLICATION` with a slot, on the current timeline.
    pub(crate) fn start_with_slot(&mut self, slot: &str, at: Lsn) -> Result<(), ServerError> {
        self.send_query(&format!("START_REPLICATION SLOT \"{slot}\" {at}"));
        let answer = self.read_message().expect("the server closed at START_REPLICATION");
        match answer.tag {
            b'W' => Ok(()),
            b'E' => {
                let ready = self.read_message().map(|message| message.tag);
                assert_eq!(ready, Some(b'Z'), "the session goes on");
                Err(ServerError::parse(&answer.body))
            }
            other => panic!("unexpected message {:?} at START_REPLICATION", char::from(other)),
        }
    }

    /// The next run of WAL, after answering what the server asked meanwhile. An error
    /// of the server, or none when it has ended the stream.
    pub(crate) fn next_wal(&mut self) -> Result<Option<Wal>, ServerError> {
        loop {
            let Some(message) = self.read_message() else { return Ok(None) };
            match (message.tag, message.body.first()) {
                (b'd', Some(b'w')) => return Ok(Some(parse_wal(&message.body))),
                (b'd', Some(b'k')) => {
                    assert_eq!(message.body.len(), 18, "length of a keepalive");
                    if message.body[17] != 0 {
                        self.send_status(Lsn::INVALID);
                    }
                }
                (b'E', _) => return Err(ServerError::parse(&message.body)),
                (b'c' | b'C', _) => return Ok(None),
                other => panic!("unexpected message {other:?} in the stream"),
            }
        }
    }

    /// Reads WAL on and on until `end`; every run must follow the one before.
    pub(crate) fn read_wal(&mut self, from: Lsn, end: Lsn) -> Vec<u8> {
        let mut wal = Vec::new();
        let mut at = from;
        while at < end {
            let run = self.next_wal().unwrap().expect("the stream ended early");
            assert_eq!(run.start, at, "the stream does not continue");
            at = run.end();
            wal.extend(run.bytes);
        }
        self.send_status(at);
        wal
    }

    /// A standby status update: everything up to `lsn` is written, flushed and applied.
    pub(crate) fn send_status(&mut self, lsn: Lsn) {
        let mut body = vec![b'r'];
        for _ in 0..3 {
            body.extend(lsn.raw().to_be_bytes());
        }
        body.extend([0; 9]);
        self.send_message(b'd', &body);
    }

    /// The next message; none when the server has closed.
    pub(crate) fn read_message(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.take_message() {
                return Some(message);
            }
            if self.fill() == 0 {
                return None;
            }
        }
    }

    fn take_message(&mut self) -> Option<Message> {
        let (&tag, rest) = self.unread.split_first()?;
        let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
        assert!(length >= 4, "a message of length {length}");
        let body = rest.get(4..length)?.to_vec();
        self.unread.drain(..=length);
        Some(Message { tag, body })
    }

    /// Exactly so many bytes, not understood.
    pub(crate) fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            assert!(self.fill() > 0, "the server closed");
        }
        self.unread.drain(..count).collect()
    }

    /// Reads some; 0 when the server has closed, in whatever way.
    fn fill(&mut self) -> usize {
        let mut buffer = vec![0; 256 * 1024];
        let read = loop {
            match self.socket.read(&mut buffer) {
                // A signal for whoever else is in this process.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(count) => {
                self.unread.extend(&buffer[..count]);
                count
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("the server neither answers nor closes: {error}"),
        }
    }

    /// Reads until the server closes; the last error it gave, and how long it took.
    pub(crate) fn read_to_close(&mut self) -> (Option<ServerError>, Duration) {
        let begun = Instant::now();
        let mut last = None;
        while let Some(message) = self.read_message() {
            if message.tag == b'E' {
                last = Some(ServerError::parse(&message.body));
            }
        }
        (last, begun.elapsed())
    }
}

impl ServerError {
    pub(crate) fn parse(body: &[u8]) -> Self {
        let mut fields = BTreeMap::new();
        for field in body.split(|&byte| byte == 0) {
            if let Some((&code, text)) = field.split_first() {
                fields.insert(code, String::from_utf8_lossy(text).into_owned());
            }
        }
        let mut take = |code| fields.remove(&code).unwrap_or_default();
        Self { severity: take(b'S'), sqlstate: take(b'C'), message: take(b'M') }
    }
}

/// A StartupMessage.
pub(crate) fn startup_packet(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend(terminated(name));
        body.extend(terminated(value));
    }
    body.push(0);
    with_length(&body)
}

/// A message with its tag and length.
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend(with_length(body));
    message
}

fn with_length(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&length.to_be_bytes()[..], body].concat()
}

fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn parse_row(body: &[u8]) -> Vec<Option<String>> {
    let (count, mut rest) = body.split_first_chunk().unwrap();
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk().unwrap();
        rest = after;
        row.push(usize::try_from(i32::from_be_bytes(*length)).ok().map(|length| {
            let (value, after) = rest.split_at(length);
            rest = after;
            String::from_utf8_lossy(value).into_owned()
        }));
    }
    row
}

fn parse_wal(body: &[u8]) -> Wal {
    let start = Lsn::new(u64::from_be_bytes(*body[1..].first_chunk().unwrap()));
    Wal { start, bytes: body[25..].to_vec() }
}
