//! `walhub serve`: assembles the engines in the order in which they depend on each other, and
//! takes them apart in reverse order.

mod announce;
pub mod boot;
mod cores;
pub mod course;
pub mod flags;
mod limits;
mod pin;
mod watchdog;

use crate::archiver;
use crate::cluster::instance::InstanceId;
use crate::config::{Config, Zerocopy};
use crate::control::ctl::CtlSocket;
use crate::control::listener::{BindFault, bind};
use crate::control::{Control, Running};
use crate::data::Receiver;
use crate::data::handoff::{Mailbox, ToCore};
use crate::data::receive::CacheFault;
use crate::follow;
use crate::hub::Hub;
use crate::keeper::{self, Job, KeeperClient, KeeperFault};
use crate::log;
use crate::restorer::Restorer;
use crate::ring::{self, Features, RingRefused, Support};
use crate::scrub;
use crate::serve::cores::{CoreThread, SharedParts};
use crate::serve::flags::{Mistake, ServeFlags};
use crate::store::StoreFault;
use crate::store::control_file::ControlFile;
use crate::store::directory::{Directory, DirectoryFault};
use crate::store::durable::read_small_now;
use crate::store::layout::Layout;
use crate::wire::secret::Secret;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::oneshot::{self, error::RecvError};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

/// How long the shutdown of the cores may take, stuck clients included. The last half second
/// before the cut is for everything after them, on a busy machine.
const SHUTDOWN: Duration = Duration::from_millis(4000);

/// How long restore commands may take to end once the control thread has ended.
const COMMANDS: Duration = Duration::from_millis(2500);

/// How long the control thread may take beyond `SHUTDOWN`, and the keeper at the very end.
const LAST_WORDS: Duration = Duration::from_millis(400);

/// When the process ends, whatever is still running.
const CUT: Duration = Duration::from_millis(4900);

/// News that may wait for the control thread; a core keeps what does not fit.
const NEWS: usize = 1024;

