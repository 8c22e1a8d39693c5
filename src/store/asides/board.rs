//! What was seen last of what was set aside. Whoever asks reads it here and does not wait for the
//! disk.

use super::{Aside, Confirmations};
use std::sync::{Arc, Mutex, PoisonError};

/// So many are shown one by one.
pub const MOST_SHOWN: usize = 64;

/// What was seen last.
#[derive(Debug, Default)]
pub struct AsideBoard(Mutex<Option<Arc<KnownAsides>>>);

/// All that was set aside, as it was seen at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownAsides {
    /// The newest first.
    all: Vec<Aside>,
}

impl KnownAsides {
    /// Sums all of it up.
    pub fn of(mut all: Vec<Aside>) -> Self {
        all.sort_by(|one, other| other.since.cmp(&one.since).then(one.name.cmp(&other.name)));
        Self { all }
    }

    /// The newest of it, the newest first: at most [`MOST_SHOWN`].
    pub fn newest(&self) -> &[Aside] {
        self.all.get(..MOST_SHOWN).unwrap_or(&self.all)
    }

    /// The one with this name.
    pub fn get(&self, name: &str) -> Option<&Aside> {
        self.all.iter().find(|aside| aside.name == name)
    }

    /// How many there are.
    pub fn number(&self) -> usize {
        self.all.len()
    }

    /// The bytes in all of them.
    pub fn bytes(&self) -> u64 {
        self.all.iter().fold(0, |sum, aside| sum.saturating_add(aside.bytes))
    }
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

    /// What is confirmed of this one has changed.
    pub fn judge(&self, name: &str, confirmed: &Confirmations) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = known.as_mut().map(Arc::make_mut) else { return };
        let aside = known.all.iter_mut().find(|aside| aside.name == name);
        aside.into_iter().for_each(|aside| aside.judge(confirmed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn the_newest_are_shown_and_all_are_counted() {
        let one = |n: u64| {
            let since = UNIX_EPOCH + Duration::from_secs(n / 2);
            Aside { bytes: 10, ..Aside::new(&format!("diverged/{n}"), since) }
        };
        let known = KnownAsides::of((0..1000).map(one).collect());
        assert_eq!((known.number(), known.bytes()), (1000, 10_000));
        assert_eq!(known.newest().len(), MOST_SHOWN);
        let names: Vec<_> = known.newest().iter().take(3).map(|aside| &aside.name).collect();
        assert_eq!(names, ["diverged/998", "diverged/999", "diverged/996"]);
        assert!(known.get("diverged/0").is_some(), "it is known, if not shown");
        let board = AsideBoard::default();
        assert_eq!(board.known(), None);
        board.see(known.clone());
        assert_eq!(board.known().as_deref(), Some(&known));
    }
}
