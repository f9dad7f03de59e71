//! A folder that a job wrote to, read without trust: a link is told and never followed, what is neither
//! file, link nor folder is passed over, and nothing that is opened here lies outside.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use cap_fs_ext::{FollowSymlinks, OpenOptionsFollowExt as _};
use cap_std::{
    ambient_authority,
    fs::{Dir, Metadata, MetadataExt as _, OpenOptions, OpenOptionsExt as _, Permissions, PermissionsExt as _},
};
use shared::workspace::{Bounds, FilePath};

/// A folder that a job wrote to.
#[derive(Debug)]
pub struct Tree(Dir);

/// What is at a path.
#[derive(Debug)]
pub enum Found {
    /// A regular file.
    File(Metadata),
    /// A symbolic link.
    Link {
        /// Where it leads.
        target: String,
    },
    /// A folder with nothing in it that could be told.
    Folder,
}

/// Why a folder cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// There is more in it than it may hold.
    #[error("more than {} bytes or {} files", .0.bytes, .0.entries)]
    TooLarge(Bounds),
    /// A path in it is longer or deeper than one may be.
    #[error("a path is longer or deeper than one may be")]
    TooDeep,
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Tree {
    /// The folder at `path`, which is a path of our own.
    pub fn open(path: &Path) -> io::Result<Self> {
        Dir::open_ambient_dir(path, ambient_authority()).map(Self)
    }

    /// The folder of this name in it. `None` when there is no such folder.
    pub fn folder(&self, name: &str) -> io::Result<Option<Self>> {
        match self.0.symlink_metadata(name) {
            Ok(found) if found.is_dir() => self.0.open_dir(name).map(|dir| Some(Self(dir))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names of the folders right in it.
    pub fn folders(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.0.entries()? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                // A name of ours is text; one that is not was not asked for.
                names.extend(entry.file_name().into_string().ok());
            }
        }
        Ok(names)
    }

    /// The regular file at `path`. `None` when something else is there, or nothing.
    pub fn file(&self, path: &str) -> io::Result<Option<(File, Metadata)>> {
        match self.0.symlink_metadata(path) {
            Ok(found) if found.is_file() => self.read(Path::new(path), &found).map(|file| Some((file, found))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Open a file that was found here.
    pub fn read(&self, path: &Path, found: &Metadata) -> io::Result<File> {
        if found.mode() & 0o400 == 0 {
            self.0.set_permissions(path, Permissions::from_mode(0o600))?;
        }
        let mut options = OpenOptions::new();
        // Should it have become a pipe since, the open returns all the same.
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
        options.read(true).follow(FollowSymlinks::No).custom_flags(flags);
        let file = self.0.open_with(path, &options)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file any more"));
        }
        Ok(file.into_std())
    }

    /// Everything in it, as far as it has names that are text. Fails at the first entry beyond `bounds`.
    pub fn walk(&self, bounds: Bounds) -> Result<Vec<(FilePath, Found)>, TreeError> {
        let mut found = Vec::new();
        let mut bytes: u64 = 0;
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let before = (found.len(), folders.len());
            for entry in self.open_up(&folder)? {
                let Ok(name) = entry?.file_name().into_string() else { continue };
                let path = folder.join(&name);
                let metadata = self.0.symlink_metadata(&path)?;
                let kind = metadata.file_type();
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file() {
                    bytes = bytes.saturating_add(metadata.len());
                    found.push((text(&path)?, Found::File(metadata)));
                } else if kind.is_symlink() {
                    // The target is only told: an absolute one is as good as any.
                    let target = self.0.read_link_contents(&path)?.into_os_string().into_string();
                    if let Ok(target) = target {
                        found.push((text(&path)?, Found::Link { target }));
                    }
                }
                if bytes > bounds.bytes || found.len() + folders.len() > bounds.entries {
                    return Err(TreeError::TooLarge(bounds));
                }
            }
            let is_empty = (found.len(), folders.len()) == before;
            if is_empty && !folder.as_os_str().is_empty() {
                found.push((text(&folder)?, Found::Folder));
            }
        }
        Ok(found)
    }

    /// Whether it holds more than `bounds`, under whatever names and however deep, as far as its owner may look.
    /// Changes nothing: the job may be at work.
    pub fn is_beyond(&self, bounds: Bounds) -> bool {
        let (mut bytes, mut entries) = (0_u64, 0_usize);
        let mut folders = vec![PathBuf::from(".")];
        while let Some(folder) = folders.pop() {
            // What is gone, or closed, by now is looked at the next time, or when it is gathered.
            let Ok(listed) = self.0.read_dir(&folder) else { continue };
            for entry in listed.flatten() {
                let path = folder.join(entry.file_name());
                let Ok(metadata) = self.0.symlink_metadata(&path) else { continue };
                if metadata.is_dir() {
                    folders.push(path);
                } else if metadata.is_file() {
                    bytes = bytes.saturating_add(metadata.len().max(metadata.blocks() * 512));
                }
                entries += 1;
                if bytes > bounds.bytes || entries > bounds.entries {
                    return true;
                }
            }
        }
        false
    }

    /// Let its owner look into all its folders, and empty them.
    pub fn open_all(&self) -> io::Result<()> {
        let mut folders = vec![PathBuf::from(".")];
        while let Some(folder) = folders.pop() {
            self.0.set_permissions(&folder, Permissions::from_mode(0o700))?;
            for entry in self.0.read_dir(&folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(folder.join(entry.file_name()));
                }
            }
        }
        Ok(())
    }

    /// What is right in `folder`, which a job may have closed even to its owner.
    fn open_up(&self, folder: &Path) -> io::Result<cap_std::fs::ReadDir> {
        let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let mode = self.0.metadata(here)?.mode();
        if mode & 0o500 != 0o500 {
            self.0.set_permissions(here, Permissions::from_mode(mode | 0o500))?;
        }
        self.0.read_dir(here)
    }
}

fn text(path: &Path) -> Result<FilePath, TreeError> {
    let text = path.to_str().unwrap_or_default();
    text.parse().map_err(|_| TreeError::TooDeep)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read as _,
        os::unix::{
            ffi::OsStrExt as _,
            fs::{PermissionsExt as _, symlink},
            net::UnixListener,
        },
    };

    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 1000, entries: 8 };

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tree-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&folder).expect("a folder");
        folder
    }

    fn told(folder: &Path) -> Vec<String> {
        let tree = Tree::open(folder).expect("a folder");
        let one = |(path, found): (FilePath, Found)| match found {
            Found::File(metadata) => format!("{path} {}", metadata.len()),
            Found::Link { target } => format!("{path} -> {target}"),
            Found::Folder => format!("{path}/"),
        };
        let mut all: Vec<String> = tree.walk(BOUNDS).expect("within the bounds").into_iter().map(one).collect();
        all.sort();
        all
    }

    #[test]
    fn links_are_told_and_never_followed() {
        let folder = folder();
        fs::create_dir_all(folder.join("a/empty")).expect("folders");
        fs::write(folder.join("a/file"), "hello").expect("a file");
        symlink("/etc", folder.join("out")).expect("a link");
        symlink("out/passwd", folder.join("a/passwd")).expect("a link");
        let _socket = UnixListener::bind(folder.join("socket")).expect("a socket");

        assert_eq!(told(&folder), ["a/empty/", "a/file 5", "a/passwd -> out/passwd", "out -> /etc"]);
        let tree = Tree::open(&folder).expect("a folder");
        for outside in ["out/passwd", "a/passwd", "out", "../x", "socket"] {
            assert!(!matches!(tree.file(outside), Ok(Some(_))), "{outside}");
        }
        assert!(tree.folder("out").expect("looked").is_none());
        fs::remove_dir_all(&folder).expect("cleaned");
    }

    #[test]
    fn what_a_job_closed_to_its_owner_is_read_all_the_same() {
        let folder = folder();
        fs::create_dir(folder.join("a")).expect("a folder");
        fs::write(folder.join("a/file"), "hello").expect("a file");
        fs::set_permissions(folder.join("a/file"), fs::Permissions::from_mode(0o000)).expect("closed");
        fs::set_permissions(folder.join("a"), fs::Permissions::from_mode(0o000)).expect("closed");

        assert_eq!(told(&folder), ["a/file 5"]);
        let (mut file, _) = Tree::open(&folder).expect("a folder").file("a/file").expect("read").expect("a file");

        let mut text = String::new();
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text, "hello");
        fs::remove_dir_all(&folder).expect("cleaned");
    }

    #[test]
    fn nothing_is_overlooked_for_its_name_or_its_depth() {
        let beyond = |folder: &Path| Tree::open(folder).expect("a folder").is_beyond(BOUNDS);
        let folder = folder();
        let odd = std::ffi::OsStr::from_bytes(b"\xff");
        let grow = |path: &Path, bytes: u64| File::create(path).and_then(|file| file.set_len(bytes)).expect("a file");
        grow(&folder.join(odd), 1000);
        assert!(!beyond(&folder));

        grow(&folder.join(odd), 1001);
        assert!(beyond(&folder));
        fs::remove_file(folder.join(odd)).expect("removed");
        let deep = folder.join("d/".repeat(7));
        fs::create_dir_all(&deep).expect("folders");
        grow(&deep.join("f"), 1001);
        assert!(beyond(&folder));

        grow(&deep.join("f"), 1);
        assert!(!beyond(&folder), "seven folders and a file");
        fs::write(folder.join("one more"), "").expect("a file");
        assert!(beyond(&folder));
        fs::remove_dir_all(&folder).expect("cleaned");
    }

    #[test]
    fn what_is_beyond_the_bounds_is_refused_before_it_is_read() {
        let folder = folder();
        // Takes no room on the disk.
        File::create(folder.join("large")).and_then(|file| file.set_len(1 << 40)).expect("a file");
        let walk = || Tree::open(&folder).expect("a folder").walk(BOUNDS);
        assert!(matches!(walk(), Err(TreeError::TooLarge(_))));

        fs::remove_file(folder.join("large")).expect("removed");
        for n in 0..9 {
            fs::write(folder.join(n.to_string()), "").expect("a file");
        }
        assert!(matches!(walk(), Err(TreeError::TooLarge(_))));

        fs::remove_dir_all(&folder).expect("cleaned");
        fs::create_dir_all(folder.join("d/".repeat(70))).expect("folders");
        assert!(matches!(Tree::open(&folder).expect("a folder").walk(Bounds { bytes: 1, entries: 100 }), Err(TreeError::TooDeep)));
        fs::remove_dir_all(&folder).expect("cleaned");
    }
}
