//! Checks whether a standby receives the correct WAL.
//!
//! Inside the truth's window, bytes are compared. A standby that is about to fall behind the window
//! gets a walk of its own, which begins early enough that nothing remains unchecked in between.

mod walk;

use self::walk::Walk;
use super::plan::{TruthFrom, Verify};
use super::sums::{Sums, Unverified};
use crate::bench::truth::{At, Piece, Truth};
use crate::wal::{Lsn, PageRules, Walker};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The block size of `Verify::Crc`.
const BLOCK: u64 = 1 << 20;
/// The most sums that are kept: those of 16 GiB.
const MAX_SUMS: usize = 16 << 10;
/// Pieces of the truth that a thread keeps at hand.
const RECENT: usize = 8;

/// Wrong WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) at: Lsn,
    pub(super) text: String,
}

/// What the threads' verifiers share.
#[derive(Debug)]
pub(super) struct Common {
    truth: Arc<Truth>,
    from: TruthFrom,
    rules: PageRules,
    source: Mutex<Source>,
    sums: Mutex<BTreeMap<u64, u32>>,
}

/// The walk over the WAL that fills the truth.
#[derive(Debug)]
enum Source {
    NotYet,
    Walking(Box<Walker>),
    /// Something other than WAL came, so what follows is unknown.
    Broken,
}

impl Common {
    pub(super) fn new(truth: Arc<Truth>, from: TruthFrom, rules: PageRules) -> Self {
        let (source, sums) = (Mutex::new(Source::NotYet), Mutex::default());
        Self { truth, from, rules, source, sums }
    }

    /// Adds WAL that the truth does not have yet.
    fn offer(&self, at: Lsn, wal: &[u8]) -> Result<(), Wrong> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*source, Source::NotYet) {
            let start = at.page_ceil();
            let start = if self.truth.begin_at(start) { start } else { self.truth.end() };
            if start.page_offset() != 0 {
                // Another standby has begun it in the middle of a page.
                *source = Source::Broken;
            } else {
                *source = Source::Walking(Box::new(Walker::new(self.rules.clone(), start)));
            }
        }
        let Source::Walking(walker) = &mut *source else { return Ok(()) };
        let end = self.truth.end();
        let known = usize::try_from(end.bytes_since(at)).unwrap_or(usize::MAX);
        let Some(new) = wal.get(known..).filter(|new| at <= end && !new.is_empty()) else {
            return Ok(());
        };
        match walker.feed(new) {
            Ok(()) => {
                self.truth.append(end, Bytes::copy_from_slice(new));
                Ok(())
            }
            Err(fault) => {
                *source = Source::Broken;
                Err(Wrong { at: fault.at, text: fault.to_string() })
            }
        }
    }

    /// The correct sum of a block; `None` when `found` is the first one.
    fn sum(&self, block: u64, found: u32) -> Option<u32> {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sum) = sums.get(&block) {
            return Some(*sum);
        }
        let truth = match self.from {
            TruthFrom::Primary => self.sum_of_truth(Lsn::new(block.saturating_mul(BLOCK))),
            TruthFrom::FirstReceiver => None,
        };
        sums.insert(block, truth.unwrap_or(found));
        if sums.len() > MAX_SUMS {
            sums.pop_first();
        }
        truth
    }

    fn sum_of_truth(&self, start: Lsn) -> Option<u32> {
        let (mut at, end, mut sum) = (start, start.saturating_add(BLOCK), 0);
        while at < end {
            let At::Piece(piece) = self.truth.at(at) else { return None };
            let bytes = piece.from(at)?;
            let left = usize::try_from(end.bytes_since(at)).unwrap_or(usize::MAX);
            let bytes = bytes.get(..left).unwrap_or(bytes);
            sum = crc32c::crc32c_append(sum, bytes);
            at = at.saturating_add(bytes.len() as u64);
        }
        Some(sum)
    }
}

/// One thread's verifier.
pub(super) struct Verifier {
    common: Arc<Common>,
    mode: Verify,
    recent: [Option<Piece>; RECENT],
    next: usize,
}

/// The state of one standby's checks.
#[derive(Debug, Default)]
pub(super) struct Check {
    walk: Option<Box<Walk>>,
    sum: u32,
    /// Bytes of the block that the sum covers.
    summed: u64,
    /// The sum covers its block from the start.
    whole: bool,
}

