//! The records that make up a commit.

use crate::bench::profile::{CommitSize, Images, Load};
use crate::bench::random::Random;
use crate::wal::Lsn;
use crate::wal::PAGE_SIZE;
use crate::wal::synth::{COMMIT_RECORD, Synth};
use crate::wire::time::PgTime;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

/// Bytes from which records take their data: enough that no short match repeats soon.
const BLOCK: usize = 1 << 20;

/// Two of three records are row changes; the others are larger rows and page splits.
const SMALL: RangeInclusive<u64> = 50..=300;
const MIDDLE: RangeInclusive<u64> = 300..=1500;
/// Commits from this size on are bulk loads: whole pages of rows at a time.
const BULK_COMMIT: u64 = 64 << 10;
const BULK: RangeInclusive<u64> = 7500..=8100;

/// A record header and the header of its data, of any kind.
const OVERHEAD: u64 = 32;

/// The first normal transaction (`FirstNormalTransactionId`).
const FIRST_XID: u32 = 3;

/// Makes commits.
#[derive(Debug)]
pub(super) struct Mix {
    size: CommitSize,
    images: Option<Images>,
    random: Random,
    block: Vec<u8>,
    xid: u32,
}

impl Mix {
    pub(super) fn new(load: &Load) -> Self {
        let mut random = Random::new(load.seed);
        let block = random.bytes(BLOCK);
        Self { size: load.commit_size, images: load.images, random, block, xid: FIRST_XID }
    }

    /// Writes one commit and returns its end. `elapsed` is the load's time, for the waves of
    /// images.
    pub(super) fn commit(&mut self, synth: &mut Synth, elapsed: Duration) -> Lsn {
        let size = self.size.draw(&mut self.random);
        let images = self.image_chance(elapsed);
        let changes = size.saturating_sub(COMMIT_RECORD);
        let end = synth.position().saturating_add(changes);
        loop {
            let left = end.bytes_since(synth.position());
            if left < OVERHEAD {
                break;
            }
            if images > 0.0 && self.random.unit() < images {
                let (relation, block) = (16_384 + self.random.below(100), self.random.bits());
                let image = slice(&mut self.random, &self.block, PAGE_SIZE);
                synth.image(relation as u32, block as u32, image);
                continue;
            }
            let range = match () {
                () if size >= BULK_COMMIT => BULK,
                () if self.random.below(3) > 0 => SMALL,
                () => MIDDLE,
            };
            let len = self.random.between(*range.start(), *range.end());
            let len = len.min(left.saturating_sub(OVERHEAD));
            let payload = slice(&mut self.random, &self.block, usize::try_from(len).unwrap_or(0));
            synth.record(payload);
        }
        synth.commit(self.xid, PgTime::from(SystemTime::now()).raw());
        self.xid = self.xid.checked_add(1).unwrap_or(FIRST_XID);
        synth.position()
    }

    fn image_chance(&self, elapsed: Duration) -> f64 {
        let Some(images) = self.images else { return 0.0 };
        let (every, lasts) = (images.every.as_secs_f64(), images.lasts.as_secs_f64());
        let offset = elapsed.as_secs_f64() % every.max(1e-3);
        (1.0 - offset / lasts).max(0.0) * f64::from(images.percent) / 100.0
    }
}

/// `len` bytes from a random place in the block.
fn slice<'b>(random: &mut Random, block: &'b [u8], len: usize) -> &'b [u8] {
    let room = block.len().saturating_sub(len) as u64;
    let from = usize::try_from(random.below(room)).unwrap_or(0);
    block.get(from..from.saturating_add(len)).unwrap_or_default()
}
