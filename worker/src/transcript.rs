//! A conversation as the CLI keeps it: one file of JSON lines below its own folder, and beside it what is too
//! large to be in it (long outputs of tools, the words of other agents), to which the lines refer. Packed as
//! one archive between the turns. The CLI goes on from a file that was cut as if nothing were missing, so
//! what is restored here is whole, or it is refused.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::value::RawValue;
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
/// What is packed is text: a higher level takes a third longer, on digits several times, for a tenth of the size.
const LEVEL: i32 = 1;
/// An archive is read in pieces too small to be written one by one.
const WRITTEN_AT_ONCE: usize = 256 * 1024;

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
    let mut names = HashSet::new();
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
        for (path, found) in beside.walk(Bounds { bytes: LARGEST - bytes, entries: MOST_FILES })? {
            if let Found::File(metadata) = found {
                // In two folders; neither is more right than the other.
                if !names.insert(path.clone()) {
                    return Err(TranscriptError::Broken("a file beside it is there twice"));
                }
                bytes += metadata.len();
                let file = beside.read(path.as_str().as_ref(), &metadata)?;
                append(&mut archive, &format!("{BESIDE}{path}"), metadata.len(), file)?;
            }
        }
    }
    if !has_lines {
        return Err(TranscriptError::Missing);
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
        let mut writer = BufWriter::with_capacity(WRITTEN_AT_ONCE, &mut file);
        bytes += io::copy(&mut entry, &mut writer)?;
        writer.flush()?;
        drop(writer);
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
    /// Both as they are written: a job may have put anything there, and of any size.
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(borrow, default, rename = "type")]
        kind: Option<&'a RawValue>,
        #[serde(borrow, default)]
        uuid: Option<&'a RawValue>,
    }
    let asked = asked.map(|message| format!("\"{message}\""));
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
        let parsed: Line<'_> = serde_json::from_slice(&line).map_err(|_| TranscriptError::Broken("a line is not JSON"))?;
        has_any = true;
        let is_asked = parsed.uuid.is_some() && parsed.uuid.map(RawValue::get) == asked.as_deref();
        has_asked |= is_asked && parsed.kind.map(RawValue::get) == Some(r#""user""#);
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Config {
        path: PathBuf,
        session: SessionId,
        message: Uuid,
    }

    impl Config {
        fn empty() -> Self {
            Self::of(SessionId::new())
        }

        fn of(session: SessionId) -> Self {
            let path = std::env::temp_dir().join(format!("transcript-{}", Uuid::now_v7()));
            fs::create_dir(&path).expect("a folder");
            Self { path, session, message: Uuid::new_v4() }
        }

        /// As a CLI leaves it after a turn.
        fn after_a_turn() -> Self {
            let config = Self::empty();
            fs::create_dir_all(config.beside()).expect("folders");
            let line = format!(r#"{{"type":"user","uuid":"{}","message":{{"role":"user","content":"hi"}}}}"#, config.message);
            fs::write(config.lines(), format!("{line}\n{{\"type\":\"assistant\",\"uuid\":\"no uuid\"}}\n")).expect("a file");
            fs::write(config.beside().join("b.txt"), "long").expect("a file");
            config
        }

        fn lines(&self) -> PathBuf {
            self.path.join(format!("projects/-workspace/{}.jsonl", self.session.uuid()))
        }

        fn beside(&self) -> PathBuf {
            self.path.join(format!("projects/-workspace/{}/tool-results", self.session.uuid()))
        }

        fn pack(&self) -> Result<Transcript, TranscriptError> {
            pack(&self.path, self.session, self.message, None)
        }

        fn restore(&self, transcript: &Transcript) -> Result<(), TranscriptError> {
            restore(&self.path, self.session, transcript)
        }
    }

    impl Drop for Config {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.path);
        }
    }

    #[test]
    fn what_a_turn_left_is_there_for_the_next_one() {
        let before = Config::after_a_turn();
        let after = Config::of(before.session);

        let packed = before.pack().expect("whole");
        after.restore(&packed).expect("whole");

        for (was, is) in [(before.lines(), after.lines()), (before.beside().join("b.txt"), after.beside().join("b.txt"))] {
            assert_eq!(fs::read(was).expect("a file"), fs::read(is).expect("a file"));
        }
        assert_eq!(packed.bytes, fs::metadata(before.lines()).expect("a file").len() + 4);
    }

    #[test]
    fn a_transcript_that_is_not_whole_is_not_packed() {
        type Damage = fn(&Config);
        let damages: [(&str, Damage); 8] = [
            ("gone", |config| fs::remove_file(config.lines()).expect("removed")),
            ("empty", |config| fs::write(config.lines(), "").expect("written")),
            ("no JSON", |config| fs::write(config.lines(), "hello\n").expect("written")),
            ("no objects", |config| fs::write(config.lines(), "1\n").expect("written")),
            ("cut", |config| {
                let lines = fs::read(config.lines()).expect("a file");
                fs::write(config.lines(), &lines[..lines.len() - 3]).expect("written");
            }),
            ("another turn's", |config| fs::write(config.lines(), "{\"type\":\"user\"}\n").expect("written")),
            ("a link", |config| {
                fs::rename(config.lines(), config.path.join("elsewhere")).expect("renamed");
                symlink("../../elsewhere", config.lines()).expect("a link");
            }),
            ("two", |config| {
                fs::create_dir(config.path.join("projects/b")).expect("a folder");
                fs::copy(config.lines(), config.path.join(format!("projects/b/{}.jsonl", config.session.uuid()))).expect("copied");
            }),
        ];
        for (what, damage) in damages {
            let config = Config::after_a_turn();
            damage(&config);
            assert!(matches!(config.pack(), Err(TranscriptError::Missing | TranscriptError::Broken(_))), "{what}");
        }
        assert!(matches!(Config::empty().pack(), Err(TranscriptError::Missing)));
    }

    #[test]
    fn a_line_may_hold_anything_of_any_kind_where_an_id_should_be() {
        let config = Config::after_a_turn();
        let lines = fs::read_to_string(config.lines()).expect("a file");
        let odd = format!("{{\"type\":[1],\"uuid\":[{}0]}}\n{{\"uuid\":null}}\n", "0,".repeat(100_000));

        fs::write(config.lines(), lines + &odd).expect("written");

        assert!(config.pack().is_ok());
    }

    #[test]
    fn a_transcript_grows_to_its_bound_and_no_further() {
        let config = Config::after_a_turn();
        let beside = config.beside().join("large");
        let left = LARGEST - config.pack().expect("whole").bytes;

        File::create(&beside).and_then(|file| file.set_len(left)).expect("room");
        assert_eq!(config.pack().expect("whole").bytes, LARGEST);

        File::create(&beside).and_then(|file| file.set_len(left + 1)).expect("room");
        assert!(matches!(config.pack(), Err(TranscriptError::TooLarge)));
    }

    #[test]
    fn what_is_beside_a_transcript_is_only_files_of_its_own_folder() {
        let config = Config::after_a_turn();
        symlink("/etc/passwd", config.beside().join("passwd")).expect("a link");
        let packed = config.pack().expect("whole");
        let after = Config::of(config.session);

        after.restore(&packed).expect("whole");

        assert!(!after.beside().join("passwd").exists());
    }

    #[test]
    fn nothing_is_restored_that_is_cut_or_leads_elsewhere() {
        let whole = Config::after_a_turn().pack().expect("whole");
        let archive = |path: &str, content: &[u8]| {
            let mut archive = tar::Builder::new(zstd::Encoder::new(Vec::new(), LEVEL).expect("an encoder"));
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            // Written into the header itself: the library refuses what leads out.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            archive.append(&header, content).expect("appended");
            let body = archive.into_inner().and_then(zstd::Encoder::finish).expect("finished");
            Transcript { body: body.into(), bytes: content.len() as u64, cli_version: None }
        };
        let with = |body: &[u8]| Transcript { body: body.to_vec().into(), ..whole.clone() };
        for (what, transcript) in [
            ("empty", with(b"")),
            ("garbage", with(b"nope")),
            ("cut", with(&whole.body[..whole.body.len() - 1])),
            ("longer", Transcript { bytes: whole.bytes - 1, ..whole.clone() }),
            ("out", archive("beside/../../../../out", b"x")),
            ("absolute", archive("/out", b"x")),
            ("no lines", archive("beside/a", b"x")),
            ("no JSON", archive(LINES, b"x")),
        ] {
            let config = Config::empty();
            assert!(matches!(config.restore(&transcript), Err(TranscriptError::Broken(_))), "{what}");
            assert!(!config.path.join("out").exists() && !config.path.parent().expect("a parent").join("out").exists(), "{what}");
        }
    }
}
