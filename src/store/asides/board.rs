//! What was seen last of what was set aside. Whoever asks reads it here and does not wait for the
//! disk.

use super::Aside;
use std::sync::{Arc, Mutex, PoisonError};

/// So many are shown one by one.
pub const MOST_SHOWN: usize = 64;

/// What was seen last.
#[derive(Debug, Default)]
pub struct AsideBoard(Mutex<Option<Arc<KnownAsides>>>);

/// All that was set aside, as it was seen at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownAsides {
    /// The newest of it, the newest first: at most [`MOST_SHOWN`].
    pub newest: Vec<Aside>,
    /// How many there are.
    pub number: usize,
    /// The bytes in all of them.
    pub bytes: u64,
}

impl KnownAsides {
    /// Sums all of it up.
    pub fn of(mut all: Vec<Aside>) -> Self {
        let (number, bytes) = (all.len(), sum_of(&all));
        all.sort_by(|one, other| other.since.cmp(&one.since).then(one.name.cmp(&other.name)));
        all.truncate(MOST_SHOWN);
        Self { newest: all, number, bytes }
    }
}

fn sum_of(all: &[Aside]) -> u64 {
    all.iter().fold(0, |sum, aside| sum.saturating_add(aside.bytes))
}

impl AsideBoard {
    /// What was seen last; `None` before the first look.
    pub fn known(&self) -> Option<Arc<KnownAsides>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This was seen.
    pub fn see(&self, known: KnownAsides) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(known));
    }
}

#[cfg(test)]
mod tests {
    use super::super::ContentMark;
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn the_newest_are_shown_and_all_are_counted() {
        let one = |n: u64| Aside {
            name: format!("diverged/{n}"),
            bytes: 10,
            since: UNIX_EPOCH + Duration::from_secs(n / 2),
            content: ContentMark([0; 16]),
        };
        let known = KnownAsides::of((0..1000).map(one).collect());
        assert_eq!((known.number, known.bytes), (1000, 10_000));
        assert_eq!(known.newest.len(), MOST_SHOWN);
        let names: Vec<_> = known.newest.iter().take(3).map(|aside| &aside.name).collect();
        assert_eq!(names, ["diverged/998", "diverged/999", "diverged/996"]);
        let board = AsideBoard::default();
        assert_eq!(board.known(), None);
        board.see(known.clone());
        assert_eq!(board.known().as_deref(), Some(&known));
    }
}
