//! A CLI process the worker owns, and the only place that starts one. Its parent is always
//! `worker supervise`, held by a pipe: when the pipe closes (kill, drop, the worker's death) or stays
//! silent, the supervisor ends the whole tree. Its own end therefore means that nothing is left; where it was
//! killed, what it left is looked for by the job's folder. Either way nothing is left when `wait` answers.

#![expect(clippy::disallowed_types, reason = "this is the one place")]

use std::{
    collections::VecDeque,
    fmt, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use prometheus_client::metrics::gauge::Gauge;
use rustix::{
    io::{FdFlags, fcntl_setfd, ioctl_fionbio},
    pipe::{PipeFlags, pipe_with},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, ChildStderr, Command},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{strays, supervise};

pub use super::launch::{Launch, SpawnError};
use super::lines::{LineError, Lines};

/// The longest line a CLI may print, unless said otherwise: images and whole files come as one.
pub const LINE_LIMIT: usize = 8 * 1024 * 1024;
/// How much of the end of standard error is kept.
const TAIL: usize = 8 * 1024;
/// How long after the supervisor's end its standard error may still be open. It is closed by then,
/// unless the supervisor itself was killed and left tools behind.
const STDERR_GRACE: Duration = Duration::from_millis(100);

/// How long a supervisor may take to end its tree. A tool outside of a sandbox may have stopped it.
const ENDING: Duration = Duration::from_secs(5);

/// Why a line did not reach the process.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Its standard input is closed, by it or by us.
    #[error("standard input of the process is closed")]
    Closed,
    /// It did not read in time. A part of the line may have been written: only killing helps.
    #[error("process did not read its standard input for {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The pipe failed.
    #[error("could not write to the process")]
    Io(#[source] io::Error),
}

/// How a process ended. Neither is set where that cannot be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it. A code above 128 counts as one, as in shells: behind a supervisor (and
    /// bwrap) the two cannot be told apart.
    pub signal: Option<i32>,
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match status.code() {
            Some(code @ 129..) => Self { code: None, signal: Some(code - 128) },
            code => Self { code, signal: status.signal() },
        }
    }
}

/// A running process. Dropping it ends its whole tree too; a task of its own then waits for the end, so
/// that no zombie stays.
pub struct Process {
    id: Option<u32>,
    stdin: Option<UnixStream>,
    stdout: Lines<UnixStream>,
    /// A part of a line was written: nothing that follows it is understood.
    is_torn: bool,
    stderr: Tail,
    entitlement: Option<Arc<OwnedFd>>,
    /// How long what entitled it lasts.
    silence: Duration,
    /// Fires once its end was decided.
    ending: Option<DropGuard>,
    reaper: JoinHandle<Exit>,
    exit: Option<Exit>,
}

impl Process {
    /// Start a process whose output lines are at most `line_limit` bytes long, counted in `living`
    /// until all of it is gone. Must be called inside a tokio runtime.
    pub fn spawn(launch: &Launch, line_limit: usize, living: &Gauge) -> Result<Self, SpawnError> {
        launch.check()?;
        let left = launch.silence.checked_sub(launch.entitled_since.elapsed()).ok_or(SpawnError::NotEntitled)?;
        let (program, args) = match &launch.sandbox {
            Some(confinement) => confinement.wrap(&launch.program, &launch.args)?,
            None => (launch.program.clone(), launch.args.clone()),
        };
        let (read_end, write_end) = entitlement_pipe()?;
        let ((stdin, its_stdin), (stdout, its_stdout)) = (stream()?, stream()?);
        let mut child = Command::new(&launch.supervisor)
            .arg0("worker")
            .args(["supervise", "--entitlement-fd", &read_end.as_raw_fd().to_string()])
            // A time and no span: this process may be stopped before the supervisor begins.
            .args(["--until-ms", &(supervise::clock() + left).as_millis().to_string(), "--"])
            .arg(program)
            .args(args)
            .env_clear()
            .envs(launch.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&launch.cwd)
            .stdin(its_stdin)
            .stdout(its_stdout)
            .stderr(Stdio::piped())
            // Out of the terminal's reach: its Ctrl-C asks the worker to drain. Nothing else may be set
            // here; what needs code after the fork makes each start as slow as the worker is large.
            .process_group(0)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => SpawnError::SupervisorMissing(launch.supervisor.clone()),
                _ => SpawnError::Os(error),
            })?;

        let Some(stderr) = child.stderr.take() else {
            return Err(io::Error::other("standard error of the process is not there").into());
        };
        let id = child.id();
        let tail = Tail::default();
        let ending = CancellationToken::new();
        let reaper = tokio::spawn(reap(child, stderr, tail.clone(), ending.clone(), launch.folder.clone(), Living::new(living)));
        Ok(Self {
            id,
            stdin: Some(stdin),
            stdout: Lines::new(stdout, line_limit),
            is_torn: false,
            stderr: tail,
            entitlement: Some(Arc::new(write_end)),
            silence: launch.silence,
            ending: Some(ending.drop_guard()),
            reaper,
            exit: None,
        })
    }

    /// The supervisor's process id, for logs.
    pub fn id(&self) -> Option<u32> {
        self.id
    }

    /// The next line it prints, or `None` when it prints no more. Cancel-safe.
    pub async fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        self.stdout.next().await
    }

    /// Write a line, given without its end, within `limit`. After an error or a cancelled call a part of
    /// it may have been written, and no other is.
    pub async fn write_line(&mut self, line: &[u8], limit: Duration) -> Result<(), WriteError> {
        // Also where this call is cancelled.
        let was_torn = std::mem::replace(&mut self.is_torn, true);
        let stdin = self.stdin.as_mut().filter(|_| !was_torn).ok_or(WriteError::Closed)?;
        let write = async {
            stdin.write_all(line).await?;
            stdin.write_all(b"\n").await?;
            stdin.flush().await
        };
        match timeout(limit, write).await {
            Ok(Ok(())) => {
                self.is_torn = false;
                Ok(())
            }
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Err(WriteError::Closed),
            Ok(Err(error)) => Err(WriteError::Io(error)),
            Err(_) => Err(WriteError::TimedOut(limit)),
        }
    }

    /// Tell it that no more input comes.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Let it live for another silence limit. Never blocks.
    pub fn renew(&self) {
        self.entitlement().renew(Instant::now());
    }

    /// The right to renew, for whoever knows that the worker's heartbeat was accepted. Holding it does
    /// not keep the process alive.
    pub fn entitlement(&self) -> Entitlement {
        Entitlement { pipe: self.entitlement.as_ref().map(Arc::downgrade).unwrap_or_default(), silence: self.silence }
    }

    /// The end of what it wrote to standard error so far, at most 8 KiB.
    pub fn stderr_tail(&self) -> String {
        self.stderr.text()
    }

    /// Wait until it has ended by itself and nothing it started is left. Cancel-safe.
    pub async fn wait(&mut self) -> Exit {
        if let Some(exit) = self.exit {
            return exit;
        }
        // An error here is the runtime's own end.
        let exit = (&mut self.reaper).await.unwrap_or_default();
        self.exit = Some(exit);
        exit
    }

    /// End it and all it started, at once, and wait until that is done. A graceful end is asked for by
    /// what is written to it before. A cancelled call has still started the end.
    pub async fn kill(&mut self) -> Exit {
        self.entitlement = None;
        self.ending = None;
        self.wait().await
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("id", &self.id).field("exit", &self.exit).finish_non_exhaustive()
    }
}

