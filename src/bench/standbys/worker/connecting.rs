//! From a timer to a stream.

use super::Worker;
use crate::bench::standbys::handshake::{self, Handshake, Seen, Stage, Wish};
use crate::bench::standbys::plan::{StandbySlots, StartAt};
use crate::bench::standbys::shared::FleetState;
use crate::bench::standbys::standby::{Connecting, Kind, State};
use crate::wal::Lsn;
use bytes::BytesMut;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The timeout for a connection and its login when the target sets none.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Why a handshake failed.
enum NoStream {
    /// The server refuses or cannot be reached: it is asked again.
    Refused(String),
    /// Its answers violate the protocol.
    Fault(String),
}

fn no_stream(host: &str, why: &handshake::NoStream) -> NoStream {
    let text = format!("{host}: {why}");
    match why {
        handshake::NoStream::Malformed(_) | handshake::NoStream::Unexpected(_) => {
            NoStream::Fault(text)
        }
        handshake::NoStream::Refused(_)
        | handshake::NoStream::Login(_)
        | handshake::NoStream::Other(_) => NoStream::Refused(text),
    }
}

impl Worker {
    pub(super) fn connect(&mut self, place: usize) {
        let ordinal = self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let begun = self.now();
        let standby = &mut self.standbys[place];
        let before = standby.kind();
        standby.generation = standby.generation.wrapping_add(1);
        let endpoint = standby.endpoint % self.shared.endpoints.len();
        let target = &self.shared.endpoints[endpoint];
        let timeout = target.timeout.unwrap_or(LOGIN_TIMEOUT);
        let connected = target.connect(ordinal).and_then(|socket| {
            let data = u64::from(standby.generation) << 32 | place as u64;
            let flags = EventFlags::IN | EventFlags::OUT;
            epoll::add(&self.epoll, &socket, EventData::new_u64(data), flags)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => {
                let name = format!("{}{}", self.shared.plan.names, standby.number + 1);
                let mut out = BytesMut::new();
                let handshake = Handshake::begin(target, &name, &mut out);
                standby.state = State::Connecting(Box::new(Connecting {
                    socket,
                    begun,
                    endpoint,
                    handshake,
                    out,
                    open: false,
                    wants_room: true,
                }));
                self.count(before, Kind::Connecting);
                self.set_due(place, begun.after(timeout));
            }
            Err(error) => {
                let text = format!("could not connect to {}: {error}", target.name);
                self.count(before, Kind::Failed);
                self.refused(place, text);
            }
        }
    }

    pub(super) fn shake_hands(&mut self, place: usize) {
        match self.try_shake_hands(place) {
            Ok(None) => {}
            Ok(Some(first_bytes)) => self.begin_stream(place, &first_bytes),
            Err(NoStream::Refused(text)) => {
                self.standbys[place].state = State::Idle;
                self.count(Kind::Connecting, Kind::Failed);
                self.refused(place, text);
            }
            Err(NoStream::Fault(text)) => {
                let at = self.standbys[place].at;
                self.fault(place, at, text);
            }
        }
    }

    /// The bytes after CopyBothResponse, once that has come.
    fn try_shake_hands(&mut self, place: usize) -> Result<Option<BytesMut>, NoStream> {
        let shared = Arc::clone(&self.shared);
        let standby = &mut self.standbys[place];
        let (number, received) = (standby.number, standby.received);
        let State::Connecting(connecting) = &mut standby.state else { return Ok(None) };
        let Connecting { socket, endpoint, handshake, out, open, wants_room, .. } =
            connecting.as_mut();
        let host = &shared.endpoints[*endpoint].name;
        if !*open {
            let lost = |error| NoStream::Refused(format!("could not connect to {host}: {error}"));
            if let Some(error) = socket.take_error().map_err(lost)? {
                return Err(lost(error));
            }
            *open = true;
        }
        let mut start = None;
        let mut first_bytes = None;
        match recv(&*socket, &mut *self.buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => {
                let text = format!("{host}: server closed the connection unexpectedly");
                return Err(NoStream::Refused(text));
            }
            Ok((got, _)) => {
                let bytes = self.buffer.get(..got).unwrap_or_default();
                let mut wish = |seen: &Seen| {
                    let wish = wish(&shared, number, received, seen)?;
                    start = Some(wish.start);
                    Ok(wish)
                };
                let stage = handshake.take(bytes, out, &mut wish);
                if let Stage::Streaming(rest) = stage.map_err(|fault| no_stream(host, &fault))? {
                    first_bytes = Some(rest);
                }
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => {}
            Err(error) => return Err(NoStream::Refused(format!("{host}: {error}"))),
        }
        if !out.is_empty() {
            match send(&*socket, out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(taken) => drop(out.split_to(taken)),
                Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => {}
                Err(error) => return Err(NoStream::Refused(format!("{host}: {error}"))),
            }
        }
        if out.is_empty() == *wants_room {
            *wants_room = !out.is_empty();
            let data = u64::from(standby.generation) << 32 | place as u64;
            let room = if *wants_room { EventFlags::OUT } else { EventFlags::empty() };
            let flags = EventFlags::IN | room;
            epoll::modify(&self.epoll, &*socket, EventData::new_u64(data), flags)
                .map_err(|error| NoStream::Refused(error.to_string()))?;
        }
        if let Some(start) = start {
            standby.at = start;
        }
        Ok(first_bytes)
    }

    /// The attempt has failed; the next one uses the next endpoint.
    pub(super) fn refused(&mut self, place: usize, text: String) {
        self.shared.refusal(text);
        let next = self.now().after(self.shared.plan.retry);
        let standby = &mut self.standbys[place];
        standby.endpoint = (standby.endpoint + 1) % self.shared.endpoints.len();
        self.set_due(place, next);
    }
}

/// Where a standby wants to begin, after it has identified the server.
fn wish(shared: &FleetState, number: usize, received: Lsn, seen: &Seen) -> Result<Wish, String> {
    let (plan, identity) = (&shared.plan, &shared.identity);
    if seen.system_id != identity.system_id.to_string() {
        return Err(format!(
            "database system identifier differs: {} here, {} before",
            seen.system_id, identity.system_id
        ));
    }
    if seen.tli != identity.tli {
        return Err(format!("the server is on timeline {} now", seen.tli));
    }
    let size = identity.segment_size;
    let again = !received.is_invalid();
    let start = match plan.first {
        StartAt::Segment if again => received.segment_start(size),
        _ if again => received.page_start(),
        StartAt::Segment => seen.xlogpos.segment_start(size),
        StartAt::Current => seen.xlogpos.page_start(),
        StartAt::At(lsn) => lsn.page_start(),
        StartAt::Spread { from, to } => {
            let share = u128::from(to.bytes_since(from)) * number as u128;
            let share = share / plan.standbys.max(1) as u128;
            from.saturating_add(u64::try_from(share).unwrap_or(u64::MAX)).page_start()
        }
    };
    let (slot, create_slot) = match &plan.slots {
        StandbySlots::None => (None, None),
        StandbySlots::Existing(prefix) => (Some(format!("{prefix}{}", number + 1)), None),
        StandbySlots::Created(prefix) => {
            (Some(format!("{prefix}{}", number + 1)), Some(identity.server_version_num))
        }
    };
    Ok(Wish { start, tli: seen.tli, slot, create_slot })
}
