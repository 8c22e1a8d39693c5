//! The messages inside CopyData of a physical stream, in both directions.
//!
//! Encoders return whole frames (including CopyData's type byte and length) in arrays, so that the
//! send path can point at them; parsers take CopyData's body.

use super::reader::{Reader, Short};
use super::refusal::Refusal;
use super::sqlstate;
use super::time::PgTime;
use crate::wal::Lsn;

/// Bytes before the WAL in an XLogData frame.
pub const XLOG_DATA_HEADER: usize = 30;
/// A keepalive frame.
pub const KEEPALIVE_FRAME: usize = 23;
/// A standby status update frame.
pub const STATUS_FRAME: usize = 39;
/// A hot standby feedback frame.
pub const FEEDBACK_FRAME: usize = 30;

/// The most WAL bytes that one frame may carry so that libpq can still read it.
const MAX_WAL: usize = (1 << 30) - XLOG_DATA_HEADER;

/// Whether the sender of a keepalive or status wants an immediate answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyRequest {
    /// No.
    No,
    /// Yes; silence may end the connection.
    Yes,
}

impl ReplyRequest {
    const fn byte(self) -> u8 {
        match self {
            Self::No => 0,
            Self::Yes => 1,
        }
    }

    /// Any byte but zero asks, as in PostgreSQL.
    const fn from_byte(byte: u8) -> Self {
        if byte == 0 { Self::No } else { Self::Yes }
    }
}

/// The bytes that precede `wal_bytes` bytes of WAL that start at `start`.
///
/// `wal_end` is how far the sender could send at present, not the end of this message.
///
/// # Panics
/// When `wal_bytes` is near 1 GiB or above; senders cut far below that.
pub fn xlog_data_header(
    start: Lsn,
    wal_end: Lsn,
    send_time: PgTime,
    wal_bytes: usize,
) -> [u8; XLOG_DATA_HEADER] {
    assert!(wal_bytes <= MAX_WAL, "XLogData of {wal_bytes} bytes");
    let length = (XLOG_DATA_HEADER - 1 + wal_bytes) as u32;
    let mut frame = Frame::new(length, b'w');
    frame.put(&start.raw().to_be_bytes());
    frame.put(&wal_end.raw().to_be_bytes());
    frame.put(&send_time.raw().to_be_bytes());
    frame.bytes
}

/// A primary keepalive.
pub fn keepalive(wal_end: Lsn, send_time: PgTime, reply: ReplyRequest) -> [u8; KEEPALIVE_FRAME] {
    let mut frame = Frame::whole(b'k');
    frame.put(&wal_end.raw().to_be_bytes());
    frame.put(&send_time.raw().to_be_bytes());
    frame.put(&[reply.byte()]);
    frame.bytes
}

/// A message from a sender of WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FromSender<'a> {
    /// WAL.
    XLogData {
        /// Position of the first byte of `wal`.
        start: Lsn,
        /// How far the sender could send when it sent this.
        wal_end: Lsn,
        /// The sender's clock.
        send_time: PgTime,
        /// The WAL.
        wal: &'a [u8],
    },
    /// A sign of life.
    Keepalive {
        /// How far the sender has sent.
        wal_end: Lsn,
        /// The sender's clock.
        send_time: PgTime,
        /// Whether we must answer now.
        reply: ReplyRequest,
    },
}

impl<'a> FromSender<'a> {
    /// Reads CopyData's body as strictly as a walreceiver does: a keepalive must have its exact
    /// size.
    pub fn parse(payload: &'a [u8]) -> Result<Self, CopyFault> {
        let mut reader = Reader::new(payload);
        match reader.u8().map_err(|Short| CopyFault::Empty)? {
            b'w' => Ok(Self::XLogData {
                start: lsn(&mut reader)?,
                wal_end: lsn(&mut reader)?,
                send_time: time(&mut reader)?,
                wal: reader.rest(),
            }),
            b'k' => {
                let wal_end = lsn(&mut reader)?;
                let send_time = time(&mut reader)?;
                let reply = ReplyRequest::from_byte(reader.u8()?);
                if !reader.is_empty() {
                    return Err(CopyFault::Long);
                }
                Ok(Self::Keepalive { wal_end, send_time, reply })
            }
            tag => Err(CopyFault::UnknownTag(tag)),
        }
    }
}

/// A standby status update. Positions are "last byte + 1"; 0/0 is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusReply {
    /// Received and written.
    pub write: Lsn,
    /// Durable.
    pub flush: Lsn,
    /// Replayed.
    pub apply: Lsn,
    /// The receiver's clock.
    pub client_time: PgTime,
    /// Whether the receiver wants a keepalive now.
    pub reply: ReplyRequest,
}

