//! A Redis of one test, on a socket of its own.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use fred::prelude::Client;
use uuid::Uuid;

use super::{Purpose, connect};
use crate::config::Env;

/// A `redis-server` that writes down each change before it answers.
pub struct Server {
    child: Child,
    directory: PathBuf,
}

impl Server {
    pub fn start() -> Self {
        let directory = env::temp_dir().join(format!("shared-{}", Uuid::new_v4().simple()));
        fs::create_dir(&directory).unwrap();
        Self { child: spawn(&directory), directory }
    }

    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.directory.join("redis.sock").display())
    }

    pub async fn connect(&self) -> Client {
        connect(&self.url(), Purpose::Commands).await.unwrap()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Let it hold its connections and answer nothing.
    pub fn stop(&self) {
        let stopped = Command::new("kill").args(["-STOP", &self.child.id().to_string()]).status().unwrap();
        assert!(stopped.success());
    }

    /// With what it had written down.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.directory);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn spawn(directory: &Path) -> Child {
    let program = Env::of_process().text("REDIS_SERVER").unwrap_or("redis-server").to_owned();
    let mut child = Command::new(program)
        .args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--unixsocket", "redis.sock"])
        .current_dir(directory)
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-server (or the one that REDIS_SERVER names)");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.by_ref().any(|line| line.contains("eady to accept connections")), "Redis ended at its start");
    // It blocks once the pipe is full.
    std::thread::spawn(move || lines.for_each(drop));
    child
}
