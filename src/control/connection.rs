//! One client, from its first byte to its last: startup, commands, the stream on a data core,
//! commands again.

mod errors;
mod slots;

use self::errors::ErrorLog;
use super::Shared;
use super::history::restore_history;
use super::registry::Registered;
use crate::cluster::instance::InstancePath;
use crate::data::handoff::{Handback, StandbyHandoff, ToCore};
use crate::doors::replication::admission::{Admitted, admit, negotiate};
use crate::doors::replication::session::{Conversation, welcome};
use crate::doors::replication::step::{Accepted, Step};
use crate::hub::SenderPermit;
use crate::net::Socket;
use crate::standby::answers::after_stream;
use crate::standby::client::{Session, StreamEnd};
use crate::standby::parameters::clean_name;
use crate::standby::refusals;
use crate::wire::backend;
use crate::wire::refusal::{Refusal, one_line};
use crate::wire::startup::{FirstPacket, Startup, StartupFault, next_first_packet};
use bytes::{Buf, BytesMut};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

/// Answers are written out once this many bytes are buffered, whatever the client pipelines.
const FLUSH_AT: usize = 32 * 1024;

/// How long the hub waits for the startup packet of a client that it will refuse anyway.
const REFUSED_STARTUP: Duration = Duration::from_secs(1);

/// Serves one client until it disconnects.
pub(super) async fn serve(shared: Arc<Shared>, mut socket: Socket, peer: String) {
    let mut unread = BytesMut::new();
    let startup = match await_startup(&shared, &mut socket, &mut unread).await {
        Ok(Ok(Some(startup))) => startup,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            tracing::info!(peer, %error, "incomplete startup packet");
            return;
        }
        // Silently, like PostgreSQL.
        Err(_) if shared.is_stopping() => return,
        Err(_) => {
            tracing::info!(peer, "no startup packet within authentication_timeout");
            return;
        }
    };
    let registered = match shared.registry.register() {
        Ok(registered) => registered,
        Err(error) => {
            tracing::error!(%error, "could not generate random cancel key");
            return;
        }
    };
    let mut out = BytesMut::new();
    negotiate(&startup, &mut out);
    let admitted = if shared.is_stopping() {
        Err(refusals::shutting_down())
    } else {
        admit(&startup, &shared.hub, registered.pid, &peer)
    };
    let application_name = clean_name(startup.param("application_name").unwrap_or_default());
    drop(startup);
    let Admitted { session, identity, permit } = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            // The message may quote the client, and must not look like one of our log lines.
            let message = one_line(&refusal.to_string());
            tracing::info!(peer, application_name, "refused: {message}");
            backend::error(&mut out, &refusal);
            finish(&mut socket, out).await;
            return;
        }
    };
    tracing::debug!(
        peer,
        pid = session.pid,
        user = session.user,
        application_name = session.application_name,
        "replication connection authorized"
    );
    registered.introduce(&session);
    let told = session.instance.map(|_| shared.hub.above());
    welcome(&shared.hub, &identity, &session, registered.key, &mut out);
    drop(identity);
    let errors = ErrorLog::new(session.pid, Instant::now());
    let conversation = Conversation::new(&shared.hub, &session);
    let mut client = Client {
        shared,
        registered,
        socket,
        session,
        conversation,
        permit,
        unread,
        out,
        told,
        errors,
    };
    loop {
        match client.converse().await {
            Ok(Some(accepted)) => match client.stream(accepted).await {
                Some(back) => client = back,
                None => return,
            },
            Ok(None) => return client.leave().await,
            Err(error) => {
                tracing::debug!(peer, %error, "connection lost");
                return;
            }
        }
    }
}

/// Waits up to `authentication_timeout` for the startup packet. During shutdown it waits only
/// briefly. But the refusal must come after the packet, because a client that has just asked for
/// encryption treats any byte other than the answer as an error.
async fn await_startup(
    shared: &Shared,
    socket: &mut Socket,
    unread: &mut BytesMut,
) -> Result<io::Result<Option<Startup>>, Elapsed> {
    let limit = shared.hub.config.authentication_timeout;
    let mut startup = pin!(receive_startup(shared, socket, unread));
    tokio::select! {
        startup = timeout(limit, &mut startup) => return startup,
        () = shared.stopping() => {}
    }
    timeout(REFUSED_STARTUP, startup).await
}

