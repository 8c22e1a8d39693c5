//! A network: connections that deliver late and in pieces, take no more than fits, and
//! break.

use crate::random::Random;
use bytes::{Buf, BytesMut};
use std::collections::{BTreeMap, VecDeque};

/// What a connection holds in one direction: less than a message, or more.
const ROOMS: [usize; 3] = [48 << 10, 192 << 10, 192 << 10];

/// Somebody who can be connected to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Node {
    Server(usize),
    Hub(usize),
    /// The archive as one hub sees it.
    Archive(usize),
}

/// One connection.
pub(crate) type Conn = u64;

/// An end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Client,
    Server,
}

#[derive(Default)]
struct Pipe {
    wire: BytesMut,
    inbox: BytesMut,
}

struct Line {
    client: Node,
    server: Node,
    to_client: Pipe,
    to_server: Pipe,
    /// Ends that have closed.
    closed: [bool; 2],
}

impl Line {
    /// The pipe that `end` reads from.
    fn towards(&mut self, end: End) -> &mut Pipe {
        match end {
            End::Client => &mut self.to_client,
            End::Server => &mut self.to_server,
        }
    }
}

/// All connections.
pub(crate) struct Network {
    random: Random,
    lines: BTreeMap<Conn, Line>,
    next: Conn,
    /// Connections that a server has not looked at yet.
    waiting: BTreeMap<Node, VecDeque<Conn>>,
    /// Everything arrives whole and at once.
    calm: bool,
    room: usize,
}

impl Network {
    pub(crate) fn new(mut random: Random) -> Self {
        let (lines, waiting) = (BTreeMap::new(), BTreeMap::new());
        let room = ROOMS[random.below(ROOMS.len() as u64) as usize];
        Self { random, lines, next: 1, waiting, calm: false, room }
    }

    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
    }

    /// A connection to a node that is up.
    pub(crate) fn connect(&mut self, client: Node, server: Node) -> Conn {
        let conn = self.next;
        self.next += 1;
        let (to_client, to_server) = (Pipe::default(), Pipe::default());
        let line = Line { client, server, to_client, to_server, closed: [false; 2] };
        self.lines.insert(conn, line);
        self.waiting.entry(server).or_default().push_back(conn);
        conn
    }

    /// The next connection that came in.
    pub(crate) fn accept(&mut self, server: Node) -> Option<(Conn, Node)> {
        let waiting = self.waiting.get_mut(&server)?;
        while let Some(conn) = waiting.pop_front() {
            if let Some(line) = self.lines.get(&conn) {
                return Some((conn, line.client));
            }
        }
        None
    }

    /// Takes what there is room for; 0 when there is none or nobody reads any more.
    pub(crate) fn send(&mut self, conn: Conn, from: End, bytes: &[u8]) -> usize {
        let (calm, room, random) = (self.calm, self.room, &mut self.random);
        let Some(line) = self.lines.get_mut(&conn) else { return 0 };
        if line.closed != [false; 2] {
            return 0;
        }
        let pipe = line.towards(other(from));
        let mut count = bytes.len().min(room.saturating_sub(pipe.wire.len() + pipe.inbox.len()));
        if !calm && count > 1 && random.chance(100) {
            count = 1 + random.below(count as u64) as usize;
        }
        pipe.wire.extend_from_slice(&bytes[..count]);
        count
    }

    /// Sends something small, for which there is room. A connection that is broken takes
    /// nothing.
    pub(crate) fn send_all(&mut self, conn: Conn, from: End, bytes: &[u8]) {
        let mut sent = 0;
        while sent < bytes.len() && self.is_open(conn) {
            let count = self.send(conn, from, &bytes[sent..]);
            assert!(count > 0, "a reply finds no room");
            sent += count;
        }
    }

    /// What has arrived, moved behind `into`. None: the connection is gone, and all that
    /// arrived was read.
    pub(crate) fn receive(&mut self, conn: Conn, at: End, into: &mut BytesMut) -> Option<usize> {
        let line = self.lines.get_mut(&conn)?;
        let gone = line.closed != [false; 2];
        let pipe = line.towards(at);
        let count = pipe.inbox.len();
        if count == 0 && gone {
            return None;
        }
        into.extend_from_slice(&pipe.inbox);
        pipe.inbox.clear();
        Some(count)
    }

    /// One end closes. What it sent before arrives, perhaps.
    pub(crate) fn close(&mut self, conn: Conn, end: End) {
        if let Some(line) = self.lines.get_mut(&conn) {
            let arrives = self.calm || self.random.chance(700);
            let pipe = line.towards(other(end));
            if arrives {
                let wire = std::mem::take(&mut pipe.wire);
                pipe.inbox.extend_from_slice(&wire);
            }
            line.closed[end as usize] = true;
            if line.closed == [true; 2] {
                self.lines.remove(&conn);
            }
        }
    }

    /// Whom a connection leads to.
    pub(crate) fn server_of(&self, conn: Conn) -> Option<Node> {
        self.lines.get(&conn).map(|line| line.server)
    }

    /// Is this end's connection still there?
    pub(crate) fn is_open(&self, conn: Conn) -> bool {
        self.lines.get(&conn).is_some_and(|line| line.closed == [false; 2])
    }

    /// Everything of a node breaks: it has died.
    pub(crate) fn cut_off(&mut self, node: Node) {
        let of_node = |line: &Line| [line.client, line.server].contains(&node);
        let conns: Vec<_> =
            self.lines.iter().filter(|(_, line)| of_node(line)).map(|(conn, _)| *conn).collect();
        for conn in conns {
            self.break_line(conn);
            let line = &self.lines[&conn];
            let (client, server) = (line.client == node, line.server == node);
            if client {
                self.close(conn, End::Client);
            }
            if server {
                self.close(conn, End::Server);
            }
        }
        self.waiting.remove(&node);
    }

    /// One connection breaks; what is under way is lost.
    fn break_line(&mut self, conn: Conn) {
        if let Some(line) = self.lines.get_mut(&conn) {
            line.to_client.wire.clear();
            line.to_server.wire.clear();
            // Nobody reads a connection that is broken to its last byte.
        }
    }

    /// Some connection breaks.
    pub(crate) fn break_one(&mut self) -> Option<(Node, Node)> {
        let count = self.lines.len() as u64;
        let index = self.random.below(count) as usize;
        let conn = *self.lines.keys().nth(index)?;
        self.break_line(conn);
        let line = self.lines.get_mut(&conn)?;
        let nodes = (line.client, line.server);
        // Both ends find out when they look.
        line.broken();
        Some(nodes)
    }

    /// Something arrives, on each connection perhaps.
    pub(crate) fn deliver(&mut self) {
        for line in self.lines.values_mut() {
            for pipe in [&mut line.to_client, &mut line.to_server] {
                if pipe.wire.is_empty() || !(self.calm || self.random.chance(600)) {
                    continue;
                }
                let mut count = pipe.wire.len();
                if !self.calm && self.random.chance(300) {
                    count = 1 + self.random.below(count as u64) as usize;
                }
                pipe.inbox.extend_from_slice(&pipe.wire[..count]);
                pipe.wire.advance(count);
            }
        }
    }
}

impl Line {
    /// Neither end can send any more; each still closes its own side.
    fn broken(&mut self) {
        // The flag of an end that has not closed itself is set by the break.
        if self.closed == [false; 2] {
            self.closed[End::Server as usize] = true;
        }
    }
}

fn other(end: End) -> End {
    match end {
        End::Client => End::Server,
        End::Server => End::Client,
    }
}
