//! Which standbys have to be checked: those that had an event, or all of them when a watermark
//! moved. Waiting standbys cost a round nothing.

/// The standbys to check in the next round, each once.
#[derive(Debug, Default)]
pub struct DueStandbys {
    noted: Vec<bool>,
    some: Vec<u32>,
    whom: Whom,
}

/// Which standbys have to be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Whom {
    /// Those that were noted.
    #[default]
    Noted,
    /// All of them.
    All,
}

impl DueStandbys {
    /// Notes an event of this standby.
    pub fn note(&mut self, standby: u32) {
        let place = standby as usize;
        if place >= self.noted.len() {
            self.noted.resize(place + 1, false);
        }
        if !std::mem::replace(&mut self.noted[place], true) {
            self.some.push(standby);
        }
    }

    /// Notes an event that may concern every standby.
    pub const fn note_all(&mut self) {
        self.whom = Whom::All;
    }

    /// Whether no standby has to be checked.
    pub fn is_empty(&self) -> bool {
        self.whom == Whom::Noted && self.some.is_empty()
    }

    /// Which standbys to check now; those that were noted are put into `standbys`. Later events
    /// count for the next round.
    pub fn take(&mut self, standbys: &mut Vec<u32>) -> Whom {
        standbys.clear();
        std::mem::swap(standbys, &mut self.some);
        for standby in standbys.iter() {
            self.noted[*standby as usize] = false;
        }
        std::mem::take(&mut self.whom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_looked_at_once() {
        let (mut due, mut whom) = (DueStandbys::default(), Vec::new());
        assert!(due.is_empty());
        for standby in [7, 2, 7, 2] {
            due.note(standby);
        }
        assert!(!due.is_empty());
        assert_eq!((due.take(&mut whom), &whom[..]), (Whom::Noted, &[7, 2][..]));
        // An event during the round counts for the next one.
        due.note(7);
        due.note_all();
        assert_eq!((due.take(&mut whom), &whom[..]), (Whom::All, &[7][..]));
        assert_eq!((due.take(&mut whom), due.is_empty()), (Whom::Noted, true));
        assert!(whom.is_empty());
    }
}
