//! The other end of the bare sends: discards in the kernel what arrives, as the
//! synthetic standbys do.

use crate::fault::{During, Fault, Outcome};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use walhub::ring::Fd;

const PATIENCE: Duration = Duration::from_secs(30);

/// Connections whose other ends are read by a thread. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) sockets: Vec<Fd>,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    pub(super) fn new(connections: usize) -> Outcome<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).during("a listener")?;
        let address = listener.local_addr().during("a listener")?;
        let (mut sockets, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..connections {
            let end = TcpStream::connect(address).during("connect")?;
            end.set_nonblocking(true).during("connect")?;
            ends.push(OwnedFd::from(end));
            let (socket, _) = listener.accept().during("accept")?;
            socket.set_nodelay(true).during("accept")?;
            sockets.push(Arc::new(OwnedFd::from(socket)));
        }
        let (received, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ending) = (Arc::clone(&received), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("sink".to_owned())
            // An error ends it; the sender then waits for bytes in vain, and says so.
            .spawn(move || drop(discard(&ends, &count, &ending)))
            .during("a thread")?;
        Ok(Self { sockets, received, stop, thread: Some(thread) })
    }

    /// Waits until so many bytes have arrived.
    pub(super) fn wait_for(&self, bytes: u64) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        while self.received.load(Ordering::Relaxed) < bytes {
            if Instant::now() > deadline {
                return Err(Fault::new("not everything that was sent has arrived"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic; and if it did, the run has failed already.
            drop(thread.join());
        }
    }
}

fn discard(ends: &[OwnedFd], count: &AtomicU64, stop: &AtomicBool) -> Outcome {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).during("epoll_create")?;
    for (place, end) in ends.iter().enumerate() {
        epoll::add(&poll, end, EventData::new_u64(place as u64), EventFlags::IN)
            .during("epoll_ctl")?;
    }
    let mut events = Vec::with_capacity(1024);
    let mut nothing = vec![0; 4 << 20];
    let nap = rustix::event::Timespec::try_from(Duration::from_millis(50)).during("a timeout")?;
    while !stop.load(Ordering::Relaxed) {
        match epoll::wait(&poll, spare_capacity(&mut events), Some(&nap)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).during("epoll_wait"),
        }
        for event in events.drain(..) {
            let place = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            let Some(end) = ends.get(place) else { continue };
            match recv(end, nothing.as_mut_slice(), RecvFlags::TRUNC | RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Fault::new("the sender has closed")),
                Ok((_, received)) => {
                    count.fetch_add(received as u64, Ordering::Relaxed);
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error).during("recv"),
            }
        }
    }
    Ok(())
}
