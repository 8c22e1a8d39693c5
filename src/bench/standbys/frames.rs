//! Parses a server's stream as it arrives: WAL is passed on in whatever pieces arrive, and only
//! other messages are buffered.

use crate::wal::Lsn;
use crate::wire::copy::{FromSender, ReplyRequest, XLOG_DATA_HEADER};
use crate::wire::frame::{FRAME_HEADER, Malformed, next_frame};

/// The longest message other than WAL.
const MAX_OTHER: usize = 64 << 10;

/// The next part of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came<'a> {
    /// An XLogData message begins, with WAL from here on.
    Message(Lsn),
    /// WAL of the current message.
    Wal(&'a [u8]),
    /// A keepalive.
    Keepalive(ReplyRequest),
    /// Any other message, whole.
    Other(Vec<u8>),
}

/// The parser's position in a message.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// WAL bytes of the current message that are still to come.
    left: u32,
    have: u8,
    head: [u8; XLOG_DATA_HEADER],
    other: Vec<u8>,
}

impl Frames {
    /// WAL bytes of the current message that are still to come.
    pub(super) const fn left(&self) -> usize {
        self.left as usize
    }

    /// `bytes` bytes of the current WAL were dropped unseen.
    pub(super) fn skip(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.left = self.left.saturating_sub(bytes);
    }

