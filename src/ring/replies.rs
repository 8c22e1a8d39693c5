//! Small buffers lent to the kernel. It takes one when a standby has sent something, and gets it
//! back after parsing (I10: their number is fixed; `ENOBUFS` means that all are in use).
//!
//! One mapping holds the ring of entries that the kernel reads, followed by the buffers.
#![expect(unsafe_code, reason = "the entries and the buffers are shared with the kernel")]

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use memmap2::{MmapMut, MmapRaw};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

/// A reply that lies in one of the ring's buffers. Dropping it also returns the buffer.
#[derive(Debug)]
pub struct ReplyBuffer {
    id: u16,
    len: usize,
    home: Option<Returned>,
}

impl ReplyBuffer {
    /// A reply without a kernel buffer: a simulated ring stores the bytes under its own number.
    pub fn numbered(id: u16, len: usize) -> Self {
        Self { id, len, home: None }
    }

    /// A reply that belongs to a simulated ring and is returned to `home`.
    #[cfg(all(test, not(walhub_loom)))]
    pub(crate) fn lent(id: u16, len: usize, home: &Rc<RefCell<Vec<u16>>>) -> Self {
        Self { id, len, home: Some(Rc::clone(home)) }
    }

    /// The number of the buffer.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Bytes received.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is this the end of the stream?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for ReplyBuffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.borrow_mut().push(self.id);
        }
    }
}

/// Buffers on their way back to the kernel.
type Returned = Rc<RefCell<Vec<u16>>>;

pub(super) struct Replies {
    mapping: MmapRaw,
    count: u16,
    size: usize,
    /// What the kernel was told is available, modulo 2^16.
    tail: u16,
    returned: Returned,
    group: u16,
}

impl Replies {
    /// `count` is rounded up to a power of two, at most 32768.
    pub(super) fn new(count: u16, size: usize, group: u16) -> io::Result<Self> {
        let count = count.clamp(1, 1 << 15).next_power_of_two();
        let entries = usize::from(count) * size_of::<BufRingEntry>();
        let mapping = MmapMut::map_anon(entries + usize::from(count) * size)?;
        let returned = Rc::new(RefCell::new(Vec::with_capacity(usize::from(count))));
        let mapping = mapping.into();
        let mut replies = Self { mapping, count, size, tail: 0, returned, group };
        for id in 0..count {
            replies.provide(id);
        }
        replies.publish();
        Ok(replies)
    }

    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.mapping.as_ptr() as u64;
        // SAFETY: the mapping holds `count` entries at its page-aligned start, and
        // lives until after `unregister`: see `Uring`'s drop.
        unsafe { submitter.register_buf_ring_with_flags(address, self.count, self.group, 0) }
    }

    pub(super) fn unregister(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        submitter.unregister_buf_ring(self.group)
    }

    /// A buffer into which the kernel has put `len` bytes.
    pub(super) fn taken(&self, id: u16, len: usize) -> ReplyBuffer {
        assert!(id < self.count && len <= self.size, "the kernel names a buffer that we lent");
        ReplyBuffer { id, len, home: Some(Rc::clone(&self.returned)) }
    }

    /// The bytes of a reply.
    pub(super) fn bytes(&self, reply: &ReplyBuffer) -> &[u8] {
        if reply.is_empty() {
            return &[];
        }
        let offset = self.offset(reply.id);
        // A slice of this one buffer only: the others are the kernel's.
        let start = self.mapping.as_ptr();
        // SAFETY: inside the mapping (`taken` checked both numbers); the kernel does not
        // write to it again until it is provided, which the reply's drop comes before.
        unsafe { std::slice::from_raw_parts(start.add(offset), reply.len) }
    }

    /// Lends the returned buffers to the kernel again.
    pub(super) fn give_back(&mut self) {
        let mut returned = std::mem::take(&mut *self.returned.borrow_mut());
        if !returned.is_empty() {
            for id in returned.drain(..) {
                self.provide(id);
            }
            self.publish();
        }
        // Reuse the same allocation.
        *self.returned.borrow_mut() = returned;
    }

    fn offset(&self, id: u16) -> usize {
        usize::from(self.count) * size_of::<BufRingEntry>() + usize::from(id) * self.size
    }

    fn provide(&mut self, id: u16) {
        let place = usize::from(self.tail & (self.count - 1));
        let offset = self.offset(id);
        let start = self.mapping.as_mut_ptr();
        // SAFETY: entry and buffer lie inside the mapping. The kernel reads entries
        // below the published tail only, so nobody else looks at this one.
        let (entry, buffer) =
            unsafe { (&mut *start.cast::<BufRingEntry>().add(place), start.add(offset)) };
        entry.set_addr(buffer as u64);
        entry.set_len(self.size as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Makes the provided entries visible.
    fn publish(&mut self) {
        let entries = self.mapping.as_mut_ptr().cast::<BufRingEntry>();
        // SAFETY: the first entry's reserved field is the ring's tail; it is aligned,
        // inside the mapping, and accessed atomically from here on by both sides.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(entries).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
