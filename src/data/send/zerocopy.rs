//! Sends without a copy: to which standbys, and their outcome.
//!
//! A message's header is copied by a plain send that says "more follows". What is sent without a
//! copy is WAL of one chunk: the rest of the message that the header announced. A cursor therefore
//! needs no new state, and the only memory that must live on is the chunk's, which the ring holds
//! (I7).

use super::payload::LARGE;
use super::sender::{Delivery, Sender};
use super::senders::Senders;
use crate::config::Zerocopy;
use crate::data::context::Context;
use crate::data::table::Key;
use crate::data::token::Purpose;
use crate::ring::{ChunkHold, ChunkReader, Copied, Ends, Fd, Pin, Ring};
use crate::wire::copy::XLOG_DATA_HEADER;
use std::io;
use tracing::{debug, info, warn};

/// What a core may do without copies.
#[derive(Debug)]
pub(super) struct ZerocopySends {
    core: usize,
    mode: Zerocopy,
    memory: Memory,
}

/// The cache's memory, as this core's ring sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// It has not been needed yet, so nothing is locked.
    Untried,
    Registered,
    Refused,
}

impl ZerocopySends {
    pub(super) const fn new(core: usize, mode: Zerocopy) -> Self {
        Self { core, mode, memory: Memory::Untried }
    }

    /// How a standby at these ends of a TCP connection is sent large pieces, according to the
    /// settings.
    fn wish(&self, ends: Option<Ends>) -> Delivery {
        match (self.mode, ends) {
            (Zerocopy::Off, _) | (_, None) => Delivery::Copied,
            (Zerocopy::Auto, Some(ends)) if is_local(ends) => Delivery::Copied,
            (Zerocopy::Auto | Zerocopy::On, Some(_)) => Delivery::Zerocopy,
        }
    }

    /// How a new standby is sent large pieces. The first one to get them without a copy causes the
    /// cache's memory to be locked.
    pub(super) fn delivery_to<R: Ring>(
        &mut self,
        socket: &Fd,
        cache: &ChunkReader,
        ring: &mut R,
    ) -> Delivery {
        if self.wish(ring.ends(socket)) == Delivery::Copied {
            return Delivery::Copied;
        }
        if self.memory == Memory::Untried {
            self.memory = match ring.register(cache) {
                Ok(()) => Memory::Registered,
                Err(error) => {
                    warn!(
                        core = self.core,
                        "could not register --wal-buffers for zero-copy sends: {error}; all WAL is \
                         copied{}",
                        if error.kind() == io::ErrorKind::OutOfMemory {
                            " (raise the limit of locked memory: ulimit -l, LimitMEMLOCK=)"
                        } else {
                            ""
                        }
                    );
                    Memory::Refused
                }
            };
        }
        if self.memory == Memory::Registered { Delivery::Zerocopy } else { Delivery::Copied }
    }

    /// The memory of a send is no longer read.
    pub(super) fn on_released(&self, senders: &mut Senders, key: Key, copied: Copied) {
        let Some(sender) = senders.table.get_mut(key) else { return };
        sender.unreleased = sender.unreleased.saturating_sub(1);
        if copied == Copied::Yes
            && self.mode == Zerocopy::Auto
            && sender.delivery == Delivery::Zerocopy
        {
            // It is twice the work for nothing, and the route to the peer stays the same.
            sender.delivery = Delivery::Copied;
            let pid = sender.session.pid;
            debug!(pid, "the kernel copies zero-copy sends on this connection; using plain sends");
        }
    }
}

/// Is the peer on this machine? If so, the kernel copies in any case.
fn is_local(Ends { peer, own }: Ends) -> bool {
    let ip = peer.ip().to_canonical();
    // A local client that connects to an address of this machine comes from that same address,
    // unless it is told otherwise. In that case the kernel's report ends sends without a copy.
    ip.is_loopback() || ip == own.ip().to_canonical()
}

/// The rest of an announced message, if it is large, in one chunk of the cache, and may
/// be held.
pub(super) fn large_rest(sender: &Sender, pin: &Pin<'_>) -> LargeRest {
    let Some(rest) = sender.cursor.unfinished() else { return LargeRest::Small };
    let left = rest.end.bytes_since(rest.next);
    let at_hand = pin.bytes(sender.cell.id(), rest.next, left as usize).map_or(0, <[u8]>::len);
    if rest.header_sent < XLOG_DATA_HEADER || (at_hand as u64) < LARGE {
        return LargeRest::Small;
    }
    match pin.hold(sender.cell.id(), rest.next, left as usize) {
        Some(hold) => LargeRest::Held(hold),
        None => LargeRest::Refused,
    }
}

