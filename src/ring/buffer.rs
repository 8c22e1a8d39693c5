//! A buffer that is lent to the kernel and returned: upstream bytes, file reads.

use std::fmt;

/// Owned memory of a fixed capacity, filled at the back and consumed at the front.
///
/// Zeroed once when it is made and then reused, so it never has a byte that was not written.
pub struct Buffer {
    bytes: Vec<u8>,
    head: usize,
    tail: usize,
}

impl Buffer {
    /// An empty buffer for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity], head: 0, tail: 0 }
    }

    /// How many bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes received and not yet consumed.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.head..self.tail]
    }

    /// Is there nothing to consume?
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        (self.head, self.tail) = (0, 0);
    }

    /// Forgets the first `count` filled bytes.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.tail - self.head, "consumed more than was filled");
        self.head += count;
        if self.head == self.tail {
            self.clear();
        }
    }

    /// Appends as much of `bytes` as there is room for; returns how much that was.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        if self.bytes.len() - self.tail < bytes.len() {
            self.compact();
        }
        let taken = bytes.len().min(self.room());
        self.bytes[self.tail..self.tail + taken].copy_from_slice(&bytes[..taken]);
        self.tail += taken;
        taken
    }

    /// Bytes that would fit after the filled ones if those were moved to the front.
    pub fn room(&self) -> usize {
        self.bytes.len() - (self.tail - self.head)
    }

    /// Makes at least `wanted` contiguous bytes free at the back, if that many are free at all.
    /// Moves the filled bytes only when necessary.
    pub(super) fn make_room(&mut self, wanted: usize) {
        if self.bytes.len() - self.tail < wanted {
            self.compact();
        }
    }

    /// The free part at the back.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        &mut self.bytes[self.tail..]
    }

    /// Marks the first `count` spare bytes as filled: they have been written.
    pub(super) fn advance(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.tail, "more arrived than there was room for");
        self.tail += count;
    }

    /// Overwrites every byte that is not filled.
    #[cfg(all(test, not(walhub_loom)))]
    pub(crate) fn poison(&mut self) {
        self.bytes[..self.head].fill(0x5A);
        self.bytes[self.tail..].fill(0x5A);
    }

    fn compact(&mut self) {
        if self.head > 0 {
            self.bytes.copy_within(self.head..self.tail, 0);
        }
        (self.head, self.tail) = (0, self.tail - self.head);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.tail - self.head, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn moves_what_is_left_only_for_room() {
        let mut buffer = Buffer::with_capacity(8);
        assert_eq!(buffer.append(b"abcdef"), 6);
        buffer.consume(4);
        buffer.make_room(2);
        assert_eq!(buffer.spare().len(), 2);
        buffer.make_room(3);
        assert_eq!(buffer.spare().len(), 6);
        assert_eq!(buffer.filled(), b"ef");
        buffer.consume(2);
        assert_eq!((buffer.is_empty(), buffer.spare().len()), (true, 8));
    }

    proptest! {
        #[test]
        fn is_a_queue(steps in prop::collection::vec((0usize..9, 0usize..9), 0..60)) {
            let mut buffer = Buffer::with_capacity(8);
            let mut model = Vec::new();
            for (number, (add, take)) in steps.into_iter().enumerate() {
                let bytes = vec![number as u8; add];
                let taken = buffer.append(&bytes);
                prop_assert_eq!(taken, add.min(8 - model.len()));
                model.extend_from_slice(&bytes[..taken]);
                prop_assert_eq!(buffer.filled(), &model[..]);
                let take = take.min(model.len());
                buffer.consume(take);
                model.drain(..take);
                prop_assert_eq!(buffer.room(), 8 - model.len());
            }
        }
    }
}
