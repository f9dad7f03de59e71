//! The parent of one CLI process: it ends the program and everything the program started as soon as
//! the worker dies, freezes or says so. Tools leave the CLI's process group and session, so the tree is
//! found by parentage: as sub-reaper this process inherits every orphan below it.
//!
//! One thread and no runtime. Where even this process is killed, [`Tether`] makes the kernel kill the
//! program; with bwrap its whole pid namespace follows, without it the tools it started survive.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::RawFd,
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    process::{Command, ExitCode},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal as Taken},
        signalfd::{SfdFlags, SignalFd},
    },
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{self, Pid, Resource, Rlimit, Signal, WaitOptions},
    stdio, thread,
    time::{ClockId, clock_gettime},
};

use crate::processes::Processes;

/// What a program ended by `SIGKILL` leaves behind, as shells count.
const KILLED: u8 = 128 + 9;
/// How often a tree that is being ended is looked over again when no child reports its end.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How often at most to look for processes born while the others were being stopped.
const STOP_ROUNDS: usize = 100;

/// `worker supervise`: run a program, and end all of it when the worker is gone.
#[derive(Debug, clap::Args)]
pub struct Supervise {
    /// The inherited read end of the pipe on which the worker renews its entitlement, each time by its next
    /// [`deadline`]; its end ends the program.
    #[arg(long, value_parser = clap::value_parser!(RawFd).range(3..))]
    entitlement_fd: RawFd,
    /// When the worker counts as frozen if it never writes, by the monotonic clock of this host.
    #[arg(long)]
    until_ms: u64,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Supervise {
    /// Run to the end of the program and of all it started. Answers with the program's exit code, or
    /// 128 plus the signal that ended it.
    pub fn run(self) -> ExitCode {
        match self.supervise() {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                complain(&format!("could not supervise: {error}"));
                ExitCode::FAILURE
            }
        }
    }

    fn supervise(self) -> io::Result<u8> {
        thread::set_name(c"supervise")?;
        process::set_child_subreaper(Some(process::getpid()))?;
        // A set-uid program could start processes that this one may not kill.
        thread::set_no_new_privs(true)?;
        close_inherited(self.entitlement_fd)?;
        let entitlement = adopt(self.entitlement_fd)?;
        let signals = take_signals()?;
        let until = Duration::from_millis(self.until_ms);
        if until <= clock() {
            return Ok(KILLED);
        }
        let program = spawn_tethered(&self.command)?;

        let code = leave_streams().and_then(|()| watch(program, entitlement, &signals, until));
        // Whatever went wrong above, nothing may be left running.
        end_tree(program, &signals);
        Ok(code?.unwrap_or(KILLED))
    }
}

/// `worker tether`: the last step between the supervisor and the program, which it becomes.
#[derive(Debug, clap::Args)]
pub struct Tether {
    /// The supervisor, whose end shall be the program's.
    #[arg(long)]
    parent: i32,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Tether {
    /// Become the program. Returns only if that fails.
    pub fn run(self) -> ExitCode {
        let error = self.exec();
        complain(&format!("could not start `{}`: {error}", self.command[0].display()));
        ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
    }

    fn exec(&self) -> io::Error {
        let prepare = || -> io::Result<()> {
            // Away from the operator's terminal, whose input a program of the same session could forge.
            process::setsid()?;
            // Tied to the supervisor's one thread, so only its end can trigger it.
            process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // What it has in memory, prompts and answers, is not left in a file when it crashes.
            process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
            // The supervisor's blocked signals are not the program's business.
            Ok(SigSet::empty().thread_set_mask()?)
        };
        if let Err(error) = prepare() {
            return error;
        }
        if process::getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(self.parent) {
            return io::Error::other("the supervisor is gone");
        }
        Command::new(&self.command[0]).args(&self.command[1..]).exec()
    }
}

/// What lets a program live for so long from now: until when, in milliseconds of [`clock`]. So short that a pipe takes
/// all of it or nothing.
pub(crate) fn deadline(left: Duration) -> [u8; 8] {
    u64::try_from((clock() + left).as_millis()).unwrap_or(u64::MAX).to_le_bytes()
}

/// The time by the monotonic clock, which all processes of a host share (`clock_gettime(2)`).
pub(crate) fn clock() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::from_secs(now.tv_sec.unsigned_abs()) + Duration::from_nanos(now.tv_nsec.unsigned_abs())
}

