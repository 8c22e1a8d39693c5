//! A loopback of our own: nobody else's connections on it, and one congestion control
//! for every socket, whoever opens it.
//!
//! The route attribute is the one way that reaches servers which do not set
//! `TCP_CONGESTION` themselves.

use crate::fault::{During, Fault, Outcome};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use walhub::bench::measure;

/// Says that this process was started in its own namespace.
const INSIDE: &str = "WALHUB_PERF_NAMESPACE";
const CUBIC: &str = "cubic";

/// Moves to a network namespace of our own, where root may make one, and says which
/// congestion control holds. The process begins anew for that.
pub(crate) fn isolate() -> Outcome<String> {
    let host = || measure::Machine::this().congestion_control;
    if !rustix::process::geteuid().is_root() {
        return Ok(format!("{} (the host's)", host()));
    }
    if std::env::var_os(INSIDE).is_none() {
        let program = std::env::current_exe().during("the path of this program")?;
        let error = Command::new("unshare")
            .arg("--net")
            .arg(program)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1")
            .exec();
        // Only a failure comes back.
        return Ok(format!("{} (the host's: unshare: {error})", host()));
    }
    run(&["link", "set", "lo", "up"])?;
    let route = |prefix| {
        run(&[
            "route",
            "replace",
            "local",
            prefix,
            "dev",
            "lo",
            "table",
            "local",
            "proto",
            "kernel",
            "scope",
            "host",
            "src",
            "127.0.0.1",
            "congctl",
            CUBIC,
        ])
    };
    match route("127.0.0.0/8").and_then(|()| route("127.0.0.1")) {
        Ok(()) => Ok(CUBIC.to_owned()),
        Err(fault) => Ok(format!("{} (the host's: {fault})", host())),
    }
}

fn run(arguments: &[&str]) -> Outcome {
    let what = || format!("ip {}", arguments.join(" "));
    let output = Command::new("ip").args(arguments).output().during(what())?;
    succeeded(output.status, &output.stderr).during(what())
}

fn succeeded(status: ExitStatus, complaint: &[u8]) -> Outcome {
    if status.success() {
        return Ok(());
    }
    Err(Fault::new(format!("{status} {}", String::from_utf8_lossy(complaint).trim())))
}
