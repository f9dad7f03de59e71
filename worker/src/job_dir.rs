//! The folders of running jobs. Each worker process has one of its own, locked while it lives, and each
//! attempt one inside it, removed at its end; what a killed process left, in files and in processes, is swept at
//! the next start.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{strays, tree::Tree};

const LOCK: &str = "lock";

/// One process's folder of jobs.
#[derive(Debug)]
pub struct JobsRoot {
    path: PathBuf,
    next: AtomicU32,
    _lock: File,
}

impl JobsRoot {
    /// Make a folder below `parent`, after sweeping those whose process is gone.
    pub fn create(parent: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        sweep(parent)?;
        loop {
            // Short names: a unix socket's path has little room.
            let path = parent.join(format!("{:08x}", fresh()?));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    let lock = File::create(path.join(LOCK))?;
                    lock.lock()?;
                    // Another start may have swept it before it was locked.
                    if path.join(LOCK).exists() {
                        return Ok(Self { path, next: AtomicU32::new(1), _lock: lock });
                    }
                }
            }
        }
    }

    /// Where files of this process go that belong to no attempt.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file in it that is locked (`flock`) while this process lives.
    pub fn lock_file(&self) -> PathBuf {
        self.path.join(LOCK)
    }

    /// Make the folder of one attempt.
    pub fn attempt(&self) -> io::Result<JobDir> {
        let path = self.path.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let dir = JobDir { path };
        for folder in [dir.path.clone(), dir.workspace(), dir.config(), dir.home(), dir.sockets(), dir.tmp()] {
            DirBuilder::new().mode(0o700).create(folder)?;
        }
        Ok(dir)
    }
}

impl Drop for JobsRoot {
    fn drop(&mut self) {
        // What stays is swept by the next start.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The folder of one attempt. Dropping it removes it.
#[derive(Debug)]
pub struct JobDir {
    path: PathBuf,
}

impl JobDir {
    /// All of it: what names it is the job's.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the job works on.
    pub fn workspace(&self) -> PathBuf {
        self.path.join("ws")
    }

    /// The CLI's own files.
    pub fn config(&self) -> PathBuf {
        self.path.join("cfg")
    }

    /// An empty home.
    pub fn home(&self) -> PathBuf {
        self.path.join("home")
    }

    /// Holds the relay's socket and nothing else.
    pub fn sockets(&self) -> PathBuf {
        self.path.join("sock")
    }

    /// Temporary files where there is no sandbox.
    pub fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }
}

impl Drop for JobDir {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        let removing = move || {
            if let Err(error) = remove(&path) {
                tracing::warn!(%error, path = %path.display(), "Could not remove a job's folder");
            }
        };
        // A job may leave a million files; the runtime's threads have other things to do.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(removing)),
            Err(_) => removing(),
        }
    }
}

/// End the processes of the folders whose lock nobody holds, and empty these. The free lock, by which others see that
/// its worker is dead, stays until the start after this one.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        // A folder without a lock file is one that is being made, or none of ours.
        let Ok(lock) = File::open(path.join(LOCK)) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        match strays::end(&path).and_then(|ended| empty(&path).map(|()| ended)) {
            Ok(0) => tracing::info!(path = %path.display(), "Removed what a former worker left"),
            Ok(ended) => tracing::warn!(path = %path.display(), ended, "A former worker left {ended} processes, which were ended"),
            Err(error) => tracing::warn!(%error, path = %path.display(), "Could not remove all of what a former worker left"),
        }
    }
    Ok(())
}

/// Remove what is in a folder beside its lock; where that is nothing, the folder.
fn empty(path: &Path) -> io::Result<()> {
    let entries: Vec<PathBuf> = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
    if entries.len() == 1 {
        return remove(path);
    }
    for entry in entries.iter().filter(|entry| !entry.ends_with(LOCK)) {
        if entry.is_dir() { remove(entry)? } else { fs::remove_file(entry)? }
    }
    Ok(())
}

/// Remove a folder with all that is in it, also what a job closed to its owner.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Tree::open(path)?.open_all()?;
            fs::remove_dir_all(path)
        }
        removed => removed,
    }
}

fn fresh() -> io::Result<u32> {
    getrandom::u32().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_whose_process_is_gone_is_swept_and_a_living_one_stays() {
        let parent = std::env::temp_dir().join(format!("jobs-{}", uuid::Uuid::now_v7()));
        let living = JobsRoot::create(&parent).expect("create");
        let dead = parent.join("dead");
        fs::create_dir_all(dead.join("1/ws")).expect("create");
        File::create(dead.join(LOCK)).expect("create");

        let another = JobsRoot::create(&parent).expect("create");

        assert!(living.path().exists() && another.path().exists());
        let left: Vec<_> = fs::read_dir(&dead).expect("read").map(|entry| entry.expect("read").file_name()).collect();
        assert_eq!(left, [LOCK]);
        drop((living, another, JobsRoot::create(&parent).expect("create")));
        assert_eq!(fs::read_dir(&parent).expect("read").count(), 0);
        fs::remove_dir(&parent).expect("clean");
    }

    #[test]
    fn the_processes_of_a_swept_folder_end() {
        let parent = std::env::temp_dir().join(format!("jobs-{}", uuid::Uuid::now_v7()));
        let dead = parent.join("dead");
        fs::create_dir_all(dead.join("1/ws")).expect("create");
        File::create(dead.join(LOCK)).expect("create");
        let mut left = std::process::Command::new("/bin/sleep").arg("1000").current_dir(dead.join("1/ws")).spawn().expect("started");

        drop(JobsRoot::create(&parent).expect("create"));

        assert!(!left.wait().expect("it is ours").success());
        drop(JobsRoot::create(&parent).expect("create"));
        assert_eq!(fs::read_dir(&parent).expect("read").count(), 0);
        fs::remove_dir(&parent).expect("clean");
    }

    #[test]
    fn the_folder_of_an_attempt_goes_with_it() {
        let parent = std::env::temp_dir().join(format!("jobs-{}", uuid::Uuid::now_v7()));
        let root = JobsRoot::create(&parent).expect("create");
        let dir = root.attempt().expect("create");
        fs::write(dir.workspace().join("file"), "x").expect("write");

        let path = dir.path().to_owned();
        drop(dir);

        assert!(!path.exists());
        drop(root);
        fs::remove_dir(&parent).expect("clean");
    }
}
