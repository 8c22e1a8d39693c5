//! The client side of `walhub ctl`.

use super::address::Address;
use super::answer::{Answer, Failure, NoAnswer, Said};
use super::request::{Confirmable, HubCommand, Request};
use crate::ctl::flags::{CtlCommand, CtlFlags, SlotAction};
use crate::wire::secret::Secret;
use crate::wire::units::{SizeUnit, TimeUnit, parse_bytes, parse_duration};
use socket2::{Domain, SockAddr, Socket, Type};
use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The hub refused.
const REFUSED: u8 = 1;

/// The hub could not be asked.
const UNASKED: u8 = 2;

/// No answer is longer: thousands of standbys take some hundred bytes each.
const MAX_ANSWER: u64 = 64 << 20;

/// Why a hub could not be asked.
#[derive(Debug, thiserror::Error)]
enum Unasked {
    #[error("directory \"{}\" does not exist", .0.display())]
    NoDirectory(PathBuf),
    #[error("no hub runs in \"{}\": there is no socket walhub.ctl", .0.display())]
    NoSocket(PathBuf),
    #[error(
        "no hub runs in \"{}\": a killed hub left its socket walhub.ctl behind",
        .0.display()
    )]
    Dead(PathBuf),
    #[error(
        "permission denied: \"{}\" belongs to another user; run walhub ctl as that user",
        .0.display()
    )]
    Permission(PathBuf),
    #[error(
        "the hub did not answer within {0:?}: it may or may not have done what was asked; ask again"
    )]
    Late(Duration),
    #[error("the hub closed the connection without an answer: it may be shutting down")]
    Closed,
    #[error("could not ask the hub in \"{}\": {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Senseless(#[from] NoAnswer),
    #[error("--timeout: {0}")]
    Timeout(String),
    #[error("--rate: {0}")]
    Rate(String),
    #[error("could not read the connection string from standard input: {0}")]
    Input(io::Error),
    #[error(
        "there is nothing called \"{0}\" to confirm: it is abandoned or seam, and an LSN, or aside, \
         and a name"
    )]
    Confirmation(String),
    #[error("--let-in goes with `confirm seam` and an LSN")]
    LetIn,
}

/// Asks a hub and prints its answer.
///
/// # Errors
/// Standard output cannot be written to.
pub fn ctl(flags: CtlFlags) -> Result<ExitCode, Box<dyn Error>> {
    let form = if flags.json { Form::Json } else { Form::Text };
    let (answer, code) = match ask(flags) {
        Ok(answer) if matches!(answer.said, Said::Error(_)) => (answer, ExitCode::from(REFUSED)),
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(unasked) => {
            let failure = Failure::new(unasked.to_string());
            (Answer::new(Said::Error(failure)), ExitCode::from(UNASKED))
        }
    };
    if let Said::Error(failure) = &answer.said {
        let hint = failure.hint.as_ref().map(|hint| format!("HINT: {hint}\n"));
        let text = format!("walhub: {}\n{}", failure.message, hint.unwrap_or_default());
        // The exit status reports it, too.
        drop(io::stderr().write_all(text.as_bytes()));
    }
    match print(&answer, form) {
        // The reader has closed the pipe: it has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        other => other?,
    }
    Ok(code)
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Text,
}

fn print(answer: &Answer, form: Form) -> io::Result<()> {
    let mut out = Vec::new();
    match form {
        Form::Json => {
            serde_json::to_writer_pretty(&mut out, answer)?;
            out.push(b'\n');
        }
        Form::Text => answer.write_text(&mut out)?,
    }
    io::stdout().lock().write_all(&out)
}

fn ask(flags: CtlFlags) -> Result<Answer, Unasked> {
    let limit = timeout(&flags.timeout)?;
    let command = command(flags.command)?;
    let line = Request::new(command).encode();
    let answer = exchange(&flags.directory, &line, Instant::now() + limit);
    let answer = answer.map_err(|error| unasked(&flags.directory, limit, error))?;
    if answer.is_empty() {
        return Err(Unasked::Closed);
    }
    Ok(Answer::parse(&answer)?)
}

fn timeout(text: &str) -> Result<Duration, Unasked> {
    match parse_duration(text, TimeUnit::Millisecond) {
        Ok(Duration::ZERO) => {
            Err(Unasked::Timeout(format!("{text} is outside the valid range (1ms ..)")))
        }
        Ok(limit) => Ok(limit),
        Err(fault) => Err(Unasked::Timeout(fault.to_string())),
    }
}

fn command(typed: CtlCommand) -> Result<HubCommand, Unasked> {
    Ok(match typed {
        CtlCommand::Status => HubCommand::Status,
        CtlCommand::Standbys => HubCommand::Standbys,
        CtlCommand::Retention => HubCommand::Retention,
        CtlCommand::Verify { rate: None } => HubCommand::Verify,
        CtlCommand::Verify { rate: Some(rate) } => {
            let rate = parse_bytes(&rate, SizeUnit::Megabyte);
            let bytes_per_second = rate.map_err(|fault| Unasked::Rate(fault.to_string()))?;
            HubCommand::VerifyAt { bytes_per_second }
        }
        CtlCommand::Slots { action: None } => HubCommand::Slots,
        CtlCommand::Slots { action: Some(SlotAction::Drop { name }) } => {
            HubCommand::DropSlot { name }
        }
        CtlCommand::Upstream { reset: true, .. } => HubCommand::ResetUpstream,
        CtlCommand::Upstream { conninfo: None, reset: false } => HubCommand::Upstream,
        CtlCommand::Upstream { conninfo: Some(conninfo), reset: false } => {
            HubCommand::SetUpstream { conninfo: secret(conninfo)? }
        }
        CtlCommand::Fence => HubCommand::Fence,
        CtlCommand::Unfence { upstream } => {
            HubCommand::Unfence { upstream: upstream.map(secret).transpose()? }
        }
        CtlCommand::Confirm { what, lsn, let_in } => confirmation(what, lsn, let_in)?,
        CtlCommand::AcceptHistory { history, lsn } => HubCommand::AcceptHistory { history, lsn },
    })
}

