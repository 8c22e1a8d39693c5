//! Seams: places where WAL of ours was set aside and another history continues on the same timeline,
//! by an operator's word. Nothing in a timeline's number or its history file tells the two apart. So
//! `walhub.seams`, beside the control file, keeps each place until an operator has confirmed that
//! no standby has the former WAL any more: until then nothing past it goes to a standby that has
//! not said that it is not past it.
//!
//! The same file decides that WAL is set aside ([`cut`](super::cut)): one write does both. So it also
//! has the switches of timelines that can be undone, because only the archive had named the timeline
//! that followed, and those that were.

use super::sealed_text::{Unreadable, seal, unseal};
use super::switch::Switch;
use crate::timeline::History;
use crate::wal::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most seams that may stand, and the most switches that are remembered.
pub const MOST: usize = 64;

/// Where another history continues on a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seam {
    /// The timeline.
    pub tli: TimelineId,
    /// The end of a record that both histories have.
    pub at: Lsn,
}

impl fmt::Display for Seam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on timeline {}", self.at, self.tli)
    }
}

/// WAL of ours that is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// What is past the seam: another history of the timeline goes on from there.
    Past(Seam),
    /// The timeline to which this switch led, and those that followed it: the hub goes back to the
    /// one before.
    Back(Switch),
}

impl Cut {
    /// Nothing past this place stays.
    pub fn place(&self) -> Seam {
        match *self {
            Self::Past(seam) => seam,
            Self::Back(Switch { to, at, .. }) => Seam { tli: to, at },
        }
    }

    /// The timeline on which the hub goes on from there.
    pub fn goes_on_with(&self) -> TimelineId {
        match self {
            Self::Past(seam) => seam.tli,
            Self::Back(switch) => switch.from,
        }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WAL past {}", self.place())
    }
}

/// A switch of timelines for which there is the archive's word alone: what is needed to undo it is
/// kept until an upstream is followed on the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnagreedSwitch {
    /// The switch.
    pub switch: Switch,
    /// When it was made.
    pub since: SystemTime,
}

/// All seams that stand, and what became of the archive's word for timelines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seams {
    under_way: Option<Cut>,
    standing: Vec<Seam>,
    unagreed: Vec<UnagreedSwitch>,
    rejected: Vec<Switch>,
}

/// Why no seam can be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSeam {
    /// Another is not finished.
    #[error("our {0} is still being set aside")]
    UnderWay(Cut),
    /// There are too many.
    #[error("{MOST} places are to be confirmed already (`walhub ctl confirm seam`)")]
    TooMany,
}

/// Too many switches could be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no upstream has agreed to {MOST} switches of timelines before it")]
pub struct TooManyUnagreed;