impl Check {
    /// The stream is over. Returns the results for the bytes that waited for more.
    pub(super) fn close(&mut self) -> Sums {
        let Self { walk, summed, .. } = std::mem::take(self);
        walk.map_or_else(Sums::default, |walk| walk.close())
            + Sums::of_unverified(Unverified::BlockNotWhole, summed)
    }
}

impl Verifier {
    pub(super) fn new(common: Arc<Common>, mode: Verify) -> Self {
        Self { common, mode, recent: Default::default(), next: 0 }
    }

    /// Checks the next WAL of a standby. Returns the results for these bytes and for those that
    /// waited for them.
    pub(super) fn check(&mut self, check: &mut Check, at: Lsn, wal: &[u8]) -> Result<Sums, Wrong> {
        match self.mode {
            Verify::Full => self.compare(check, at, wal),
            Verify::Crc => self.sum(check, at, wal),
            Verify::Off => Ok(Sums::of_unverified(Unverified::NotChecked, wal.len() as u64)),
        }
    }

    fn compare(&mut self, check: &mut Check, at: Lsn, wal: &[u8]) -> Result<Sums, Wrong> {
        let end = at.saturating_add(wal.len() as u64);
        let truth_end = self.common.truth.end();
        if self.common.from == TruthFrom::FirstReceiver && end > truth_end {
            self.common.offer(at, wal)?;
        }
        let covered = self.compare_with_truth(at, wal)?;
        let lagging = truth_end.bytes_since(at) > self.common.truth.window() / 2;
        if covered && !lagging && check.walk.is_none() {
            return Ok(Sums::of_verified(wal.len() as u64));
        }
        let walk = check.walk.get_or_insert_with(|| Walk::begin(&self.common.rules, at));
        if !covered {
            return walk.take_unknown(at, wal);
        }
        let sums = walk.take_compared(at, wal)?;
        if !lagging && walk.is_settled() {
            check.walk = None;
        }
        Ok(sums + Sums::of_verified(wal.len() as u64))
    }

    /// Returns `false` when the truth does not have all of it, or no longer has it.
    fn compare_with_truth(&mut self, at: Lsn, wal: &[u8]) -> Result<bool, Wrong> {
        let (mut at, mut rest) = (at, wal);
        while !rest.is_empty() {
            let Some(place) = self.piece_at(at) else {
                let unwritten = self.common.truth.end() <= at;
                if unwritten && self.common.from == TruthFrom::Primary {
                    let text = format!("WAL from {at} on was never written");
                    return Err(Wrong { at, text });
                }
                return Ok(false);
            };
            let piece = self.recent.get(place).and_then(Option::as_ref);
            let Some(expected) = piece.and_then(|piece| piece.from(at)) else { return Ok(false) };
            let (received, after) = rest.split_at(expected.len().min(rest.len()));
            let expected = expected.get(..received.len()).unwrap_or(expected);
            if received != expected {
                return Err(difference(at, expected, received));
            }
            at = at.saturating_add(received.len() as u64);
            rest = after;
        }
        Ok(true)
    }

    /// The index of the recent piece that holds `at`.
    fn piece_at(&mut self, at: Lsn) -> Option<usize> {
        let holds = |piece: &Option<Piece>| {
            piece.as_ref().is_some_and(|piece| piece.start <= at && at < piece.end())
        };
        if let Some(place) = self.recent.iter().position(holds) {
            return Some(place);
        }
        let At::Piece(piece) = self.common.truth.at(at) else { return None };
        let place = self.next;
        self.next = (place + 1) % RECENT;
        *self.recent.get_mut(place)? = Some(piece);
        Some(place)
    }

    fn sum(&mut self, check: &mut Check, at: Lsn, wal: &[u8]) -> Result<Sums, Wrong> {
        let (mut at, mut rest, mut sums) = (at, wal, Sums::default());
        while !rest.is_empty() {
            if at.raw() % BLOCK == 0 {
                (check.sum, check.whole) = (0, true);
            }
            let left = usize::try_from(BLOCK - at.raw() % BLOCK).unwrap_or(usize::MAX);
            let (piece, after) = rest.split_at(left.min(rest.len()));
            check.sum = crc32c::crc32c_append(check.sum, piece);
            check.summed += piece.len() as u64;
            let block = at.raw() / BLOCK;
            at = at.saturating_add(piece.len() as u64);
            rest = after;
            if piece.len() == left {
                sums += self.judge(check, block)?;
            }
        }
        Ok(sums)
    }