/// What can be done with the rest of a message.
pub(super) enum LargeRest {
    /// Nothing that is worth it.
    Small,
    /// It can be sent without a copy.
    Held(ChunkHold),
    /// It could be, but others hold as much as may be held.
    Refused,
}

impl Senders {
    /// Sends the held bytes: the next ones of the standby's unfinished message. Returns how many
    /// there are.
    pub(super) fn start_zerocopy<R: Ring>(
        &mut self,
        key: Key,
        hold: ChunkHold,
        cx: &mut Context<'_, R>,
    ) -> u64 {
        let Some(sender) = self.table.get_mut(key) else { return 0 };
        let len = hold.len() as u64;
        let token = Purpose::Zerocopy(key).token();
        sender.sending = Some(cx.ring.send_zerocopy(&sender.socket, hold, token));
        sender.unreleased += 1;
        sender.zerocopy_sends += 1;
        len
    }

    /// A standby's header is sent: sends the message that it announces.
    pub(super) fn follow_header<R: Ring>(
        &mut self,
        key: Key,
        cache: &ChunkReader,
        cx: &mut Context<'_, R>,
    ) -> u64 {
        let Some(sender) = self.table.get_mut(key) else { return 0 };
        if sender.delivery == Delivery::Copied || sender.sending.is_some() {
            return 0;
        }
        let rest = large_rest(sender, &cache.pin());
        match rest {
            LargeRest::Held(hold) => self.start_zerocopy(key, hold, cx),
            LargeRest::Refused => {
                self.refused_holds += 1;
                0
            }
            LargeRest::Small => 0,
        }
    }

    /// The socket took some or all of a send.
    pub(super) fn on_zerocopy_sent<R: Ring>(
        &mut self,
        key: Key,
        result: io::Result<usize>,
        cx: &mut Context<'_, R>,
    ) {
        let Some(sender) = self.table.get_mut(key) else { return };
        sender.sending = None;
        if sender.state.is_parting() {
            return self.settle(key, cx);
        }
        match result {
            Ok(sent) => {
                sender.cursor.advance(sent, &[], &[]);
                sender.hold.sent(sender.cursor.next());
                if sender.cursor.unfinished().is_some_and(|rest| rest.next < rest.end) {
                    self.wait_for_room(key, cx);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_for_room(key, cx),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_about_zerocopy(&error) => {
                let pid = sender.session.pid;
                sender.delivery = Delivery::Copied;
                info!(
                    pid,
                    "zero-copy sends do not work on this connection; using plain sends from now \
                     on: {error}"
                );
            }
            Err(error) => return self.disconnected(key, &error, cx),
        }
        self.sent_on(key, cx);
    }
}

/// Does the error say nothing about the connection, so that a plain send may succeed?
fn is_about_zerocopy(error: &io::Error) -> bool {
    let codes = [libc::ENOMEM, libc::EOPNOTSUPP, libc::EINVAL, libc::EFAULT, libc::ENOBUFS];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(peer: &str) -> Ends {
        Ends { peer: peer.parse().unwrap(), own: "192.0.2.1:5433".parse().unwrap() }
    }

    #[test]
    fn peers_on_this_machine_are_known() {
        let local = |peer: &str| is_local(ends(peer));
        assert!(local("127.0.0.1:1") && local("127.9.9.9:1") && local("[::1]:1"));
        assert!(local("192.0.2.1:1") && local("[::ffff:192.0.2.1]:1"));
        assert!(!local("192.0.2.2:1") && !local("[2001:db8::2]:1"));
    }

    #[test]
    fn unix_sockets_and_neighbours_are_copied_for() {
        let wish = |mode, ends| ZerocopySends::new(0, mode).wish(ends);
        let (near, far) = (Some(ends("127.0.0.1:1")), Some(ends("192.0.2.2:1")));
        assert_eq!(wish(Zerocopy::On, near), Delivery::Zerocopy);
        assert_eq!(wish(Zerocopy::On, None), Delivery::Copied);
        assert_eq!(wish(Zerocopy::Auto, near), Delivery::Copied);
        assert_eq!(wish(Zerocopy::Auto, far), Delivery::Zerocopy);
        assert_eq!(wish(Zerocopy::Off, far), Delivery::Copied);
    }
}
