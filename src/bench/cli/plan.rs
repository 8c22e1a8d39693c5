//! Turns flags into plans.

use super::flags::{FleetFlags, LoadFlags, RunFlags, VerifyFlag};
use super::{mistake, typed};
use crate::bench::measure::Servers;
use crate::bench::primary::ServerVersion;
use crate::bench::profile::{Figures, Load};
use crate::bench::run::{FleetOptions, HubOptions, RunPlan, ServerPlan, Starts, Work};
use crate::bench::standbys::{
    Behaviours, Flapping, Replies, Slow, Stalled, StandbySlots, Storm, Verify,
};
use crate::wal::SegmentSize;
use crate::wire::conninfo::Conninfo;
use crate::wire::units::{SizeUnit, TimeUnit, parse_bytes, parse_duration};
use std::time::Duration;

/// A flag whose value cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--{flag}: {fault}")]
pub(in crate::bench) struct Mistake {
    pub(super) flag: &'static str,
    pub(super) fault: String,
}

pub(super) fn run(flags: RunFlags) -> Result<RunPlan, Mistake> {
    let load = load(&flags.load, None)?;
    let standbys = load.profile.standbys();
    let fleet = fleet(&flags.fleet, standbys, flags.load.seed)?;
    let work = match &flags.catch_up {
        None => Work::Live {
            warm_up: time("warm-up", &flags.warm_up)?,
            duration: time("duration", &flags.duration)?,
        },
        Some(text) => Work::CatchUp {
            size: bytes("catch-up", text)?,
            starts: if flags.spread { Starts::Spread } else { Starts::Together },
        },
    };
    let window = flags.window.as_deref().map(|text| bytes("window", text)).transpose()?;
    Ok(RunPlan { server: server(flags)?, load, fleet, work, window, arguments: typed() })
}

fn server(flags: RunFlags) -> Result<ServerPlan, Mistake> {
    let Some(text) = flags.target else {
        let mut hub = HubOptions { directory: flags.directory, ..HubOptions::default() };
        let own = [
            ("--cores", flags.cores.map(|cores| cores.to_string())),
            ("--wal-buffers", flags.wal_buffers),
            ("--max-send-size", flags.max_send_size),
        ];
        for (flag, value) in own {
            hub.flags.extend(value.map(|value| vec![format!("{flag}={value}")]));
        }
        hub.flags.extend(serve_flags(flags.serve_arg)?);
        return Ok(ServerPlan::Hub {
            version: version(flags.major)?,
            segment_size: segment_size(&flags.wal_segment_size)?,
            hub,
        });
    };
    let commits = flags
        .commits_on
        .map(|text| Ok((Box::new(conninfo("commits-on", &text)?), flags.clients)))
        .transpose()?;
    let servers = match (flags.server_pid.is_empty(), flags.server_match) {
        (true, _) => None,
        (false, None) => Some(Servers::Families(flags.server_pid)),
        (false, Some(beginning)) => Some(Servers::Matching(flags.server_pid, vec![beginning])),
    };
    let target = Box::new(conninfo("target", &text)?);
    Ok(ServerPlan::Target { target, text: without_password(&text), commits, servers })
}

/// Flags that a run needs for itself.
const RESERVED: [&str; 5] =
    ["--directory", "-D", "--primary-conninfo", "--listen-addresses", "--port"];

/// Arguments of `walhub serve`, flag by flag: a value may be an argument of its own.
fn serve_flags(arguments: Vec<String>) -> Result<Vec<Vec<String>>, Mistake> {
    let mut flags: Vec<Vec<String>> = Vec::new();
    for argument in arguments {
        let name = argument.split('=').next().unwrap_or_default();
        if RESERVED.contains(&name) {
            return Err(mistake("serve-arg", format!("a run sets {name} itself")));
        }
        match flags.last_mut() {
            Some(flag) if !argument.starts_with('-') => flag.push(argument),
            _ => flags.push(vec![argument]),
        }
    }
    Ok(flags)
}

