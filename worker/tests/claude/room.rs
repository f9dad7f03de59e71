//! A directory for one test, and ways to start programs in it, with and without the sandbox.

use std::{
    ffi::OsString,
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use prometheus_client::metrics::gauge::Gauge;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe::{OpenOptions, Receiver},
    time::timeout,
};
use worker::claude::{
    process::{LINE_LIMIT, Launch, Process},
    sandbox::{Confinement, Mounts, Sandbox},
};

/// Far longer than anything here takes; only a failing test waits for it.
pub const SOON: Duration = Duration::from_secs(20);
/// The binary that is its own supervisor.
pub const WORKER: &str = env!("CARGO_BIN_EXE_worker");

/// Leaves the group, the session and the parent, ignores what can be ignored, takes a name that is not
/// text, and holds `alive` open all the while. Says `ready` when all of it runs.
pub const RUNAWAYS: &str = r#"
exec 9>alive
mkfifo up never
exec 8<>up
(trap '' TERM HUP INT; echo up >&8; exec sleep 1000) &
setsid sh -c 'trap "" TERM HUP INT; echo up >&8; sleep 1000' &
(setsid sh -c '(setsid sh -c "echo up >&8; exec sleep 1000" &)' &)
odd=$(printf 'a) S 1 \377')
ln -s /bin/sh "$odd"
"./$odd" -c 'echo up >&8; read -r line <&7' 7<>never &
for each in 1 2 3 4; do read -r line <&8; done
echo ready
"#;

/// A directory that is removed at the end of the test.
pub struct Room(PathBuf);

impl Room {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("worker-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let room = Self::at(std::env::temp_dir().join(name));
        for part in ["ws", "cfg", "home", "sock", "etc"] {
            fs::create_dir_all(room.path(part)).unwrap();
        }
        room
    }

    /// The room another process made.
    pub fn at(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Make the workspace empty again.
    pub fn clear(&self) {
        fs::remove_dir_all(self.workspace()).unwrap();
        fs::create_dir(self.workspace()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn workspace(&self) -> PathBuf {
        self.path("ws")
    }

    /// A program started in the workspace.
    pub fn launch<const N: usize>(&self, program: &str, args: [&str; N]) -> Launch {
        Launch {
            program: program.into(),
            args: args.map(OsString::from).into(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            cwd: self.workspace(),
            folder: self.0.clone(),
            sandbox: None,
            supervisor: WORKER.into(),
            silence: SOON,
            entitled_since: Instant::now(),
        }
    }

    /// The same inside the real sandbox, which must work here: install bubblewrap.
    pub async fn confined(&self, mut launch: Launch) -> Launch {
        let sandbox =
            Sandbox::probe(Path::new("/usr/bin/bwrap"), &self.path("etc"), Path::new(WORKER)).await.expect("bwrap works on this machine");
        let mounts = Mounts { workspace: self.workspace(), config: self.path("cfg"), home: self.path("home"), sockets: self.path("sock") };
        launch.sandbox = Some(Confinement { sandbox, mounts });
        launch
    }

    /// Something that [`RUNAWAYS`] hold open, to see when the last of them is gone.
    pub fn alive(&self) -> Alive {
        let path = self.workspace().join("alive");
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        Alive(OpenOptions::new().open_receiver(&path).unwrap())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Tells whether any process still holds the pipe.
pub struct Alive(Receiver);

impl Alive {
    pub fn assert_held(&self) {
        assert_eq!(self.0.try_read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "nobody holds the pipe");
    }

    pub fn assert_gone(&self) {
        assert_eq!(self.0.try_read(&mut [0]).expect("nobody holds the pipe"), 0);
    }

    pub async fn gone(&mut self) {
        let read = timeout(SOON, self.0.read(&mut [0])).await.expect("a process survived");
        assert_eq!(read.unwrap(), 0);
    }
}

pub fn spawn(launch: &Launch) -> Process {
    Process::spawn(launch, LINE_LIMIT, &Gauge::default()).unwrap()
}

pub async fn line(process: &mut Process) -> String {
    let line = timeout(SOON, process.next_line()).await.expect("a line in time").unwrap();
    String::from_utf8(line.unwrap_or_else(|| panic!("no line, but: {}", process.stderr_tail()))).unwrap()
}
