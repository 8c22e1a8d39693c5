//! What the bytes of a complete segment were: a SHA-256 of each block of 1 MiB, and one over these.
//! Beside it stands what its WAL says of its place in the life of the cluster.
//!
//! Each segment has its own, which says nothing of any other, so segments come and go in any order.
//! A missing digest means that nothing is known. So does one that cannot be read: the files are
//! written without a sync, and what a crash leaves of one has another checksum.

mod compare;
mod file;
mod scan;

pub use compare::{DifferingBlocks, DigestComparison, compare, compare_restored, hash_file};
pub use file::{
    DigestFile, bring_back, discard, drop_removed, forget, forget_removed_from, list_removed, read,
    read_removed, retire, store, sync_names, take_along,
};
pub use scan::{ScannedWal, SegmentScan};

use super::sealed_text::{Unreadable, seal, unseal};
use crate::wal::{Lsn, NextXid, SegmentContents, SegmentName, Stamp, SystemId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of a block. Every segment is a whole number of blocks.
pub const BLOCK: u64 = 1 << 20;

const KIND: &str = "digest";
const VERSION: u32 = 2;

/// Without contents.
const OLD_VERSION: u32 = 1;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BlockDigest([u8; 32]);

impl BlockDigest {
    fn of(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }
}

impl fmt::Display for BlockDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BlockDigest {
    type Err = ();

    /// Accepts 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let mut digest = [0; 32];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != digest.len() || !rest.is_empty() {
            return Err(());
        }
        for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
            let value = digit(*high).zip(digit(*low)).map(|(high, low)| high * 16 + low);
            *byte = value.and_then(|value| u8::try_from(value).ok()).ok_or(())?;
        }
        Ok(Self(digest))
    }
}

/// The digest of a complete segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentDigest {
    /// Whose WAL it is.
    pub system_id: SystemId,
    /// The segment.
    pub name: SegmentName,
    /// When the segment was completed, to a millisecond; `None` when that is not known.
    pub completed: Option<SystemTime>,
    /// What its WAL says; `None` when nobody has looked, as in a file of the version before.
    pub contents: Option<SegmentContents>,
    /// One for each block, in order.
    blocks: Vec<BlockDigest>,
}

impl SegmentDigest {
    /// The digest over those of the blocks.
    pub fn root(&self) -> BlockDigest {
        let mut hash = Sha256::new();
        self.blocks.iter().for_each(|block| hash.update(block.0));
        BlockDigest::of(hash)
    }

