//! One connection: its socket, its buffers, and its progress.

use super::session::{AfterMessage, Extent, Server, Session};
use super::walsender::Stream;
use crate::bench::truth::Truth;
use crate::standby::answers::{MAX_MESSAGE, after_stream};
use crate::standby::client::StreamEnd;
use crate::standby::stream::{Heard, KeepaliveDue};
use crate::wire::backend;
use crate::wire::copy::ReplyRequest;
use crate::wire::frame::next_frame;
use crate::wire::refusal::Refusal;
use crate::wire::startup::{FirstPacket, next_first_packet};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

/// The most slices of one send; the kernel takes 1024.
const MAX_SLICES: usize = 1024;

/// Messages made for one receiver before the next receiver's turn.
const TURN: usize = 8;

/// A connection to a client.
#[derive(Debug)]
pub(super) struct Connection {
    socket: TcpStream,
    pid: u32,
    phase: Phase,
    unread: BytesMut,
    queue: VecDeque<Bytes>,
    /// The kernel took all of the last offer.
    writable: bool,
    closing: bool,
}

#[derive(Debug)]
enum Phase {
    /// Before the startup packet.
    Starting,
    Commands(Session),
    Streaming(Session, Box<Stream>),
}

/// Whether a connection continues.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Life {
    Goes,
    Ends,
}

/// A receiver fell behind the window.
#[derive(Debug)]
pub(super) struct Fallen {
    pub(super) refusal: Refusal,
}

