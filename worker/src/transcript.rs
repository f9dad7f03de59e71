//! A conversation as the CLI keeps it: one file of JSON lines below its own folder, and beside it what is too
//! large to be in it (long outputs of tools, the words of other agents), to which the lines refer. Packed as
//! one archive between the turns. The CLI goes on from a file that was cut as if nothing were missing, so
//! what is restored here is whole, or it is refused.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::IgnoredAny};
use shared::{
    id::SessionId,
    transcript::{LARGEST, Transcript},
    workspace::{Bounds, FilePath},
};
use uuid::Uuid;

use crate::{
    claude::sandbox::WORKSPACE,
    tree::{Found, Tree, TreeError},
};

/// Where the archive has the file of JSON lines.
const LINES: &str = "transcript.jsonl";
/// What the archive's names begin with of what is beside it.
const BESIDE: &str = "beside/";
/// How many files there may be beside it.
const MOST_FILES: usize = 10_000;
/// Enough: what is packed is text.
const LEVEL: i32 = 3;

/// Why a conversation cannot be kept, or not be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum TranscriptError {
    /// The CLI left no file.
    #[error("there is no transcript")]
    Missing,
    /// It has grown beyond what is kept.
    #[error("the transcript is larger than {LARGEST} bytes")]
    TooLarge,
    /// It is not whole.
    #[error("the transcript is not whole: {0}")]
    Broken(&'static str),
    /// The disk.
    #[error("could not read or write the transcript")]
    Io(#[from] io::Error),
}

impl From<TreeError> for TranscriptError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::TooLarge(_) => Self::TooLarge,
            TreeError::TooDeep => Self::Broken("a file beside it is too deep"),
            TreeError::Io(error) => Self::Io(error),
        }
    }
}

/// Pack what the CLI left in `config` of the conversation, in which it was asked `message`. Blocks.
pub fn pack(config: &Path, session: SessionId, message: Uuid, cli_version: Option<String>) -> Result<Transcript, TranscriptError> {
    let name = session.uuid().to_string();
    let projects = Tree::open(config)?.folder("projects")?.ok_or(TranscriptError::Missing)?;
    let mut archive = tar::Builder::new(zstd::Encoder::new(Vec::new(), LEVEL)?);
    archive.get_mut().include_checksum(true)?;
    let mut bytes = 0;
    let mut has_lines = false;
    // The CLI looks a conversation up by its name in all of these folders, and may put what is beside it into another.
    for folder in projects.folders()? {
        let Some(folder) = projects.folder(&folder)? else { continue };
        if let Some((mut file, metadata)) = folder.file(&format!("{name}.jsonl"))? {
            if has_lines {
                return Err(TranscriptError::Broken("there are two"));
            }
            bytes += metadata.len();
            if bytes > LARGEST {
                return Err(TranscriptError::TooLarge);
            }
            check(&mut file, Some(message))?;
            append(&mut archive, LINES, metadata.len(), file)?;
            has_lines = true;
        }
        let Some(beside) = folder.folder(&name)? else { continue };
        for (path, found) in beside.walk(Bounds { bytes: LARGEST - bytes.min(LARGEST), entries: MOST_FILES })? {
            if let Found::File(metadata) = found {
                bytes += metadata.len();
                let file = beside.read(path.as_str().as_ref(), &metadata)?;
                append(&mut archive, &format!("{BESIDE}{path}"), metadata.len(), file)?;
            }
        }
    }
    if !has_lines {
        return Err(TranscriptError::Missing);
    }
    if bytes > LARGEST {
        return Err(TranscriptError::TooLarge);
    }
    let body = archive.into_inner()?.finish()?;
    Ok(Transcript { body: body.into(), bytes, cli_version })
}

fn append(archive: &mut tar::Builder<impl io::Write>, path: &str, bytes: u64, file: File) -> Result<(), TranscriptError> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_cksum();
    // A file that still grew would make the archive unreadable.
    archive.append_data(&mut header, path, file.take(bytes))?;
    Ok(())
}

/// Lay the packed files out in `config`, which has none yet, for a CLI that goes on from them. Blocks.
pub fn restore(config: &Path, session: SessionId, transcript: &Transcript) -> Result<(), TranscriptError> {
    let folder = config.join("projects").join(slug(WORKSPACE));
    let name = session.uuid().to_string();
    fs::create_dir_all(&folder)?;
    let unreadable = |_| TranscriptError::Broken("it cannot be unpacked");
    // Its length was noted when it was packed: nothing that unpacks to more is read to its end.
    let unpacked = zstd::Decoder::new(transcript.body.as_ref()).map_err(unreadable)?.take(transcript.bytes.saturating_add(ARCHIVE_EXTRA));
    let mut archive = tar::Archive::new(unpacked);
    let mut bytes = 0;
    let mut has_lines = false;
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let path = entry.path().map_err(unreadable)?.to_string_lossy().into_owned();
        let target: PathBuf = if path == LINES {
            has_lines = true;
            folder.join(format!("{name}.jsonl"))
        } else {
            let beside: Option<FilePath> = path.strip_prefix(BESIDE).and_then(|path| path.parse().ok());
            folder.join(&name).join(beside.ok_or(TranscriptError::Broken("it holds an unknown file"))?.as_str())
        };
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = File::options().read(true).write(true).create_new(true).open(&target)?;
        bytes += io::copy(&mut entry, &mut file)?;
        file.flush()?;
        if path == LINES {
            file.seek(SeekFrom::Start(0))?;
            check(&mut file, None)?;
        }
    }
    // To the very end, where its checksum is.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(unreadable)?;
    if !has_lines || bytes != transcript.bytes {
        return Err(TranscriptError::Broken("a part of it is missing"));
    }
    Ok(())
}

/// What an archive may hold beside its files: a header for each, and padding.
const ARCHIVE_EXTRA: u64 = 64 * 1024 * 1024;

/// Whether these are JSON objects, one a line, and one of them is the message that was asked. Leaves the
/// file at its beginning.
fn check(file: &mut File, asked: Option<Uuid>) -> Result<(), TranscriptError> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default, rename = "type")]
        kind: Option<String>,
        #[serde(default)]
        uuid: Option<IgnoredOrUuid>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum IgnoredOrUuid {
        Uuid(Uuid),
        Other(IgnoredAny),
    }
    let mut reader = BufReader::with_capacity(64 * 1024, &mut *file);
    let mut line = Vec::new();
    let (mut has_any, mut has_asked) = (false, asked.is_none());
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let parsed: Line = serde_json::from_slice(&line).map_err(|_| TranscriptError::Broken("a line is not JSON"))?;
        has_any = true;
        if let (Some(asked), Some("user"), Some(IgnoredOrUuid::Uuid(uuid))) = (asked, parsed.kind.as_deref(), parsed.uuid) {
            has_asked |= uuid == asked;
        }
    }
    file.seek(SeekFrom::Start(0))?;
    match (has_any, has_asked) {
        (false, _) => Err(TranscriptError::Broken("it is empty")),
        (true, false) => Err(TranscriptError::Broken("the last message is not in it")),
        (true, true) => Ok(()),
    }
}

/// The CLI's name for a directory.
fn slug(directory: &str) -> String {
    directory.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}
