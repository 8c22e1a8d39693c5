//! The correct WAL: a window over its newest bytes.
//!
//! With a synthetic primary it is what that primary wrote. With a foreign one it is what the first
//! standby received, walked record by record; all others are compared with it.

use crate::wal::Lsn;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// A stretch of WAL that never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first byte's position.
    pub start: Lsn,
    /// The WAL.
    pub bytes: Bytes,
}

impl Piece {
    /// The first byte after it.
    pub fn end(&self) -> Lsn {
        self.start.saturating_add(self.bytes.len() as u64)
    }

    /// The bytes from `at` on; `None` when the piece does not hold `at`.
    pub fn from(&self, at: Lsn) -> Option<&[u8]> {
        if at < self.start {
            return None;
        }
        let offset = usize::try_from(at.bytes_since(self.start)).ok()?;
        self.bytes.get(offset..).filter(|bytes| !bytes.is_empty())
    }
}

/// The newest WAL, at least `window` bytes of it. One thread appends; all threads read.
#[derive(Debug)]
pub struct Truth {
    window: u64,
    end: AtomicU64,
    pieces: RwLock<VecDeque<Piece>>,
}

/// What the window has at a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// The piece that holds it.
    Piece(Piece),
    /// It has left the window.
    Gone,
    /// It is yet to come.
    NotYet,
}

impl Truth {
    /// An empty window that begins at `start`.
    pub fn new(start: Lsn, window: u64) -> Self {
        Self { window, end: AtomicU64::new(start.raw()), pieces: RwLock::default() }
    }

    /// How much of the newest WAL is kept, at least.
    pub const fn window(&self) -> u64 {
        self.window
    }

    /// Moves a window that has never held anything to `start`; returns whether it did.
    pub fn begin_at(&self, start: Lsn) -> bool {
        let pieces = self.pieces.write().unwrap_or_else(PoisonError::into_inner);
        if pieces.is_empty() {
            self.end.store(start.raw(), Ordering::Release);
        }
        pieces.is_empty()
    }

    /// The first byte that is not known yet.
    pub fn end(&self) -> Lsn {
        Lsn::new(self.end.load(Ordering::Acquire))
    }

    /// Adds `bytes` if they begin where the window ends; returns whether they did.
    pub fn append(&self, start: Lsn, bytes: Bytes) -> bool {
        if bytes.is_empty() {
            return start == self.end();
        }
        let mut pieces = self.pieces.write().unwrap_or_else(PoisonError::into_inner);
        if start != self.end() {
            return false;
        }
        let piece = Piece { start, bytes };
        let end = piece.end();
        pieces.push_back(piece);
        while pieces.front().is_some_and(|old| end.bytes_since(old.end()) >= self.window) {
            pieces.pop_front();
        }
        self.end.store(end.raw(), Ordering::Release);
        true
    }

    /// The oldest byte in the window; its end when it is empty.
    pub fn oldest(&self) -> Lsn {
        let pieces = self.pieces.read().unwrap_or_else(PoisonError::into_inner);
        pieces.front().map_or_else(|| self.end(), |piece| piece.start)
    }

    /// Appends to `into` the WAL from `from` to `to`, without copying it; returns whether all of it
    /// is in the window.
    pub fn gather(&self, from: Lsn, to: Lsn, into: &mut impl Extend<Bytes>) -> bool {
        let pieces = self.pieces.read().unwrap_or_else(PoisonError::into_inner);
        let first = pieces.partition_point(|piece| piece.end() <= from);
        let covers = |piece: &Piece| piece.start <= from;
        if to > self.end() || (from < to && !pieces.get(first).is_some_and(covers)) {
            return false;
        }
        let inside = pieces.range(first..).take_while(|piece| piece.start < to);
        into.extend(inside.map(|piece| {
            let offset =
                |at: Lsn| usize::try_from(at.bytes_since(piece.start)).unwrap_or(usize::MAX);
            piece.bytes.slice(offset(from)..offset(to).min(piece.bytes.len()))
        }));
        true
    }

    /// What the window has at `at`.
    pub fn at(&self, at: Lsn) -> At {
        if at >= self.end() {
            return At::NotYet;
        }
        let pieces = self.pieces.read().unwrap_or_else(PoisonError::into_inner);
        let next = pieces.partition_point(|piece| piece.start <= at);
        match next.checked_sub(1).and_then(|n| pieces.get(n)) {
            Some(piece) => At::Piece(piece.clone()),
            None => At::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_window_can_move() {
        let truth = Truth::new(Lsn::INVALID, 20);
        assert!(truth.begin_at(Lsn::new(500)));
        assert!(truth.append(Lsn::new(500), Bytes::from_static(b"wal")));
        assert!(!truth.begin_at(Lsn::new(700)));
        assert_eq!((truth.oldest(), truth.end()), (Lsn::new(500), Lsn::new(503)));
    }

    #[test]
    fn pieces_are_found_until_they_leave() {
        let truth = Truth::new(Lsn::new(1000), 20);
        assert_eq!(truth.at(Lsn::new(1000)), At::NotYet);
        for n in 0..10u8 {
            assert!(truth.append(truth.end(), Bytes::from(vec![n; 10])));
        }
        assert!(!truth.append(Lsn::new(1000), Bytes::from_static(b"again")));
        assert_eq!((truth.oldest(), truth.end()), (Lsn::new(1080), Lsn::new(1100)));
        assert_eq!(truth.at(Lsn::new(1079)), At::Gone);
        assert_eq!(truth.at(Lsn::new(1100)), At::NotYet);
        let At::Piece(piece) = truth.at(Lsn::new(1095)) else { panic!() };
        assert_eq!(piece.from(Lsn::new(1095)), Some(&[9; 5][..]));
        assert_eq!(piece.from(Lsn::new(1089)), None);
        assert_eq!(piece.from(piece.end()), None);
    }

    #[test]
    fn a_stretch_is_gathered_from_its_pieces() {
        let truth = Truth::new(Lsn::new(1000), 30);
        for n in 0..10u8 {
            assert!(truth.append(truth.end(), Bytes::from(vec![n; 10])));
        }
        let gather = |from, to| {
            let mut bytes: Vec<Bytes> = Vec::new();
            truth.gather(Lsn::new(from), Lsn::new(to), &mut bytes).then(|| bytes.concat())
        };
        assert_eq!(gather(1069, 1080), None, "has left");
        assert_eq!(gather(1070, 1071), Some(vec![7]));
        assert_eq!(gather(1078, 1092), Some([&[7; 2][..], &[8; 10], &[9; 2]].concat()));
        assert_eq!(gather(1095, 1100), Some(vec![9; 5]));
        assert_eq!(gather(1100, 1100), Some(vec![]));
        assert_eq!(gather(1095, 1101), None, "is yet to come");
    }
}