impl StatusReply {
    /// The whole frame.
    pub fn encode(&self) -> [u8; STATUS_FRAME] {
        let mut frame = Frame::whole(b'r');
        frame.put(&self.write.raw().to_be_bytes());
        frame.put(&self.flush.raw().to_be_bytes());
        frame.put(&self.apply.raw().to_be_bytes());
        frame.put(&self.client_time.raw().to_be_bytes());
        frame.put(&[self.reply.byte()]);
        frame.bytes
    }
}

/// What a standby's queries still need: two transaction IDs with their epochs. All zeros mean
/// nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HotStandbyFeedback {
    /// The receiver's clock.
    pub client_time: PgTime,
    /// Oldest transaction that queries need; 0 is none.
    pub xmin: u32,
    /// Its epoch.
    pub xmin_epoch: u32,
    /// Oldest transaction whose catalog rows slots need; 0 is none.
    pub catalog_xmin: u32,
    /// Its epoch.
    pub catalog_epoch: u32,
}

impl HotStandbyFeedback {
    /// The whole frame.
    pub fn encode(&self) -> [u8; FEEDBACK_FRAME] {
        let mut frame = Frame::whole(b'h');
        frame.put(&self.client_time.raw().to_be_bytes());
        frame.put(&self.xmin.to_be_bytes());
        frame.put(&self.xmin_epoch.to_be_bytes());
        frame.put(&self.catalog_xmin.to_be_bytes());
        frame.put(&self.catalog_epoch.to_be_bytes());
        frame.bytes
    }
}

/// A message from a receiver of WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FromReceiver {
    /// How far it is.
    Status(StatusReply),
    /// What it needs kept from vacuum.
    Feedback(HotStandbyFeedback),
}

impl FromReceiver {
    /// Reads CopyData's body as leniently as a walsender does: bytes after the last field are
    /// ignored.
    pub fn parse(payload: &[u8]) -> Result<Self, CopyFault> {
        let mut reader = Reader::new(payload);
        match reader.u8().map_err(|Short| CopyFault::Empty)? {
            b'r' => Ok(Self::Status(StatusReply {
                write: lsn(&mut reader)?,
                flush: lsn(&mut reader)?,
                apply: lsn(&mut reader)?,
                client_time: time(&mut reader)?,
                reply: ReplyRequest::from_byte(reader.u8()?),
            })),
            b'h' => Ok(Self::Feedback(HotStandbyFeedback {
                client_time: time(&mut reader)?,
                xmin: reader.u32()?,
                xmin_epoch: reader.u32()?,
                catalog_xmin: reader.u32()?,
                catalog_epoch: reader.u32()?,
            })),
            tag => Err(CopyFault::UnknownTag(tag)),
        }
    }
}

/// CopyData that is not a message of a physical stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CopyFault {
    /// It is empty.
    #[error("no data left in message")]
    Empty,
    /// It ends before its last field.
    #[error("insufficient data left in message")]
    Short,
    /// It continues past its last field.
    #[error("invalid keepalive message: bytes left after the last field")]
    Long,
    /// No message begins with this byte.
    #[error("invalid replication message type {0}")]
    UnknownTag(u8),
}

impl From<Short> for CopyFault {
    fn from(Short: Short) -> Self {
        Self::Short
    }
}

impl CopyFault {
    /// What a walsender tells its client. `None`: it closes without a message.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Self::UnknownTag(_) => None,
            Self::Empty | Self::Short | Self::Long => {
                Some(Refusal::error(sqlstate::PROTOCOL_VIOLATION, self.to_string()))
            }
        }
    }
}

fn lsn(reader: &mut Reader<'_>) -> Result<Lsn, Short> {
    reader.u64().map(Lsn::new)
}

fn time(reader: &mut Reader<'_>) -> Result<PgTime, Short> {
    reader.i64().map(PgTime::new)
}

/// A CopyData frame of known size under construction.
struct Frame<const N: usize> {
    bytes: [u8; N],
    filled: usize,
}

impl<const N: usize> Frame<N> {
    /// The complete frame, with these last N bytes.
    fn whole(tag: u8) -> Self {
        Self::new(N as u32 - 1, tag)
    }

    fn new(length: u32, tag: u8) -> Self {
        let mut frame = Self { bytes: [0; N], filled: 0 };
        frame.put(b"d");
        frame.put(&length.to_be_bytes());
        frame.put(&[tag]);
        frame
    }

