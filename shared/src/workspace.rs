//! The files of a conversation: a list of paths that names the content of each by its hash. Data and its
//! laws, no I/O. Nobody ever opens a path of the list in the file system of a server: contents are found by
//! their hashes, and only a worker lays the paths out, in a folder of the job's own.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    ops::Bound,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// The longest path, in bytes.
pub const LONGEST_PATH: usize = 1024;
/// The deepest path, in names.
pub const DEEPEST_PATH: usize = 64;
/// The most bytes of all paths and targets of links together.
const LONGEST_LIST: usize = 4 * 1024 * 1024;
/// The longest name, in bytes: what file systems take.
const LONGEST_NAME: usize = 255;

/// How much a conversation may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Files, links and empty folders.
    pub entries: usize,
}

/// A path inside a workspace: names separated by `/`, none of them empty, `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePath(String);

/// A text that is no path inside a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a relative path of at most {DEEPEST_PATH} names, none of them empty, `.` or `..`")]
pub struct InvalidFilePath;

impl FilePath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders it is in, outermost first.
    fn folders(&self) -> impl Iterator<Item = Self> {
        self.0.match_indices('/').map(|(end, _)| Self(self.0[..end].to_owned()))
    }
}

impl FromStr for FilePath {
    type Err = InvalidFilePath;

    fn from_str(text: &str) -> Result<Self, InvalidFilePath> {
        let is_name = |name: &str| !matches!(name, "" | "." | "..") && name.len() <= LONGEST_NAME && !name.contains('\0');
        let is_path = text.len() <= LONGEST_PATH && text.split('/').count() <= DEEPEST_PATH && text.split('/').all(is_name);
        if is_path { Ok(Self(text.to_owned())) } else { Err(InvalidFilePath) }
    }
}

impl TryFrom<String> for FilePath {
    type Error = InvalidFilePath;

    fn try_from(text: String) -> Result<Self, InvalidFilePath> {
        text.parse()
    }
}

impl From<FilePath> for String {
    fn from(path: FilePath) -> Self {
        path.0
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The SHA-256 of a file's content, in lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentHash(String);

/// A text that is no hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 lower-case hexadecimal digits")]
pub struct InvalidContentHash;

impl ContentHash {
    /// The hash as text; a plain name in any file system.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash with these bytes.
    pub fn of_digest(digest: &[u8]) -> Self {
        use fmt::Write as _;

        let hex = digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a string takes all that is written to it");
            hex
        });
        Self(hex)
    }
}

impl TryFrom<String> for ContentHash {
    type Error = InvalidContentHash;

    fn try_from(text: String) -> Result<Self, InvalidContentHash> {
        let is_hash = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_hash { Ok(Self(text)) } else { Err(InvalidContentHash) }
    }
}

impl From<ContentHash> for String {
    fn from(hash: ContentHash) -> Self {
        hash.0
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// A regular file.
    File {
        /// Its content.
        sha256: ContentHash,
        /// How large it is.
        bytes: u64,
        /// Whether its owner may run it.
        executable: bool,
        /// When it was last written.
        modified_at: Timestamp,
    },
    /// A symbolic link. Where it leads is told to the job and followed by nobody else.
    Link {
        /// Where it leads.
        target: String,
    },
    /// A folder with nothing in it; others are known by what they hold.
    Folder,
}

impl Entry {
    /// How large its content is.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } => *bytes,
            Self::Link { .. } | Self::Folder => 0,
        }
    }
}

/// Why a change of a workspace is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The path leads through a file, or a folder is there.
    #[error("something else is at that path, or at one above it")]
    Occupied,
    /// The workspace would be larger than it may be.
    #[error("the workspace would be larger than it may be")]
    Full,
}

/// Everything in a workspace, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    entries: BTreeMap<FilePath, Entry>,
}

impl Manifest {
    /// What is in it, in order of the paths.
    pub fn entries(&self) -> impl Iterator<Item = (&FilePath, &Entry)> {
        self.entries.iter()
    }

