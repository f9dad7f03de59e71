//! What a process is started as, whole: nothing of the worker's own environment is added to it.

use std::{
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::Access;

use super::sandbox::{Confinement, SandboxError};

/// What to start, and how. A debug print shows neither arguments nor environment: prompts and the
/// relay's address are among them.
#[derive(Clone)]
pub struct Launch {
    /// The program's path on the host, absolute.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment. Nothing of the worker's own is passed on. (bwrap adds `PWD`.)
    pub env: Vec<(OsString, OsString)>,
    /// Where it starts. Inside a sandbox that is always the workspace, and this is where bwrap starts.
    pub cwd: PathBuf,
    /// What is its own: every process that names it belongs to this one.
    pub folder: PathBuf,
    /// The sandbox, if there is to be one.
    pub sandbox: Option<Confinement>,
    /// The binary that offers `supervise`.
    pub supervisor: PathBuf,
    /// How long the supervisor waits for a [renewal](super::process::Process::renew) before it ends everything.
    pub silence: Duration,
    /// From when the first such wait counts: what entitled the worker last, not the moment of the start. A worker that
    /// stood still on its way to it may have lost the job meanwhile.
    pub entitled_since: Instant,
}

impl Launch {
    /// This very program as the supervisor: the running one, even where its file was replaced since.
    pub const SUPERVISOR: &str = "/proc/self/exe";

    /// Refuse what the supervisor could only refuse, where the reason can no longer be told apart.
    pub(super) fn check(&self) -> Result<(), SpawnError> {
        if !self.cwd.is_dir() {
            return Err(SpawnError::DirectoryMissing(self.cwd.clone()));
        }
        check_program(&self.program)
    }
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch").field("program", &self.program).field("cwd", &self.cwd).finish_non_exhaustive()
    }
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// There is no such program.
    #[error("could not start `{}`: no such file", .0.display())]
    ProgramMissing(PathBuf),
    /// The file is there, but cannot be run.
    #[error("could not start `{}`: not executable", .0.display())]
    NotExecutable(PathBuf),
    /// The working directory is not there.
    #[error("could not start in `{}`: no such directory", .0.display())]
    DirectoryMissing(PathBuf),
    /// The supervisor is not where it should be.
    #[error("could not start the supervisor `{}`: no such file", .0.display())]
    SupervisorMissing(PathBuf),
    /// The worker was not entitled for as long as a process may live without.
    #[error("the worker may not start anything now")]
    NotEntitled,
    /// The program cannot run inside the sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The system refused.
    #[error("could not start a process")]
    Os(#[from] io::Error),
}

/// Whether `program` is a file that may be run.
fn check_program(program: &Path) -> Result<(), SpawnError> {
    let is_file = fs::metadata(program).is_ok_and(|file| file.is_file());
    match rustix::fs::access(program, Access::EXEC_OK) {
        Ok(()) if is_file => Ok(()),
        Ok(()) | Err(rustix::io::Errno::ACCESS) => Err(SpawnError::NotExecutable(program.to_owned())),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Err(SpawnError::ProgramMissing(program.to_owned())),
        Err(error) => Err(SpawnError::Os(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_arguments_nor_environment_show_in_a_debug_print() {
        let launch = Launch {
            program: "/opt/claude".into(),
            args: vec!["a prompt".into()],
            env: vec![("BASE_URL".into(), "s3cret".into())],
            cwd: "/".into(),
            folder: "/".into(),
            sandbox: None,
            supervisor: Launch::SUPERVISOR.into(),
            silence: Duration::from_secs(8),
            entitled_since: Instant::now(),
        };

        assert_eq!(format!("{launch:?}"), r#"Launch { program: "/opt/claude", cwd: "/", .. }"#);
    }

    #[test]
    fn a_program_that_cannot_be_run_is_told_apart_from_one_that_is_not_there() {
        assert!(matches!(check_program(Path::new("/nowhere/claude")), Err(SpawnError::ProgramMissing(_))));
        assert!(matches!(check_program(Path::new("/etc/passwd/claude")), Err(SpawnError::ProgramMissing(_))));
        assert!(matches!(check_program(Path::new("/etc/passwd")), Err(SpawnError::NotExecutable(_))));
        assert!(matches!(check_program(Path::new("/usr")), Err(SpawnError::NotExecutable(_))));
        assert!(check_program(Path::new("/bin/sh")).is_ok());
    }
}
