//! What has completed, in the terms of the ring's callers: the kernel's numbers become outcomes, and
//! what an operation held is given back (I8).

use super::replies::{Replies, ReplyBuffer};
use super::slab::{Held, OpId, Operation, Slab, Stage, ZeroCopy};
use super::{Buffer, Copied, Counters, Done, Fd, Outcome, SEND_SLICE};
use io_uring::{IoUring, cqueue};
use std::io;

/// A send's user data is this bit and its place in the slice.
pub(super) const SEND: u64 = 1 << 63;
/// The user data of operations whose completion means nothing (cancellations).
pub(super) const IGNORED: u64 = 1 << 62;

/// The report in the notification's result.
const NOTIF_USAGE_ZC_COPIED: u32 = 1 << 31;

/// What completions change.
pub(super) struct State {
    pub(super) slab: Slab,
    pub(super) replies: Replies,
    pub(super) sends: Sends,
    pub(super) counters: Counters,
    /// The waker has fired since the last turn checked.
    pub(super) woken: bool,
    /// The buffer for the read of the waker's descriptor, when that must be submitted again.
    pub(super) wake_buffer: Option<Buffer>,
}

/// The sends of the slice being submitted.
pub(super) struct Sends {
    pub(super) results: [i32; SEND_SLICE],
    pub(super) missing: usize,
}

/// Takes what has completed.
pub(super) fn reap(io: &mut IoUring, state: &mut State, done: &mut Vec<Done>) {
    for entry in io.completion() {
        state.complete(entry.user_data(), entry.result(), entry.flags(), done);
    }
}

/// The kernel's convention: a count, or an error's number below zero.
pub(super) fn count(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

impl State {
    pub(super) fn new(slab: Slab, replies: Replies) -> Self {
        Self {
            slab,
            replies,
            sends: Sends { results: [0; SEND_SLICE], missing: 0 },
            counters: Counters::default(),
            woken: false,
            wake_buffer: Some(Buffer::with_capacity(size_of::<u64>())),
        }
    }

    fn complete(&mut self, word: u64, result: i32, flags: u32, done: &mut Vec<Done>) {
        if word & SEND != 0 {
            self.sends.results[(word & !SEND) as usize] = result;
            self.sends.missing -= 1;
            return;
        }
        if word & IGNORED != 0 {
            return;
        }
        // Only a send without a copy has more than one completion.
        if cqueue::more(flags) || cqueue::notif(flags) {
            return self.complete_half(OpId::from_word(word), result, flags, done);
        }
        let operation = self.slab.remove(OpId::from_word(word));
        let Operation { token, held, .. } = operation.expect("every operation completes once");
        let outcome = match held {
            Held::Reply => Outcome::Reply(self.reply(result, flags)),
            Held::Receive(buffer) => {
                let (result, buffer) = filled(result, buffer);
                Outcome::Received(result, buffer)
            }
            Held::Writable => Outcome::Writable(count(result).map(drop)),
            Held::Write { .. } => Outcome::Written(count(result)),
            Held::Sync => Outcome::Synced(count(result).map(drop)),
            Held::Read { buffer, .. } => {
                let (result, buffer) = filled(result, buffer);
                Outcome::Read(result, buffer)
            }
            Held::Wake(buffer) => {
                self.woken = true;
                self.wake_buffer = Some(buffer);
                return;
            }
            // The send was refused before the memory was used, so no notification follows.
            Held::ZeroCopy(_) => {
                done.push(Done { token, outcome: Outcome::ZeroCopySent(count(result)) });
                Outcome::ZeroCopyReleased(Copied::No)
            }
        };
        done.push(Done { token, outcome });
    }

    /// Handles one of the two completions of a send without a copy: the result, which a
    /// notification follows, or the notification. The kernel posts them in this order but
    /// promises it nowhere; the caller gets them in this order in any case.
    fn complete_half(&mut self, op: OpId, result: i32, flags: u32, done: &mut Vec<Done>) {
        let operation = self.slab.get_mut(op).expect("a send completes twice at most");
        let token = operation.token;
        let Held::ZeroCopy(ZeroCopy { stage, .. }) = &mut operation.held else {
            panic!("one of two completions of an operation that has one");
        };
        let (taken, copied) = if cqueue::notif(flags) {
            let is_copied = result.cast_unsigned() & NOTIF_USAGE_ZC_COPIED != 0;
            let copied = if is_copied { Copied::Yes } else { Copied::No };
            match stage {
                Stage::Sent { taken, .. } => (*taken, copied),
                _ => return *stage = Stage::Notified(copied),
            }
        } else {
            done.push(Done { token, outcome: Outcome::ZeroCopySent(count(result)) });
            let fd = operation.fd.take().expect("a socket is kept until the send's result");
            let taken = usize::try_from(result).unwrap_or(0);
            match *stage {
                Stage::Notified(copied) => (taken, copied),
                _ => return *stage = Stage::Sent { socket: Fd::downgrade(&fd), taken },
            }
        };
        self.slab.remove(op);
        // The kernel reports bytes that were never sent as copied.
        let copied = if taken > 0 { copied } else { Copied::No };
        self.counters.zerocopy_copied += u64::from(copied == Copied::Yes);
        done.push(Done { token, outcome: Outcome::ZeroCopyReleased(copied) });
    }

    fn reply(&mut self, result: i32, flags: u32) -> io::Result<ReplyBuffer> {
        // A failed receive may still have picked a buffer, which has to be returned.
        let len = usize::try_from(result).unwrap_or(0);
        let taken = cqueue::buffer_select(flags).map(|id| self.replies.taken(id, len));
        match (count(result)?, taken) {
            (_, Some(reply)) => Ok(reply),
            (0, None) => Ok(ReplyBuffer::numbered(0, 0)),
            (_, None) => Err(io::Error::other("a receive without a buffer")),
        }
    }

    /// How many of the caller's operations are in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.slab.len() - usize::from(self.wake_buffer.is_none())
    }
}

fn filled(result: i32, mut buffer: Buffer) -> (io::Result<usize>, Buffer) {
    let result = count(result);
    if let Ok(count) = result {
        buffer.advance(count);
    }
    (result, buffer)
}
