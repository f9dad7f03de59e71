//! The processes of this host, as `/proc` lists them. What is read of one may belong to the next of its number by
//! then: whoever acts on it makes sure first.

use std::{collections::BTreeMap, fs, io};

use rustix::process::Pid;

/// Every process, by its parent.
#[derive(Debug)]
pub struct Processes {
    children: BTreeMap<i32, Vec<i32>>,
}

impl Processes {
    /// Those there are now.
    pub fn list() -> io::Result<Self> {
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            // Gone since the listing: not ours to count.
            let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { continue };
            let Some(parent) = parent_of(&stat) else { continue };
            children.entry(parent).or_default().push(pid);
        }
        Ok(Self { children })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = Pid> {
        self.children.values().flatten().copied().filter_map(Pid::from_raw)
    }

    /// Those that `pid` started, and those that these did, and so on.
    pub fn below(&self, pid: Pid) -> Vec<Pid> {
        let mut found = Vec::new();
        let mut unseen = vec![pid.as_raw_pid()];
        while let Some(pid) = unseen.pop() {
            let below = self.children.get(&pid).map(Vec::as_slice).unwrap_or_default();
            found.extend(below);
            unseen.extend(below);
        }
        found.into_iter().filter_map(Pid::from_raw).collect()
    }

    /// `pid`, its parent, the parent of that one, and so on.
    pub fn line_of(&self, pid: Pid) -> Vec<Pid> {
        let mut line = vec![pid];
        while let Some(parent) = line.last().and_then(|pid| self.parent(*pid)).filter(|parent| !line.contains(parent)) {
            line.push(parent);
        }
        line
    }

    fn parent(&self, pid: Pid) -> Option<Pid> {
        let (parent, _) = self.children.iter().find(|(_, children)| children.contains(&pid.as_raw_pid()))?;
        Pid::from_raw(*parent)
    }
}

/// The fourth field of `/proc/<pid>/stat`. The second, the name, is whatever the process chose: it may
/// hold parentheses and need not be text.
fn parent_of(stat: &[u8]) -> Option<i32> {
    let end_of_name = memchr::memrchr(b')', stat)?;
    let fields = std::str::from_utf8(&stat[end_of_name + 1..]).ok()?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rustix::process::{getpid, getppid};

    use super::*;

    #[test]
    fn a_parent_is_found_behind_any_process_name() {
        assert_eq!(parent_of(b"12 (sh) S 7 12 12 0"), Some(7));
        assert_eq!(parent_of(b"12 (a) S 99 (\xff) R 8 12 12 0"), Some(8));
        assert_eq!(parent_of(b"12 (cut"), None);
    }

    #[test]
    fn the_descendants_of_a_childless_process_are_none_of_its_siblings() {
        let pids = Processes::list().expect("`/proc` is readable").below(getpid());

        assert!(!pids.contains(&Pid::INIT));
        assert!(!pids.contains(&getpid()));
    }

    #[test]
    fn a_process_descends_from_its_parent() {
        let line = Processes::list().expect("`/proc` is readable").line_of(getpid());

        assert_eq!(line[..2], [getpid(), getppid().expect("a parent")]);
    }
}
