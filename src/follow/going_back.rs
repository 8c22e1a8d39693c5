//! Switches of timelines for which there is the archive's word alone, and the way back.
//!
//! The timeline may be that of a copy which was promoted for a test. So the switch can be undone by an
//! operator's word until an upstream is followed on the timeline: an upstream's stream begins when its
//! history has been compared with ours and no evidence stands against it. After that the archive's word
//! for the timeline does not count any more.

use super::environment::Environment;
use super::{LOG, Task};
use crate::store::seams::{Cut, Seams, UnagreedSwitch};
use crate::store::switch::Switch;
use crate::timeline::History;
use crate::wal::{Lsn, TimelineId};
use std::time::SystemTime;

impl<E: Environment> Task<E> {
    /// The switch at `at` that *ours* would undo. A difference there goes first: the word is about that.
    pub(super) fn unagreed_at(&self, at: Lsn) -> Option<Switch> {
        let (course, own) = (&self.parts.hub.course, self.own_timeline()?);
        let seams = course.seams();
        let is_it = |switch: &Switch| switch.at == at && switch.from < own;
        let switch = seams.unagreed().map(|unagreed| unagreed.switch).find(is_it);
        switch.filter(|_| course.evidence().at(at).is_none())
    }

    /// Was a switch at `at` undone?
    pub(super) fn has_gone_back(&self, at: Lsn) -> bool {
        self.parts.hub.course.seams().rejected().any(|switch| switch.at == at)
    }

    /// The timeline that was left is the true one, by an operator's word.
    pub(super) async fn go_back(&mut self, switch: Switch) -> Result<(), String> {
        let Switch { from, to, at } = switch;
        if self.parts.hub.course.fence().is_some() {
            return Err(
                "the hub is fenced: what the fence says would not be true any more".to_owned()
            );
        }
        let cut = Cut::Back(switch);
        // What can fail on a full disk comes first: until then nothing has changed.
        self.prepare_cut(cut).await.map_err(|failure| failure.to_string())?;
        tracing::warn!(
            target: LOG,
            "the hub goes back to timeline {from} at {at}, by walhub ctl: timeline {to} is not \
             followed on the archive's word any more, and its WAL is set aside"
        );
        self.cut_at(cut).await.map_err(|fault| fault.to_string())
    }

    /// The hub is about to switch on the archive's word alone: makes sure that it can go back.
    pub(super) async fn take_unagreed(&self, switch: Switch) -> Result<(), String> {
        let (course, since) = (&self.parts.hub.course, SystemTime::now());
        let mut seams = Seams::clone(&course.seams());
        seams.take(switch, since).map_err(|why| why.to_string())?;
        let kept = self.parts.keeper.keep_left(UnagreedSwitch { switch, since }).await;
        kept.map_err(|fault| format!("could not keep what is needed to go back: {fault}"))?;
        course.set_seams(seams);
        Ok(())
    }

    /// An upstream is followed: the timelines on which we are count from now on as those that it
    /// named. When that cannot be saved, the next upstream's stream does it.
    pub(super) async fn note_agreement(&self, host: &str) {
        let hub = &self.parts.hub;
        let before = hub.course.seams();
        let Some(tli) = self.own_timeline() else { return };
        let own = match hub.read_history(tli) {
            Ok(None) if tli == TimelineId::FIRST => History::first(),
            Ok(Some(own)) => own,
            Ok(None) | Err(_) => return,
        };
        let mut seams = Seams::clone(&before);
        seams.agree(&own);
        if seams == *before {
            return;
        }
        if let Err(fault) = self.parts.keeper.save_seams(&seams).await {
            tracing::warn!(target: LOG, "could not save that {host} is on timeline {tli}: {fault}");
            return;
        }
        hub.course.set_seams(seams);
        tracing::info!(
            target: LOG,
            "{host} is followed on timeline {tli}: there is more than the archive's word for it"
        );
    }
}