    /// What is in it after `path`.
    pub fn after(&self, path: &FilePath) -> impl Iterator<Item = (&FilePath, &Entry)> {
        self.entries.range((Bound::Excluded(path), Bound::Unbounded))
    }

    /// What is at `path`.
    pub fn get(&self, path: &FilePath) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How large all files are together.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(Entry::bytes).fold(0, u64::saturating_add)
    }

    /// Put `entry` at `path`, in the place of what is there, unless that is a folder with something in it.
    pub fn put(&mut self, path: FilePath, entry: Entry, bounds: Bounds) -> Result<(), Refused> {
        let is_no_folder = |path: FilePath| self.entries.get(&path).is_some_and(|entry| *entry != Entry::Folder);
        if self.is_folder(&path) || path.folders().any(is_no_folder) {
            return Err(Refused::Occupied);
        }
        let mut changed = self.clone();
        for folder in path.folders() {
            changed.entries.remove(&folder);
        }
        changed.entries.insert(path, entry);
        if !changed.is_within(bounds) {
            return Err(Refused::Full);
        }
        *self = changed;
        Ok(())
    }

    /// Take what is at `path` away. False when nothing is, or a folder with something in it.
    pub fn remove(&mut self, path: &FilePath) -> bool {
        self.entries.remove(path).is_some()
    }

    fn is_folder(&self, path: &FilePath) -> bool {
        let inside = format!("{path}/");
        self.entries.range(FilePath(inside.clone())..).next().is_some_and(|(path, _)| path.0.starts_with(&inside))
    }

    /// Whether a content that `before` names is named no more.
    pub fn has_dropped_a_content_of(&self, before: &Self) -> bool {
        let named: HashSet<&ContentHash> = self.contents().collect();
        before.contents().any(|content| !named.contains(content))
    }

    /// Whether it is within `bounds`, and its list no longer than one may be.
    pub fn is_within(&self, bounds: Bounds) -> bool {
        let words = |(path, entry): (&FilePath, &Entry)| match entry {
            Entry::Link { target } => path.0.len() + target.len(),
            Entry::File { .. } | Entry::Folder => path.0.len(),
        };
        let list: usize = self.entries.iter().map(words).sum();
        self.bytes() <= bounds.bytes && self.len() <= bounds.entries && list <= LONGEST_LIST
    }

    /// The contents that its files have.
    pub fn contents(&self) -> impl Iterator<Item = &ContentHash> {
        self.entries.values().filter_map(|entry| match entry {
            Entry::File { sha256, .. } => Some(sha256),
            Entry::Link { .. } | Entry::Folder => None,
        })
    }
}

