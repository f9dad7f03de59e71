//! Sessions of the scripted CLI, kept and resumed as the real one does, and broken as it never would.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tests::{
    cli_process::CliProcess,
    directory::Directory,
    recording::{lines, shape},
    sessions::{Sessions, transcript_of, transcript_shape},
};
use uuid::Uuid;

use super::fake;

/// The scripted CLI with its transcripts in `directory`.
fn keeping(directory: &Directory) -> Command {
    let mut command = fake();
    command.current_dir(directory.with("workspace").expect("a directory")).env("CLAUDE_CONFIG_DIR", config(directory));
    command
}

fn config(directory: &Directory) -> PathBuf {
    directory.with("config").expect("a directory")
}

fn begin(directory: &Directory, session: Uuid, prompt: &str) -> Value {
    turn(keeping(directory).arg(format!("--session-id={session}")), prompt)
}

fn resume(directory: &Directory, session: Uuid, prompt: &str) -> Value {
    turn(keeping(directory).arg(format!("--resume={session}")), prompt)
}

/// The last line of a turn; a CLI that refused may be gone before it is asked.
fn turn(command: &mut Command, prompt: &str) -> Value {
    let mut cli = CliProcess::spawn(command).expect("the CLI starts");
    let _ = cli.ask(prompt);
    cli.finish().expect("the CLI ends").0.pop().expect("a line")
}

fn transcript(directory: &Directory, session: Uuid) -> Option<PathBuf> {
    transcript_of(&config(directory), &session.to_string())
}

fn kept(path: &Path) -> Vec<Value> {
    lines(&fs::read_to_string(path).expect("a transcript"))
}

#[test]
fn the_fake_keeps_sessions_as_the_real_cli_kept_them() {
    let directory = Directory::create().expect("a directory");

    let sessions = Sessions::play(|| keeping(&directory), &config(&directory)).expect("the CLI talks");

    sessions.assert_as_recorded();
    assert_eq!(sessions.unknown_fields(), Vec::<String>::new());
}

#[test]
fn a_session_that_is_not_to_be_kept_leaves_nothing() {
    let directory = Directory::create().expect("a directory");
    let session = Uuid::new_v4();

    turn(keeping(&directory).args(["--no-session-persistence", &format!("--session-id={session}")]), "say:hi");
    assert_eq!(fs::read_dir(config(&directory)).expect("a directory").count(), 0);

    begin(&directory, session, "recall:a");
    let path = transcript(&directory, session).expect("a transcript");
    let before = fs::read(&path).expect("a transcript");
    let last = turn(keeping(&directory).args([&format!("--resume={session}"), "--no-session-persistence"]), "recall:b");

    assert_eq!(last["result"], "a | b");
    assert_eq!(fs::read(&path).expect("a transcript"), before);
}

#[test]
fn a_killed_fake_leaves_what_was_said_until_then() {
    let directory = Directory::create().expect("a directory");
    let session = Uuid::new_v4();
    let mut cli = CliProcess::spawn(keeping(&directory).arg(format!("--session-id={session}"))).expect("the CLI starts");

    cli.ask("seq:tool:bash:echo hi || hangmid").expect("the CLI listens");
    cli.until("stream_event/content_block_delta/text_delta").expect("the CLI talks").expect("a delta");
    cli.until("user/tool_result").expect("the CLI talks").expect("a result");
    cli.until("stream_event/content_block_delta/text_delta").expect("the CLI talks").expect("a delta");
    drop(cli);

    let left = transcript_shape(&kept(&transcript(&directory, session).expect("a transcript")));
    assert_eq!(left[2..], ["user", "assistant/text", "assistant/tool_use", "user/tool_result"]);
    assert_eq!(resume(&directory, session, "recall:b")["result"], "seq:tool:bash:echo hi || hangmid | b");
}

#[test]
fn a_prompt_that_was_never_answered_is_answered_before_the_next() {
    let directory = Directory::create().expect("a directory");
    let session = Uuid::new_v4();
    let mut cli = CliProcess::spawn(keeping(&directory).arg(format!("--session-id={session}"))).expect("the CLI starts");
    cli.ask("hang").expect("the CLI listens");
    cli.until("system/status").expect("the CLI talks").expect("a turn");
    drop(cli);

    resume(&directory, session, "say:b");

    let lines = kept(&transcript(&directory, session).expect("a transcript"));
    let texts: Vec<_> =
        lines.iter().filter(|line| line["type"] == "assistant").map(|line| &line["message"]["content"][0]["text"]).collect();
    assert_eq!(texts, ["No response requested.", "b"]);
}

#[test]
fn a_fake_that_is_told_to_end_closes_its_transcript() {
    let directory = Directory::create().expect("a directory");
    let session = Uuid::new_v4();
    let mut cli = CliProcess::spawn(keeping(&directory).arg(format!("--session-id={session}"))).expect("the CLI starts");
    cli.ask("say:hi").expect("the CLI listens");
    let result = cli.until("result").expect("the CLI talks").expect("a result");
    let path = transcript(&directory, session).expect("a transcript");
    assert_eq!(kept(&path).last().expect("a line")["type"], "assistant", "it is closed at the end alone");

    let pid = rustix::process::Pid::from_raw(cli.id().try_into().expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");

    assert_eq!(cli.wait().expect("the CLI ends"), Some(143));
    assert_eq!(kept(&path).last().expect("a line")["totalCostUSD"], result["total_cost_usd"]);
}

#[test]
fn the_fake_breaks_its_transcript_once_it_has_answered() {
    let lost = ["empty", "garbage", "gone", "symlink"];
    for fault in lost.into_iter().chain(["cut", "grow:1000000"]) {
        let directory = Directory::create().expect("a directory");
        let session = Uuid::new_v4();

        let first = begin(&directory, session, &format!("seq:recall:a || cli:transcript:{fault}"));
        let size = transcript(&directory, session).map_or(0, |path| fs::metadata(path).expect("a file").len());
        let second = resume(&directory, session, "recall:b");

        assert_eq!(first["result"], "a", "{fault}");
        if lost.contains(&fault) {
            assert_eq!(shape(&[second]), ["result/error_during_execution"], "{fault}");
        } else {
            assert_eq!(second["result"], "a | b", "{fault}");
        }
        assert_eq!(size > 1_000_000, fault.starts_with("grow"), "{fault}: {size}");
    }
}

#[test]
fn a_long_conversation_is_resumed() {
    let directory = Directory::create().expect("a directory");
    let session = Uuid::new_v4();

    let grown = begin(&directory, session, "grow:2000000");
    let next = resume(&directory, session, "recall:b");

    assert_eq!(grown["result"].as_str().expect("a text").len(), 2_000_000);
    assert_eq!(next["result"], "grow:2000000 | b");
}
