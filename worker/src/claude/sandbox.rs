//! What the CLI and its tools may see and reach: a bwrap command line, built without side effects, and
//! the trial at worker start that shows whether the system grants it. Having a [`Sandbox`] means that
//! the trial passed with exactly the namespaces of every later run; nothing is left out silently.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::timeout;

use super::{
    launch::Launch,
    process::{Exit, LINE_LIMIT, Process},
};

/// Where the program is seen inside.
pub const PROGRAM: &str = "/opt/claude";
/// Where the workspace is seen inside, always: absolute paths in a transcript stay true.
pub const WORKSPACE: &str = "/workspace";
/// Where the CLI's own directory is seen inside.
pub const CONFIG: &str = "/cfg";
/// Where the home directory is seen inside.
pub const HOME: &str = "/home/job";
/// Where the relay's socket is seen inside.
pub const SOCKETS: &str = "/sock";

/// Every kind the kernel knows but time.
const NAMESPACES: [&str; 6] = ["user", "pid", "ipc", "uts", "cgroup", "net"];
/// The most that `/tmp`, and shared memory, may hold each. Both are memory.
const TMP_BYTES: &str = "1073741824";
/// How long the trial may take. It takes some milliseconds.
const TRIAL_LIMIT: Duration = Duration::from_secs(10);
/// What `/etc` holds inside.
const ETC: [(&str, &str); 4] = [
    ("passwd", "root:x:0:0:root:/root:/bin/sh\njob:x:1000:1000:job:/home/job:/bin/sh\n"),
    ("group", "root:x:0:\njob:x:1000:\n"),
    ("hosts", "127.0.0.1 localhost job\n::1 localhost\n"),
    ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
];
/// Parts of the root that are links into `/usr` on most systems and directories on some.
const SYSTEM: [&str; 5] = ["bin", "sbin", "lib", "lib32", "lib64"];

/// Why there is no sandbox, or why a program cannot run in it.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// bwrap is not installed.
    #[error("there is no `{}` (hint: install bubblewrap 0.8 or later)", .0.display())]
    Missing(PathBuf),
    /// The system refuses namespaces.
    #[error("the system refuses bwrap these namespaces: {}; it said: {problem} (hint: see `docs/troubleshooting.md`)", refused.join(", "))]
    Namespaces {
        /// Those refused when asked for alone (all of them where `user` is).
        refused: Vec<&'static str>,
        /// What bwrap said.
        problem: String,
    },
    /// The trial failed for another reason.
    #[error("bwrap failed its trial: {0} (hint: it must be 0.8 or later)")]
    Trial(String),
    /// The program depends on files that are not visible inside.
    #[error("`{}` cannot run inside the sandbox: {problem}", program.display())]
    Program {
        /// The program on the host.
        program: PathBuf,
        /// What it lacks.
        problem: String,
    },
    /// The files the sandbox needs could not be written.
    #[error("could not prepare the sandbox")]
    Io(#[from] io::Error),
}

/// A sandbox that is known to work.
#[derive(Clone, Debug)]
pub struct Sandbox {
    bwrap: PathBuf,
    system: Vec<OsString>,
}

/// The host's directories one job may see, besides the read-only system.
#[derive(Clone, Debug)]
pub struct Mounts {
    /// Seen as [`WORKSPACE`].
    pub workspace: PathBuf,
    /// Seen as [`CONFIG`].
    pub config: PathBuf,
    /// Seen as [`HOME`].
    pub home: PathBuf,
    /// Seen as [`SOCKETS`], read-only: its sockets can be used, not replaced.
    pub sockets: PathBuf,
}

/// A sandbox around one job.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// What is visible in it.
    pub mounts: Mounts,
}