    /// The blocks that are not the same in the bytes that `found` is of, as positions: from and to.
    pub fn differing(&self, found: &BlockDigests) -> Vec<(Lsn, Lsn)> {
        let start = self.name.no.start(self.name.size);
        let block = |n: usize| start.saturating_add(n as u64 * BLOCK);
        let numbers = 0..self.blocks.len();
        let differs = numbers.filter(|n| self.blocks.get(*n) != found.0.get(*n));
        differs.map(|n| (block(n), block(n + 1))).collect()
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let millis = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        };
        let text = DigestText {
            system_id: self.system_id.to_string(),
            segment: self.name.to_string(),
            wal_segment_size: self.name.size.bytes(),
            completed_unix_ms: self.completed.map(millis),
            contents: self.contents.map(ContentsText::of),
            root: self.root().to_string(),
            blocks: self.blocks.iter().map(ToString::to_string).collect(),
        };
        let version = if self.contents.is_some() { VERSION } else { OLD_VERSION };
        seal(KIND, version, &text)
    }

    /// Reads the bytes of this segment's file.
    ///
    /// # Errors
    /// They are not those that were written, or of another segment.
    pub fn decode(bytes: &[u8], name: SegmentName) -> Result<Self, Unreadable> {
        let text: DigestText = match unseal(KIND, VERSION, bytes) {
            Err(Unreadable::Version { found: OLD_VERSION, .. }) => {
                unseal(KIND, OLD_VERSION, bytes)?
            }
            text => text?,
        };
        let wrong = |field: &str| Unreadable::Content(format!("invalid {field}"));
        let block = |text: String| text.parse().map_err(|()| wrong("blocks"));
        if text.segment != name.to_string() || text.wal_segment_size != name.size.bytes() {
            return Err(wrong("segment"));
        }
        let since = |ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms));
        let completed = text.completed_unix_ms.map(|ms| since(ms).ok_or_else(|| wrong("time")));
        let digest = Self {
            system_id: text.system_id.parse().map_err(|_| wrong("system_id"))?,
            name,
            completed: completed.transpose()?,
            contents: text.contents.map(ContentsText::read).transpose()?,
            blocks: text.blocks.into_iter().map(block).collect::<Result<_, _>>()?,
        };
        let count = digest.blocks.len() as u64;
        match count * BLOCK == name.size.bytes() && text.root.parse() == Ok(digest.root()) {
            true => Ok(digest),
            false => Err(wrong("root")),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct DigestText {
    // As text: JSON readers round numbers of this size.
    system_id: String,
    segment: String,
    wal_segment_size: u64,
    completed_unix_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    contents: Option<ContentsText>,
    root: String,
    blocks: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct ContentsText {
    next_xid: Option<u32>,
    next_xid_epoch: Option<u32>,
    first: Option<StampText>,
    last: Option<StampText>,
}

#[derive(Serialize, Deserialize)]
struct StampText {
    lsn: String,
    /// Microseconds since 2000.
    time: i64,
}

impl ContentsText {
    fn of(contents: SegmentContents) -> Self {
        let stamp = |stamp: Stamp| StampText { lsn: stamp.at.to_string(), time: stamp.time };
        Self {
            next_xid: contents.next_xid.map(|next| next.xid),
            next_xid_epoch: contents.next_xid.and_then(|next| next.epoch),
            first: contents.stamps.map(|(first, _)| stamp(first)),
            last: contents.stamps.map(|(_, last)| stamp(last)),
        }
    }

    fn read(self) -> Result<SegmentContents, Unreadable> {
        let stamp = |text: StampText| {
            let at = text.lsn.parse().map_err(|_| Unreadable::Content("invalid lsn".to_owned()));
            Ok(Stamp { at: at?, time: text.time })
        };
        let epoch = self.next_xid_epoch;
        let [first, last] = [self.first, self.last].map(|text| text.map(stamp).transpose());
        Ok(SegmentContents {
            next_xid: self.next_xid.map(|xid| NextXid { epoch, xid }),
            stamps: first?.zip(last?),
        })
    }
}

/// The digests of whole blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockDigests(Vec<BlockDigest>);

impl BlockDigests {
    /// The segment's digest. Returns `None` when there are more blocks or fewer.
    pub fn of_segment(
        self,
        system_id: SystemId,
        name: SegmentName,
        completed: Option<SystemTime>,
    ) -> Option<SegmentDigest> {
        let Self(blocks) = self;
        let is_whole = blocks.len() as u64 * BLOCK == name.size.bytes();
        is_whole.then_some(SegmentDigest { system_id, name, completed, contents: None, blocks })
    }
}

/// Takes the bytes of a segment in pieces of any size.
#[derive(Clone, Debug, Default)]
pub struct BlockHasher {
    whole: BlockDigests,
    hash: Sha256,
    /// Bytes of the current block, fewer than a block has.
    have: u64,
}

impl BlockHasher {
    /// The bytes that come next.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = usize::try_from(BLOCK - self.have).unwrap_or(usize::MAX);
            let (piece, after) = rest.split_at(room.min(rest.len()));
            self.hash.update(piece);
            self.have += piece.len() as u64;
            if self.have == BLOCK {
                self.whole.0.push(BlockDigest::of(std::mem::take(&mut self.hash)));
                self.have = 0;
            }
            rest = after;
        }
    }

    /// How many bytes were fed.
    pub fn fed(&self) -> u64 {
        self.whole.0.len() as u64 * BLOCK + self.have
    }

    /// The whole blocks. Less than a block at the end counts for nothing.
    pub fn finish(self) -> BlockDigests {
        self.whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{SegmentNo, SegmentSize, TimelineId};
    use proptest::prelude::*;

    fn name(no: u64, mib: u64) -> SegmentName {
        let size = SegmentSize::new(mib * BLOCK).unwrap();
        SegmentName { tli: TimelineId::FIRST, no: SegmentNo::new(no), size }
    }

    fn digests(bytes: &[u8]) -> BlockDigests {
        let mut hasher = BlockHasher::default();
        hasher.feed(bytes);
        assert_eq!(hasher.fed(), bytes.len() as u64);
        hasher.finish()
    }

    fn digest(bytes: &[u8], name: SegmentName) -> SegmentDigest {
        let completed = UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        digests(bytes).of_segment(SystemId::new(u64::MAX), name, Some(completed)).unwrap()
    }

    fn bytes(mib: u64) -> Vec<u8> {
        (0..mib * BLOCK).map(|n| (n / 4099) as u8).collect()
    }

    /// By the published vectors, so that another program can compute the same.
    #[test]
    fn it_is_sha_256() {
        let mut hash = Sha256::new();
        hash.update(b"abc");
        let text = BlockDigest::of(hash).to_string();
        assert_eq!(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(text.parse::<BlockDigest>().unwrap().to_string(), text);
        for other in ["", "ba78", &text[1..], &text.replace('b', "x"), &format!("{text}00")] {
            assert!(other.parse::<BlockDigest>().is_err(), "{other}");
        }
    }

    #[test]
    fn a_changed_bit_is_in_its_block() {
        let (name, good) = (name(5, 4), bytes(4));
        let digest = digest(&good, name);
        assert_eq!(digest.differing(&digests(&good)), []);
        let start = name.no.start(name.size);
        let at = |block: u64| start.saturating_add(block * BLOCK);
        for (byte, block) in [(0, 0), (BLOCK - 1, 0), (BLOCK, 1), (4 * BLOCK - 1, 3)] {
            let mut bad = good.clone();
            bad[byte as usize] ^= 8;
            assert_eq!(digest.differing(&digests(&bad)), [(at(block), at(block + 1))]);
        }
        let short = digests(&good[..3 * BLOCK as usize + 5]);
        assert_eq!(digest.differing(&short), [(at(3), at(4))]);
        assert_eq!(short.of_segment(SystemId::new(7), name, None), None);
    }

    #[test]
    fn round_trip_and_refusals() {
        let name = name(5, 2);
        let whole = digest(&bytes(2), name);
        let unknown = SegmentDigest { completed: None, ..whole.clone() };
        let stamp = |at, time| Stamp { at: Lsn::new(at), time };
        let contents = SegmentContents {
            next_xid: Some(NextXid { epoch: Some(3), xid: u32::MAX }),
            stamps: Some((stamp(5 * BLOCK + 8, -5), stamp(6 * BLOCK, i64::MAX))),
        };
        let empty = SegmentContents::default();
        let [full, empty] = [contents, empty]
            .map(|contents| SegmentDigest { contents: Some(contents), ..whole.clone() });
        assert!(whole.encode().starts_with(b"walhub digest 1 "), "as the version before wrote it");
        assert!(full.encode().starts_with(b"walhub digest 2 "));
        for known in [whole.clone(), unknown, full, empty] {
            assert_eq!(SegmentDigest::decode(&known.encode(), name), Ok(known));
        }
        let other = SegmentName { no: name.no.next(), ..name };
        assert!(SegmentDigest::decode(&whole.encode(), other).is_err());
        assert!(SegmentDigest::decode(b"", name).is_err());
        // The largest segment's file is one of the small ones.
        let size = SegmentSize::new(1 << 30).unwrap();
        let large = SegmentDigest {
            name: SegmentName { size, ..name },
            blocks: whole.blocks.repeat(512),
            ..whole
        };
        let bytes = large.encode();
        assert!(bytes.len() < crate::store::sealed_text::MAX_LEN / 8, "{}", bytes.len());
        assert_eq!(SegmentDigest::decode(&bytes, large.name), Ok(large));
    }

    proptest! {
        #[test]
        fn the_pieces_do_not_matter(cuts in proptest::collection::vec(0..2 * BLOCK, 0..6)) {
            let bytes = bytes(2);
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut hasher = BlockHasher::default();
            let mut at = 0;
            for cut in cuts {
                hasher.feed(&bytes[at..cut as usize]);
                at = cut as usize;
            }
            hasher.feed(&bytes[at..]);
            prop_assert_eq!(hasher.finish(), digests(&bytes));
        }

        #[test]
        fn one_changed_byte_of_the_file_is_noticed(at in 0usize..400, bit in 0u8..8) {
            let name = name(5, 1);
            let digest = digest(&bytes(1), name);
            let mut file = digest.encode();
            let at = at % file.len();
            file[at] ^= 1 << bit;
            // The checksum is hexadecimal in either case: the number is the same.
            if let Ok(read) = SegmentDigest::decode(&file, name) {
                prop_assert_eq!(read, digest);
            }
        }
    }
}
