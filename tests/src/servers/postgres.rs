//! A PostgreSQL server of one test, which may crash.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use sea_orm::ConnectionTrait as _;
use tokio::time::{interval, timeout};

use super::connect;
use crate::system::PATIENCE;

/// A `postgres`, ended when dropped. What it committed outlives its crash, not the machine's.
pub struct PostgresServer {
    home: PathBuf,
    port: u16,
    url: String,
    child: Mutex<Option<Child>>,
}

impl PostgresServer {
    /// Start one that keeps its data in `directory`, and wait until it answers.
    pub async fn start(directory: &Path) -> anyhow::Result<Self> {
        let home = directory.join("pg");
        fs::create_dir(&home)?;
        let password = uuid::Uuid::new_v4().simple().to_string();
        fs::write(home.join("password"), &password)?;
        if geteuid().is_root() {
            succeed(Command::new("chown").args(["-R", "nobody"]).arg(&home))?;
        }
        let options = ["--username", "postgres", "--auth", "md5", "--encoding", "UTF8", "--no-locale", "--no-sync", "--pwfile"];
        succeed(as_its_user(&home, "initdb").args(options).arg(home.join("password")).arg("-D").arg(home.join("data")))?;
        // Free a moment ago; nobody else asks for one in this range.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let url = format!("postgresql://postgres:{password}@127.0.0.1:{port}/postgres");
        let server = Self { home, port, url, child: Mutex::default() };
        server.open().await?;
        Ok(server)
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// End it at once, with all its connections, as a crash does.
    pub fn crash(&self) {
        let Some(mut child) = self.child().take() else { return };
        // An immediate shutdown: the next start recovers from the log.
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::QUIT);
        }
        let _ = child.wait();
    }

    /// Start it again, and wait until it answers. Nobody announces that, so this asks again and again.
    pub async fn open(&self) -> anyhow::Result<()> {
        let port = self.port.to_string();
        let child = as_its_user(&self.home, "postgres")
            .arg("-D")
            .arg(self.home.join("data"))
            .arg("-k")
            .arg(&self.home)
            .args(["-h", "127.0.0.1", "-p", &port, "-c", "max_connections=200", "-c", "fsync=off", "-c", "full_page_writes=off"])
            .spawn()
            .context("could not start `postgres`")?;
        *self.child() = Some(child);
        let mut looks = interval(Duration::from_millis(50));
        let answered = async {
            loop {
                looks.tick().await;
                let Ok(connection) = connect(&self.url).await else { continue };
                if connection.execute_unprepared("SELECT 1").await.is_ok() {
                    return connection.close().await;
                }
            }
        };
        Ok(timeout(PATIENCE, answered).await.context("`postgres` does not answer")??)
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.crash();
    }
}

/// PostgreSQL refuses to run as root, and starts only where its user may be.
fn as_its_user(home: &Path, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "INT"]);
    if geteuid().is_root() {
        command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]);
    }
    command.arg(program).current_dir(home).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("could not start `{}`", command.get_program().display()))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