impl Seams {
    /// All of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Seam> {
        self.standing.iter()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.standing.is_empty()
    }

    /// What is being set aside.
    pub fn under_way(&self) -> Option<Cut> {
        self.under_way
    }

    /// WAL of ours is going to be set aside, and these `seams` stand from now on. Asking for what is
    /// under way changes nothing. A switch that is undone is rejected: the archive's word for it does
    /// not count any more.
    ///
    /// # Errors
    /// Another is under way, or too many stand.
    pub fn begin(&mut self, cut: Cut, seams: &[Seam]) -> Result<(), NoSeam> {
        if let Some(other) = self.under_way.filter(|other| *other != cut) {
            return Err(NoSeam::UnderWay(other));
        }
        let mut standing = self.standing.clone();
        standing.extend(seams.iter().filter(|seam| !self.standing.contains(seam)));
        if standing.len() > MOST.max(self.standing.len()) {
            return Err(NoSeam::TooMany);
        }
        self.standing = standing;
        self.under_way = Some(cut);
        if let Cut::Back(switch) = cut
            && !self.rejected.contains(&switch)
        {
            // One whose place we have passed since is not followed on the archive's word anyway.
            let excess = (self.rejected.len() + 1).saturating_sub(MOST);
            self.rejected.drain(..excess);
            self.rejected.push(switch);
        }
        Ok(())
    }

    /// All WAL that was to be set aside has been.
    pub fn finish(&mut self) {
        if let Some(Cut::Back(switch)) = self.under_way.take() {
            let undone = self.unagreed.iter().position(|unagreed| unagreed.switch == switch);
            self.unagreed.truncate(undone.unwrap_or(self.unagreed.len()));
        }
    }

    /// The switches that can be undone, oldest first.
    pub fn unagreed(&self) -> impl Iterator<Item = &UnagreedSwitch> {
        self.unagreed.iter()
    }

    /// The switches that were undone, oldest first.
    pub fn rejected(&self) -> impl Iterator<Item = &Switch> {
        self.rejected.iter()
    }

    /// The switch that was undone and that is part of this history, if there is one.
    pub fn rejected_in(&self, history: &History) -> Option<Switch> {
        let is_in = |switch: &&Switch| {
            history.switchpoint_of(switch.from) == Some(switch.at)
                && history.next_after(switch.from) == Some(switch.to)
        };
        self.rejected.iter().find(is_in).copied()
    }

    /// The hub switches on the archive's word alone.
    ///
    /// # Errors
    /// Too many such switches are remembered.
    pub fn take(&mut self, switch: Switch, since: SystemTime) -> Result<(), TooManyUnagreed> {
        if self.unagreed.iter().any(|unagreed| unagreed.switch == switch) {
            return Ok(());
        }
        if self.unagreed.len() >= MOST {
            return Err(TooManyUnagreed);
        }
        self.unagreed.push(UnagreedSwitch { switch, since });
        Ok(())
    }

    /// An upstream is followed on the timeline with this history: what led to it stays as it is.
    pub fn agree(&mut self, history: &History) {
        self.unagreed.clear();
        while let Some(switch) = self.rejected_in(history) {
            self.rejected.retain(|rejected| *rejected != switch);
        }
    }

    /// Removes those at `at`, and returns them. One that is under way stays.
    pub fn confirm(&mut self, at: Lsn) -> Vec<Seam> {
        let under_way = self.under_way.map(|cut| cut.place());
        let is_confirmed = |seam: &Seam| seam.at == at && under_way != Some(*seam);
        let (confirmed, rest) = self.standing.drain(..).partition(is_confirmed);
        self.standing = rest;
        confirmed
    }

    /// The first seam on `tli` past which a standby must not be, if its slot does not show that it
    /// has followed this hub over it. `slot` is the slot's position: a slot past a seam was moved
    /// there by a standby that had followed, because one that was there before has lost its WAL.
    pub fn first_before(&self, tli: TimelineId, slot: Option<Lsn>) -> Option<Lsn> {
        let own = self.standing.iter().filter(|seam| seam.tli == tli).map(|seam| seam.at);
        own.filter(|at| slot.is_none_or(|slot| slot <= *at)).min()
    }

    /// The file's bytes. Without switches it has the form that earlier versions read, too.
    pub fn encode(&self) -> Vec<u8> {
        let (past, back) = match self.under_way {
            None => (None, None),
            Some(Cut::Past(seam)) => (Some(SeamText::of(&seam)), None),
            Some(Cut::Back(switch)) => (None, Some(SwitchText::of(&switch))),
        };
        let text = SeamsText {
            under_way: past,
            seams: self.standing.iter().map(SeamText::of).collect(),
            going_back: back,
            unagreed: self.unagreed.iter().map(UnagreedText::of).collect(),
            rejected: self.rejected.iter().map(SwitchText::of).collect(),
        };
        let has_switches = !(self.unagreed.is_empty() && self.rejected.is_empty());
        seal("seams", if has_switches { 2 } else { 1 }, &text)
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// Fails when the bytes are not those of such a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text: SeamsText = match unseal("seams", 1, bytes) {
            Err(Unreadable::Version { .. }) => unseal("seams", 2, bytes)?,
            text => text?,
        };
        let past = text.under_way.map(SeamText::read).transpose()?.map(Cut::Past);
        let back = text.going_back.map(SwitchText::read).transpose()?.map(Cut::Back);
        Ok(Self {
            under_way: past.or(back),
            standing: text.seams.into_iter().map(SeamText::read).collect::<Result<_, _>>()?,
            unagreed: text
                .unagreed
                .into_iter()
                .map(UnagreedText::read)
                .collect::<Result<_, _>>()?,
            rejected: text.rejected.into_iter().map(SwitchText::read).collect::<Result<_, _>>()?,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct SeamsText {
    under_way: Option<SeamText>,
    seams: Vec<SeamText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    going_back: Option<SwitchText>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unagreed: Vec<UnagreedText>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rejected: Vec<SwitchText>,
}

#[derive(Serialize, Deserialize)]
struct SeamText {
    timeline: u32,
    at: String,
}

impl SeamText {
    fn of(seam: &Seam) -> Self {
        Self { timeline: seam.tli.raw(), at: seam.at.to_string() }
    }

    fn read(self) -> Result<Seam, Unreadable> {
        Ok(Seam { tli: read_timeline(self.timeline)?, at: read_at(&self.at)? })
    }
}

#[derive(Serialize, Deserialize)]
struct SwitchText {
    from_timeline: u32,
    timeline: u32,
    at: String,
}

impl SwitchText {
    fn of(switch: &Switch) -> Self {
        let Switch { from, to, at } = switch;
        Self { from_timeline: from.raw(), timeline: to.raw(), at: at.to_string() }
    }

    fn read(self) -> Result<Switch, Unreadable> {
        Ok(Switch {
            from: read_timeline(self.from_timeline)?,
            to: read_timeline(self.timeline)?,
            at: read_at(&self.at)?,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct UnagreedText {
    #[serde(flatten)]
    switch: SwitchText,
    since_unix_ms: u64,
}

impl UnagreedText {
    fn of(unagreed: &UnagreedSwitch) -> Self {
        let since = unagreed.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            switch: SwitchText::of(&unagreed.switch),
            since_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn read(self) -> Result<UnagreedSwitch, Unreadable> {
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(self.since_unix_ms));
        Ok(UnagreedSwitch {
            switch: self.switch.read()?,
            since: since.ok_or_else(|| invalid("since_unix_ms"))?,
        })
    }
}

fn read_timeline(raw: u32) -> Result<TimelineId, Unreadable> {
    TimelineId::new(raw).ok_or_else(|| invalid("timeline"))
}

fn read_at(text: &str) -> Result<Lsn, Unreadable> {
    text.parse().map_err(|_| invalid("at"))
}

fn invalid(field: &str) -> Unreadable {
    Unreadable::Content(format!("invalid {field}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seam(tli: u32, at: u64) -> Seam {
        Seam { tli: TimelineId::new(tli).unwrap(), at: Lsn::new(at) }
    }

    fn begin(seams: &mut Seams, seam: Seam) -> Result<(), NoSeam> {
        seams.begin(Cut::Past(seam), &[seam])
    }

    fn switch(from: u32, to: u32, at: u64) -> Switch {
        let tli = |raw| TimelineId::new(raw).unwrap();
        Switch { from: tli(from), to: tli(to), at: Lsn::new(at) }
    }

    fn history(tli: u32, text: &'static str) -> History {
        History::parse(TimelineId::new(tli).unwrap(), bytes::Bytes::from_static(text.as_bytes()))
            .unwrap()
    }

    #[test]
    fn one_is_under_way_and_all_stand_until_they_are_confirmed() {
        let mut seams = Seams::default();
        begin(&mut seams, seam(1, 50)).unwrap();
        assert_eq!(begin(&mut seams, seam(1, 50)), Ok(()), "again");
        assert_eq!(begin(&mut seams, seam(1, 40)), Err(NoSeam::UnderWay(Cut::Past(seam(1, 50)))));
        assert_eq!(seams.confirm(Lsn::new(50)), [], "it is not finished");
        seams.finish();
        begin(&mut seams, seam(1, 40)).unwrap();
        assert_eq!(seams.under_way(), Some(Cut::Past(seam(1, 40))));
        seams.finish();
        assert_eq!(seams.iter().copied().collect::<Vec<_>>(), [seam(1, 50), seam(1, 40)]);
        assert_eq!(seams.confirm(Lsn::new(50)), [seam(1, 50)]);
        assert_eq!(seams.confirm(Lsn::new(50)), []);
        assert!(!seams.is_empty());
    }

    #[test]
    fn they_are_bounded() {
        let mut seams = Seams::default();
        for at in 0..MOST as u64 {
            begin(&mut seams, seam(1, at)).unwrap();
            seams.finish();
        }
        assert_eq!(begin(&mut seams, seam(1, 1000)), Err(NoSeam::TooMany));
        assert_eq!(begin(&mut seams, seam(1, 7)), Ok(()), "it stands already");
    }

    #[test]
    fn the_first_counts_that_a_slot_has_not_followed_over() {
        let mut seams = Seams::default();
        for known in [seam(1, 50), seam(1, 40), seam(2, 30)] {
            begin(&mut seams, known).unwrap();
            seams.finish();
        }
        let first = |tli: u32, slot: Option<u64>| {
            let at = seams.first_before(TimelineId::new(tli).unwrap(), slot.map(Lsn::new));
            at.map(Lsn::raw)
        };
        assert_eq!(first(1, None), Some(40));
        assert_eq!(
            [40, 41, 50, 51].map(|slot| first(1, Some(slot))),
            [Some(40), Some(50), Some(50), None]
        );
        assert_eq!((first(2, None), first(3, None)), (Some(30), None));
    }

    #[test]
    fn a_switch_can_be_undone_until_an_upstream_agrees() {
        let mut seams = Seams::default();
        let now = UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        let [first, second] = [switch(1, 2, 50), switch(2, 3, 70)];
        for taken in [first, second, first] {
            seams.take(taken, now).unwrap();
        }
        let known = |seams: &Seams| seams.unagreed().map(|one| one.switch).collect::<Vec<_>>();
        assert_eq!(known(&seams), [first, second]);
        assert_eq!(Seams::decode(&seams.encode()), Ok(seams.clone()));
        let mut agreed = seams.clone();
        agreed.agree(&history(3, "1\t0/32\tx\n2\t0/46\tx\n"));
        assert_eq!(agreed, Seams::default());

        // Undoing the first undoes the second.
        let cut = Cut::Back(first);
        seams.begin(cut, &[seam(2, 50), seam(3, 70)]).unwrap();
        assert_eq!(known(&seams), [first, second], "it is not done");
        assert_eq!(Seams::decode(&seams.encode()), Ok(seams.clone()));
        assert_eq!(begin(&mut seams, seam(1, 40)), Err(NoSeam::UnderWay(cut)));
        seams.finish();
        assert_eq!((known(&seams), seams.under_way()), (vec![], None));
        assert_eq!(seams.iter().copied().collect::<Vec<_>>(), [seam(2, 50), seam(3, 70)]);
    }

    #[test]
    fn a_switch_that_was_undone_stays_rejected_until_an_upstream_is_followed_over_it() {
        let mut seams = Seams::default();
        let undone = switch(1, 2, 0x50);
        seams.begin(Cut::Back(undone), &[seam(2, 0x50)]).unwrap();
        seams.finish();
        assert_eq!(seams.confirm(Lsn::new(0x50)), [seam(2, 0x50)]);
        let rejected = |seams: &Seams, tli, text| seams.rejected_in(&history(tli, text));
        for seams in [&seams, &Seams::decode(&seams.encode()).unwrap()] {
            assert_eq!(rejected(seams, 2, "1\t0/50\tx\n"), Some(undone));
            assert_eq!(rejected(seams, 3, "1\t0/50\tx\n2\t0/70\tx\n"), Some(undone));
            assert_eq!(rejected(seams, 2, "1\t0/51\tx\n"), None);
            assert_eq!(rejected(seams, 3, "1\t0/50\tx\n"), None);
        }
        seams.agree(&History::first());
        assert_eq!(seams.rejected().count(), 1);
        seams.agree(&history(3, "1\t0/50\tx\n2\t0/70\tx\n"));
        assert_eq!(seams, Seams::default());
        for at in 0..2 * MOST as u64 {
            seams.begin(Cut::Back(switch(1, 2, at)), &[]).unwrap();
            seams.finish();
        }
        assert_eq!(seams.rejected().count(), MOST);
        assert_eq!(seams.rejected().last(), Some(&switch(1, 2, 2 * MOST as u64 - 1)));
    }

    #[test]
    fn without_switches_earlier_versions_read_it() {
        let mut seams = Seams::default();
        begin(&mut seams, seam(3, 50)).unwrap();
        assert!(seams.encode().starts_with(b"walhub seams 1 "));
        seams.take(switch(1, 2, 50), UNIX_EPOCH).unwrap();
        assert!(seams.encode().starts_with(b"walhub seams 2 "));
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let mut seams = Seams::default();
        begin(&mut seams, seam(3, 50)).unwrap();
        let mut bytes = seams.encode();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        assert!(Seams::decode(&bytes).is_err() && Seams::decode(b"").is_err());
    }

    proptest! {
        #[test]
        fn round_trip(
            all in proptest::collection::vec((1u32..5, any::<u64>()), 0..5),
            is_finished: bool,
        ) {
            let mut seams = Seams::default();
            for (n, (tli, at)) in all.iter().enumerate() {
                begin(&mut seams, seam(*tli, *at)).unwrap();
                if n + 1 < all.len() || is_finished {
                    seams.finish();
                }
            }
            prop_assert_eq!(Seams::decode(&seams.encode()), Ok(seams));
        }
    }
}
