//! The results of checking received WAL, in bytes.

use std::ops::{Add, AddAssign, Sub};

/// Why received WAL was not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unverified {
    /// `Verify::Off`: it was not checked.
    NotChecked,
    /// It was outside the window, before the first record that began in its stream.
    RecordBegunBefore,
    /// It was outside the window, in a record whose end was not received.
    RecordNotEnded,
    /// `Verify::Crc`: the stream did not have the whole of its block.
    BlockNotWhole,
    /// `Verify::Crc`: no other standby had received its block before.
    BlockWithoutSum,
}

impl Unverified {
    const COUNT: usize = 5;

    /// All reasons.
    pub const ALL: [Self; Self::COUNT] = [
        Self::NotChecked,
        Self::RecordBegunBefore,
        Self::RecordNotEnded,
        Self::BlockNotWhole,
        Self::BlockWithoutSum,
    ];

    /// Its key.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotChecked => "not-checked",
            Self::RecordBegunBefore => "record-begun-before",
            Self::RecordNotEnded => "record-not-ended",
            Self::BlockNotWhole => "block-not-whole",
            Self::BlockWithoutSum => "block-without-sum",
        }
    }

    /// Its description for people.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::NotChecked => "not verified (--verify=off)",
            Self::RecordBegunBefore => {
                "outside the window, before the first record of their streams"
            }
            Self::RecordNotEnded => "outside the window, in records whose end was not received",
            Self::BlockNotWhole => "in blocks that were not received whole",
            Self::BlockWithoutSum => "in blocks that no other standby had received before",
        }
    }
}

/// Bytes by result. Bytes held until more has come are not included yet.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// Bytes found correct.
    pub verified: u64,
    unverified: [u64; Unverified::COUNT],
}

impl Sums {
    /// `bytes` bytes, all verified.
    pub fn of_verified(bytes: u64) -> Self {
        Self { verified: bytes, ..Self::default() }
    }

    pub(super) fn of_unverified(why: Unverified, bytes: u64) -> Self {
        let mut sums = Self::default();
        sums.unverified[why as usize] = bytes;
        sums
    }

    /// Bytes that were not verified for this reason.
    pub const fn unverified(&self, why: Unverified) -> u64 {
        self.unverified[why as usize]
    }

    /// All bytes whose result is known.
    pub fn total(&self) -> u64 {
        self.verified + self.unverified.iter().sum::<u64>()
    }

    pub(super) fn to_array(self) -> [u64; 1 + Unverified::COUNT] {
        let [a, b, c, d, e] = self.unverified;
        [self.verified, a, b, c, d, e]
    }

    pub(super) fn from_array([verified, rest @ ..]: [u64; 1 + Unverified::COUNT]) -> Self {
        Self { verified, unverified: rest }
    }
}

impl Add for Sums {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (a, b) = (self.to_array(), other.to_array());
        Self::from_array(std::array::from_fn(|n| a[n] + b[n]))
    }
}

impl Sub for Sums {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let (a, b) = (self.to_array(), other.to_array());
        Self::from_array(std::array::from_fn(|n| a[n] - b[n]))
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
