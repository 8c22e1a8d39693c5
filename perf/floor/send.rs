//! The bare SEND loop: the same bytes to many sockets by batched io_uring sends.

use super::my_cpu;
use super::sink::Sink;
use crate::fault::{During, Fault, Outcome};
use std::io::{ErrorKind, IoSlice};
use std::time::{Duration, Instant};
use walhub::ring::{Outgoing, Ring, Setup, Then, Token, Uring, Wait};
use walhub::wire::copy::XLOG_DATA_HEADER;

/// What goes out in one send of the bulk loop: `--max-send-size`'s default.
const BULK_SEND: usize = 256 << 10;

/// Small messages at a steady rate, each to all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LiveSends {
    pub(crate) connections: usize,
    /// WAL in one message; its header comes on top.
    pub(crate) bytes: usize,
    pub(crate) per_second: f64,
    pub(crate) span: Duration,
}

/// CPU time of the sender per message and socket.
pub(crate) fn live_sends(plan: LiveSends) -> Outcome<Duration> {
    let sink = Sink::new(plan.connections)?;
    let mut ring = Uring::new(Setup::default()).during("a ring")?;
    let header = [0x77; XLOG_DATA_HEADER];
    let body = vec![0x5a; plan.bytes];
    let parts = [IoSlice::new(&header), IoSlice::new(&body)];
    let rounds = (plan.span.as_secs_f64() * plan.per_second).ceil().max(1.0) as u32;
    let pause = Duration::from_secs_f64(1.0 / plan.per_second);
    let mut results = Vec::new();
    let mut arrived = 0;
    // The first rounds open congestion windows and warm caches.
    let warm = (rounds / 10).max(2);
    let (mut due, mut before) = (Instant::now(), my_cpu());
    for round in 0..warm + rounds {
        if round == warm {
            before = my_cpu();
        }
        due += pause;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // Another one begins each time, as in the hub.
        let first = round as usize % plan.connections.max(1);
        let (head, tail) = sink.sockets.split_at(first.min(sink.sockets.len()));
        let outgoing = |socket| Outgoing { socket, parts: &parts, then: Then::Nothing };
        let batch: Vec<Outgoing<'_>> = tail.iter().chain(head).map(outgoing).collect();
        ring.send_now(&batch, &mut results);
        for result in results.drain(..) {
            let sent = result.during("send")?;
            if sent != XLOG_DATA_HEADER + plan.bytes {
                return Err(Fault::new("the sink of the bare sends does not keep up"));
            }
            arrived += sent as u64;
        }
    }
    let used = my_cpu().saturating_sub(before);
    sink.wait_for(arrived)?;
    let sends = f64::from(rounds) * plan.connections as f64;
    Ok(Duration::from_secs_f64(used.as_secs_f64() / sends))
}

/// The same `each` bytes to every socket as fast as they go: CPU time, and how long it took.
pub(crate) fn bulk_sends(connections: usize, each: u64) -> Outcome<(Duration, Duration)> {
    let sink = Sink::new(connections)?;
    let mut ring = Uring::new(Setup::default()).during("a ring")?;
    let body = vec![0x5a; BULK_SEND];
    let mut left = vec![each; connections];
    let mut ready: Vec<usize> = (0..connections).collect();
    let (mut results, mut done) = (Vec::new(), Vec::new());
    let (begun, before) = (Instant::now(), my_cpu());
    while left.iter().any(|left| *left > 0) {
        let slices: Vec<[IoSlice<'_>; 1]> = ready
            .iter()
            .map(|place| [IoSlice::new(&body[..BULK_SEND.min(left[*place] as usize)])])
            .collect();
        let batch: Vec<Outgoing<'_>> = ready
            .iter()
            .zip(&slices)
            .map(|(place, parts)| Outgoing {
                socket: &sink.sockets[*place],
                parts,
                then: Then::Nothing,
            })
            .collect();
        ring.send_now(&batch, &mut results);
        let mut again = Vec::with_capacity(ready.len());
        for (place, result) in ready.drain(..).zip(results.drain(..)) {
            let offered = BULK_SEND.min(left[place] as usize);
            let sent = match result {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error).during("send"),
            };
            left[place] -= sent as u64;
            if sent < offered {
                ring.poll_writable(&sink.sockets[place], Token(place as u64));
            } else if left[place] > 0 {
                again.push(place);
            }
        }
        let nobody = again.is_empty() && left.iter().any(|left| *left > 0);
        ring.turn(if nobody { Wait::Forever } else { Wait::No }, &mut done).during("a turn")?;
        again.extend(done.drain(..).map(|done| done.token.0 as usize));
        ready = again;
    }
    let used = my_cpu().saturating_sub(before);
    sink.wait_for(each * connections as u64)?;
    Ok((used, begun.elapsed()))
}
