//! Commits on a real primary, by an open schedule.

use super::{Clock, Nanos, nanos};
use crate::fault::{During, Fault, Outcome};
use bytes::BytesMut;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use walhub::wal::Lsn;
use walhub::wire::frame::next_frame;
use walhub::wire::frontend;

const MAX_MESSAGE: usize = 64 << 10;

/// What is committed, and how often.
#[derive(Debug, Clone)]
pub(crate) struct CommitPlan {
    /// The primary's Unix socket.
    pub(crate) socket: PathBuf,
    pub(crate) per_second: f64,
    /// Bytes of the message that each commit carries.
    pub(crate) size: usize,
    /// Sessions that take turns: one alone cannot commit more often than a commit takes.
    pub(crate) sessions: usize,
}

/// A commit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit {
    /// Who has received anything behind this has the commit too: it was flushed with it.
    pub(crate) behind: Lsn,
    /// When the schedule wanted it.
    pub(crate) due: Nanos,
    /// When the primary said that it is done.
    pub(crate) done: Nanos,
}

/// Sessions at work. Dropped, they end.
#[derive(Debug)]
pub(crate) struct Committers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Outcome<Vec<Commit>>>>,
}

impl Committers {
    /// Connects and begins.
    pub(crate) fn start(plan: &CommitPlan, clock: Clock) -> Outcome<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let sessions = plan.sessions.max(1);
        let step = nanos(Duration::from_secs_f64(1.0 / plan.per_second));
        let begin = clock.now() + step;
        let mut threads = Vec::new();
        for number in 0..sessions as u64 {
            let mut session = Session::connect(&plan.socket, plan.size)?;
            let stop = Arc::clone(&stop);
            let work = move || {
                let mut commits = Vec::new();
                let mut due = begin + step * number;
                while !stop.load(Ordering::Relaxed) {
                    clock.sleep_until(due);
                    let behind = session.commit()?;
                    commits.push(Commit { behind, due, done: clock.now() });
                    due += step * sessions as u64;
                }
                Ok(commits)
            };
            let builder = std::thread::Builder::new().name("commits".to_owned());
            threads.push(builder.spawn(work).during("a thread")?);
        }
        Ok(Self { stop, threads })
    }

    /// Ends it; all commits by their place in the WAL.
    pub(crate) fn stop(mut self) -> Outcome<Vec<Commit>> {
        let mut commits = Vec::new();
        for outcome in self.end() {
            commits.extend(outcome?);
        }
        commits.sort_by_key(|commit| commit.behind);
        Ok(commits)
    }

    fn end(&mut self) -> Vec<Outcome<Vec<Commit>>> {
        self.stop.store(true, Ordering::Relaxed);
        let join = |thread: JoinHandle<_>| {
            thread.join().unwrap_or_else(|_| Err(Fault::new("a committer panicked")))
        };
        self.threads.drain(..).map(join).collect()
    }
}

impl Drop for Committers {
    fn drop(&mut self) {
        // Whoever wants to know has called `stop`.
        drop(self.end());
    }
}

/// One connection.
struct Session {
    socket: UnixStream,
    query: BytesMut,
    unread: BytesMut,
}

impl Session {
    fn connect(path: &PathBuf, size: usize) -> Outcome<Self> {
        let socket = UnixStream::connect(path).during(path.display())?;
        let mut query = BytesMut::new();
        let text = format!("select pg_logical_emit_message(true, 'walhub', repeat('x', {size}))");
        frontend::query(&mut query, &text);
        let mut session = Self { socket, query, unread: BytesMut::new() };
        let mut out = BytesMut::new();
        let parameters = [("user", crate::servers::USER), ("database", "postgres")];
        frontend::startup(&mut out, &parameters);
        session.socket.write_all(&out).during("startup")?;
        session.answer()?;
        Ok(session)
    }

    /// Commits once.
    fn commit(&mut self) -> Outcome<Lsn> {
        self.socket.write_all(&self.query).during("a commit")?;
        let position = self.answer()?.ok_or_else(|| Fault::new("a commit without a row"))?;
        position.parse().during(position)
    }

    /// Reads until the server is ready; the value of the last row.
    fn answer(&mut self) -> Outcome<Option<String>> {
        let mut value = None;
        let mut block = [0; 4096];
        loop {
            while let Some(frame) = next_frame(&self.unread, MAX_MESSAGE).during("an answer")? {
                let (tag, len) = (frame.tag, frame.len);
                match tag {
                    b'E' => {
                        let text = String::from_utf8_lossy(frame.body).replace('\0', " ");
                        return Err(Fault::new(text));
                    }
                    // One column: its count, its length, and the text.
                    b'D' => {
                        let text = frame.body.get(6..).unwrap_or_default();
                        value = Some(String::from_utf8_lossy(text).into_owned());
                    }
                    _ => {}
                }
                drop(self.unread.split_to(len));
                if tag == b'Z' {
                    return Ok(value);
                }
            }
            let count = self.socket.read(&mut block).during("an answer")?;
            if count == 0 {
                return Err(Fault::new("the primary has closed a session"));
            }
            self.unread.extend_from_slice(block.get(..count).unwrap_or_default());
        }
    }
}
