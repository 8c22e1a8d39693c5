//! The hub's side of `walhub ctl`: a Unix socket in the hub's directory, with one request and one
//! answer per connection. The number of clients, the size of a request and the time for each step
//! are limited.

mod socket;

pub use socket::CtlSocket;

use super::Shared;
use super::inquiry;
use crate::config::SCRUB_RATES;
use crate::ctl::answer::{Answer, Dropped, Failure, Said};
use crate::ctl::request::{Confirmable, HubCommand, MAX_REQUEST, Request, TrueHistory};
use crate::follow::{Steer, UpstreamOrder};
use crate::hub::course::Upstream;
use crate::status::{Ages, SetAsideStatus};
use crate::store::slots::SlotName;
use crate::upstream::state::UpstreamState;
use crate::wal::Lsn;
use crate::wire::secret::Secret;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{MissedTickBehavior, timeout};

/// How many clients may ask at one time.
const CLIENTS: usize = 16;

/// How long a client may take to ask, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer may take. Work that has begun continues after that.
const WORK: Duration = Duration::from_secs(60);

/// How long an order waits for the first state of an upstream that it names.
const FIRST_STATE: Duration = Duration::from_secs(2);

/// How often it looks at the state.
const STATE_LOOK: Duration = Duration::from_millis(20);

/// How often the durable position is sampled.
const LOOK: Duration = Duration::from_secs(1);

/// Serves until the task is dropped.
pub(super) async fn run(shared: Arc<Shared>, listener: UnixListener) {
    let service = Arc::new(CtlService { shared, ages: Mutex::default() });
    let places = Arc::new(Semaphore::new(CLIENTS));
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = looks.tick() => {
                service.look();
                continue;
            }
        };
        match (accepted, Arc::clone(&places).try_acquire_owned()) {
            (Ok((socket, _)), Ok(place)) => {
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    serve(&service, socket).await;
                    drop(place);
                });
            }
            (Ok((socket, _)), Err(_)) => {
                let busy = Failure::new(format!("{CLIENTS} other clients are connected already"));
                // A new socket has room for a line; one without room is not waited for.
                drop(socket.try_write(&Answer::new(Said::Error(busy)).encode()));
            }
            (Err(error), _) => {
                tracing::warn!(%error, "could not accept a connection of walhub ctl");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(service: &CtlService, mut socket: UnixStream) {
    let answer = match timeout(PATIENCE, read_line(&mut socket)).await {
        Ok(Ok(Line::Whole(line))) => service.answer(&line).await,
        Ok(Ok(Line::TooLong)) => {
            Err(Failure::new(format!("the request is longer than {MAX_REQUEST} bytes")))
        }
        // Nothing was asked, or the client has gone.
        Ok(Ok(Line::Nothing) | Err(_)) => return,
        Err(_) => Err(Failure::new(format!("no request within {PATIENCE:?}"))),
    };
    let answer = answer.unwrap_or_else(|failure| Answer::new(Said::Error(failure))).encode();
    let write = async {
        socket.write_all(&answer).await?;
        socket.shutdown().await
    };
    // A client that does not read its answer in time loses it.
    drop(timeout(PATIENCE, write).await);
}

/// What came before the newline or the end of the stream.
enum Line {
    Whole(Vec<u8>),
    TooLong,
    Nothing,
}

async fn read_line(socket: &mut UnixStream) -> io::Result<Line> {
    let mut line = Vec::new();
    loop {
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return Ok(Line::Whole(line));
        }
        if line.len() >= MAX_REQUEST {
            return Ok(Line::TooLong);
        }
        if socket.read_buf(&mut line).await? == 0 {
            return Ok(if line.is_empty() { Line::Nothing } else { Line::Whole(line) });
        }
    }
}

/// Answers requests.
struct CtlService {
    shared: Arc<Shared>,
    ages: Mutex<Ages>,
}

impl CtlService {
    /// Samples the durable position.
    fn look(&self) {
        if let Some(cell) = self.shared.hub.current_cell() {
            let mut ages = self.ages.lock().unwrap_or_else(PoisonError::into_inner);
            ages.note(Instant::now(), cell.durable());
        }
    }