impl Sandbox {
    /// Try bwrap once, with a program that does nothing. `directory` gets the few files every sandbox
    /// shows and must stay; `supervisor` is [`Launch::supervisor`].
    pub async fn probe(bwrap: &Path, directory: &Path, supervisor: &Path) -> Result<Self, SandboxError> {
        if !bwrap.is_file() {
            return Err(SandboxError::Missing(bwrap.to_owned()));
        }
        let empty = directory.join("empty");
        fs::create_dir_all(&empty)?;
        let sandbox = Self { bwrap: bwrap.to_owned(), system: system(directory)? };
        let mounts = Mounts { workspace: empty.clone(), config: empty.clone(), home: empty.clone(), sockets: empty.clone() };
        let mut launch = Launch {
            program: PathBuf::from("/usr/bin/true"),
            args: Vec::new(),
            env: Vec::new(),
            cwd: empty.clone(),
            // And not what every sandbox shows.
            folder: empty,
            sandbox: Some(Confinement { sandbox: sandbox.clone(), mounts }),
            supervisor: supervisor.to_owned(),
            silence: TRIAL_LIMIT,
            entitled_since: Instant::now(),
        };
        let Err(problem) = succeed(&launch).await else { return Ok(sandbox) };

        launch.program = bwrap.to_owned();
        launch.sandbox = None;
        let mut refused = Vec::new();
        for namespace in NAMESPACES {
            launch.args = ["--ro-bind", "/", "/", "--unshare-user"].map(OsString::from).into();
            launch.args.extend([format!("--unshare-{namespace}").into(), "/usr/bin/true".into()]);
            if succeed(&launch).await.is_err() {
                refused.push(namespace);
            }
        }
        Err(if refused.is_empty() { SandboxError::Trial(problem) } else { SandboxError::Namespaces { refused, problem } })
    }
}

impl Confinement {
    /// The program and arguments that run `program args…` inside.
    pub fn wrap(&self, program: &Path, args: &[OsString]) -> Result<(PathBuf, Vec<OsString>), SandboxError> {
        let program = visible(program)?;
        Ok((self.sandbox.bwrap.clone(), self.arguments(&program, args)))
    }

    fn arguments(&self, program: &Path, args: &[OsString]) -> Vec<OsString> {
        let Mounts { workspace, config, home, sockets } = &self.mounts;
        let mut line = Line::default();
        for namespace in NAMESPACES {
            line.add([format!("--unshare-{namespace}")]);
        }
        // A tool could else reach more of the kernel from a user namespace of its own; and a worker that
        // runs as root would hand all its capabilities down.
        line.add(["--disable-userns", "--cap-drop", "ALL", "--die-with-parent", "--new-session"]);
        line.add(["--uid", "1000", "--gid", "1000", "--hostname", "job"]);
        line.0.extend_from_slice(&self.sandbox.system);
        line.add(["--proc", "/proc", "--dev", "/dev", "--size", TMP_BYTES, "--tmpfs", "/dev/shm", "--size", TMP_BYTES, "--tmpfs", "/tmp"]);
        line.mount("--ro-bind", program, PROGRAM);
        line.mount("--bind", workspace, WORKSPACE);
        line.mount("--bind", config, CONFIG);
        line.mount("--bind", home, HOME);
        line.mount("--ro-bind", sockets, SOCKETS);
        // Last, for what is above makes its mount points there. The kernel lets the owner of `/proc/sys`
        // write to it without any capability, and under a root worker that is the job.
        line.add(["--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/"]);
        line.add(["--chdir", WORKSPACE, "--", PROGRAM]);
        line.0.extend_from_slice(args);
        line.0
    }
}

/// A command line that grows.
#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn add<const N: usize>(&mut self, words: [impl Into<OsString>; N]) {
        self.0.extend(words.map(Into::into));
    }

    fn mount(&mut self, how: &str, host: &Path, inside: &str) {
        self.add([how.as_ref(), host.as_os_str(), inside.as_ref()]);
    }
}