/// Why the hub does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeFault {
    /// A flag is wrong.
    #[error(transparent)]
    Mistake(#[from] Mistake),
    /// `--log-level`.
    #[error("--log-level: expected error, warn, info, debug or trace, not \"{0}\"")]
    LogLevel(String),
    /// io_uring is not available.
    #[error(transparent)]
    Ring(#[from] RingRefused),
    /// The process' limits.
    #[error(transparent)]
    Limits(#[from] limits::TooFewDescriptors),
    /// `--pin-cores` cannot be followed.
    #[error(transparent)]
    Pin(#[from] pin::PinFault),
    /// The directory is unusable.
    #[error(transparent)]
    Directory(#[from] DirectoryFault),
    /// Its content, or the thread that keeps it.
    #[error(transparent)]
    Keeper(#[from] KeeperFault),
    /// What `walhub ctl` left is unusable.
    #[error(transparent)]
    Course(#[from] course::CourseFault),
    /// The listening sockets.
    #[error(transparent)]
    Bind(#[from] BindFault),
    /// The control file and the cache do not match.
    #[error(transparent)]
    Begin(#[from] CacheFault),
    /// An operating system call failed.
    #[error("could not {0}: {1}")]
    Io(&'static str, io::Error),
}

/// Runs a hub until it is told to stop.
///
/// # Errors
/// Before any client is served: a flag, the kernel, the directory or the sockets.
pub fn serve(flags: ServeFlags) -> Result<ExitCode, Box<dyn std::error::Error>> {
    Ok(run(flags)?)
}

fn run(flags: ServeFlags) -> Result<ExitCode, ServeFault> {
    let mut signal = watchdog::start(CUT).map_err(|e| ServeFault::Io("catch signals", e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| ServeFault::Io("start the control thread's runtime", e))?;
    let flag = Secret::new(flags.primary_conninfo.clone());
    let config = Arc::new(flags.resolve()?);
    start_log(&config.log_level)?;
    announce::announce(&config);
    let features = ring::probe()?;
    let config = without_what_is_missing(config, features);
    limits::check(&config)?;
    let available = pin::available().map_err(|e| ServeFault::Io("ask for the CPUs", e))?;
    let cpus = pin::plan(&config.pin_cores, config.cores.get(), &available)?;
    let directory = Directory::open(&config.directory)?;
    let layout = directory.layout().clone();
    course::check(&layout, read_small_now)?;
    let ctl = CtlSocket::open(layout.root())
        .map_err(|e| ServeFault::Io("listen on the socket walhub.ctl in the directory", e))?;
    let bound = bind(&config)?.with_ctl(ctl);

    let (keeper_thread, recovering) = keeper::start(directory, config.retention.clone())?;
    let keeper = runtime.block_on(async {
        tokio::select! {
            biased;
            signal = &mut signal => {
                log_shutdown(signal);
                None
            }
            started = recovering.started() => Some(started),
        }
    });
    let Some(keeper) = keeper.transpose()? else {
        // Its recovery is cut off, or is in the middle of something that takes long.
        wait_for_end(&keeper_thread);
        info!("walhub is shut down");
        return Ok(ExitCode::SUCCESS);
    };
    let recovered = keeper.recovered;
    if let Some(halted) = &recovered.halted {
        warn!(
            "the last run ended after a failed sync ({}); WAL after {} is not trusted and is \
             received again",
            halted.reason, halted.durable
        );
    }
    let control = match recovered.control {
        Some(control) => control,
        None => {
            let instance = InstanceId::random()
                .map_err(|e| ServeFault::Io("draw an ID", io::Error::other(e.to_string())))?;
            ControlFile { instance, cluster: None }
        }
    };
    let hub = Arc::new(Hub::new(Arc::clone(&config), control.instance, keeper.holds));
    let resumed = course::take_over(&hub.course, &layout, flag, read_small_now)?;
    course::discard_older(&hub.course, &layout, resumed)?;
    hub.holds.scrub.resume(course::known_damage(&layout, read_small_now));
    if control.cluster.is_none() {
        // A new directory gets its ID before it has a cluster, so that a loop is detected at the
        // first connection. It is written again with the cluster; until then only the ID could
        // be lost.
        keeper.client.note(Job::SaveControl(Box::new(control.clone())));
    }

    let cores = config.cores.get();
    let threads = cpus.into_iter().enumerate().map(|(index, cpu)| CoreThread::start(index, cpu));
    let threads = threads.collect::<Result<Vec<_>, _>>()?;
    let (mut writer, readers) = ring::chunks(config.wal_buffers, cores)
        .map_err(|e| ServeFault::Io("map memory for --wal-buffers", e))?;
    let mut store = None;
    if let (Some(cluster), Some(wal)) = (&control.cluster, recovered.wal) {
        let read = |tli| {
            let path = layout.history(tli);
            match read_small_now(&path).and_then(|read| read.ok_or(io::ErrorKind::NotFound.into()))
            {
                Ok(content) => Ok((tli, content.into())),
                Err(error) => Err(StoreFault::Io { action: "read file", path, error }),
            }
        };
        let histories = recovered.listing.histories.into_iter().map(read);
        let histories = histories.collect::<Result<_, _>>().map_err(KeeperFault::from)?;
        store = Some(boot::resume(&hub, cluster, histories, wal, &mut writer)?);
    }

    let (news, from_cores) = mpsc::channel(NEWS);
    let queues: Vec<_> = threads.iter().map(CoreThread::mailbox).collect();
    let mailboxes: Vec<_> = queues.iter().map(|(mailbox, _)| mailbox.clone()).collect();
    if let Some(first) = threads.first() {
        hub.fleet.wake_by(Box::new(first.waking()));
    }
    let restorer = start_restorer(&config, layout.clone(), &hub, &keeper.client)?;
    match &restorer {
        Some(restorer) => keeper.source.fill(Arc::<Restorer>::clone(restorer)),
        None => drop(keeper.source),
    }
    let peers = threads.iter().skip(1).map(CoreThread::peer).collect();
    let receiver = Receiver::new(Arc::clone(&hub), writer, store);
    let parts = SharedParts { hub: &hub, keeper: &keeper.client, news, peers };
    let threads = parts.hand_over(threads, queues, readers, receiver);

    let (upstreams, copies) = follow::copies();
    let (settings, shared) = (config.scrub.clone(), Arc::clone(&hub));
    let scrubber = scrub::start(settings, layout.clone(), shared, keeper.client.clone(), upstreams);
    let scrubber = scrubber.map_err(|e| ServeFault::Io("start a thread", e))?;
    let archiver = config.archive_command.clone().map(|command| {
        let started = archiver::start(command, layout, Arc::clone(&hub.holds));
        started.map_err(|e| ServeFault::Io("start a thread", e))
    });
    let archiver = archiver.transpose()?;

    let (stop, running) = watch::channel(Running::Serving);
    let control = Control {
        hub,
        mailboxes: mailboxes.clone(),
        keeper: keeper.client,
        restorer: restorer.clone(),
        copies,
        bound,
        news: from_cores,
        running,
    };
    let code = run_control(runtime, control, &mailboxes, stop, signal)?;
    scrubber.finish(Instant::now() + LAST_WORDS);
    if let Some(restorer) = &restorer {
        restorer.stop();
        restorer.join(Instant::now() + COMMANDS);
    }
    for thread in threads {
        // A panic of the thread was reported, and has ended the process already.
        drop(thread.join());
    }
    if let Some(archiver) = archiver {
        archiver.finish();
    }
    // It may be in the middle of a long write to a file that has no name yet.
    wait_for_end(&keeper_thread);
    info!("walhub is shut down");
    Ok(code)
}

/// Waits for the keeper, but not for long.
fn wait_for_end(keeper: &JoinHandle<()>) {
    let finished = Instant::now() + LAST_WORDS;
    while !keeper.is_finished() && Instant::now() < finished {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn log_shutdown(signal: Result<&'static str, RecvError>) {
    // The sending thread lives as long as the process.
    info!("received {}, shutting down", signal.unwrap_or("no signal"));
}

fn start_log(level: &str) -> Result<(), ServeFault> {
    let level =
        level.parse::<tracing::Level>().map_err(|_| ServeFault::LogLevel(level.to_owned()))?;
    log::start(level).map_err(|e| ServeFault::Io("start the log", e))
}

/// The settings without those that the kernel does not support.
fn without_what_is_missing(config: Arc<Config>, features: Features) -> Arc<Config> {
    if features.zerocopy == Support::Yes || config.zerocopy == Zerocopy::Off {
        return config;
    }
    if config.zerocopy == Zerocopy::On {
        warn!(
            "--zerocopy on: the kernel does not support it (Linux 6.2 or newer does); all WAL is \
             copied"
        );
    }
    let config = Config { zerocopy: Zerocopy::Off, ..Config::clone(&config) };
    Arc::new(config)
}

/// The threads that fetch from the archive, if there is one.
fn start_restorer(
    config: &Config,
    layout: Layout,
    hub: &Arc<Hub>,
    keeper: &KeeperClient,
) -> Result<Option<Arc<Restorer>>, ServeFault> {
    let Some(settings) = &config.restore else { return Ok(None) };
    let started = Restorer::start(settings, layout, Arc::clone(hub), keeper.clone());
    let restorer = started.map_err(|e| ServeFault::Io("start a thread", e))?;
    Ok(Some(Arc::new(restorer)))
}

/// Runs the control thread until a signal comes, and the shutdown after it.
fn run_control(
    runtime: Runtime,
    control: Control,
    mailboxes: &[Mailbox],
    stop: watch::Sender<Running>,
    signal: oneshot::Receiver<&'static str>,
) -> Result<ExitCode, ServeFault> {
    let mailboxes = mailboxes.to_vec();
    let holds = Arc::clone(&control.hub.holds);
    let restorer = control.restorer.clone();
    let served = runtime.block_on(async move {
        let mut control = std::pin::pin!(crate::control::run(control));
        tokio::select! {
            ended = &mut control => return ended.map(|()| ExitCode::FAILURE),
            signal = signal => log_shutdown(signal),
        }
        holds.backlog.stop();
        let deadline = Instant::now() + SHUTDOWN;
        if let Some(restorer) = restorer {
            restorer.stop();
        }
        for mailbox in &mailboxes {
            mailbox.insist(ToCore::Stop { deadline }).await;
        }
        // All control tasks may be gone; then nobody needs to be told.
        if stop.send(Running::Stopping).is_err() {
            info!("the control thread has already ended");
        }
        tokio::select! {
            ended = &mut control => ended?,
            () = tokio::time::sleep(SHUTDOWN + LAST_WORDS) => {
                warn!("some connections did not end in time; exiting without waiting for them");
            }
        }
        Ok(ExitCode::SUCCESS)
    });
    runtime.shutdown_background();
    served.map_err(|e: io::Error| ServeFault::Io("run the control thread", e))
}