    async fn answer(&self, line: &[u8]) -> Result<Answer, Failure> {
        let request = Request::parse(line).map_err(|fault| Failure::new(fault.to_string()))?;
        match timeout(WORK, self.carry_out(request.command)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::new(format!("not done within {WORK:?}; the work continues"))
                .with_hint("Ask again. Work that is done is not done twice.")),
        }
    }

    async fn carry_out(&self, command: HubCommand) -> Result<Answer, Failure> {
        let hub = &self.shared.hub;
        let said = match command {
            HubCommand::Status => {
                let receiver = inquiry::receiver(&self.shared).await;
                Said::Status(Box::new(inquiry::status(&self.shared, receiver)))
            }
            HubCommand::Standbys => {
                let figures = inquiry::standby_figures(&self.shared).await?;
                self.look();
                let ages = self.ages.lock().unwrap_or_else(PoisonError::into_inner);
                Said::Standbys(inquiry::standbys(&self.shared, &figures, &ages))
            }
            HubCommand::Slots => Said::Slots(inquiry::slots(hub)),
            HubCommand::Retention => self.retention().await?,
            HubCommand::Verify => {
                hub.holds.scrub.ask(None);
                Said::Scrub(inquiry::scrub(hub))
            }
            HubCommand::VerifyAt { bytes_per_second } => {
                hub.holds.scrub.ask(Some(scrub_rate(bytes_per_second)?));
                Said::Scrub(inquiry::scrub(hub))
            }
            HubCommand::DropSlot { name } => self.drop_slot(&name).await?,
            HubCommand::Upstream => Said::Upstream(inquiry::upstream(hub)),
            HubCommand::SetUpstream { conninfo } => {
                return self.follow(Some(named(&conninfo)?)).await;
            }
            HubCommand::ResetUpstream => return self.follow(None).await,
            HubCommand::Fence => {
                self.steer(Steer::Fence).await?;
                Said::Fence(inquiry::fence(hub))
            }
            HubCommand::Confirm { what, lsn, let_in } => {
                return self.confirm(what, lsn.as_deref(), let_in).await;
            }
            HubCommand::ConfirmAside { name } => return self.confirm_aside(name).await,
            HubCommand::AcceptHistory { history, lsn } => {
                return self.accept_history(history, &lsn).await;
            }
            HubCommand::Unfence { upstream } => {
                let upstream = upstream.as_ref().map(named).transpose()?;
                return self.unfence(upstream).await;
            }
        };
        Ok(Answer::new(said))
    }

    async fn follow(&self, upstream: Option<Arc<Upstream>>) -> Result<Answer, Failure> {
        self.steer(Steer::Follow(upstream)).await?;
        let state = self.first_state().await;
        let said = Said::Upstream(inquiry::upstream(&self.shared.hub));
        Ok(Answer::new(said).with_note(format!("now: {state}")))
    }

    /// Without a position nothing is confirmed. A position alone never lifts a seam.
    async fn confirm(
        &self,
        what: Option<Confirmable>,
        lsn: Option<&str>,
        let_in: Vec<String>,
    ) -> Result<Answer, Failure> {
        if let Some(at) = lsn.map(position).transpose()? {
            let steer = match what {
                Some(Confirmable::Seam) => Steer::ConfirmSeam { at, let_in },
                Some(Confirmable::Abandoned) | None => Steer::ConfirmAbandoned(at),
            };
            self.steer(steer).await.map_err(|failure| {
                failure.with_hint("`walhub ctl confirm` shows what there is to confirm.")
            })?;
        }
        Ok(self.unconfirmed())
    }

    /// The keeper knows which files it has seen there.
    async fn confirm_aside(&self, name: String) -> Result<Answer, Failure> {
        let confirmed = self.shared.keeper.confirm_aside(name).await;
        confirmed.map_err(|fault| {
            Failure::new(fault.to_string())
                .with_hint("`walhub ctl status` shows what was set aside, as it was seen last.")
        })?;
        Ok(self.unconfirmed())
    }

    /// What is left to confirm.
    fn unconfirmed(&self) -> Answer {
        let hub = &self.shared.hub;
        let mut set_aside = inquiry::set_aside(hub);
        set_aside.retain(SetAsideStatus::is_unconfirmed);
        Answer::new(Said::Abandoned(inquiry::abandoned(hub)))
            .with_seams(inquiry::seams(hub))
            .with_set_aside(set_aside)
    }

    async fn accept_history(&self, history: TrueHistory, lsn: &str) -> Result<Answer, Failure> {
        let at = position(lsn)?;
        self.steer(match history {
            TrueHistory::Ours => Steer::AcceptOurs(at),
            TrueHistory::Theirs => Steer::AcceptTheirs(at),
        })
        .await
        .map_err(|failure| failure.with_hint("`walhub ctl status` shows the evidence."))?;
        let state = self.first_state().await;
        let evidence = inquiry::evidence(&self.shared.hub);
        Ok(Answer::new(Said::Evidence(evidence)).with_note(format!("now: {state}")))
    }

    async fn unfence(&self, upstream: Option<Arc<Upstream>>) -> Result<Answer, Failure> {
        let hub = &self.shared.hub;
        let done = match inquiry::fence(hub) {
            Some(_) => "unfenced",
            None => "was not fenced",
        };
        self.steer(Steer::Unfence(upstream)).await?;
        let state = self.first_state().await;
        Ok(Answer::new(Said::Fence(inquiry::fence(hub))).with_note(format!("{done}; now: {state}")))
    }

    /// How the upstream connection is. Waits a little for a connection that has just been begun.
    async fn first_state(&self) -> UpstreamState {
        let until = tokio::time::Instant::now() + FIRST_STATE;
        loop {
            let state = self.shared.hub.course.standing().state;
            if state != UpstreamState::Connecting || tokio::time::Instant::now() >= until {
                return state;
            }
            tokio::time::sleep(STATE_LOOK).await;
        }
    }

    /// Passes an order to the task that keeps the hub connected.
    async fn steer(&self, steer: Steer) -> Result<(), Failure> {
        let (answer, carried_out) = oneshot::channel();
        let gone = || Failure::new("the hub is shutting down");
        let sent = self.shared.orders.send(UpstreamOrder { steer, answer }).await;
        sent.map_err(|_| gone())?;
        carried_out.await.map_err(|_| gone())?.map_err(Failure::new)
    }

    async fn retention(&self) -> Result<Said, Failure> {
        let Some(cell) = self.shared.hub.current_cell() else { return Ok(Said::Retention(None)) };
        let outlook = self.shared.keeper.foresee(cell.tli(), cell.durable()).await;
        let outlook = outlook.map_err(|fault| Failure::new(fault.to_string()))?;
        Ok(Said::Retention(Some(inquiry::retention(&self.shared.hub, &outlook))))
    }

    async fn drop_slot(&self, name: &str) -> Result<Said, Failure> {
        let fault = |fault: &dyn std::fmt::Display| Failure::new(fault.to_string());
        let slot = SlotName::parse(name).map_err(|invalid| fault(&invalid))?;
        // A session that drops a slot holds it until it is gone.
        let own = self.shared.registry.register().map_err(|error| fault(&error))?;
        let session = self.shared.hub.holds.slots.enter(own.pid);
        let begun = self.shared.hub.holds.slots.lock().begin_drop(name, session.session());
        begun.map_err(|in_use| {
            fault(&in_use).with_hint("`walhub ctl slots` shows the slots and who uses them.")
        })?;
        // Nobody else gives the slot up, so the work goes on when its client has no more time.
        let keeper = self.shared.keeper.clone();
        let work = tokio::spawn(async move {
            let dropped = keeper.drop_slot(slot).await;
            drop((session, own));
            dropped.map_err(|error| error.to_string())
        });
        work.await.map_err(|gone| gone.to_string()).flatten().map_err(|error| {
            Failure::new(format!("could not remove replication slot \"{name}\": {error}"))
        })?;
        tracing::info!("dropped replication slot \"{name}\", as requested by walhub ctl");
        Ok(Said::Dropped(Dropped { slot_name: name.to_owned() }))
    }
}

fn position(text: &str) -> Result<Lsn, Failure> {
    text.parse().map_err(|_| Failure::new(format!("invalid LSN \"{text}\"")))
}

fn scrub_rate(bytes_per_second: u64) -> Result<u64, Failure> {
    let is_sensible = SCRUB_RATES.contains(&bytes_per_second);
    is_sensible.then_some(bytes_per_second).ok_or_else(|| {
        let (least, most) = (SCRUB_RATES.start() >> 20, SCRUB_RATES.end() >> 20);
        Failure::new(format!(
            "{bytes_per_second} bytes in a second are outside the valid range ({least}MB .. \
             {most}MB)"
        ))
    })
}

fn named(conninfo: &Secret) -> Result<Arc<Upstream>, Failure> {
    // To libpq an empty string means a server on this host. Here it is an unset variable.
    if conninfo.reveal().trim().is_empty() {
        return Err(Failure::new("invalid upstream: the connection string is empty"));
    }
    let upstream = Upstream::parse(conninfo.reveal());
    upstream.map(Arc::new).map_err(|fault| Failure::new(format!("invalid upstream: {fault}")))
}

#[cfg(test)]
mod tests;