impl FromIterator<(FilePath, Entry)> for Manifest {
    fn from_iter<I: IntoIterator<Item = (FilePath, Entry)>>(entries: I) -> Self {
        Self { entries: entries.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 100, entries: 3 };

    fn path(text: &str) -> FilePath {
        text.parse().expect("a path")
    }

    fn file(bytes: u64) -> Entry {
        let sha256 = ContentHash::of_digest(&[7; 32]);
        Entry::File { sha256, bytes, executable: false, modified_at: Timestamp::from_unix_ms(0) }
    }

    #[test]
    fn a_path_stays_inside() {
        for right in ["a", "a/b.txt", "..a", "a..", ".git/config", "ä ö", "a\\..\\b", &"n/".repeat(63).add_name()] {
            assert!(right.parse::<FilePath>().is_ok(), "{right}");
        }
        for wrong in
            ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\0b", &"n".repeat(256), &"n/".repeat(64).add_name()]
        {
            assert_eq!(wrong.parse::<FilePath>(), Err(InvalidFilePath), "{wrong:?}");
        }
    }

    trait AddName {
        fn add_name(&self) -> String;
    }

    impl AddName for String {
        fn add_name(&self) -> String {
            format!("{self}n")
        }
    }

    #[test]
    fn nothing_is_put_below_a_file_or_in_the_place_of_a_folder() {
        let mut manifest = Manifest::default();
        manifest.put(path("a/b"), file(1), BOUNDS).expect("room");
        manifest.put(path("l"), Entry::Link { target: "/etc".into() }, BOUNDS).expect("room");

        assert_eq!(manifest.put(path("a/b/c"), file(1), BOUNDS), Err(Refused::Occupied));
        assert_eq!(manifest.put(path("l/passwd"), file(1), BOUNDS), Err(Refused::Occupied));
        assert_eq!(manifest.put(path("a"), file(1), BOUNDS), Err(Refused::Occupied));
        assert_eq!(manifest.put(path("l"), file(1), BOUNDS), Ok(()));
        assert!(!manifest.remove(&path("a")) && manifest.remove(&path("a/b")));
    }

    #[test]
    fn an_empty_folder_is_no_more_once_something_is_in_it() {
        let mut manifest = Manifest::default();
        manifest.put(path("a/b"), Entry::Folder, BOUNDS).expect("room");

        manifest.put(path("a/b/c"), file(1), BOUNDS).expect("a folder is there");

        assert_eq!(manifest.entries().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["a/b/c"]);
        assert_eq!(manifest.put(path("a/b"), file(1), BOUNDS), Err(Refused::Occupied));
        assert!(!manifest.remove(&path("a/b")), "something is in it");
    }

    #[test]
    fn an_empty_folder_is_replaced_and_taken_away_like_a_file() {
        let mut manifest = Manifest::default();
        for name in ["a", "b"] {
            manifest.put(path(name), Entry::Folder, BOUNDS).expect("room");
        }

        assert_eq!(manifest.put(path("a"), file(1), BOUNDS), Ok(()));
        assert!(manifest.remove(&path("b")));
    }

    #[test]
    fn a_list_may_not_be_longer_than_whoever_reads_it_can_bear() {
        let target = "x".repeat(4096);
        let links = |count: usize| {
            let link = |n: usize| (path(&n.to_string()), Entry::Link { target: target.clone() });
            (0..count).map(link).collect::<Manifest>()
        };
        let bounds = Bounds { bytes: 0, entries: 10_000 };

        assert!(links(1000).is_within(bounds));
        assert!(!links(1100).is_within(bounds));
    }

    #[test]
    fn a_content_is_dropped_with_the_last_file_that_has_it() {
        let manifest = |names: &[&str]| names.iter().map(|name| (path(name), file(1))).collect::<Manifest>();

        assert!(!manifest(&["a"]).has_dropped_a_content_of(&manifest(&["a", "b"])));
        assert!(manifest(&[]).has_dropped_a_content_of(&manifest(&["a"])));
    }

    #[test]
    fn a_full_workspace_takes_only_what_replaces_as_much() {
        let mut manifest = Manifest::default();
        manifest.put(path("a"), file(60), BOUNDS).expect("room");

        assert_eq!(manifest.put(path("b"), file(41), BOUNDS), Err(Refused::Full));
        assert_eq!(manifest.put(path("a"), file(100), BOUNDS), Ok(()));
        for name in ["b", "c"] {
            manifest.put(path(name), file(0), BOUNDS).expect("room");
        }
        assert_eq!(manifest.put(path("d"), file(0), BOUNDS), Err(Refused::Full));
    }

    #[test]
    fn a_manifest_is_read_back_and_a_wicked_one_is_not() {
        let mut manifest = Manifest::default();
        manifest.put(path("a"), file(1), BOUNDS).expect("room");
        let json = serde_json::to_string(&manifest).expect("JSON");

        assert_eq!(serde_json::from_str::<Manifest>(&json).expect("read"), manifest);
        for wicked in [json.replace("\"a\"", "\"../a\""), json.replace("07", "/7")] {
            assert!(serde_json::from_str::<Manifest>(&wicked).is_err(), "{wicked}");
        }
    }
}