    fn put(&mut self, field: &[u8]) {
        let end = self.filled + field.len();
        if let Some(place) = self.bytes.get_mut(self.filled..end) {
            place.copy_from_slice(field);
        }
        self.filled = end;
        debug_assert!(end <= N, "the fields outgrow the frame");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::next_frame;
    use proptest::prelude::*;

    /// The body of exactly one CopyData frame.
    fn body(frame: &[u8]) -> Vec<u8> {
        let parsed = next_frame(frame, 1 << 20).unwrap().unwrap();
        assert_eq!((parsed.tag, parsed.len), (b'd', frame.len()));
        parsed.body.to_vec()
    }

    #[test]
    fn frames_are_those_of_postgres() {
        let at = Lsn::new(0x0102_0304_0506_0708);
        let frame = keepalive(at, PgTime::new(-1), ReplyRequest::Yes);
        assert_eq!(
            frame,
            *b"d\0\0\0\x16k\x01\x02\x03\x04\x05\x06\x07\x08\xff\xff\xff\xff\xff\xff\xff\xff\x01"
        );
        let header = xlog_data_header(at, at, PgTime::new(0), 3);
        assert_eq!(&header[..6], b"d\0\0\0\x20w");
        assert_eq!(&header[6..14], &at.raw().to_be_bytes());
    }

    #[test]
    fn receivers_are_strict_about_keepalives() {
        let mut payload = body(&keepalive(Lsn::MAX, PgTime::new(1), ReplyRequest::No));
        payload[17] = 7;
        let Ok(FromSender::Keepalive { reply, .. }) = FromSender::parse(&payload) else {
            panic!("a keepalive")
        };
        assert_eq!(reply, ReplyRequest::Yes, "any byte but zero asks");
        payload.push(0);
        assert_eq!(FromSender::parse(&payload), Err(CopyFault::Long));
        assert_eq!(FromSender::parse(&payload[..17]), Err(CopyFault::Short));
        assert_eq!(FromSender::parse(b"z"), Err(CopyFault::UnknownTag(b'z')));
        assert_eq!(FromSender::parse(b""), Err(CopyFault::Empty));
        assert_eq!(FromSender::parse(&[b'w'; 24]), Err(CopyFault::Short));
        let Ok(FromSender::XLogData { wal, .. }) = FromSender::parse(&[b'w'; 25]) else {
            panic!("XLogData without WAL")
        };
        assert!(wal.is_empty());
    }

    #[test]
    fn senders_are_lenient_about_what_follows() {
        let status = StatusReply {
            write: Lsn::new(3),
            flush: Lsn::new(2),
            apply: Lsn::new(1),
            client_time: PgTime::new(9),
            reply: ReplyRequest::Yes,
        };
        let mut payload = body(&status.encode());
        payload.extend(b"more");
        assert_eq!(FromReceiver::parse(&payload), Ok(FromReceiver::Status(status)));
        assert_eq!(FromReceiver::parse(&payload[..33]), Err(CopyFault::Short));
        assert_eq!(FromReceiver::parse(b"h1234"), Err(CopyFault::Short));
        let text = |fault: CopyFault| fault.refusal().map(|r| (r.sqlstate, r.message));
        assert_eq!(text(CopyFault::Empty), Some(("08P01", "no data left in message".to_owned())));
        assert_eq!(text(CopyFault::UnknownTag(1)), None);
    }

    fn requests() -> impl Strategy<Value = ReplyRequest> {
        any::<bool>().prop_map(|ask| if ask { ReplyRequest::Yes } else { ReplyRequest::No })
    }

    proptest! {
        #[test]
        fn xlog_data_round_trips(
            start in any::<u64>(), end in any::<u64>(), at in any::<i64>(),
            wal in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let (start, wal_end, send_time) = (Lsn::new(start), Lsn::new(end), PgTime::new(at));
            let mut frame = xlog_data_header(start, wal_end, send_time, wal.len()).to_vec();
            frame.extend(&wal);
            let payload = body(&frame);
            prop_assert_eq!(
                FromSender::parse(&payload),
                Ok(FromSender::XLogData { start, wal_end, send_time, wal: &wal })
            );
        }

        #[test]
        fn keepalives_round_trip(end in any::<u64>(), at in any::<i64>(), reply in requests()) {
            let (wal_end, send_time) = (Lsn::new(end), PgTime::new(at));
            let payload = body(&keepalive(wal_end, send_time, reply));
            prop_assert_eq!(
                FromSender::parse(&payload),
                Ok(FromSender::Keepalive { wal_end, send_time, reply })
            );
        }

        #[test]
        fn replies_round_trip(
            lsns in any::<[u64; 3]>(), at in any::<i64>(), reply in requests(),
            xids in any::<[u32; 4]>(),
        ) {
            let [write, flush, apply] = lsns.map(Lsn::new);
            let client_time = PgTime::new(at);
            let status = StatusReply { write, flush, apply, client_time, reply };
            prop_assert_eq!(
                FromReceiver::parse(&body(&status.encode())),
                Ok(FromReceiver::Status(status))
            );
            let [xmin, xmin_epoch, catalog_xmin, catalog_epoch] = xids;
            let feedback =
                HotStandbyFeedback { client_time, xmin, xmin_epoch, catalog_xmin, catalog_epoch };
            prop_assert_eq!(
                FromReceiver::parse(&body(&feedback.encode())),
                Ok(FromReceiver::Feedback(feedback))
            );
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            std::hint::black_box(FromSender::parse(&bytes).is_ok());
            std::hint::black_box(FromReceiver::parse(&bytes).is_ok());
        }
    }
}
