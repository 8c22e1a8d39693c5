//! Sends without a copy: to whom, and what comes of them.
//!
//! A message's header is copied by a plain send that says "more follows"; what is sent
//! without a copy is WAL of one chunk, the rest of the message that the header has
//! announced. So a cursor needs nothing that it has not got already, and the only
//! memory that has to live on is the chunk's, which the ring holds (I7).

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
    /// Nobody has needed it yet, so nothing is locked.
    Untried,
    Registered,
    Refused,
}

impl ZerocopySends {
    pub(super) const fn new(core: usize, mode: Zerocopy) -> Self {
        Self { core, mode, memory: Memory::Untried }
    }

    /// How a standby at these ends of a TCP connection is sent large pieces, as far as
    /// settings go.
    fn wish(&self, ends: Option<Ends>) -> Delivery {
        match (self.mode, ends) {
            (Zerocopy::Off, _) | (_, None) => Delivery::Copied,
            (Zerocopy::Auto, Some(ends)) if is_local(ends) => Delivery::Copied,
            (Zerocopy::Auto | Zerocopy::On, Some(_)) => Delivery::Zerocopy,
        }
    }

    /// How a new standby is sent large pieces. The first that is sent them without a copy
    /// has the cache's memory locked for it.
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
                        "could not register --wal-buffers for sending without a copy: {error}; \
                         everything is copied{}",
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

    /// Nothing reads the memory of a send any more.
    pub(super) fn on_released(&self, senders: &mut Senders, key: Key, copied: Copied) {
        let Some(sender) = senders.table.get_mut(key) else { return };
        sender.unreleased = sender.unreleased.saturating_sub(1);
        if copied == Copied::Yes
            && self.mode == Zerocopy::Auto
            && sender.delivery == Delivery::Zerocopy
        {
            // Twice the work for nothing, and the way to the peer stays the same.
            sender.delivery = Delivery::Copied;
            debug!(pid = sender.session.pid, "the kernel copies all the same: so do plain sends");
        }
    }
}

/// Is the peer on this machine? There the kernel copies in any case.
fn is_local(Ends { peer, own }: Ends) -> bool {
    let ip = peer.ip().to_canonical();
    // Who connects to an address of this machine comes from that address, unless told
    // otherwise; then the kernel's report ends it.
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
    /// It could, did others not hold as much as may be held.
    Refused,
}

impl Senders {
    /// Sends what a hold holds: the next bytes of the standby's unfinished message.
    /// Returns how many those are.
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

    /// A standby's header is out: the message that it announces.
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

    /// The socket has taken what it took.
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
                sender.hold.advance(sender.cursor.next());
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
                    "sending without a copy does not work here, from now on it is copied: {error}"
                );
            }
            Err(error) => return self.disconnected(key, &error, cx),
        }
        self.sent_on(key, cx);
    }
}

/// An error that says nothing of the connection: a plain send may do.
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