/// Renews the life of one process.
#[derive(Clone, Debug)]
pub struct Entitlement {
    pipe: Weak<OwnedFd>,
    silence: Duration,
}

impl Entitlement {
    /// Let the process live for another silence limit after `since`, if it still lives. Never blocks.
    pub fn renew(&self, since: Instant) {
        let Some(left) = self.silence.checked_sub(since.elapsed()) else { return };
        if let Some(pipe) = self.pipe.upgrade() {
            // A full pipe belongs to a supervisor that does not run, a broken one to one that is gone.
            let _ = rustix::io::write(&pipe, &supervise::deadline(left));
        }
    }
}

/// A stream to the process: our end, and its. A socket and not a pipe: whatever else runs in its sandbox could
/// open a pipe by way of `/proc` and speak in its place.
fn stream() -> io::Result<(UnixStream, Stdio)> {
    let (ours, its) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, OwnedFd::from(its).into()))
}

/// The supervisor's end, inherited by number, and ours, inherited by nobody. A supervisor started at
/// the same moment may inherit the first too, and closes it: it keeps only its own.
fn entitlement_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfd(&read_end, FdFlags::empty())?;
    ioctl_fionbio(&write_end, true)?;
    Ok((read_end, write_end))
}

/// Keep standard error flowing and wait for the end of it all.
async fn reap(mut child: Child, mut stderr: ChildStderr, tail: Tail, ending: CancellationToken, folder: PathBuf, _living: Living) -> Exit {
    let drain = async {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
            tail.push(&chunk[..count]);
        }
    };
    tokio::pin!(drain);
    let ended = supervisor_ended(&mut child, &ending);
    tokio::pin!(ended);
    let status = tokio::select! {
        status = &mut ended => {
            let _ = timeout(STDERR_GRACE, drain).await;
            status
        }
        () = &mut drain => ended.await,
    };
    if status.as_ref().is_ok_and(|status| status.signal().is_some()) {
        end_strays(folder).await;
    }
    status.map(Exit::from).unwrap_or_default()
}

/// Wait for the supervisor, which is gone when all below it is, and do without it where it does not do its work.
async fn supervisor_ended(child: &mut Child, ending: &CancellationToken) -> io::Result<ExitStatus> {
    let late = async {
        ending.cancelled().await;
        sleep(ENDING).await;
    };
    tokio::select! {
        status = child.wait() => return status,
        () = late => {}
    }
    tracing::warn!(pid = child.id(), "A supervisor did not end its processes within {ENDING:?}: ending them without it");
    child.start_kill()?;
    child.wait().await
}

/// End what a supervisor left that was killed.
async fn end_strays(folder: PathBuf) {
    let ended = tokio::task::spawn_blocking(move || strays::end(&folder)).await;
    match ended.map_err(io::Error::other).flatten() {
        Ok(0) => {}
        Ok(ended) => tracing::warn!(ended, "A supervisor was killed and left {ended} processes, which were ended"),
        Err(error) => tracing::error!(%error, "A supervisor was killed, and not all of what it left could be ended"),
    }
}

/// The last bytes of a stream.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(TAIL);
        kept.drain(..excess);
    }

    fn text(&self) -> String {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    }
}

/// Counts one process as living while it exists.
struct Living(Gauge);

impl Living {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_above_128_is_a_signal_as_in_shells() {
        assert_eq!(Exit::from(ExitStatus::from_raw(3 << 8)), Exit { code: Some(3), signal: None });
        assert_eq!(Exit::from(ExitStatus::from_raw(143 << 8)), Exit { code: None, signal: Some(15) });
        assert_eq!(Exit::from(ExitStatus::from_raw(9)), Exit { code: None, signal: Some(9) });
    }

    #[test]
    fn only_the_last_bytes_of_a_stream_are_kept() {
        let tail = Tail::default();
        tail.push(&[b'a'; TAIL]);
        tail.push(b"end");

        assert_eq!(tail.text().len(), TAIL);
        assert!(tail.text().ends_with("aend"));
    }
}
