//! Pseudo-random numbers, reproducible by seed (splitmix64).

/// The generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator from any seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product is uniform enough for a load.
        ((self.bits() as u128 * bound as u128) >> 64) as u64
    }

    /// A number from `from` to `to`, both included.
    pub const fn between(&mut self, from: u64, to: u64) -> u64 {
        from.saturating_add(self.below(to.saturating_sub(from).saturating_add(1)))
    }

    /// A number from 0 up to, but not including, 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::from_fn(|| Some(self.bits().to_le_bytes()));
        words.flatten().take(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_bounds_and_comes_again() {
        let (mut one, mut other) = (Random::new(3), Random::new(3));
        let mut seen = [false; 7];
        for _ in 0..1000 {
            let n = one.between(5, 11);
            assert_eq!(n, other.between(5, 11));
            seen[usize::try_from(n - 5).unwrap()] = true;
            let part = one.unit();
            assert!((0.0..1.0).contains(&part) && part == other.unit());
        }
        assert_eq!(seen, [true; 7]);
        assert_eq!(one.below(0), 0);
        assert_eq!(one.bytes(13).len(), 13);
        assert_ne!(one.bytes(8), one.bytes(8));
    }
}
