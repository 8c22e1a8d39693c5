//! An operator's word about two histories: which of them is the true one where a difference was
//! found.

use super::environment::Environment;
use super::{LOG, Task};
use crate::store::evidence::{Difference, Evidence};
use crate::wal::Lsn;

impl<E: Environment> Task<E> {
    /// Would [`Task::accept_ours`] change anything?
    pub(super) fn is_cleared_by(&self, at: Lsn) -> bool {
        let evidence = self.parts.hub.course.evidence();
        evidence.iter().any(|difference| difference.at == at && !difference.cleared)
    }

    /// Our history is the true one at `at`: the difference there stands against its source alone, as
    /// if another source had shown our bytes.
    pub(super) async fn accept_ours(&mut self, at: Lsn) -> Result<(), String> {
        let before = self.parts.hub.course.evidence();
        let mut evidence = Evidence::clone(&before);
        let source = evidence.clear(at).ok_or_else(|| no_difference(&before, at))?;
        if evidence == *before {
            return Ok(());
        }
        self.change_evidence(evidence).await?;
        tracing::warn!(
            target: LOG,
            "this hub's history is the true one, by walhub ctl: the difference at {at} stands \
             against {} alone from now on",
            source.name
        );
        Ok(())
    }
}

/// There is none at `at`; names those that there are.
fn no_difference(evidence: &Evidence, at: Lsn) -> String {
    let one = |difference: &Difference| {
        let Difference { tli, at, source, .. } = difference;
        format!("at {at} on timeline {tli}, from {}", source.name)
    };
    match evidence.iter().map(one).collect::<Vec<_>>().as_slice() {
        [] => format!("there is no evidence of another history at {at}, nor anywhere else"),
        known => {
            format!(
                "there is no evidence of another history at {at}; there is {}",
                known.join("; ")
            )
        }
    }
}
