//! A standby: reads, answers, stalls, breaks, and reconnects.

use super::kernel::{Kernel, MICROSECOND, MILLISECOND, Peer, SECOND, Socket, SocketId};
use super::tap::{Sight, Stage, Tap};
use super::truth::Truth;
use crate::data::handoff::{Handback, StandbyHandoff};
use crate::hub::Hub;
use crate::ring::Ends;
use crate::standby::client::{Session, StreamEnd};
use crate::wal::Lsn;
use crate::wire::copy::{HotStandbyFeedback, ReplyRequest, StatusReply};
use crate::wire::time::PgTime;
use bytes::BytesMut;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// What a client sends after its CopyDone: it must be returned to the control thread.
const NEXT_COMMAND: &[u8] = b"Q\0\0\0\x14IDENTIFY_SYSTEM\0X\0\0\0\x04";

pub(super) struct Standby {
    pub(super) pid: u32,
    pub(super) next_at: Duration,
    link: Option<Link>,
    /// Where it continues next time.
    at: Lsn,
    pub(super) core: usize,
    talks: u64,
    capacity: usize,
    ends: Option<Ends>,
}

struct Link {
    socket: SocketId,
    /// How many of the tap's bytes it has read.
    read: u64,
    /// To be sent, in fragments.
    words: Vec<u8>,
    stalled_until: Duration,
    silent_until: Duration,
    /// It did something that allows its stream to end.
    excused: bool,
    /// It has sent CopyDone.
    done: bool,
    /// Since when it waits for a keepalive.
    asked_at: Option<Duration>,
    completed: bool,
    asks_last: bool,
}

/// What a standby asks of the world.
pub(super) enum Wish {
    Nothing,
    HandOver(Box<StandbyHandoff>),
    Cancel,
}