    /// The results for the bytes of a block that has ended.
    fn judge(&self, check: &mut Check, block: u64) -> Result<Sums, Wrong> {
        let (bytes, found) = (std::mem::take(&mut check.summed), check.sum);
        if !check.whole {
            return Ok(Sums::of_unverified(Unverified::BlockNotWhole, bytes));
        }
        match self.common.sum(block, found) {
            Some(sum) if sum == found => Ok(Sums::of_verified(bytes)),
            Some(sum) => {
                let start = Lsn::new(block.saturating_mul(BLOCK));
                let end = start.saturating_add(BLOCK);
                let text = format!(
                    "WAL from {start} to {end} differs: expected CRC {sum:08X}, received {found:08X}"
                );
                Err(Wrong { at: start, text })
            }
            None => Ok(Sums::of_unverified(Unverified::BlockWithoutSum, bytes)),
        }
    }
}

fn difference(at: Lsn, expected: &[u8], received: &[u8]) -> Wrong {
    let pairs = expected.iter().zip(received).zip(0u64..);
    let first = pairs.into_iter().find(|((expected, received), _)| expected != received);
    let ((expected, received), offset) = first.unwrap_or(((&0, &0), 0));
    let at = at.saturating_add(offset);
    let text = format!("byte at {at} differs: expected {expected:02X}, received {received:02X}");
    Wrong { at, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::synth::Synth;
    use crate::wal::{SegmentSize, SystemId, TimelineId};

    const START: Lsn = Lsn::new(1 << 20);
    const MAGIC: u16 = 0xD110;

    fn rules() -> PageRules {
        PageRules {
            system: SystemId::new(7),
            size: SegmentSize::new(1 << 20).unwrap(),
            tli: TimelineId::FIRST,
            magic: None,
            fork: None,
        }
    }

    fn wal(bytes: usize) -> Vec<u8> {
        let rules = rules();
        let mut synth = Synth::new(rules.system, rules.size, rules.tli, MAGIC, START);
        let mut out = Vec::new();
        let mut n = 0u32;
        while out.len() < bytes {
            n += 1;
            synth.record(&n.to_le_bytes().repeat(n as usize % 3000 + 1));
            out.extend(synth.take_bytes().1);
        }
        out
    }

    fn common(window: u64, from: TruthFrom) -> Arc<Common> {
        let start = if from == TruthFrom::Primary { START } else { Lsn::INVALID };
        Arc::new(Common::new(Arc::new(Truth::new(start, window)), from, rules()))
    }

    fn append(common: &Common, wal: &[u8]) {
        for piece in wal.chunks(5000) {
            assert!(common.truth.append(common.truth.end(), Bytes::copy_from_slice(piece)));
        }
    }

    /// Feeds `wal` in pieces; returns the results.
    fn feed_all(
        verifier: &mut Verifier,
        check: &mut Check,
        from: Lsn,
        wal: &[u8],
    ) -> Result<Sums, Wrong> {
        let (mut at, mut sums) = (from, Sums::default());
        for piece in wal.chunks(7777) {
            sums += verifier.check(check, at, piece)?;
            at = at.saturating_add(piece.len() as u64);
        }
        Ok(sums)
    }

    /// The same; returns the verified bytes.
    fn feed(
        verifier: &mut Verifier,
        check: &mut Check,
        from: Lsn,
        wal: &[u8],
    ) -> Result<u64, Wrong> {
        feed_all(verifier, check, from, wal).map(|sums| sums.verified)
    }

    #[test]
    fn a_wrong_byte_is_named() {
        let wal = wal(3 << 20);
        let common = common(64 << 20, TruthFrom::Primary);
        append(&common, &wal);
        let mut verifier = Verifier::new(Arc::clone(&common), Verify::Full);
        assert_eq!(feed(&mut verifier, &mut Check::default(), START, &wal), Ok(wal.len() as u64));
        let mut bad = wal.clone();
        bad[1_234_567] ^= 0x80;
        let wrong = feed(&mut verifier, &mut Check::default(), START, &bad).unwrap_err();
        assert_eq!(wrong.at, START.saturating_add(1_234_567));
        assert!(wrong.text.contains("byte at 0/22D687 differs: expected"), "{}", wrong.text);

        let mut verifier = Verifier::new(common, Verify::Crc);
        let sums = wal.len() as u64 >> 20 << 20;
        assert_eq!(feed(&mut verifier, &mut Check::default(), START, &wal), Ok(sums));
        let wrong = feed(&mut verifier, &mut Check::default(), START, &bad).unwrap_err();
        assert_eq!(wrong.at, Lsn::new(2 << 20));
    }

    #[test]
    fn what_was_never_written_is_wrong() {
        let wal = wal(1 << 20);
        let common = common(64 << 20, TruthFrom::Primary);
        append(&common, &wal[..500_000]);
        let mut verifier = Verifier::new(common, Verify::Full);
        let wrong = feed(&mut verifier, &mut Check::default(), START, &wal).unwrap_err();
        assert_eq!(wrong.at, START.saturating_add(500_000));
    }

    #[test]
    fn a_laggard_walks_and_comes_back() {
        let wal = wal(6 << 20);
        let common = common(1 << 20, TruthFrom::Primary);
        append(&common, &wal[..200_000]);
        let mut verifier = Verifier::new(Arc::clone(&common), Verify::Full);
        let mut check = Check::default();
        let mut proven = feed(&mut verifier, &mut check, START, &wal[..100_000]).unwrap();
        assert!(check.walk.is_none());
        let mut go_on = |written: usize, from: usize, to: usize| {
            let known = common.truth.end().bytes_since(START) as usize;
            append(&common, &wal[known..written]);
            let at = START.saturating_add(from as u64);
            proven += feed(&mut verifier, &mut check, at, &wal[from..to]).unwrap();
            (proven, check.walk.is_some())
        };
        // It lags inside the window and begins to walk.
        assert_eq!(go_on(900_000, 100_000, 140_000), (140_000, true));
        // It falls behind the window: only whole records count.
        let (sure, walks) = go_on(5 << 20, 140_000, 2_000_000);
        assert!(walks && sure <= 2_000_000 && sure > 2_000_000 - 8192, "{sure}");
        // It catches up again, and nothing was left out.
        assert_eq!(go_on(wal.len(), 2_000_000, wal.len()), (wal.len() as u64, false));
    }

    #[test]
    fn a_laggards_wrong_byte_is_found_by_the_walk() {
        let mut wal = wal(4 << 20);
        let common = common(100_000, TruthFrom::Primary);
        append(&common, &wal);
        let mut verifier = Verifier::new(common, Verify::Full);
        wal[300_000] ^= 1;
        let wrong = feed(&mut verifier, &mut Check::default(), START, &wal).unwrap_err();
        let bad = START.saturating_add(300_000);
        assert!(wrong.at <= bad && bad.bytes_since(wrong.at) < 8192, "{wrong:?}");
    }

    #[test]
    fn the_first_receiver_fills_the_truth() {
        let wal = wal(2 << 20);
        let common = common(64 << 20, TruthFrom::FirstReceiver);
        let mut verifier = Verifier::new(Arc::clone(&common), Verify::Full);
        let (mut one, mut two) = (Check::default(), Check::default());
        let half = feed(&mut verifier, &mut one, START, &wal[..1 << 20]);
        assert_eq!(half, Ok(1 << 20));
        assert_eq!(feed(&mut verifier, &mut two, START, &wal), Ok(wal.len() as u64));
        assert_eq!(common.truth.end(), START.saturating_add(wal.len() as u64));
        let mut bad = wal.clone();
        bad[1_500_000] ^= 4;
        let at = START.saturating_add(1 << 20);
        let wrong = feed(&mut verifier, &mut one, at, &bad[1 << 20..]).unwrap_err();
        assert_eq!(wrong.at, START.saturating_add(1_500_000));
    }

    #[test]
    fn the_first_receiver_is_checked_too() {
        let mut wal = wal(2 << 20);
        wal[1_000_000] ^= 4;
        let common = common(64 << 20, TruthFrom::FirstReceiver);
        let mut verifier = Verifier::new(common, Verify::Full);
        let wrong = feed(&mut verifier, &mut Check::default(), START, &wal).unwrap_err();
        assert!(wrong.text.contains("incorrect resource manager data checksum"), "{}", wrong.text);
    }

    /// Records that end long after the window's edge was crossed.
    fn long_records() -> Vec<u8> {
        let rules = rules();
        let mut synth = Synth::new(rules.system, rules.size, rules.tli, MAGIC, START);
        synth.record(&[7; 1000]);
        synth.record(&[8; 600_000]);
        synth.record(&[9; 600_000]);
        synth.take_bytes().1.to_vec()
    }

    #[test]
    fn a_laggard_at_the_edge_counts_each_byte_once() {
        let wal = long_records();
        let common = common(100_000, TruthFrom::Primary);
        append(&common, &wal[..40_000]);
        let mut verifier = Verifier::new(Arc::clone(&common), Verify::Full);
        let mut check = Check::default();
        let (mut at, mut verified) = (0, 0);
        let mut go_on = |written: usize, to: usize| {
            let known = common.truth.end().bytes_since(START) as usize;
            append(&common, &wal[known..written]);
            let from = START.saturating_add(at as u64);
            verified += feed(&mut verifier, &mut check, from, &wal[at..to]).unwrap();
            at = to;
            verified
        };
        assert_eq!(go_on(95_000, 20_000), 20_000, "inside the window, and lagging");
        assert!(go_on(300_000, 250_000) < 250_000, "outside it, in a record");
        go_on(300_000, 300_000);
        assert!(go_on(500_000, 350_000) < 350_000, "outside again, in the same record");
        assert_eq!(go_on(wal.len(), wal.len()), wal.len() as u64);
    }

    #[test]
    fn what_is_not_verified_has_a_reason() {
        let wal = long_records();
        let all = |common: &Arc<Common>, mode, from: usize, to: usize| {
            let mut verifier = Verifier::new(Arc::clone(common), mode);
            let mut check = Check::default();
            let at = START.saturating_add(from as u64);
            let sums = feed_all(&mut verifier, &mut check, at, &wal[from..to]).unwrap();
            sums + check.close()
        };
        let small = common(100_000, TruthFrom::Primary);
        append(&small, &wal);
        // It begins in the second record, outside the window, and ends in the third.
        let sums = all(&small, Verify::Full, 8192 * 10, 1_000_000);
        let begun = sums.unverified(Unverified::RecordBegunBefore);
        assert!((515_000..540_000).contains(&begun), "{sums:?}");
        let ended = sums.unverified(Unverified::RecordNotEnded);
        assert!((390_000..400_000).contains(&ended), "{sums:?}");
        assert_eq!(sums.total(), 1_000_000 - 81_920);
        // No record begins in its stream.
        let sums = all(&small, Verify::Full, 8192 * 10, 8192 * 20);
        assert_eq!(sums, Sums::of_unverified(Unverified::RecordBegunBefore, 81_920));

        let sums = all(&small, Verify::Off, 0, 50_000);
        assert_eq!(sums, Sums::of_unverified(Unverified::NotChecked, 50_000));
        let sums = all(&small, Verify::Crc, 8192, wal.len());
        assert_eq!(sums, Sums::of_unverified(Unverified::BlockNotWhole, wal.len() as u64 - 8192));
        let received = common(64 << 20, TruthFrom::FirstReceiver);
        let sums = all(&received, Verify::Crc, 0, wal.len());
        assert_eq!(sums.unverified(Unverified::BlockWithoutSum), BLOCK);
        assert_eq!(all(&received, Verify::Crc, 0, wal.len()).verified, BLOCK);
    }

    proptest::proptest! {
        /// Whatever the window and the standby do, each byte is counted once.
        #[test]
        fn the_sums_are_what_was_received(
            start in 0..40usize,
            steps in proptest::collection::vec((0..200_000usize, 0..200_000usize), 1..40),
            mode in proptest::sample::select(&[Verify::Full, Verify::Crc, Verify::Off][..]),
        ) {
            let wal = long_records();
            let common = common(100_000, TruthFrom::Primary);
            append(&common, &wal[..START_PAGES]);
            let mut verifier = Verifier::new(Arc::clone(&common), mode);
            let mut check = Check::default();
            let (begun, mut sums) = (start * 8192, Sums::default());
            let mut at = begun;
            for (write, read) in steps {
                let known = common.truth.end().bytes_since(START) as usize;
                let written = wal.len().min(known + write);
                append(&common, &wal[known..written]);
                let to = written.min(at + read);
                let from = START.saturating_add(at as u64);
                sums += feed_all(&mut verifier, &mut check, from, &wal[at..to]).unwrap();
                at = to;
                proptest::prop_assert!(sums.total() <= (at - begun) as u64);
            }
            sums += check.close();
            proptest::prop_assert_eq!(sums.total(), (at - begun) as u64);
        }
    }

    /// WAL written before the stream of the property above begins.
    const START_PAGES: usize = 40 * 8192;
}
