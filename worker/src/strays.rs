//! What is left of a job whose keepers were killed. Each process of a job names the job's folder, with its command
//! line, environment, working directory, root or mounts, unless it took pains not to, which no sandbox lets it. Only
//! where a supervisor is gone must it come to this.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use memchr::memmem;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, geteuid, getpid, pidfd_open, pidfd_send_signal},
};

use crate::processes::Processes;

/// How long a supervisor that still lives may take to end what is below it. It finds what hides from us.
const SUPERVISORS: Duration = Duration::from_secs(2);
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(10);
/// The kernel announces nothing of what is not ours, so this looks again and again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// End every process of this user that names `folder`, and all below it, and wait until none is left. How many they
/// were; none of them is this process or one that it descends from. Takes at most ten seconds, and fails where that
/// was too short.
pub fn end(folder: &Path) -> io::Result<usize> {
    let names = Names::of(folder);
    let begun = Instant::now();
    let mut known = HashMap::new();
    loop {
        let strays = names.hold()?;
        let is_over = strays.is_empty() && known.values().all(has_ended);
        if is_over {
            return Ok(known.len());
        }
        if begun.elapsed() >= LIMIT {
            let problem = format!("processes that name `{}` do not end", folder.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
        }
        let is_being_ended = begun.elapsed() < SUPERVISORS && strays.keys().any(|pid| is_supervisor(*pid));
        known.extend(strays);
        if !is_being_ended {
            // All are stopped before any is killed, so that none can start another meanwhile.
            for signal in [Signal::STOP, Signal::KILL] {
                for process in known.values() {
                    // One that is gone is what is wanted.
                    let _ = pidfd_send_signal(process, signal);
                }
            }
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Whether nothing of a process is left but its number. It names nothing for a while before.
fn has_ended(process: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    poll(&mut ended, Some(&Timespec::default())).is_ok_and(|ended| ended > 0)
}

/// What a folder is called.
struct Names {
    paths: Vec<PathBuf>,
    /// The end of its path, as much as tells it from all others.
    end: Vec<u8>,
}

impl Names {
    fn of(folder: &Path) -> Self {
        /// The length of a name that nothing else has by chance.
        const DISTINCT: usize = 8;
        // The kernel knows working directories by the way without links.
        let mut paths = vec![folder.to_owned()];
        paths.extend(fs::canonicalize(folder).ok().filter(|real| real != folder));
        let mut end = Vec::new();
        for name in folder.iter().rev() {
            end = [b"/", name.as_bytes(), &end].concat();
            if name.len() >= DISTINCT {
                break;
            }
        }
        Self { paths, end }
    }

    /// The processes that name it, and those below them.
    fn find(&self) -> io::Result<HashSet<Pid>> {
        let processes = Processes::list()?;
        let own = processes.line_of(getpid());
        let named = processes.all().filter(|pid| !own.contains(pid) && self.are_named_by(*pid));
        let mut found: HashSet<Pid> = named.collect();
        let below: Vec<Pid> = found.iter().flat_map(|pid| processes.below(*pid)).collect();
        found.extend(below);
        Ok(found)
    }

    /// The same, each held so that nothing can be taken for it.
    fn hold(&self) -> io::Result<HashMap<Pid, OwnedFd>> {
        let mut held = HashMap::new();
        for pid in self.find()? {
            match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(process) => drop(held.insert(pid, process)),
                Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The number of one that ended may have been somebody else's when it was opened.
        let still = if held.is_empty() { HashSet::new() } else { self.find()? };
        held.retain(|pid, _| still.contains(pid));
        Ok(held)
    }

    fn are_named_by(&self, pid: Pid) -> bool {
        let of = |file: &str| format!("/proc/{}/{file}", pid.as_raw_pid());
        let read = |file: &str| fs::read(of(file)).unwrap_or_default();
        let link = |file: &str| fs::read_link(of(file)).unwrap_or_default();
        is_ours(pid)
            && (["cmdline", "environ"].iter().any(|file| self.are_in(&read(file)))
                || ["cwd", "root"].iter().any(|file| self.are_in(link(file).as_os_str().as_bytes()))
                // Of a mount the kernel tells the way from the root of its file system.
                || places(&read("mountinfo"), &self.end).next().is_some())
    }

    fn are_in(&self, text: &[u8]) -> bool {
        self.paths.iter().any(|path| names(text, path.as_os_str().as_bytes()))
    }
}

/// Whether `text` has the path `folder` in it, or one below it, and not merely one that begins or ends like it.
fn names(text: &[u8], folder: &[u8]) -> bool {
    places(text, folder).any(|at| !at.checked_sub(1).and_then(|before| text.get(before)).copied().is_some_and(is_of_a_name))
}

/// Where `text` has `path`, and not merely one that begins like it.
fn places(text: &[u8], path: &[u8]) -> impl Iterator<Item = usize> {
    memmem::find_iter(text, path).filter(|at| !text.get(at + path.len()).copied().is_some_and(is_of_a_name))
}

fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

fn is_ours(pid: Pid) -> bool {
    let status = fs::read(format!("/proc/{}/status", pid.as_raw_pid())).unwrap_or_default();
    // The name on its first line need not be text.
    let status = String::from_utf8_lossy(&status);
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().next()?.parse().ok());
    user == Some(geteuid().as_raw())
}

/// Whether it is one of ours, which ends what is below it and then itself once its worker is gone.
fn is_supervisor(pid: Pid) -> bool {
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
    line.starts_with(b"worker\0supervise\0")
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("strays-{}", uuid::Uuid::now_v7()));
        fs::create_dir_all(folder.join("ws")).expect("create");
        folder
    }

    /// Something that lives on, with these words, this home and this working directory.
    fn start(words: &Path, home: &Path, place: &Path) -> Child {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "while :; do read -r line; done"]).arg(words).stdin(Stdio::piped());
        shell.env_clear().env("HOME", home).current_dir(place).spawn().expect("started")
    }

    #[test]
    fn whatever_names_the_folder_ends_and_its_neighbours_live() {
        let (folder, root) = (folder(), Path::new("/"));
        let neighbour = PathBuf::from(format!("{}2", folder.display()));
        let mut strays = [start(&folder, root, root), start(root, &folder.join("home"), root), start(root, root, &folder.join("ws"))];
        let mut neighbours = [start(root, root, root), start(&neighbour, &neighbour, root)];

        assert_eq!(end(&folder).expect("they end"), strays.len());

        assert!(strays.iter_mut().all(|stray| !stray.wait().expect("it is ours").success()));
        assert!(neighbours.iter_mut().all(|neighbour| neighbour.try_wait().expect("it is ours").is_none()));
        for neighbour in &mut neighbours {
            neighbour.kill().expect("it is ours");
            neighbour.wait().expect("it is ours");
        }
        fs::remove_dir_all(&folder).expect("clean");
    }

    #[test]
    fn what_a_stray_started_ends_with_it() {
        let folder = folder();
        // The one below names nothing.
        let mut parent = Command::new("/bin/sh")
            .args(["-c", "cd /; env -i sleep 1000 & wait"])
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &folder)
            .spawn()
            .expect("started");
        let pid = Pid::from_child(&parent);
        let below = loop {
            let below = Processes::list().expect("`/proc`").below(pid);
            if !below.is_empty() {
                break below;
            }
            thread::yield_now();
        };

        end(&folder).expect("they end");

        parent.wait().expect("it is ours");
        let lives = |pid: &Pid| fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).is_ok_and(|line| !line.is_empty());
        while below.iter().any(lives) {
            thread::yield_now();
        }
        fs::remove_dir_all(&folder).expect("clean");
    }

    #[test]
    fn a_folder_is_named_by_its_path_and_those_below_it() {
        for text in ["/j/a/1", "HOME=/j/a/1/home", "--bind\0/j/a/1/ws\0/workspace", "/j/a/1 (deleted)", "x:/j/a/1:y"] {
            assert!(names(text.as_bytes(), b"/j/a/1"), "{text}");
        }
        assert_eq!(Names::of(Path::new("/tmp/jobs/01234567/1")).end, b"/01234567/1");
        for text in ["", "/j/a", "/j/a/12", "/j/a/1.old", "/x/j/a/1", "/j/a/1-2"] {
            assert!(!names(text.as_bytes(), b"/j/a/1"), "{text}");
        }
    }
}
