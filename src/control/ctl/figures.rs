//! Asks the data cores, a few standbys at a time and with a deadline.

use super::super::Shared;
use super::super::connection::post;
use crate::ctl::answer::Failure;
use crate::data::figures::{About, Figures, Inquiry, ReceiverFigures, StandbyFigures};
use crate::data::handoff::ToCore;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a core may take. A core that sends to thousands reads its queue every few milliseconds.
const DEADLINE: Duration = Duration::from_secs(2);

/// The receive role's figures; `None` before the first WAL, or when its core does not answer.
pub(in super::super) async fn receiver(shared: &Shared) -> Option<ReceiverFigures> {
    ask(shared, 0, About::Receiver).await?.receiver
}

/// The figures of the standbys of all cores, by process ID.
pub(super) async fn standbys(shared: &Shared) -> Result<HashMap<u32, StandbyFigures>, Failure> {
    let mut all = HashMap::new();
    for core in 0..shared.mailboxes.len() {
        let mut from = Some(0);
        while let Some(place) = from {
            let answer = ask(shared, core, About::Standbys(place)).await;
            let figures = answer.ok_or_else(|| {
                Failure::new(format!("data core {core} did not answer within {DEADLINE:?}"))
            })?;
            all.extend(figures.standbys.iter().map(|standby| (standby.pid, *standby)));
            from = figures.next;
        }
    }
    Ok(all)
}

async fn ask(shared: &Shared, core: usize, about: About) -> Option<Figures> {
    let (answer, told) = oneshot::channel();
    let asked = async {
        post(shared, core, ToCore::Tell(Inquiry { about, answer }), || true).await?;
        told.await.ok()
    };
    timeout(DEADLINE, asked).await.ok().flatten()
}