impl Connection {
    pub(super) fn new(socket: TcpStream, pid: u32) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            pid,
            phase: Phase::Starting,
            unread: BytesMut::new(),
            queue: VecDeque::new(),
            writable: true,
            closing: false,
        })
    }

    pub(super) const fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The stream and its session, while there is one.
    pub(super) fn stream(&self) -> Option<(&Session, &Stream)> {
        match &self.phase {
            Phase::Streaming(session, stream) => Some((session, stream)),
            _ => None,
        }
    }

    /// The socket has room again.
    pub(super) const fn may_write(&mut self) {
        self.writable = true;
    }

    /// Does it wait only for us?
    pub(super) fn wants_turn(&self, extent: Extent) -> bool {
        let more = self.stream().is_some_and(|(_, stream)| !stream.caught_up(extent));
        self.writable && (more || !self.queue.is_empty() || self.closing)
    }

    /// Reads all available messages and answers them.
    pub(super) fn read(&mut self, server: &mut Server, truth: &Truth) -> io::Result<Life> {
        let mut buffer = [0; 16 << 10];
        loop {
            let bytes = match self.socket.read(&mut buffer) {
                Ok(0) => return Ok(Life::Ends),
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Life::Goes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            // After the last message, what the client still sends is ignored.
            if !self.closing {
                self.hear(bytes, server, truth);
            }
        }
    }

    fn hear(&mut self, bytes: &[u8], server: &mut Server, truth: &Truth) {
        if let Phase::Streaming(_, stream) = &mut self.phase {
            let heard = stream.talk.hear(bytes, Instant::now());
            match heard {
                Heard::Replies => return,
                Heard::ReplyWanted => {
                    self.queue.push_back(stream.keepalive(ReplyRequest::No));
                    return;
                }
                Heard::Done(rest) => {
                    let mut out = BytesMut::new();
                    backend::copy_done(&mut out);
                    self.end_stream(server, &StreamEnd::ClientDone, out);
                    self.unread.extend_from_slice(&rest);
                }
                Heard::Failed(refusal) => {
                    self.end_stream(server, &StreamEnd::Failed(refusal), BytesMut::new());
                }
                Heard::Terminate => {
                    self.closing = true;
                    self.queue.clear();
                }
                Heard::Broken(refusal) => self.refuse(refusal.as_ref()),
            }
        } else {
            self.unread.extend_from_slice(bytes);
        }
        let mut out = BytesMut::new();
        while !self.closing && self.take(server, truth, &mut out) {}
        self.say(out);
    }

    /// Takes one unread message; returns `false` when there is none.
    fn take(&mut self, server: &mut Server, truth: &Truth, out: &mut BytesMut) -> bool {
        match &mut self.phase {
            Phase::Starting => match next_first_packet(&self.unread) {
                Ok(None) => return false,
                Ok(Some((packet, len))) => {
                    self.unread.advance(len);
                    self.first_packet(server, &packet, out);
                }
                Err(fault) => {
                    fault.answer(out);
                    self.closing = true;
                }
            },
            Phase::Commands(session) => {
                let extent = Extent { oldest: truth.oldest(), end: truth.end() };
                let (next, len) = match next_frame(&self.unread, MAX_MESSAGE) {
                    Ok(None) => return false,
                    Ok(Some(frame)) => (session.take(server, extent, &frame, out), frame.len),
                    Err(malformed) => {
                        backend::error(out, &malformed.refusal());
                        (AfterMessage::Close, 0)
                    }
                };
                self.unread.advance(len);
                match next {
                    AfterMessage::Message => {}
                    AfterMessage::Close => self.closing = true,
                    AfterMessage::Stream { start, slot } => {
                        let session = session.clone();
                        let stream = Box::new(Stream::new(start, slot, &session));
                        self.phase = Phase::Streaming(session, stream);
                        self.say(std::mem::take(out));
                        let rest = self.unread.split();
                        if !rest.is_empty() {
                            self.hear(&rest, server, truth);
                        }
                        return false;
                    }
                }
            }
            Phase::Streaming(..) => return false,
        }
        true
    }

    fn first_packet(&mut self, server: &Server, packet: &FirstPacket, out: &mut BytesMut) {
        let startup = match packet {
            // There is no encryption here; the client continues without it or disconnects.
            FirstPacket::Ssl | FirstPacket::Gss => return out.extend_from_slice(b"N"),
            FirstPacket::Cancel { .. } => {
                self.closing = true;
                return;
            }
            FirstPacket::Startup(startup) => startup,
        };
        match Session::open(server, startup, self.pid, out) {
            Ok(session) => self.phase = Phase::Commands(session),
            Err(refusal) => {
                backend::error(out, &refusal);
                self.closing = true;
            }
        }
    }

    /// The stream is over, but not the connection. `out` goes before the answer.
    fn end_stream(&mut self, server: &mut Server, ended: &StreamEnd, mut out: BytesMut) {
        if let Phase::Streaming(session, stream) = &self.phase {
            if let Some(name) = &stream.slot {
                server.slots.release(name, stream.talk.positions().flush);
            }
            self.phase = Phase::Commands(session.clone());
        }
        after_stream(ended, &mut out);
        self.say(out);
    }

    fn refuse(&mut self, refusal: Option<&Refusal>) {
        let mut out = BytesMut::new();
        if let Some(refusal) = refusal {
            backend::error(&mut out, refusal);
        }
        self.say(out);
        self.closing = true;
    }

    fn say(&mut self, out: BytesMut) {
        if !out.is_empty() {
            self.queue.push_back(out.freeze());
        }
    }

    /// Sends what there is to send, at most one turn. When a receiver has fallen behind the window,
    /// both it and the caller are told.
    pub(super) fn write(
        &mut self,
        server: &mut Server,
        truth: &Truth,
        fallen: &mut Option<Fallen>,
    ) -> io::Result<Life> {
        for _ in 0..TURN {
            if !self.writable {
                return Ok(Life::Goes);
            }
            if self.queue.is_empty() && !self.next_message(server, truth, fallen) {
                break;
            }
            self.flush()?;
        }
        let ended = self.closing && self.queue.is_empty();
        Ok(if ended { Life::Ends } else { Life::Goes })
    }

    fn next_message(
        &mut self,
        server: &mut Server,
        truth: &Truth,
        fallen: &mut Option<Fallen>,
    ) -> bool {
        let Phase::Streaming(_, stream) = &mut self.phase else { return false };
        match stream.message(truth, server.size, &mut self.queue) {
            Ok(more) => more,
            Err(refusal) => {
                *fallen = Some(Fallen { refusal: refusal.clone() });
                self.end_stream(server, &StreamEnd::Failed(refusal), BytesMut::new());
                true
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.queue.is_empty() {
            let slices: Vec<IoSlice<'_>> =
                self.queue.iter().take(MAX_SLICES).map(|bytes| IoSlice::new(bytes)).collect();
            match self.socket.write_vectored(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn written(&mut self, mut count: usize) {
        while let Some(first) = self.queue.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.queue.pop_front();
        }
    }

    /// Does what is due by the clock.
    pub(super) fn tick(&mut self, now: Instant) -> Life {
        let Phase::Streaming(_, stream) = &mut self.phase else { return Life::Goes };
        match stream.talk.due(now) {
            KeepaliveDue::Nothing => Life::Goes,
            KeepaliveDue::Ping => {
                self.queue.push_back(stream.keepalive(ReplyRequest::Yes));
                Life::Goes
            }
            KeepaliveDue::GiveUp => Life::Ends,
        }
    }

    /// The primary shuts down: tells a walreceiver that has everything.
    pub(super) fn shut_down(&mut self) {
        if self.stream().is_some() && !self.closing {
            let mut out = BytesMut::new();
            backend::command_complete(&mut out, "COPY 0");
            self.say(out);
        }
        self.closing = true;
    }

    /// Gives back what the connection held.
    pub(super) fn forget(&self, server: &mut Server) {
        if let Some((_, stream)) = self.stream()
            && let Some(name) = &stream.slot
        {
            server.slots.release(name, stream.talk.positions().flush);
        }
        server.slots.forget(self.pid);
    }
}
