//! The files of a conversation, laid out for a job and gathered again after it. Only contents that changed are
//! stored anew: the kernel notes every change of a file in a time that no job can set.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    time::{Duration, SystemTime},
};

use cap_std::fs::MetadataExt as _;
use shared::{
    contents::Contents,
    time::Timestamp,
    workspace::{Bounds, Entry, FilePath, Manifest},
};

use crate::tree::{Found, Tree, TreeError};

/// Why files could not be laid out, or not be gathered.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// There is more than a workspace may hold.
    #[error("the workspace is larger than it may be")]
    TooLarge,
    /// A content is not in the store, or is not what it should be.
    #[error("a file's content is not in the store")]
    Lost(#[source] io::Error),
    /// The disk.
    #[error("could not read or write the workspace")]
    Io(#[from] io::Error),
}

impl From<TreeError> for WorkspaceError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::TooLarge(_) | TreeError::TooDeep => Self::TooLarge,
            TreeError::Io(error) => Self::Io(error),
        }
    }
}

/// A workspace as it was laid out.
#[derive(Debug)]
pub struct LaidOut {
    contents: Contents,
    known: HashMap<FilePath, Known>,
}

/// A workspace as a job left it.
#[derive(Debug)]
pub struct Gathered {
    /// What is in it.
    pub manifest: Manifest,
    /// Whether a content that was laid out is in it no more.
    pub leaves_contents: bool,
}

/// A file as it was laid out: as long as this is true of it, nobody wrote to it.
#[derive(Debug)]
struct Known {
    file: u64,
    changed: (i64, i64),
    entry: Entry,
}

/// Lay the files of `manifest` out in `folder`, which is empty. Blocks.
pub fn lay_out(folder: &Path, manifest: &Manifest, contents: Contents) -> Result<LaidOut, WorkspaceError> {
    let mut known = HashMap::new();
    let mut links = Vec::new();
    for (path, entry) in manifest.entries() {
        let target = folder.join(path.as_str());
        match entry {
            Entry::Folder => fs::create_dir_all(&target)?,
            Entry::Link { target: leads_to } => links.push((target, leads_to)),
            Entry::File { sha256, bytes, executable, modified_at } => {
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent)?;
                }
                let mut source = contents.open(sha256).map_err(WorkspaceError::Lost)?;
                let mut file = File::options().write(true).create_new(true).open(&target)?;
                let copied = io::copy(&mut source, &mut file)?;
                if copied != *bytes {
                    return Err(WorkspaceError::Lost(io::Error::other("its length is another")));
                }
                file.set_permissions(fs::Permissions::from_mode(if *executable { 0o755 } else { 0o644 }))?;
                let since_epoch = Duration::from_millis(u64::try_from(modified_at.unix_ms()).unwrap_or(0));
                file.set_modified(SystemTime::UNIX_EPOCH + since_epoch)?;
                let metadata = file.metadata()?;
                let changed = (metadata.ctime(), metadata.ctime_nsec());
                known.insert(path.clone(), Known { file: metadata.ino(), changed, entry: entry.clone() });
            }
        }
    }
    // Last, so that nothing is laid out through one of them.
    for (link, target) in links {
        if let Some(parent) = link.parent() {
            fs::create_dir_all(parent)?;
        }
        symlink(target, link)?;
    }
    Ok(LaidOut { contents, known })
}

impl LaidOut {
    /// Gather what is in `folder` now, its contents into the store. Blocks.
    pub fn gather(&self, folder: &Path, bounds: Bounds) -> Result<Gathered, WorkspaceError> {
        let tree = Tree::open(folder)?;
        let mut entries = Vec::new();
        let mut is_anew = false;
        for (path, found) in tree.walk(bounds)? {
            let entry = match found {
                Found::Folder => Entry::Folder,
                Found::Link { target } => Entry::Link { target },
                Found::File(metadata) => {
                    let known = self.known.get(&path);
                    let is_same =
                        |known: &&Known| known.file == metadata.ino() && known.changed == (metadata.ctime(), metadata.ctime_nsec());
                    if let Some(known) = known.filter(is_same) {
                        known.entry.clone()
                    } else {
                        is_anew = true;
                        self.store(tree.read(path.as_str().as_ref(), &metadata)?, &metadata, bounds)?
                    }
                }
            };
            entries.push((path, entry));
        }
        let manifest: Manifest = entries.into_iter().collect();
        // What grew while it was read counts as it was read.
        if !manifest.is_within(bounds) {
            return Err(WorkspaceError::TooLarge);
        }
        if is_anew {
            self.contents.sync()?;
        }
        let before: Manifest = self.known.iter().map(|(path, known)| (path.clone(), known.entry.clone())).collect();
        Ok(Gathered { leaves_contents: manifest.has_dropped_a_content_of(&before), manifest })
    }

    fn store(&self, mut file: File, metadata: &cap_std::fs::Metadata, bounds: Bounds) -> Result<Entry, WorkspaceError> {
        let mut incoming = self.contents.receive()?;
        let mut piece = vec![0; 64 * 1024];
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                break;
            }
            incoming.write(&piece[..read])?;
            if incoming.bytes() > bounds.bytes {
                return Err(WorkspaceError::TooLarge);
            }
        }
        let received = incoming.finish();
        let entry = Entry::File {
            sha256: received.sha256.clone(),
            bytes: received.bytes,
            executable: metadata.mode() & 0o100 != 0,
            modified_at: modified_at(metadata),
        };
        self.contents.keep(received)?;
        Ok(entry)
    }
}

/// When a file was written, as far as a time of ours can say it: a job may have set any.
fn modified_at(metadata: &cap_std::fs::Metadata) -> Timestamp {
    /// The last moment of the year 9999.
    const LAST_MS: i64 = 253_402_300_799_999;
    let ms = metadata.mtime().saturating_mul(1000).saturating_add(metadata.mtime_nsec() / 1_000_000);
    Timestamp::from_unix_ms(ms.clamp(0, LAST_MS))
}
