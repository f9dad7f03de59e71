//! A session begun, gone on with, asked for in vain and begun once more, the same way with either CLI, and
//! held to what the real one did. What a transcript has beside the lines named here differs from run to run.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use uuid::Uuid;

use crate::{
    cli_process::CliProcess,
    recording::{Vocabulary, fields, folder, kind, lines, recording, shape},
};

/// The lines of a transcript that both CLIs write in the same order.
const TYPES: [&str; 4] = ["queue-operation", "user", "assistant", "cost-state"];
/// What the real one writes whenever a timer of its own says so, before an answer and after it.
const NOTED: &str = "last-prompt";

/// What every message in a transcript has, and what one of the model has beside it.
const MESSAGE: [&str; 10] =
    ["parentUuid", "isSidechain", "type", "message.role", "uuid", "timestamp", "cwd", "sessionId", "version", "entrypoint"];
const ANSWER: [&str; 6] =
    ["message.id", "message.model", "message.content[].type", "message.stop_reason", "message.usage.output_tokens", "requestId"];

/// What a CLI did.
pub struct Sessions {
    /// The id of the session.
    pub session: String,
    /// What it printed when it began the session, when it resumed it, and when it used a tool in it.
    pub turns: [Vec<Value>; 3],
    /// How it ended when it was to resume a session that was never begun.
    pub unknown: Ending,
    /// How it ended when it was to begin the session again.
    pub taken: Ending,
    /// The lines of the transcript.
    pub transcript: Vec<Value>,
}

/// The end of a CLI that was asked nothing.
pub struct Ending {
    /// What it printed.
    pub lines: Vec<Value>,
    /// What it complained of.
    pub complaint: String,
    /// Its exit code.
    pub code: Option<i32>,
}

impl Sessions {
    /// Play them with what `cli` starts, whose own directory is `config_dir`.
    pub fn play(cli: impl Fn() -> Command, config_dir: &Path) -> io::Result<Self> {
        let session = Uuid::new_v4().to_string();
        let (begin, resume) = (format!("--session-id={session}"), format!("--resume={session}"));
        let turn = |flag: &str, prompt| Ok::<_, io::Error>(CliProcess::play(cli().args([flag, "--allowedTools=Bash"]), prompt, None)?.0);
        let turns = [turn(&begin, "recall:one")?, turn(&resume, "recall:two")?, turn(&resume, "tool:bash:echo hi")?];
        let unknown = end(cli().arg(format!("--resume={}", Uuid::new_v4())))?;
        let taken = end(cli().arg(&begin))?;
        let path = transcript_of(config_dir, &session).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { session, turns, unknown, taken, transcript: lines(&fs::read_to_string(path)?) })
    }

    /// Fail where they differ from the recordings, or from what holds for every session.
    pub fn assert_as_recorded(&self) {
        let recordings = ["session_begun", "session_resumed", "tool_bash", "session_unknown"];
        for (name, printed) in recordings.iter().zip(self.turns.iter().chain([&self.unknown.lines])) {
            assert_eq!(shape(printed), shape(&recording(name).expect("a recording")), "{name}");
        }
        let results: Vec<_> = self.turns.iter().map(|lines| lines.last().expect("a line")).collect();
        assert_eq!((&results[0]["result"], &results[1]["result"]), (&"one".into(), &"one | two".into()));
        for pair in results.windows(2) {
            assert!((dollars(pair[1]) - dollars(pair[0]) - dollars_since(pair[1])).abs() < 1e-9, "the total goes on: {}", pair[1]);
        }
        assert_eq!(self.unknown.code, Some(1));
        assert_eq!(self.unknown.lines[0]["errors"][0], self.unknown.complaint.trim_end());
        assert!(self.unknown.complaint.starts_with("No conversation found with session ID: "), "{}", self.unknown.complaint);
        assert_eq!((self.taken.code, self.taken.lines.len()), (Some(1), 0));
        assert_eq!(self.taken.complaint, format!("Error: Session ID {} is already in use.\n", self.session));
        let recorded = fs::read_to_string(transcripts().join("session.jsonl")).expect("a recording");
        assert_eq!(transcript_shape(&self.transcript), transcript_shape(&lines(&recorded)));
        let noted = self.transcript.iter().filter(|line| line["type"] == NOTED).count();
        assert!(noted >= self.turns.len(), "{noted} notes of the last prompt");
        for line in &self.transcript {
            assert_eq!(missing(line), Vec::<&str>::new(), "{line}");
        }
        assert!(is_chained(&self.transcript), "a message without a former one");
    }

    /// The fields of the transcript that the recorded one has not.
    pub fn unknown_fields(&self) -> Vec<String> {
        let vocabulary = Vocabulary::of_folder(&transcripts()).expect("recordings");
        self.transcript.iter().flat_map(|line| vocabulary.unknown(line)).collect()
    }
}

/// Where the CLI whose own directory is `config_dir` keeps `session`.
pub fn transcript_of(config_dir: &Path, session: &str) -> Option<PathBuf> {
    let folders = fs::read_dir(config_dir.join("projects")).ok()?.flatten();
    // A link is found as well, wherever it leads.
    folders.map(|folder| folder.path().join(session).with_extension("jsonl")).find(|path| path.symlink_metadata().is_ok())
}

/// The kinds of those of `lines` that both CLIs write in the same order.
pub fn transcript_shape(lines: &[Value]) -> Vec<String> {
    lines.iter().filter(|line| line["type"].as_str().is_some_and(|kind| TYPES.contains(&kind))).map(kind).collect()
}

fn transcripts() -> PathBuf {
    folder().join("transcripts")
}

fn end(command: &mut Command) -> io::Result<Ending> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ending { lines: lines(&text(&output.stdout)), complaint: text(&output.stderr), code: output.status.code() })
}

fn dollars(result: &Value) -> f64 {
    result["total_cost_usd"].as_f64().expect("a number")
}

fn dollars_since(result: &Value) -> f64 {
    let models = result["model_usage_since_last_result"].as_object().expect("an object");
    models.values().map(|used| used["costUSD"].as_f64().expect("a number")).sum()
}

/// The fields a message in a transcript lacks.
fn missing(line: &Value) -> Vec<&'static str> {
    let required: &[&[&str]] = match line["type"].as_str() {
        Some("user") => &[&MESSAGE],
        Some("assistant") => &[&MESSAGE, &ANSWER],
        _ => &[],
    };
    let has: BTreeSet<_> = fields(line).into_iter().map(|(path, _)| path).collect();
    required.iter().copied().flatten().copied().filter(|path| !has.contains(*path)).collect()
}

/// Whether each message but the first follows one that is there.
fn is_chained(lines: &[Value]) -> bool {
    let mut known = BTreeSet::new();
    lines.iter().filter_map(|line| Some((line["uuid"].as_str()?, line["parentUuid"].as_str()))).all(|(id, parent)| {
        let is_chained = parent.map_or(known.is_empty(), |parent| known.contains(parent));
        known.insert(id);
        is_chained
    })
}