    /// Takes the next part from the front of `bytes`. Returns `None` when it needs more; then
    /// nothing of `bytes` is left.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Came<'a>>, Malformed> {
        if self.left > 0 {
            return Ok(self.wal(bytes));
        }
        // The usual case: the whole header has arrived.
        if self.have == 0
            && self.other.is_empty()
            && let Some((head, rest)) = bytes.split_first_chunk::<XLOG_DATA_HEADER>()
            && head[0] == b'd'
            && head[FRAME_HEADER] == b'w'
        {
            *bytes = rest;
            return self.message(head).map(Some);
        }
        self.gather(bytes)
    }

    fn wal<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Came<'a>> {
        let (wal, rest) = bytes.split_at(self.left().min(bytes.len()));
        *bytes = rest;
        if wal.is_empty() {
            return None;
        }
        self.skip(wal.len());
        Some(Came::Wal(wal))
    }

    /// Parses a header of XLogData.
    fn message<'a>(&mut self, head: &[u8; XLOG_DATA_HEADER]) -> Result<Came<'a>, Malformed> {
        let [tag, l0, l1, l2, l3, payload @ ..] = head;
        let length = i32::from_be_bytes([*l0, *l1, *l2, *l3]);
        let wal = u32::try_from(length)
            .ok()
            .and_then(|length| length.checked_sub(XLOG_DATA_HEADER as u32 - 1));
        self.left = wal.ok_or(Malformed::Length { tag: *tag, length })?;
        match FromSender::parse(payload) {
            Ok(FromSender::XLogData { start, .. }) => Ok(Came::Message(start)),
            Ok(_) | Err(_) => Err(Malformed::body("XLogData")),
        }
    }

    /// Buffers a header in pieces, or another message.
    fn gather<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Came<'a>>, Malformed> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if !self.other.is_empty() {
                return self.gather_other(bytes);
            }
            *bytes = rest;
            if let Some(place) = self.head.get_mut(usize::from(self.have)) {
                *place = byte;
            }
            self.have += 1;
            let have = usize::from(self.have);
            if have <= FRAME_HEADER {
                if have == FRAME_HEADER && self.head[0] != b'd' {
                    self.begin_other()?;
                    // A message without a body is already whole.
                    if let Some(came) = self.whole_other()? {
                        return Ok(Some(came));
                    }
                }
                continue;
            }
            if self.head[FRAME_HEADER] != b'w' {
                self.begin_other()?;
                if let Some(came) = self.whole_other()? {
                    return Ok(Some(came));
                }
            } else if have == XLOG_DATA_HEADER {
                self.have = 0;
                let head = self.head;
                return self.message(&head).map(Some);
            }
        }
        Ok(None)
    }

    /// What looked like a header belongs to a message of another kind.
    fn begin_other(&mut self) -> Result<(), Malformed> {
        let have = usize::from(std::mem::take(&mut self.have));
        self.other.extend_from_slice(self.head.get(..have).unwrap_or_default());
        // An impossible length is detected before anything is buffered.
        next_frame(&self.other, MAX_OTHER).map(drop)
    }

    fn gather_other<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Came<'a>>, Malformed> {
        let [_, l0, l1, l2, l3, ..] = *self.other.as_slice() else {
            return Err(Malformed::body("CopyData"));
        };
        let whole = 1 + u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let missing = whole.saturating_sub(self.other.len());
        let (piece, rest) = bytes.split_at(missing.min(bytes.len()));
        self.other.extend_from_slice(piece);
        *bytes = rest;
        self.whole_other()
    }

    fn whole_other<'a>(&mut self) -> Result<Option<Came<'a>>, Malformed> {
        let Some(frame) = next_frame(&self.other, MAX_OTHER)? else { return Ok(None) };
        if frame.tag != b'd' {
            return Ok(Some(Came::Other(std::mem::take(&mut self.other))));
        }
        match FromSender::parse(frame.body) {
            Ok(FromSender::Keepalive { reply, .. }) => {
                // Keepalives are frequent, so the buffer is kept.
                self.other.clear();
                Ok(Some(Came::Keepalive(reply)))
            }
            Ok(_) | Err(_) => Err(Malformed::body("CopyData")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::copy::{keepalive, xlog_data_header};
    use crate::wire::time::PgTime;
    use proptest::prelude::*;

    /// The parts that came, with WAL joined.
    fn taken(bytes: &[u8], cuts: &[usize]) -> Result<Vec<(char, u64, Vec<u8>)>, Malformed> {
        let mut frames = Frames::default();
        let mut seen: Vec<(char, u64, Vec<u8>)> = Vec::new();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            let mut piece = &bytes[pair[0]..pair[1]];
            while let Some(came) = frames.next(&mut piece)? {
                match came {
                    Came::Message(start) => seen.push(('w', start.raw(), Vec::new())),
                    Came::Wal(wal) => {
                        let (kind, _, whole) = seen.last_mut().unwrap();
                        assert_eq!(*kind, 'w');
                        whole.extend_from_slice(wal);
                    }
                    Came::Keepalive(reply) => {
                        seen.push(('k', u64::from(reply == ReplyRequest::Yes), Vec::new()));
                    }
                    Came::Other(message) => seen.push(('o', 0, message)),
                }
            }
            assert!(piece.is_empty());
        }
        Ok(seen)
    }

    fn xlog(start: u64, wal: &[u8]) -> Vec<u8> {
        let lsn = Lsn::new(start);
        let mut bytes = xlog_data_header(lsn, lsn, PgTime::new(0), wal.len()).to_vec();
        bytes.extend_from_slice(wal);
        bytes
    }

    #[test]
    fn impossible_messages_are_refused() {
        let mut short = xlog(1, b"abc");
        short[4] = 20;
        assert!(taken(&short, &[]).is_err());
        assert!(taken(&short, &[3]).is_err());
        assert!(taken(b"E\x7f\0\0\0", &[]).is_err());
        assert!(taken(b"d\0\0\0\x06kx", &[]).is_err());
        assert!(taken(b"d\0\0\0\x05q", &[]).is_err());
        assert_eq!(taken(b"c\0\0\0\x04", &[]).unwrap(), [('o', 0, b"c\0\0\0\x04".to_vec())]);
    }

    proptest! {
        #[test]
        fn however_it_is_cut(
            messages in proptest::collection::vec((0u8..4, 0usize..70), 0..12),
            cuts in proptest::collection::vec(any::<usize>(), 0..20),
        ) {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for (kind, size) in messages {
                match kind {
                    0 | 1 => {
                        let wal = vec![b'd'; size];
                        bytes.extend(xlog(size as u64 + 1, &wal));
                        expected.push(('w', size as u64 + 1, wal));
                    }
                    2 => {
                        let reply = if size % 2 == 0 { ReplyRequest::No } else { ReplyRequest::Yes };
                        bytes.extend(keepalive(Lsn::new(9), PgTime::new(0), reply));
                        expected.push(('k', size as u64 % 2, Vec::new()));
                    }
                    _ => {
                        let mut other = vec![b'S'];
                        other.extend((size as u32 + 4).to_be_bytes());
                        other.extend(vec![1; size]);
                        bytes.extend(&other);
                        expected.push(('o', 0, other));
                    }
                }
            }
            prop_assert_eq!(taken(&bytes, &cuts).unwrap(), expected);
        }

        #[test]
        fn garbage_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            cuts in proptest::collection::vec(any::<usize>(), 0..5),
        ) {
            let mut frames = Frames::default();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                let mut piece = &bytes[pair[0]..pair[1]];
                while let Ok(Some(_)) = frames.next(&mut piece) {}
            }
        }
    }
}
