//! The contents of a conversation's files: one folder for each conversation, below `WORKSPACE_STORE`, and in
//! it one file for each content, named by its hash. A content is written under a name of its own and renamed
//! when it is whole, so whatever has a hash for its name is that. What no list names is swept later.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    id::SessionId,
    workspace::{ContentHash, Manifest},
};

/// What the name of a content begins with while it is written.
const INCOMING: &str = "incoming-";
/// How long a content may take to be written; later it is taken for what a crash left.
const INCOMING_LIFE: Duration = Duration::from_hours(24);

/// The contents of one conversation. Everything in here blocks.
#[derive(Clone, Debug)]
pub struct Contents {
    folder: PathBuf,
}

impl Contents {
    /// Those of `session`, below `store`.
    pub(crate) fn of(store: &Path, session: SessionId) -> Self {
        Self { folder: store.join(session.uuid().simple().to_string()) }
    }

    /// The conversations that have contents below `store`.
    pub(crate) fn sessions(store: &Path) -> io::Result<Vec<SessionId>> {
        let Some(entries) = if_there(fs::read_dir(store))? else { return Ok(Vec::new()) };
        let mut sessions = Vec::new();
        for entry in entries {
            // What has another name is not ours.
            let uuid = entry?.file_name().to_str().and_then(|name| Uuid::try_parse(name).ok());
            sessions.extend(uuid.map(SessionId::from_uuid));
        }
        Ok(sessions)
    }

    /// The content with this hash.
    pub fn open(&self, hash: &ContentHash) -> io::Result<File> {
        File::open(self.folder.join(hash.as_str()))
    }

    /// Begin to write a content.
    pub fn receive(&self) -> io::Result<Incoming> {
        let path = self.folder.join(format!("{INCOMING}{}", Uuid::new_v4().simple()));
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = if let Some(file) = if_there(open())? {
            file
        } else {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            open()?
        };
        Ok(Incoming { file, path: Some(path), digest: Sha256::new(), bytes: 0 })
    }

    /// Give a whole content its name; it stays as long as a list names it.
    pub fn keep(&self, mut received: Received) -> io::Result<()> {
        let Some(path) = received.path.take() else { return Ok(()) };
        fs::rename(&path, self.folder.join(received.sha256.as_str()))
    }

    /// Make sure that the names of what was kept so far survive a loss of power.
    pub(crate) fn sync_names(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// Make sure that all that was kept so far survives a loss of power: once for many contents, and with
    /// whatever else waits to be written to that disk.
    pub fn sync(&self) -> io::Result<()> {
        let Some(folder) = if_there(File::open(&self.folder))? else { return Ok(()) };
        Ok(rustix::fs::syncfs(folder)?)
    }

    /// Remove what `manifest` does not name, until `end`. Nobody may add to the list before that.
    pub(crate) fn sweep(&self, manifest: &Manifest, end: Instant) -> io::Result<()> {
        let named: HashSet<&str> = manifest.contents().map(ContentHash::as_str).collect();
        let Some(entries) = if_there(fs::read_dir(&self.folder))? else { return Ok(()) };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_garbage = if name.starts_with(INCOMING) {
                // One that is whole by now has another name.
                let Ok(metadata) = entry.metadata() else { continue };
                let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
                age.is_some_and(|age| age > INCOMING_LIFE)
            } else {
                !named.contains(name.as_ref())
            };
            if Instant::now() >= end {
                return Ok(());
            }
            if is_garbage {
                if_there(fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    /// Remove all of it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        if_there(fs::remove_dir_all(&self.folder)).map(|_| ())
    }
}

/// A content on its way. Dropping it forgets it.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    path: Option<PathBuf>,
    digest: Sha256,
    bytes: u64,
}

impl Incoming {
    /// Take the next piece.
    pub fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)?;
        self.digest.update(piece);
        self.bytes += piece.len() as u64;
        Ok(())
    }

    /// How much came so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// That was all, and it survives a loss of power.
    pub fn finish_durably(self) -> io::Result<Received> {
        self.file.sync_all()?;
        Ok(self.finish())
    }

    /// That was all.
    pub fn finish(mut self) -> Received {
        let sha256 = ContentHash::of_digest(&std::mem::take(&mut self.digest).finalize());
        Received { sha256, bytes: self.bytes, path: self.path.take() }
    }
}

/// A content that is whole and has no name yet. Dropping it forgets it.
#[derive(Debug)]
pub struct Received {
    /// Its hash.
    pub sha256: ContentHash,
    /// How large it is.
    pub bytes: u64,
    path: Option<PathBuf>,
}

/// What came of something that may not be there: `None` if it was not.
fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

fn forget(path: Option<&PathBuf>) {
    if let Some(path) = path {
        // What stays is swept with the rest.
        let _ = fs::remove_file(path);
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        forget(self.path.as_ref());
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        forget(self.path.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::{time::Timestamp, workspace::Entry};

    fn store() -> PathBuf {
        std::env::temp_dir().join(format!("contents-{}", Uuid::now_v7()))
    }

    fn receive(contents: &Contents, text: &str) -> Received {
        let mut incoming = contents.receive().expect("a folder");
        for piece in text.as_bytes().chunks(2) {
            incoming.write(piece).expect("room");
        }
        incoming.finish()
    }

    #[test]
    fn a_content_is_found_by_its_hash_once_it_is_kept() {
        let store = store();
        let contents = Contents::of(&store, SessionId::new());
        let received = receive(&contents, "hello");
        let hash = received.sha256.clone();
        assert_eq!(hash.as_str(), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert!(contents.open(&hash).is_err());

        contents.keep(received).expect("renamed");

        let mut text = String::new();
        contents.open(&hash).expect("there").read_to_string(&mut text).expect("read");
        assert_eq!(text, "hello");
        contents.remove().expect("removed");
        assert!(contents.open(&hash).is_err());
        fs::remove_dir(&store).expect("empty");
    }

    #[test]
    fn what_no_list_names_is_swept_and_what_still_comes_is_not() {
        let store = store();
        let contents = Contents::of(&store, SessionId::new());
        let hashes = ["named", "forgotten"].map(|text| {
            let received = receive(&contents, text);
            let hash = received.sha256.clone();
            contents.keep(received).expect("renamed");
            hash
        });
        let mut coming = contents.receive().expect("a folder");
        let entry = Entry::File { sha256: hashes[0].clone(), bytes: 5, executable: false, modified_at: Timestamp::from_unix_ms(0) };
        let manifest = Manifest::from_iter([("a".parse().expect("a path"), entry)]);

        contents.sweep(&manifest, Instant::now() + Duration::from_mins(1)).expect("swept");

        assert!(contents.open(&hashes[0]).is_ok() && contents.open(&hashes[1]).is_err());
        coming.write(b"x").expect("room");
        contents.keep(coming.finish()).expect("still there");
        contents.remove().expect("removed");
        fs::remove_dir(&store).expect("empty");
    }

    #[test]
    fn what_is_dropped_on_its_way_leaves_nothing() {
        let store = store();
        let contents = Contents::of(&store, SessionId::new());

        drop(contents.receive().expect("a folder"));
        drop(receive(&contents, "x"));

        assert_eq!(fs::read_dir(&contents.folder).expect("a folder").count(), 0);
        fs::remove_dir_all(&store).expect("cleaned");
    }
}