/// Reads up to the startup packet. Returns `None` when there is nothing more to say or do.
async fn receive_startup(
    shared: &Shared,
    socket: &mut Socket,
    unread: &mut BytesMut,
) -> io::Result<Option<Startup>> {
    let mut asked = Encryption::default();
    loop {
        let (packet, len) = match next_first_packet(unread) {
            Ok(Some(found)) => found,
            Ok(None) => {
                if socket.read(unread).await? == 0 {
                    return if unread.is_empty() {
                        Ok(None)
                    } else {
                        Err(io::ErrorKind::UnexpectedEof.into())
                    };
                }
                continue;
            }
            Err(fault) => return answer(socket, &fault).await,
        };
        unread.advance(len);
        let request = match packet {
            FirstPacket::Startup(startup) => return Ok(Some(startup)),
            FirstPacket::Cancel { pid, key } => {
                cancel(shared, pid, key);
                return Ok(None);
            }
            FirstPacket::Ssl if asked.ssl => {
                return answer(socket, &StartupFault::SECOND_SSL).await;
            }
            FirstPacket::Gss if asked.gss => {
                return answer(socket, &StartupFault::SECOND_GSS).await;
            }
            FirstPacket::Ssl => {
                asked.ssl = true;
                "SSL request"
            }
            FirstPacket::Gss => {
                asked.gss = true;
                "GSSAPI encryption request"
            }
        };
        if !unread.is_empty() {
            // It was sent before our answer: somebody in between may have injected it.
            let text = format!("received unencrypted data after {request}");
            refuse(socket, &Refusal::protocol_violation(text)).await;
            return Ok(None);
        }
        socket.write(&mut BytesMut::from(&b"N"[..])).await?;
    }
}

/// The kinds of encryption the client has asked for. Each may be asked for once.
#[derive(Default)]
struct Encryption {
    ssl: bool,
    gss: bool,
}

/// Tells the client what is wrong with its startup packet, if an answer is due.
async fn answer(socket: &mut Socket, fault: &StartupFault) -> io::Result<Option<Startup>> {
    tracing::info!(%fault, "invalid startup packet");
    let mut out = BytesMut::new();
    fault.answer(&mut out);
    finish(socket, out).await;
    Ok(None)
}

fn cancel(shared: &Shared, pid: u32, key: u32) {
    let Some(core) = shared.registry.cancel_target(pid, key) else { return };
    let Some(mailbox) = shared.mailboxes.get(core) else { return };
    if mailbox.post(ToCore::Cancel { pid }).is_err() {
        tracing::warn!(pid, "cancel request dropped: the data core's queue is full");
    }
}

/// Reads up to the client's startup packet, sends the refusal, and closes. Cancel requests are
/// still honoured: the stream that one ends makes room.
pub(super) async fn turn_away(shared: &Shared, mut socket: Socket, refusal: Refusal) {
    let mut unread = BytesMut::new();
    let startup = receive_startup(shared, &mut socket, &mut unread);
    if let Ok(Ok(Some(startup))) = timeout(REFUSED_STARTUP, startup).await {
        let mut out = BytesMut::new();
        negotiate(&startup, &mut out);
        backend::error(&mut out, &refusal);
        finish(&mut socket, out).await;
    }
}

async fn refuse(socket: &mut Socket, refusal: &Refusal) {
    tracing::info!("connection ended: {refusal}");
    let mut out = BytesMut::new();
    backend::error(&mut out, refusal);
    finish(socket, out).await;
}

/// Writes the last message. A client that does not read it delays nothing.
async fn finish(socket: &mut Socket, mut out: BytesMut) {
    let last = async {
        socket.write(&mut out).await?;
        socket.shutdown().await
    };
    // Whether the client received it no longer matters.
    drop(timeout(Duration::from_secs(1), last).await);
}

/// An admitted client. One that is dropped gives back what it has of the hub before it closes its
/// socket, which is the last field.
struct Client {
    shared: Arc<Shared>,
    registered: Registered,
    session: Session,
    conversation: Conversation,
    permit: SenderPermit,
    unread: BytesMut,
    out: BytesMut,
    /// The hubs above us, as reported to this client; only hubs use it.
    told: Option<InstancePath>,
    errors: ErrorLog,
    socket: Socket,
}