impl Standby {
    pub(super) fn new(n: usize, cores: usize, at: Lsn, kernel: &mut Kernel) -> Self {
        let talks = [0, 50, 200, 900][kernel.random.below(4) as usize];
        let capacity = match kernel.random.below(4) {
            0 => 3000 + kernel.random.below(5000),
            _ => 20_000 + kernel.random.below(400_000),
        };
        Self {
            pid: 1000 * (n as u32 + 1),
            next_at: SECOND + kernel.delay(100 * MILLISECOND),
            link: None,
            at,
            core: kernel.random.below(cores as u64) as usize,
            talks,
            capacity: capacity as usize,
            ends: ends(n, kernel.random.below(4)),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// How far it has been sent.
    pub(super) fn position(&self, kernel: &mut Kernel) -> Lsn {
        self.link.as_ref().map_or(self.at, |link| kernel.socket(link.socket).tap_ref().at)
    }

    /// Sends `replies` status replies at once, whatever its socket holds.
    pub(super) fn chatter(&self, kernel: &mut Kernel, replies: usize) {
        let Some(link) = &self.link else { panic!("{} is away", self.pid) };
        let words = status(self.at, ReplyRequest::No).repeat(replies);
        kernel.socket(link.socket).said.extend(words);
    }

    /// Bytes it has sent that are not read yet.
    pub(super) fn unheard(&self, kernel: &mut Kernel) -> usize {
        self.link.as_ref().map_or(0, |link| kernel.socket(link.socket).said.len())
    }

    /// Has it been sent everything up to `goal`, and is it waiting for nothing?
    pub(super) fn is_content(&self, goal: Lsn, kernel: &mut Kernel) -> bool {
        let Some(link) = &self.link else { return false };
        let socket = kernel.socket(link.socket);
        let tap = socket.tap_ref();
        let goes_on = !socket.said_all && !socket.is_broken() && tap.stage == Stage::Copy;
        goes_on
            && !link.done
            && socket.said.is_empty()
            && tap.at == goal
            && tap.is_whole()
            && link.asked_at.is_none()
            && link.words.is_empty()
            && tap.bytes == link.read
    }

    pub(super) fn describe(&self, kernel: &mut Kernel) -> String {
        let Some(link) = &self.link else { return format!("{} is away", self.pid) };
        let socket = kernel.socket(link.socket);
        let tap = socket.tap_ref();
        format!(
            "{} on core {} is at {} ({:?}, whole {}, unread {}, unsaid {}, asks {:?})",
            self.pid,
            self.core,
            tap.at,
            tap.stage,
            tap.is_whole(),
            socket.unread,
            link.words.len(),
            link.asked_at
        )
    }

    pub(super) fn act(
        &mut self,
        kernel: &mut Kernel,
        hub: &Hub,
        truth: &'static Truth,
        seen: &mut BTreeSet<&'static str>,
    ) -> Wish {
        self.next_at = kernel.now + kernel.delay(2 * MILLISECOND);
        let Some(mut link) = self.link.take() else { return self.connect(kernel, hub, truth) };
        let mut wish = Wish::Nothing;
        let calm = kernel.faults.peers == 0;
        let now = kernel.now;
        if calm || link.stalled_until <= now {
            self.read(&mut link, kernel);
        }
        if calm && !std::mem::replace(&mut link.asks_last, true) && !link.done {
            // One last request for a reply must be answered.
            link.words.extend_from_slice(&status(self.at, ReplyRequest::Yes));
            link.asked_at = Some(now);
        }
        if calm || link.silent_until <= now {
            self.talk(&mut link, kernel);
        }
        if !link.done && kernel.random.chance(kernel.faults.peers) {
            wish = self.misbehave(&mut link, kernel, seen);
        }
        self.link = Some(link);
        wish
    }

    fn read(&mut self, link: &mut Link, kernel: &mut Kernel) {
        let most = kernel.random.below(2 * self.capacity as u64) as usize + 1;
        let socket = kernel.socket(link.socket);
        let count = socket.unread.min(most);
        socket.unread -= count;
        link.read += count as u64;
        let ended = socket.shut_write && socket.unread == 0;
        let tap = socket.tap();
        let at = tap.at;
        while let Some((end, sight)) = tap.sights.pop_front() {
            if end > link.read {
                tap.sights.push_front((end, sight));
                break;
            }
            match sight {
                Sight::Keepalive(reply) => {
                    link.asked_at = None;
                    if reply == ReplyRequest::Yes && !link.done {
                        link.words.extend_from_slice(&status(at, ReplyRequest::No));
                    }
                }
                Sight::Done => {
                    if !link.done {
                        link.words.extend_from_slice(b"c\0\0\0\x04");
                        link.words.extend_from_slice(NEXT_COMMAND);
                        link.done = true;
                    }
                    link.asked_at = None;
                }
                Sight::Completed | Sight::Error => link.completed = true,
            }
        }
        if ended {
            socket.said_all = true;
        }
    }

    fn talk(&mut self, link: &mut Link, kernel: &mut Kernel) {
        let socket = kernel.socket(link.socket);
        let tap = socket.tap_ref();
        let (at, streams) = (tap.at, tap.stage == Stage::Copy && !link.done && !link.completed);
        let waits = link.asked_at.is_some();
        let streams = streams && kernel.faults.peers > 0;
        if streams && kernel.random.chance(100 + self.talks) && link.words.len() < 5000 {
            let ask = kernel.random.chance(100) && !waits;
            let reply = if ask { ReplyRequest::Yes } else { ReplyRequest::No };
            for _ in 0..1 + self.talks / 100 {
                link.words.extend_from_slice(&status(at, ReplyRequest::No));
            }
            link.words.extend_from_slice(&status(at, reply));
            link.words.extend_from_slice(&feedback().encode());
            if ask {
                link.asked_at = Some(kernel.now);
            }
        }
        let fragment = match kernel.random.below(4) {
            0 => 1 + kernel.random.below(50),
            _ => 2000,
        };
        let socket = kernel.socket(link.socket);
        let count = link.words.len().min(fragment as usize);
        if !socket.said_all && !socket.reset && socket.said.len() < 20_000 {
            socket.said.extend(link.words.drain(..count));
        }
    }

    fn misbehave(
        &mut self,
        link: &mut Link,
        kernel: &mut Kernel,
        seen: &mut BTreeSet<&'static str>,
    ) -> Wish {
        let what = kernel.random.below(10);
        let stall = SECOND * kernel.random.below(100) as u32;
        let now = kernel.now;
        let socket = kernel.socket(link.socket);
        match what {
            0 => {
                seen.insert("a reset by a standby");
                socket.reset = true;
                socket.said.clear();
            }
            1 => socket.said_all = true,
            2 => link.words.extend_from_slice(b"X\0\0\0\x04"),
            3 => {
                link.words.extend_from_slice(b"Zounds");
                seen.insert("garbage from a standby");
            }
            4 => link.words.extend_from_slice(b"d\0\0\0\x06rx"),
            5 if link.asked_at.is_none() => {
                link.words.extend_from_slice(b"c\0\0\0\x04");
                link.words.extend_from_slice(NEXT_COMMAND);
                link.done = true;
            }
            6 => {
                seen.insert("a cancellation");
                link.excused = true;
                return Wish::Cancel;
            }
            7 => {
                link.stalled_until = now + stall;
                link.silent_until = now + stall;
                link.excused = true;
                return Wish::Nothing;
            }
            // Reads nothing, but stays alive.
            _ => {
                link.stalled_until = now + stall / 4;
                return Wish::Nothing;
            }
        }
        link.excused = true;
        Wish::Nothing
    }

    fn connect(&mut self, kernel: &mut Kernel, hub: &Hub, truth: &'static Truth) -> Wish {
        let (Some(cell), Some(permit)) = (hub.current_cell(), hub.take_sender()) else {
            return Wish::Nothing;
        };
        let oldest = kernel.disk.oldest().max(cell.start());
        // Some continue where they were, some at the start of that page or segment.
        let at = match kernel.random.below(3) {
            0 => self.at,
            1 => self.at.page_start(),
            _ => Lsn::new(self.at.raw() >> 20 << 20),
        };
        let start = at.max(oldest);
        let Ok(hold) = hub.holds.hold(start) else { return Wish::Nothing };
        self.pid += 1;
        let tap = Tap::new(truth, start);
        let mut socket = Socket::new(Peer::Standby(tap), self.capacity);
        socket.ends = self.ends;
        let (id, socket) = kernel.connect(socket);
        let timeout = hub.config.wal_sender_timeout;
        let early =
            if kernel.random.chance(200) { status(start, ReplyRequest::No) } else { Vec::new() };
        let cut = kernel.random.below(early.len() as u64 + 1) as usize;
        self.link = Some(Link {
            socket: id,
            read: 0,
            words: early[cut..].to_vec(),
            stalled_until: Duration::ZERO,
            silent_until: Duration::ZERO,
            excused: false,
            done: false,
            asked_at: None,
            completed: false,
            asks_last: false,
        });
        let slots = hub.holds.slots.lock().enter(self.pid);
        Wish::HandOver(Box::new(StandbyHandoff {
            socket,
            unread: BytesMut::from(&early[..cut]),
            session: Session {
                pid: self.pid,
                user: "replicator".to_owned(),
                application_name: format!("standby{}", self.pid),
                peer: "here".to_owned(),
                wal_sender_timeout: timeout,
                instance: None,
            },
            cell,
            start,
            seam: None,
            hold,
            permit,
            slots,
        }))
    }

    /// The hub closed the connection. With `excused`, an injected fault allows that.
    pub(super) fn closed(&mut self, kernel: &mut Kernel, excused: bool) {
        let Some(link) = self.link.take() else { panic!("a stream ends that has ended") };
        let ended_well = link.completed || link.excused || excused;
        let socket = kernel.socket(link.socket);
        let over = socket.tap_ref().stage == Stage::Over;
        assert!(ended_well || over, "stream {} is closed without a reason", self.pid);
        self.leave(&link, kernel);
    }

    /// The connection came back from the core.
    pub(super) fn handed_back(
        &mut self,
        handback: &Handback,
        kernel: &mut Kernel,
        excused: bool,
        seen: &mut BTreeSet<&'static str>,
    ) {
        let Some(link) = self.link.take() else { panic!("a stream ends that has ended") };
        assert_eq!(kernel.socket_of(&handback.socket), link.socket, "another socket comes back");
        let socket = kernel.socket(link.socket);
        // The connection continues, and its client reads.
        socket.unread = 0;
        assert!(socket.tap_ref().is_whole(), "framing: a connection goes on in a message");
        let stage = socket.tap_ref().stage;
        let mut unread = handback.unread.to_vec();
        unread.extend(&socket.said);
        unread.extend_from_slice(&link.words);
        match &handback.ended {
            StreamEnd::ClientDone => {
                assert!(link.done, "CopyDone of nobody");
                assert_eq!(stage, Stage::Done, "the stream ends without our CopyDone");
                // Keepalives may have been answered in the meantime.
                assert!(
                    unread.starts_with(NEXT_COMMAND) || socket.reset || link.excused,
                    "the next command is lost"
                );
                seen.insert("a stream that its client ended");
            }
            StreamEnd::Timeline { at, .. } => {
                assert_eq!(
                    (stage, socket.tap_ref().at),
                    (Stage::Done, *at),
                    "the end of the timeline"
                );
                assert!(unread.starts_with(NEXT_COMMAND), "the next command is lost");
                seen.insert("a timeline's end");
            }
            StreamEnd::Failed(refusal) => {
                assert!(link.excused || excused, "stream {} fails: {}", self.pid, refusal.message);
                seen.insert("a stream that failed");
            }
        }
        self.leave(&link, kernel);
    }

    fn leave(&mut self, link: &Link, kernel: &mut Kernel) {
        self.at = kernel.socket(link.socket).tap_ref().at;
        self.next_at = kernel.now + kernel.delay(50 * MILLISECOND) + 10 * MICROSECOND;
    }
}

/// Most standbys are on other hosts, some on this one, some on a Unix-domain socket.
fn ends(n: usize, place: u64) -> Option<Ends> {
    let host = match place {
        0 => return None,
        1 => 1,
        _ => 2 + n as u8,
    };
    let address = |host| SocketAddr::from(([192, 0, 2, host], 5433));
    Some(Ends { peer: address(host), own: address(1) })
}

fn status(at: Lsn, reply: ReplyRequest) -> Vec<u8> {
    let client_time = PgTime::new(0);
    StatusReply { write: at, flush: at, apply: Lsn::INVALID, client_time, reply }.encode().to_vec()
}

fn feedback() -> HotStandbyFeedback {
    HotStandbyFeedback {
        client_time: PgTime::new(0),
        xmin: 7,
        xmin_epoch: 0,
        catalog_xmin: 0,
        catalog_epoch: 0,
    }
}