/// Hides the password: reports are passed on.
fn without_password(text: &str) -> String {
    if text.contains("://") {
        // user:password@host
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        return match rest.split_once('@') {
            Some((user, host)) => {
                let user = user.split(':').next().unwrap_or_default();
                format!("{scheme}://{user}@{host}")
            }
            None => text.to_owned(),
        };
    }
    match text.find("password") {
        Some(at) => format!("{}...", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

pub(super) fn load(flags: &LoadFlags, total: Option<u64>) -> Result<Load, Mistake> {
    let figures = Figures {
        rate: flags.rate,
        commit_size: flags.commit_size,
        commits_per_second: flags.commits_per_second,
        total,
        seed: Some(flags.seed),
    };
    Load::new(flags.profile, &figures).map_err(|fault| mistake("profile", fault))
}

pub(super) fn fleet(
    flags: &FleetFlags,
    standbys: usize,
    seed: u64,
) -> Result<FleetOptions, Mistake> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let options = FleetOptions {
        standbys: flags.standbys.unwrap_or(standbys),
        threads: flags.threads.unwrap_or((cpus / 4).clamp(1, 8)),
        verify: match flags.verify {
            VerifyFlag::Full => Verify::Full,
            VerifyFlag::Crc => Verify::Crc,
            VerifyFlag::Off => Verify::Off,
        },
        replies: match flags.replies.as_str() {
            "flush" => Replies::Flush,
            "interval" => Replies::Interval(Duration::from_secs(10)),
            text => Replies::Interval(time("replies", text)?),
        },
        behaviours: behaviours(flags)?,
        names: flags.names.clone(),
        slots: match (&flags.slots, flags.create_slots) {
            (None, _) => StandbySlots::None,
            (Some(prefix), false) => StandbySlots::Existing(prefix.clone()),
            (Some(prefix), true) => StandbySlots::Created(prefix.clone()),
        },
        connect_rate: flags.connect_rate,
        seed,
    };
    if options.standbys == 0 {
        return Err(mistake("standbys", "at least one"));
    }
    if options.good() == 0 {
        return Err(mistake("standbys", "at least one of them has to be a good one"));
    }
    Ok(options)
}

fn behaviours(flags: &FleetFlags) -> Result<Behaviours, Mistake> {
    let slow = part("slow", flags.slow.as_deref(), |rest| {
        bytes("slow", rest.unwrap_or("100kB").trim_end_matches("/s"))
    })?;
    let stalled = part("stalled", flags.stalled.as_deref(), |rest| {
        rest.map_or(Ok(Duration::ZERO), |after| time("stalled", after))
    })?;
    let flapping = part("flapping", flags.flapping.as_deref(), |rest| {
        let (from, to) = match rest {
            None => return Ok(Duration::from_secs(1)..=Duration::from_secs(60)),
            Some(rest) => rest.split_once('-').unwrap_or((rest, rest)),
        };
        let (from, to) = (time("flapping", from)?, time("flapping", to)?);
        (from <= to)
            .then_some(from..=to)
            .ok_or_else(|| mistake("flapping", "the range ends before it begins"))
    })?;
    let storm = match &flags.storm {
        None => None,
        Some(text) => {
            let (first, every) = match text.split_once('/') {
                None => (text.as_str(), None),
                Some((first, every)) => (first, Some(time("storm", every)?)),
            };
            Some(Storm { first: time("storm", first)?, every })
        }
    };
    Ok(Behaviours {
        slow: slow.map(|(count, bytes_per_second)| Slow { count, bytes_per_second }),
        stalled: stalled.map(|(count, after)| Stalled { count, after }),
        flapping: flapping.map(|(count, every)| Flapping { count, every }),
        storm,
    })
}

/// A number, and an optional value after a colon.
fn part<T>(
    flag: &'static str,
    text: Option<&str>,
    read: impl FnOnce(Option<&str>) -> Result<T, Mistake>,
) -> Result<Option<(usize, T)>, Mistake> {
    let Some(text) = text else { return Ok(None) };
    let (count, rest) = match text.split_once(':') {
        None => (text, None),
        Some((count, rest)) => (count, Some(rest)),
    };
    let count = count.parse().map_err(|_| mistake(flag, format!("\"{count}\" is not a number")))?;
    Ok(Some((count, read(rest)?)))
}

pub(super) fn conninfo(flag: &'static str, text: &str) -> Result<Conninfo, Mistake> {
    Conninfo::parse(text, &|name| std::env::var(name).ok()).map_err(|e| mistake(flag, e))
}

pub(super) fn version(major: u32) -> Result<ServerVersion, Mistake> {
    ServerVersion::new(major).ok_or_else(|| mistake("major", "versions from 13 to 18 are known"))
}

pub(super) fn segment_size(text: &str) -> Result<SegmentSize, Mistake> {
    let size = bytes("wal-segment-size", text)?;
    SegmentSize::new(size)
        .ok_or_else(|| mistake("wal-segment-size", "a power of two from 1MB to 1GB"))
}

/// A bare number means megabytes; other values are exact to the kilobyte.
pub(super) fn bytes(flag: &'static str, text: &str) -> Result<u64, Mistake> {
    let base = if is_bare(text) { SizeUnit::Megabyte } else { SizeUnit::Kilobyte };
    match parse_bytes(text, base).map_err(|e| mistake(flag, e))? {
        0 => Err(mistake(flag, "must not be 0")),
        bytes => Ok(bytes),
    }
}

/// A bare number means seconds; other values are exact to the millisecond.
pub(super) fn time(flag: &'static str, text: &str) -> Result<Duration, Mistake> {
    let base = if is_bare(text) { TimeUnit::Second } else { TimeUnit::Millisecond };
    parse_duration(text, base).map_err(|e| mistake(flag, e))
}

fn is_bare(text: &str) -> bool {
    text.trim().ends_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cli::{BenchCommand, BenchFlags};
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Bench {
        #[command(flatten)]
        flags: BenchFlags,
    }

    fn plan(args: &[&str]) -> Result<RunPlan, String> {
        let all = ["bench", "run"].iter().chain(args);
        match Bench::try_parse_from(all).map_err(|e| e.to_string())?.flags.command {
            BenchCommand::Run(flags) => run(*flags).map_err(|e| e.to_string()),
            _ => Err("not run".to_owned()),
        }
    }

    #[test]
    fn a_run_needs_no_flags() {
        let plan = plan(&[]).unwrap();
        assert_eq!((plan.fleet.standbys, plan.window), (50, None));
        assert_eq!(plan.fleet.verify, Verify::Full);
        assert!(matches!(plan.server, ServerPlan::Hub { .. }));
        let Work::Live { warm_up, duration } = plan.work else { panic!() };
        assert_eq!((warm_up.as_secs(), duration.as_secs()), (2, 10));
    }

    #[test]
    fn behaviours_have_figures_or_not() {
        let plan = plan(&[
            "--slow=3:100kB",
            "--stalled=2",
            "--flapping=4:500ms-2s",
            "--storm=5s/1min",
            "-n100",
            "--replies=interval",
        ])
        .unwrap();
        let Behaviours { slow, stalled, flapping, storm } = plan.fleet.behaviours.clone();
        assert_eq!(slow.map(|slow| (slow.count, slow.bytes_per_second)), Some((3, 100 << 10)));
        assert_eq!(stalled.map(|s| (s.count, s.after)), Some((2, Duration::ZERO)));
        let flapping = flapping.unwrap();
        assert_eq!((flapping.count, flapping.every.start().as_millis()), (4, 500));
        let storm = storm.unwrap();
        assert_eq!((storm.first.as_secs(), storm.every), (5, Some(Duration::from_secs(60))));
        assert_eq!(plan.fleet.good(), 91);
        assert_eq!(plan.fleet.replies_name(), "every 10s");
    }

    #[test]
    fn a_hub_gets_its_flags() {
        let plan = plan(&["--cores=2", "--serve-arg=--zerocopy", "--serve-arg=off"]).unwrap();
        let ServerPlan::Hub { hub, .. } = plan.server else { panic!() };
        assert_eq!(hub.flags, [&["--cores=2"][..], &["--zerocopy", "off"]]);
    }

    #[test]
    fn mistakes_name_the_flag() {
        for (args, part) in [
            (&["--standbys=0"][..], "--standbys"),
            (&["--stalled=50"], "--standbys"),
            (&["--slow=many"], "--slow"),
            (&["--flapping=1:3s-2s"], "--flapping"),
            (&["--major=12"], "--major"),
            (&["--wal-segment-size=3MB"], "--wal-segment-size"),
            (&["--duration=soon"], "--duration"),
            (&["--catch-up=0"], "--catch-up"),
            (&["--rate=0"], "--rate"),
            (&["--rate=max", "--commits-per-second=5"], "--profile"),
            (&["--commits-on=host=a"], "--target"),
            (&["--spread"], "--catch-up"),
            (&["--serve-arg=--port=5432"], "a run sets --port itself"),
        ] {
            let error = plan(args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }

    #[test]
    fn passwords_stay_here() {
        for (text, shown) in [
            ("host=a user=b", "host=a user=b"),
            ("host=a password=secret user=b", "host=a ..."),
            ("postgresql://u:secret@h:5432/", "postgresql://u@h:5432/"),
            ("postgresql://h", "postgresql://h"),
        ] {
            assert_eq!(without_password(text), shown);
        }
    }
}