/// One word alone is a position, as in earlier versions, unless it says what there is to confirm.
fn confirmation(
    first: Option<String>,
    second: Option<String>,
    let_in: Vec<String>,
) -> Result<HubCommand, Unasked> {
    if first.as_deref() != Some("seam") && !let_in.is_empty() {
        return Err(Unasked::LetIn);
    }
    let what = match first.as_deref() {
        Some("abandoned") => Some(Confirmable::Abandoned),
        Some("seam") => Some(Confirmable::Seam),
        Some("aside") => {
            return Ok(second
                .map_or(HubCommand::Confirm { what: None, lsn: None, let_in }, |name| {
                    HubCommand::ConfirmAside { name }
                }));
        }
        Some(other) if second.is_some() => return Err(Unasked::Confirmation(other.to_owned())),
        Some(_) | None => return Ok(HubCommand::Confirm { what: None, lsn: first, let_in }),
    };
    Ok(HubCommand::Confirm { what, lsn: second, let_in })
}

/// The value from the command line, or from standard input.
fn secret(typed: String) -> Result<Secret, Unasked> {
    if typed != "-" {
        return Ok(Secret::new(typed));
    }
    let mut text = String::new();
    let mut input = io::stdin().lock().take(super::request::MAX_REQUEST as u64);
    input.read_to_string(&mut text).map_err(Unasked::Input)?;
    Ok(Secret::new(text.trim()))
}

/// Sends a line and reads one.
fn exchange(directory: &Path, line: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    let address = Address::of(directory, "walhub.ctl")?;
    let mut socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The write timeout also limits how long connecting waits for the listener.
    socket.set_write_timeout(Some(left(deadline)?))?;
    socket.connect(&SockAddr::unix(address.path())?)?;
    match socket.write_all(line) {
        // The hub may have sent its reason before it read everything.
        Err(error)
            if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
        other => other?,
    }
    let mut answer = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        socket.set_read_timeout(Some(left(deadline)?))?;
        let count = match socket.read(&mut piece) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        answer.extend_from_slice(piece.get(..count).unwrap_or_default());
        if count == 0 || answer.ends_with(b"\n") || answer.len() as u64 > MAX_ANSWER {
            return Ok(answer);
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn unasked(directory: &Path, limit: Duration, error: io::Error) -> Unasked {
    let path = directory.to_owned();
    match error.kind() {
        ErrorKind::NotFound if !directory.is_dir() => Unasked::NoDirectory(path),
        ErrorKind::NotFound => Unasked::NoSocket(path),
        ErrorKind::ConnectionRefused => Unasked::Dead(path),
        ErrorKind::PermissionDenied => Unasked::Permission(path),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Unasked::Late(limit),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => {
            Unasked::Closed
        }
        _ => Unasked::Io { path, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_alone_is_a_position_unless_it_says_what() {
        let typed = |words: &[&str]| {
            let mut words = words.iter().map(|word| (*word).to_owned());
            confirmation(words.next(), words.next(), vec![])
        };
        let meant = |what, lsn: Option<&str>| {
            let lsn = lsn.map(str::to_owned);
            HubCommand::Confirm { what, lsn, let_in: vec![] }
        };
        for (words, command) in [
            (&[][..], meant(None, None)),
            (&["0/5"], meant(None, Some("0/5"))),
            (&["seam"], meant(Some(Confirmable::Seam), None)),
            (&["seam", "0/5"], meant(Some(Confirmable::Seam), Some("0/5"))),
            (&["aside"], meant(None, None)),
            (
                &["aside", "pg_wal.aside.1"],
                HubCommand::ConfirmAside { name: "pg_wal.aside.1".to_owned() },
            ),
            (&["abandoned", "0/5"], meant(Some(Confirmable::Abandoned), Some("0/5"))),
        ] {
            assert_eq!(typed(words).unwrap(), command, "{words:?}");
        }
        let why = typed(&["seams", "0/5"]).unwrap_err().to_string();
        assert!(why.contains("nothing called \"seams\""), "{why}");
    }

    #[test]
    fn standbys_are_let_in_at_a_seam_alone() {
        let typed = |what: &str| {
            confirmation(Some(what.to_owned()), Some("0/5".to_owned()), vec!["s".to_owned()])
        };
        let HubCommand::Confirm { let_in, .. } = typed("seam").unwrap() else { panic!() };
        assert_eq!(let_in, ["s"]);
        let why = typed("abandoned").unwrap_err().to_string();
        assert!(why.starts_with("--let-in goes with `confirm seam`"), "{why}");
    }

    #[test]
    fn no_time_at_all_is_refused() {
        assert_eq!(timeout("5s").unwrap(), Duration::from_secs(5));
        let fault = timeout("0").unwrap_err().to_string();
        assert_eq!(fault, "--timeout: 0 is outside the valid range (1ms ..)");
    }
}