impl Client {
    /// Handles commands until one of them begins a stream. Returns `None` when the connection ends;
    /// the last words are still to be written.
    async fn converse(&mut self) -> io::Result<Option<Accepted>> {
        let shared = Arc::clone(&self.shared);
        loop {
            let mut answered = self.out.len();
            let Self { conversation, session, unread, out, .. } = self;
            let mut step = conversation.take(&shared.hub, session, unread, out);
            let step = loop {
                self.log_errors(answered);
                step = match step {
                    Step::Slot(task) => {
                        let Some(done) = self.carry_out(task).await? else { return Ok(None) };
                        answered = self.out.len();
                        let Self { conversation, session, out, .. } = self;
                        conversation.resume(&shared.hub, session, done, out)
                    }
                    Step::History(tli) => {
                        restore_history(&shared, tli).await;
                        answered = self.out.len();
                        let Self { conversation, session, out, .. } = self;
                        conversation.tell_history(&shared.hub, session, tli, out)
                    }
                    step => break step,
                };
            };
            match step {
                Step::Answered if self.out.len() < FLUSH_AT => {}
                Step::Answered => self.socket.write(&mut self.out).await?,
                // Already carried out above.
                Step::Slot(_) | Step::History(_) => {}
                Step::Close => return Ok(None),
                Step::Stream(accepted) => {
                    self.socket.write(&mut self.out).await?;
                    return Ok(Some(accepted));
                }
                Step::Read => {
                    self.socket.write(&mut self.out).await?;
                    tokio::select! {
                        biased;
                        () = shared.stopping() => {
                            self.dismiss();
                            return Ok(None);
                        }
                        read = self.socket.read(&mut self.unread) => if read? == 0 {
                            if !self.unread.is_empty() {
                                let (pid, peer) = (self.session.pid, &self.session.peer);
                                tracing::info!(pid, peer, "unexpected EOF on client connection");
                            }
                            return Ok(None);
                        }
                    }
                }
            }
        }
    }

    /// The hub is shutting down.
    fn dismiss(&mut self) {
        let refusal = refusals::administrator_command();
        tracing::info!("connection ended: {refusal}");
        backend::error(&mut self.out, &refusal);
    }

    /// Ends the connection with its last words. Who hears them may come back at once and find a
    /// place, and the names of its temporary slots, free.
    async fn leave(self) {
        let Self { registered, conversation, permit, out, mut socket, .. } = self;
        drop((conversation, permit, registered));
        finish(&mut socket, out).await;
    }

    /// Logs the errors in what is to be sent from this place on.
    fn log_errors(&mut self, from: usize) {
        let sent = self.out.get(from..).unwrap_or_default();
        self.errors.note(&self.session, sent, Instant::now());
    }

    /// Hands the socket to a core and waits for its return. Returns `None` when it does not come
    /// back.
    async fn stream(self, accepted: Accepted) -> Option<Self> {
        let Self {
            shared,
            registered,
            socket,
            session,
            conversation,
            permit,
            unread,
            told,
            errors,
            out: _,
        } = self;
        let Accepted { cell, start, seam, hold } = accepted;
        tracing::info!(
            pid = session.pid,
            peer = session.peer,
            application_name = session.application_name,
            timeline = cell.tli().raw(),
            %start,
            "started streaming WAL to standby"
        );
        let family = socket.family();
        let socket = match socket.leave() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(pid = session.pid, %error, "could not move a connection to its core");
                return None;
            }
        };
        let (core, ended) = shared.registry.begin_stream(session.pid);
        let slots = conversation.slots();
        let handoff =
            StandbyHandoff { session, cell, start, seam, hold, permit, slots, unread, socket };
        // A core ends the streams of hubs when our path changes. It would miss one that is still
        // being handed over, and with it a loop.
        let wanted = || told.as_ref().is_none_or(|told| *told == shared.hub.above());
        let message = ToCore::Standby(Box::new(handoff));
        shared.mailboxes.get(core)?.deliver(message, wanted).await?;
        // An error means that the connection ended with its stream.
        let Handback { unread, session, ended, permit, socket } = *ended.await.ok()?;
        match &ended {
            StreamEnd::ClientDone => {}
            StreamEnd::Timeline { next, at } => {
                tracing::info!(pid = session.pid, %next, %at, "announced the next timeline");
            }
            StreamEnd::Failed(refusal) => {
                conversation.stream_failed();
                tracing::info!(
                    pid = session.pid,
                    peer = session.peer,
                    application_name = session.application_name,
                    "stream ended: {}",
                    one_line(&refusal.to_string())
                );
            }
        }
        let mut out = BytesMut::new();
        after_stream(&ended, &mut out);
        match Socket::enter(socket, family) {
            Ok(socket) => Some(Self {
                shared,
                registered,
                socket,
                session,
                conversation,
                permit,
                unread,
                out,
                told,
                errors,
            }),
            Err(error) => {
                tracing::warn!(pid = session.pid, %error, "could not take a connection back");
                None
            }
        }
    }
}