/// Close everything the worker, or whoever started it, left open, but the standard streams and `kept`.
fn close_inherited(kept: RawFd) -> io::Result<()> {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && *fd != kept) {
        match nix::unistd::close(fd) {
            // The listing's own descriptor, closed by now.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Own the inherited pipe, closed on exec and never blocking: opened anew, for a bare number cannot be
/// owned in safe code.
fn adopt(fd: RawFd) -> io::Result<File> {
    let pipe = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(format!("/proc/self/fd/{fd}"))?;
    nix::unistd::close(fd)?;
    Ok(pipe)
}

/// Turn children's ends into something to poll, and ignore what a terminal or an init system sends:
/// the worker's drain decides when the program ends.
fn take_signals() -> io::Result<SignalFd> {
    let mut taken = SigSet::empty();
    taken.extend([Taken::SIGCHLD, Taken::SIGINT, Taken::SIGTERM, Taken::SIGHUP, Taken::SIGQUIT]);
    taken.thread_block()?;
    Ok(SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn spawn_tethered(command: &[OsString]) -> io::Result<Pid> {
    let parent = std::process::id().to_string();
    let child = Command::new("/proc/self/exe").arg0("worker").args(["tether", "--parent", &parent, "--"]).args(command).spawn()?;
    Ok(Pid::from_child(&child))
}

/// Let go of the program's input and output: else neither it nor the worker would see the other close.
fn leave_streams() -> io::Result<()> {
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    stdio::dup2_stdin(&nothing)?;
    Ok(stdio::dup2_stdout(&nothing)?)
}

/// Wait for the program's end and answer with its code, or with none once the worker's entitlement is over, which it
/// is by the [`clock`] at `until` unless it is renewed.
fn watch(program: Pid, mut entitlement: File, signals: &SignalFd, mut until: Duration) -> io::Result<Option<u8>> {
    let mut renewals = [[0; 8]; 8];
    loop {
        if let ended @ Some(_) = reap(program)?.program {
            return Ok(ended);
        }
        let mut ready = [PollFd::new(signals, PollFlags::IN), PollFd::new(&entitlement, PollFlags::IN)];
        wait_for(&mut ready, until.saturating_sub(clock()))?;
        // Before the pipe is read: what lay there while this process was frozen came too late.
        if clock() >= until {
            return Ok(None);
        }
        match entitlement.read(renewals.as_flattened_mut()) {
            Ok(0) => return Ok(None),
            Ok(bytes) => {
                let newest = (bytes / 8).checked_sub(1).map(|last| u64::from_le_bytes(renewals[last]));
                until = newest.map_or(until, Duration::from_millis);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        drain(signals)?;
    }
}

/// Kill every descendant, again and again until none is left to wait for. All are stopped first, so
/// that none can start another while its siblings are being killed. No error ends this early: what
/// could not be done is done with the next look.
fn end_tree(program: Pid, signals: &SignalFd) {
    while !reap(program).is_ok_and(|reaped| reaped.all) {
        for pid in stop_descendants(program).unwrap_or_default() {
            send(pid, Signal::KILL);
        }
        let _ = wait_for(&mut [PollFd::new(signals, PollFlags::IN)], LOOK_AGAIN).and_then(|()| drain(signals));
    }
}

/// Stop every descendant, as long as there are any that run, and answer with all that were stopped.
fn stop_descendants(program: Pid) -> io::Result<HashSet<Pid>> {
    let mut stopped = HashSet::new();
    for _ in 0..STOP_ROUNDS {
        // The dead would only make the next look take longer.
        reap(program)?;
        stop_children(&mut stopped);
        let running: Vec<Pid> = Processes::list()?.below(process::getpid()).into_iter().filter(|pid| stopped.insert(*pid)).collect();
        if running.is_empty() {
            break;
        }
        for pid in running {
            send(pid, Signal::STOP);
        }
    }
    Ok(stopped)
}

/// Stop the direct children, and each that turns up meanwhile: a process that forks and exits leaves
/// the next one here, long gone before a look at all of `/proc` is over. Kernels without this list leave
/// it to that look.
fn stop_children(stopped: &mut HashSet<Pid>) {
    for _ in 0..STOP_ROUNDS {
        let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let pids = children.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        let running: Vec<Pid> = pids.filter(|pid| stopped.insert(*pid)).collect();
        if running.is_empty() {
            return;
        }
        for pid in running {
            send(pid, Signal::STOP);
        }
    }
}

/// Signal a process that may be gone by now.
fn send(pid: Pid, signal: Signal) {
    let _ = process::kill_process(pid, signal);
}

/// What [`reap`] found.
#[derive(Default)]
struct Reaped {
    /// The program's code, if it is among those that ended.
    program: Option<u8>,
    /// No child is left to wait for.
    all: bool,
}

/// Collect all children that ended, the program and adopted orphans alike.
fn reap(program: Pid) -> io::Result<Reaped> {
    let mut reaped = Reaped::default();
    loop {
        match process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == program => {
                let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?));
                reaped.program = code.and_then(|code| u8::try_from(code).ok());
            }
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) => return Ok(reaped),
            Err(rustix::io::Errno::CHILD) => return Ok(Reaped { all: true, ..reaped }),
            Err(error) => return Err(error.into()),
        }
    }
}

fn wait_for(ready: &mut [PollFd<'_>], limit: Duration) -> io::Result<()> {
    let limit = Timespec::try_from(limit).ok();
    match poll(ready, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn drain(signals: &SignalFd) -> io::Result<()> {
    while signals.read_signal()?.is_some() {}
    Ok(())
}

/// Tell the worker, which keeps the end of standard error.
fn complain(problem: &str) {
    let _ = writeln!(io::stderr(), "worker: {problem}");
}
