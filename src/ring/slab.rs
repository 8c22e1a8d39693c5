//! The operations in flight, and what the kernel uses for each (I7, I8).

use super::{Buffer, ChunkHold, ChunkRange, Copied, Fd, Token};
use std::os::fd::OwnedFd;
use std::sync::Weak;

/// Names an operation in flight. A stale name matches nothing.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct OpId {
    index: u32,
    generation: u32,
}

impl OpId {
    const GENERATION_BITS: u32 = 30;

    /// For a simulated ring, which counts its own operations.
    pub fn numbered(number: u32) -> Self {
        Self { index: number, generation: 0 }
    }

    /// The value that passes through the kernel; its two top bits stay free.
    pub(super) fn word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_word(word: u64) -> Self {
        Self { index: word as u32, generation: (word >> 32) as u32 }
    }
}

/// What an operation is, with the memory that it needs until it completes.
#[derive(Debug)]
pub(super) enum Held {
    Reply,
    /// Into the buffer's spare part.
    Receive(Buffer),
    Writable,
    Write {
        at: u64,
        bytes: ChunkRange,
    },
    Sync,
    /// Into the first `len` bytes of the buffer's spare part.
    Read {
        at: u64,
        buffer: Buffer,
        len: usize,
    },
    /// A read of the waker's counter.
    Wake(Buffer),
    /// A send without a copy: the memory is needed until its notification.
    ZeroCopy(ZeroCopy),
}

/// The progress of a send without a copy, which completes twice.
#[derive(Debug)]
pub(super) struct ZeroCopy {
    pub(super) bytes: ChunkHold,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// Neither completion has come.
    Sending,
    /// The notification came first.
    Notified(Copied),
    /// The socket took `taken` bytes and still reads them. It may have been closed since.
    Sent { socket: Weak<OwnedFd>, taken: usize },
}

/// The descriptor is kept too: by the time the kernel looks, a closed number could name another
/// socket.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) token: Token,
    /// `None` once the kernel needs only the memory and no longer the descriptor.
    pub(super) fd: Option<Fd>,
    pub(super) held: Held,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    operation: Option<Operation>,
}

/// Slots are reused, newest first. The slab grows to the most operations ever in flight and
/// keeps that size.
#[derive(Debug, Default)]
pub(super) struct Slab {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slab {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { slots: Vec::with_capacity(capacity), free: Vec::with_capacity(capacity) }
    }

    pub(super) fn insert(&mut self, operation: Operation) -> OpId {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.operation = Some(operation);
            return OpId { index, generation: slot.generation };
        }
        let index = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        assert!(index != u32::MAX, "operation numbers are used up");
        self.slots.push(Slot { generation: 0, operation: Some(operation) });
        OpId { index, generation: 0 }
    }

    /// Removes and returns an operation; returns `None` when the name is stale.
    pub(super) fn remove(&mut self, op: OpId) -> Option<Operation> {
        let slot = self.slots.get_mut(op.index as usize)?;
        if slot.generation != op.generation {
            return None;
        }
        let operation = slot.operation.take()?;
        slot.generation = (slot.generation + 1) & ((1 << OpId::GENERATION_BITS) - 1);
        self.free.push(op.index);
        Some(operation)
    }

    pub(super) fn get_mut(&mut self, op: OpId) -> Option<&mut Operation> {
        let slot = self.slots.get_mut(op.index as usize)?;
        slot.operation.as_mut().filter(|_| slot.generation == op.generation)
    }

    /// The sockets of sends without a copy whose memory is still in use.
    pub(super) fn unreleased(&self) -> impl Iterator<Item = Option<Fd>> {
        let operations = self.slots.iter().filter_map(|slot| slot.operation.as_ref());
        operations.filter_map(|operation| match &operation.held {
            Held::ZeroCopy(ZeroCopy { stage: Stage::Sent { socket, .. }, .. }) => {
                Some(socket.upgrade())
            }
            Held::ZeroCopy(_) => Some(operation.fd.clone()),
            _ => None,
        })
    }

    pub(super) fn contains(&self, op: OpId) -> bool {
        let slot = self.slots.get(op.index as usize);
        slot.is_some_and(|slot| slot.generation == op.generation && slot.operation.is_some())
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The operations in flight that may wait for ever: for a peer, for a wake-up. File
    /// operations end by themselves, and cancelling does not end a send without a copy.
    pub(super) fn waiting(&self) -> impl Iterator<Item = OpId> {
        let waits = |slot: &Slot| {
            let operation = slot.operation.as_ref();
            operation.is_some_and(|operation| match operation.held {
                Held::Reply | Held::Receive(_) | Held::Writable | Held::Wake(_) => true,
                Held::Write { .. } | Held::Sync | Held::Read { .. } | Held::ZeroCopy(_) => false,
            })
        };
        let waiting = self.slots.iter().enumerate().filter(move |(_, slot)| waits(slot));
        waiting.map(|(index, slot)| OpId { index: index as u32, generation: slot.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(token: u64, held: Held) -> Operation {
        let fd = std::fs::File::open("/dev/null").unwrap();
        Operation { token: Token(token), fd: Some(Fd::new(fd.into())), held }
    }

    #[test]
    fn a_stale_name_names_nothing() {
        let mut slab = Slab::default();
        let first = slab.insert(operation(1, Held::Reply));
        assert_eq!(OpId::from_word(first.word()), first);
        assert_eq!(slab.remove(first).unwrap().token, Token(1));
        let second = slab.insert(operation(2, Held::Writable));
        assert_eq!(second.index, first.index);
        assert_eq!(OpId::from_word(second.word()), second);
        assert!(slab.remove(first).is_none() && !slab.contains(first));
        assert!(slab.contains(second));
        slab.insert(operation(3, Held::Sync));
        assert_eq!((slab.len(), slab.waiting().collect::<Vec<_>>()), (2, vec![second]));
        assert!(slab.remove(second).is_some());
        assert_eq!((slab.len(), slab.waiting().count()), (1, 0));
    }
}
