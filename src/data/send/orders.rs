//! Orders from elsewhere to a stream: it begins, it is cancelled, it must end.

use super::sender::Sender;
use super::senders::Senders;
use crate::data::context::Context;
use crate::data::table::Key;
use crate::ring::Ring;
use crate::standby::refusals;
use crate::store::slots::SlotToken;
use crate::wire::copy::ReplyRequest;
use std::time::Duration;

/// The time between the ends of two hubs' streams, so that the hubs do not all reconnect at once.
pub const HUB_PAUSE: Duration = Duration::from_millis(5);

impl Senders {
    /// A stream begins; its standby has already sent `unread`.
    pub(super) fn adopt<R: Ring>(
        &mut self,
        sender: Sender,
        unread: &[u8],
        cx: &mut Context<'_, R>,
    ) -> Key {
        let is_asked = sender.seam.is_some();
        let key = self.table.insert(sender);
        if is_asked {
            // 13 to 15 say nothing unasked for seconds.
            self.push_keepalive(key, ReplyRequest::Yes, cx);
        }
        if !unread.is_empty() {
            self.listen_to(key, unread, cx);
        }
        self.read_on(key, cx);
        self.set_timer(key);
        self.end_if_slot_lost(key, cx);
        self.end_if_set_aside(key, cx);
        key
    }

    /// A CancelRequest with the right key.
    pub(super) fn cancel<R: Ring>(&mut self, pid: u32, cx: &mut Context<'_, R>) {
        let is_meant = |sender: &Sender| sender.session.pid == pid && sender.state.is_open();
        let Some(key) = self.find(is_meant) else { return };
        let Some(sender) = self.table.get_mut(key) else { return };
        let duty = sender.state.cancelled(refusals::cancelled());
        self.perform(key, duty, cx);
        self.step(key, cx);
    }

    /// The slot of a stream lost its WAL. The standby must see that before it continues.
    pub(super) fn terminate<R: Ring>(&mut self, slot: SlotToken, cx: &mut Context<'_, R>) {
        let is_meant = |sender: &Sender| sender.hold.slot_token() == Some(slot);
        if let Some(key) = self.find(is_meant) {
            self.end_without_slot(key, cx);
        }
    }

    fn end_without_slot<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key).filter(|sender| sender.state.hears()) else {
            return;
        };
        sender.log_end("terminated because its replication slot was invalidated");
        self.farewell(key, &refusals::administrator_command(), cx);
    }

    fn find(&self, is_meant: impl Fn(&Sender) -> bool) -> Option<Key> {
        let slot = self.table.iter().find(|(_, sender)| is_meant(sender))?.0;
        self.table.key_at(slot)
    }

    /// The slot may have been invalidated during the hand-over, and the order to end the stream may
    /// have arrived before the stream did.
    fn end_if_slot_lost<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        if self.table.get(key).is_some_and(|sender| sender.hold.has_lost_slot()) {
            self.end_without_slot(key, cx);
        }
    }

    /// The path above us changed: hubs below must check whether they are in it, one after the
    /// other.
    pub(super) fn end_hub_streams<R: Ring>(&mut self, cx: &mut Context<'_, R>) {
        let mut at = cx.now;
        for key in self.table.keys() {
            if let Some(sender) = self.table.get_mut(key)
                && sender.session.instance.is_some()
                && sender.state.is_open()
            {
                sender.ends_at.get_or_insert(at);
                at += HUB_PAUSE;
                self.set_timer(key);
            }
        }
    }

    /// Our WAL was moved aside: what its streams wait for will never come.
    pub(super) fn end_set_aside<R: Ring>(&mut self, cx: &mut Context<'_, R>) {
        for key in self.table.keys() {
            self.end_if_set_aside(key, cx);
        }
    }

    /// Ends a stream whose history is no longer kept here. At its next start the standby is told
    /// that its WAL has been removed.
    fn end_if_set_aside<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        if self.hub.cell(sender.cell.id()).is_some() {
            return;
        }
        sender.log_end("its WAL was moved aside");
        self.close(key, cx);
    }

    /// Shutdown: sends the rest of the WAL and `COPY 0`, then ends.
    pub(super) fn stop<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        let duty = sender.state.stop();
        self.perform(key, duty, cx);
        self.step(key, cx);
    }
}
