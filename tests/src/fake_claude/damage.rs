//! What can become of a transcript between two turns: a full disk, a careless copy, somebody's ill will.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::symlink,
    path::Path,
};

use serde_json::json;
use shared::time::Timestamp;
use uuid::Uuid;

use super::VERSION;
use crate::model::{TranscriptFault, filling_from, prose};

/// A file everybody may read and no session owns.
const FOREIGN_FILE: &str = "/etc/passwd";
/// The lines a file is filled with are about so long.
const LINE_BYTES: u64 = 64 * 1024;

/// Let `fault` happen to the transcript of `session` at `path`.
pub(super) fn inflict(fault: TranscriptFault, path: &Path, session: &str) -> io::Result<()> {
    match fault {
        TranscriptFault::Empty => fs::write(path, b""),
        TranscriptFault::Garbage => fs::write(path, b"this is not JSON\n{\"type\":\"user\",\"message\":\n\xff\xfe\x00\n"),
        TranscriptFault::Cut => cut(path),
        TranscriptFault::Gone => fs::remove_file(path),
        TranscriptFault::Symlink => {
            fs::remove_file(path)?;
            symlink(FOREIGN_FILE, path)
        }
        TranscriptFault::Talk(bytes) => talk(path, u64::try_from(bytes).unwrap_or(u64::MAX), session),
        TranscriptFault::Grow(bytes) => grow(path, u64::try_from(bytes).unwrap_or(u64::MAX), session),
    }
}

fn cut(path: &Path) -> io::Result<()> {
    let text = fs::read(path)?;
    let end = text.trim_ascii_end().len();
    let start = text[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |line_end| line_end + 1);
    let middle = u64::try_from(start.midpoint(end)).map_err(io::Error::other)?;
    OpenOptions::new().write(true).open(path)?.set_len(middle)
}

/// Fill up with what agents said to each other beside the conversation, in lines as long as such lines are.
fn talk(path: &Path, bytes: u64, session: &str) -> io::Result<()> {
    let mut file = BufWriter::new(append(path)?);
    let mut missing = bytes.saturating_sub(file.get_ref().metadata()?.len());
    let mut leaf = None;
    for (number, role) in (0..).zip(["user", "assistant"].into_iter().cycle()) {
        if missing == 0 {
            break;
        }
        let id = Uuid::new_v4();
        let message = json!({"role": role, "content": [{"type": "text", "text": prose(number)}]});
        let line = json!({
            "parentUuid": leaf.replace(id), "isSidechain": true, "type": role, "message": message, "uuid": id,
            "timestamp": Timestamp::now(), "userType": "external", "entrypoint": "sdk-cli", "sessionId": session, "version": VERSION,
        });
        let line = format!("{line}\n");
        file.write_all(line.as_bytes())?;
        missing = missing.saturating_sub(u64::try_from(line.len()).map_err(io::Error::other)?);
    }
    file.flush()
}

/// Fill up with what fills a real transcript: the requests it was made of, which no conversation reads.
fn grow(path: &Path, bytes: u64, session: &str) -> io::Result<()> {
    let line = |text: &str| {
        let message = json!({"role": "system", "content": text});
        format!("{}\n", json!({"type": "api-request-blob", "sessionId": session, "hash": "", "message": message}))
    };
    let frame = u64::try_from(line("").len()).map_err(io::Error::other)?;
    let mut file = append(path)?;
    let mut missing = bytes.saturating_sub(file.metadata()?.len());
    while missing > 0 {
        // The last one takes the rest, so none is left for which there is no line.
        let length = if missing < 2 * LINE_BYTES { missing } else { LINE_BYTES };
        // No line repeats what another has: together they would compress to nothing.
        let text = filling_from(missing, usize::try_from(length.saturating_sub(frame)).map_err(io::Error::other)?);
        file.write_all(line(&text).as_bytes())?;
        missing -= length;
    }
    Ok(())
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::directory::Directory;

    const LINES: &str = "{\"a\":1}\n{\"bcdefgh\":2}\n";

    fn after(fault: TranscriptFault) -> (Directory, io::Result<Vec<u8>>) {
        let directory = Directory::create().expect("a directory");
        let path = directory.path().join("s.jsonl");
        fs::write(&path, LINES).expect("a file");
        inflict(fault, &path, "s").expect("a fault");
        let left = fs::read(&path);
        (directory, left)
    }

    #[test]
    fn a_cut_goes_through_the_last_line() {
        assert_eq!(after(TranscriptFault::Cut).1.expect("a file"), b"{\"a\":1}\n{\"bcde");
    }

    #[test]
    fn a_file_grows_to_the_byte_with_lines_of_json() {
        for bytes in [1000, 200_000, 1_000_000] {
            let grown = String::from_utf8(after(TranscriptFault::Grow(bytes)).1.expect("a file")).expect("a text");

            assert_eq!(grown.len(), bytes);
            assert!(grown.starts_with(LINES));
            assert!(grown.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
        }
        assert_eq!(after(TranscriptFault::Grow(10)).1.expect("a file"), LINES.as_bytes());
    }

    #[test]
    fn a_file_grows_by_what_does_not_repeat_itself() {
        let grown = String::from_utf8(after(TranscriptFault::Grow(1_000_000)).1.expect("a file")).expect("a text");

        let lines = grown.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let texts: Vec<String> = lines.filter_map(|line| line["message"]["content"].as_str().map(str::to_owned)).collect();
        let parts: Vec<&[u8]> = texts.iter().flat_map(|text| text.as_bytes().chunks_exact(16)).collect();
        assert_eq!(parts.iter().collect::<BTreeSet<_>>().len(), parts.len());
        assert!(texts.len() > 10);
    }

    #[test]
    fn a_file_is_filled_with_talk_that_is_no_part_of_the_conversation() {
        let filled = String::from_utf8(after(TranscriptFault::Talk(200_000)).1.expect("a file")).expect("a text");

        assert!((200_000..220_000).contains(&filled.len()), "{}", filled.len());
        let talk = filled.strip_prefix(LINES).expect("what was there");
        assert!(talk.lines().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|line| line["isSidechain"] == true)));
    }

    #[test]
    fn what_is_put_in_its_place_is_no_transcript() {
        let (directory, left) = after(TranscriptFault::Symlink);
        assert_eq!(fs::read_link(directory.path().join("s.jsonl")).expect("a link"), Path::new(FOREIGN_FILE));
        assert!(left.is_ok());
        assert!(after(TranscriptFault::Gone).1.is_err());
        assert_eq!(after(TranscriptFault::Empty).1.expect("a file"), b"");
    }
}
