//! The way back: what standbys say, and what their timers make due.

use super::senders::Senders;
use crate::data::context::Context;
use crate::data::table::Key;
use crate::ring::{ReplyBuffer, Ring};
use crate::standby::refusals;
use crate::standby::stream::{Heard, KeepaliveDue};
use crate::wire::copy::ReplyRequest;
use std::io;
use tracing::warn;

impl Senders {
    /// A standby's receive completed.
    pub(super) fn on_reply<R: Ring>(
        &mut self,
        key: Key,
        result: io::Result<ReplyBuffer>,
        cx: &mut Context<'_, R>,
    ) {
        // When the standby has gone, dropping the result gives its buffer back.
        let Some(sender) = self.table.get_mut(key) else { return };
        sender.reading = None;
        // Its message may require an answer, or end the stream.
        self.due.note(key.index);
        match result {
            Ok(reply) if reply.is_empty() => self.hung_up(key, cx),
            Ok(reply) => {
                if sender.state.lingers_until().is_none() {
                    sender.quota.note(reply.len(), cx.now);
                }
                // It is parsed in place; then the buffer goes back to the kernel.
                let hub = &self.hub;
                let heard = cx.ring.with_reply(reply, |bytes| sender.hear(bytes, hub, cx.now));
                if sender.quota.read_again().is_some() {
                    self.set_timer(key);
                }
                self.act_on(key, heard, cx);
                self.read_on(key, cx);
            }
            Err(error) if is_out_of_buffers(&error) => self.await_buffer(key),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.read_on(key, cx),
            Err(error) => {
                if !sender.state.is_parting() {
                    sender.log_end(&error.to_string());
                }
                let duty = sender.state.receive_failed();
                self.perform(key, duty, cx);
            }
        }
        self.settle(key, cx);
    }

    fn hung_up<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        // If our side is shut, the end is ours and already logged.
        if !sender.state.is_shut() {
            sender.log_end("connection closed by the standby");
        }
        let duty = sender.state.hung_up();
        self.perform(key, duty, cx);
    }

    /// Takes what a standby said before it came here.
    pub(super) fn listen_to<R: Ring>(&mut self, key: Key, bytes: &[u8], cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        let heard = sender.hear(bytes, &self.hub, cx.now);
        self.act_on(key, heard, cx);
    }

    fn act_on<R: Ring>(&mut self, key: Key, heard: Heard, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        match heard {
            Heard::Replies => {}
            Heard::ReplyWanted => self.push_keepalive(key, ReplyRequest::No, cx),
            Heard::Done(rest) => {
                let duty = sender.state.copy_done(rest);
                self.perform(key, duty, cx);
                self.step(key, cx);
            }
            Heard::Terminate => {
                sender.log_end("terminated by the standby");
                self.close(key, cx);
            }
            Heard::Failed(refusal) => {
                warn!(pid = sender.session.pid, peer = %sender.session.peer, "{}", refusal.message);
                let duty = sender.state.failed(refusal);
                self.perform(key, duty, cx);
                self.step(key, cx);
            }
            Heard::Broken(Some(refusal)) => {
                sender.log_end(&refusal.message);
                self.farewell(key, &refusal, cx);
            }
            Heard::Broken(None) => {
                sender.log_end("unexpected message type");
                self.close(key, cx);
            }
        }
    }

    /// Handles the standbys whose timers have expired. Returns whether there were any: they may
    /// have something to send.
    pub(super) fn run_timers<R: Ring>(&mut self, cx: &mut Context<'_, R>) -> bool {
        let mut any = false;
        while let Some(key) = self.next_timer(cx.now) {
            any = true;
            self.on_timer(key, cx);
            self.due.note(key.index);
            self.set_timer(key);
        }
        any
    }

    fn on_timer<R: Ring>(&mut self, key: Key, cx: &mut Context<'_, R>) {
        let Some(sender) = self.table.get_mut(key) else { return };
        if sender.quota.is_over(cx.now) {
            self.read_on(key, cx);
        }
        let Some(sender) = self.table.get_mut(key) else { return };
        let duty = sender.state.lingered(cx.now);
        let ends = sender.ends_at.take_if(|at| *at <= cx.now).is_some();
        if ends && sender.state.is_open() {
            sender.log_end("the hubs above this one changed; the hub below must check again");
            return self.close(key, cx);
        }
        if sender.state.is_parting() {
            return self.perform(key, duty, cx);
        }
        if let Some(seam) = sender.seam.filter(|seam| seam.until <= cx.now) {
            let refusal = refusals::silent_before_seam(sender.cell.tli(), seam.at);
            sender.log_end("it did not report its position");
            return self.fail(key, refusal, cx);
        }
        match sender.talk.due(cx.now) {
            KeepaliveDue::Nothing => {}
            KeepaliveDue::Ping => self.push_keepalive(key, ReplyRequest::Yes, cx),
            KeepaliveDue::GiveUp => {
                sender.log_end("terminating walsender process due to replication timeout");
                self.close(key, cx);
            }
        }
    }
}

fn is_out_of_buffers(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}