/// The arguments for what is the same in every sandbox: the host's programs and a small `/etc`. The
/// host's own `/etc` names its users, and under a root worker shows even their passwords.
fn system(directory: &Path) -> Result<Vec<OsString>, SandboxError> {
    let mut line = Line::default();
    line.mount("--ro-bind", "/usr".as_ref(), "/usr");
    for name in SYSTEM {
        let path = Path::new("/").join(name);
        match fs::symlink_metadata(&path) {
            Ok(entry) if entry.is_symlink() => line.add(["--symlink".as_ref(), fs::read_link(&path)?.as_os_str(), path.as_os_str()]),
            Ok(_) => line.add(["--ro-bind".as_ref(), path.as_os_str(), path.as_os_str()]),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    for shared in ["/etc/ld.so.cache", "/etc/alternatives"] {
        line.mount("--ro-bind-try", shared.as_ref(), shared);
    }
    for (name, text) in ETC {
        let file = directory.join(name);
        fs::write(&file, text)?;
        line.mount("--ro-bind", &file, &format!("/etc/{name}"));
    }
    Ok(line.0)
}

/// The file to show as [`PROGRAM`]: a native program, or a script whose interpreter is visible inside
/// and needs nothing else.
fn visible(program: &Path) -> Result<PathBuf, SandboxError> {
    let refuse = |problem: String| SandboxError::Program { program: program.to_owned(), problem };
    let file = fs::canonicalize(program)?;
    let mut head = Vec::new();
    fs::File::open(&file)?.take(256).read_to_end(&mut head)?;
    if head.starts_with(b"\x7fELF") {
        return Ok(file);
    }
    let head = String::from_utf8_lossy(&head);
    let Some(line) = head.strip_prefix("#!").and_then(|rest| rest.lines().next()) else {
        return Err(refuse("neither a native program nor a script".to_owned()));
    };
    let interpreter = interpreter(line).ok_or_else(|| refuse(format!("its interpreter `{}` is not below `/usr`", line.trim())))?;
    let name = interpreter.file_name().unwrap_or_default().to_string_lossy();
    if ["node", "bun", "deno"].iter().any(|runtime| name.starts_with(runtime)) {
        return Err(refuse(format!("a `{name}` script needs the files beside it (hint: use the native binary)")));
    }
    Ok(file)
}

/// The program that a script's first line asks for, if it is visible inside.
fn interpreter(line: &str) -> Option<PathBuf> {
    let mut words = line.split_ascii_whitespace();
    let first = Path::new(words.next()?);
    let named = if first.ends_with("env") {
        let name = words.find(|word| !word.starts_with('-'))?;
        ["/usr/local/bin", "/usr/bin"].iter().map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())?
    } else {
        first.to_owned()
    };
    // The name first asked for tells a `node` from what `/usr/bin/node` may link to.
    let is_visible = fs::canonicalize(&named).is_ok_and(|file| file.starts_with("/usr"));
    is_visible.then_some(named)
}

/// Run to the end and answer with what was said on standard error if that is no success.
async fn succeed(launch: &Launch) -> Result<(), String> {
    let mut process = Process::spawn(launch, LINE_LIMIT, &Gauge::default()).map_err(|error| error.to_string())?;
    match timeout(TRIAL_LIMIT, process.wait()).await {
        Ok(Exit { code: Some(0), .. }) => Ok(()),
        Ok(_) => Err(process.stderr_tail().trim().to_owned()),
        Err(_) => {
            process.kill().await;
            Err(format!("no end after {} s", TRIAL_LIMIT.as_secs()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn confinement() -> Confinement {
        let mounts = Mounts { workspace: "/j/ws".into(), config: "/j/cfg".into(), home: "/j/home".into(), sockets: "/j/sock".into() };
        Confinement {
            sandbox: Sandbox { bwrap: "/usr/bin/bwrap".into(), system: vec!["--ro-bind".into(), "/usr".into(), "/usr".into()] },
            mounts,
        }
    }

    #[test]
    fn the_command_line_is_the_one_that_was_tried() {
        let arguments = confinement().arguments(Path::new("/host/claude"), &["-p".into(), "--".into()]);

        let line = arguments.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        assert_eq!(
            line,
            "--unshare-user --unshare-pid --unshare-ipc --unshare-uts --unshare-cgroup --unshare-net \
             --disable-userns --cap-drop ALL --die-with-parent --new-session --uid 1000 --gid 1000 --hostname job --ro-bind /usr /usr \
             --proc /proc --dev /dev --size 1073741824 --tmpfs /dev/shm --size 1073741824 --tmpfs /tmp \
             --ro-bind /host/claude /opt/claude --bind /j/ws /workspace --bind /j/cfg /cfg --bind /j/home /home/job \
             --ro-bind /j/sock /sock --remount-ro /proc --remount-ro /dev --remount-ro / --chdir /workspace -- /opt/claude -p --"
        );
    }

    #[test]
    fn only_programs_that_find_all_they_need_inside_are_taken() {
        let directory = std::env::temp_dir().join(format!("sandbox-programs-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let script = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            visible(&path).map_err(|error| error.to_string())
        };

        assert!(visible(Path::new("/bin/sh")).is_ok());
        assert!(script("shell", "#!/bin/sh\nexit 0\n").is_ok());
        assert!(script("by-env", "#!/usr/bin/env -S sh -e\n").is_ok());
        assert!(script("elsewhere", "#!/opt/own/sh\n").unwrap_err().contains("`/opt/own/sh` is not below `/usr`"));
        assert!(script("unknown", "#!/usr/bin/env no-such-interpreter\n").unwrap_err().contains("is not below `/usr`"));
        // By its name where there is a node here, else for want of one.
        assert!(script("shim", "#!/usr/bin/env node\n").is_err());
        assert!(script("text", "hello\n").unwrap_err().contains("neither a native program nor a script"));
        fs::remove_dir_all(&directory).unwrap();
    }
}
