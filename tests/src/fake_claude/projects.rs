//! Where sessions are kept: a file each, in a directory named after the place they were begun in. A session
//! is resumed from wherever it is, yet only under its own directory an id is taken.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The directory of all sessions, as seen from one working directory.
pub(super) struct Projects {
    root: PathBuf,
    own: PathBuf,
}

impl Projects {
    pub(super) fn of(config_dir: &Path, working_dir: &Path) -> Self {
        let root = config_dir.join("projects");
        let own = root.join(name_of(working_dir));
        Self { root, own }
    }

    /// Where the transcript of a session that begins here is.
    pub(super) fn file(&self, session: &str) -> PathBuf {
        self.own.join(session).with_extension("jsonl")
    }

    /// The transcript of `session`, wherever it was begun.
    pub(super) fn find(&self, session: &str) -> Option<PathBuf> {
        let others = fs::read_dir(&self.root).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut folders: Vec<_> = others.filter(|folder| *folder != self.own).collect();
        folders.sort();
        let files = std::iter::once(&self.own).chain(&folders).map(|folder| folder.join(session).with_extension("jsonl"));
        files.into_iter().find(|file| file.is_file())
    }
}

fn name_of(working_dir: &Path) -> String {
    working_dir.to_string_lossy().chars().map(|character| if character.is_ascii_alphanumeric() { character } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Directory;

    #[test]
    fn a_session_is_kept_under_the_name_of_its_working_directory() {
        let file = |working_dir: &str| Projects::of(Path::new("/c"), Path::new(working_dir)).file("s");

        assert_eq!(file("/workspace"), Path::new("/c/projects/-workspace/s.jsonl"));
        assert_eq!(file("/a/b_c.d é"), Path::new("/c/projects/-a-b-c-d--/s.jsonl"));
    }

    #[test]
    fn a_session_is_found_in_any_directory_but_not_below_it() {
        let config = Directory::create().expect("a directory");
        for folder in ["projects/else", "projects/deep/er"] {
            fs::create_dir_all(config.path().join(folder)).expect("a directory");
        }
        for file in ["projects/else/a.jsonl", "projects/deep/er/b.jsonl", "projects/c.jsonl"] {
            fs::write(config.path().join(file), "").expect("a file");
        }

        let projects = Projects::of(config.path(), Path::new("/workspace"));

        assert_eq!(projects.find("a"), Some(config.path().join("projects/else/a.jsonl")));
        assert_eq!((projects.find("b"), projects.find("c")), (None, None));
    }
}
