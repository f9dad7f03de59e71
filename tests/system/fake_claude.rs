//! The scripted CLI and the real one, both held to the same recordings: the first so that tests with it
//! mean something, the second so that a release that speaks differently is seen.

use std::{
    env, fs,
    io::{Write as _, stderr},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tests::{
    cli_process::CliProcess,
    mock_anthropic::MockAnthropic,
    recording::{Vocabulary, fields, kind, lines, shape, without_withdrawn},
};

/// The fields the product reads, by the kind of line. Null stands for absent.
const READ: [(&str, &[&str]); 20] = [
    ("system/init", &["session_id", "tools[]", "model", "claude_code_version"]),
    ("system/api_retry", &["attempt", "max_retries", "retry_delay_ms", "error_status", "error"]),
    ("system/session_state_changed", &["state"]),
    ("command_lifecycle", &["command_uuid", "state"]),
    ("stream_event", &["api_message_id", "parent_tool_use_id", "session_id", "event.type"]),
    ("stream_event/message_start", &["event.message.id", "event.message.model", "event.message.usage.input_tokens"]),
    ("stream_event/content_block_start", &["event.index", "event.content_block.type"]),
    ("stream_event/content_block_start/tool_use", &["event.content_block.id", "event.content_block.name"]),
    ("stream_event/content_block_delta/text_delta", &["event.index", "event.delta.text"]),
    ("stream_event/content_block_delta/thinking_delta", &["event.index", "event.delta.thinking"]),
    ("stream_event/content_block_delta/input_json_delta", &["event.index", "event.delta.partial_json"]),
    ("stream_event/message_delta", &["event.delta.stop_reason", "event.usage.output_tokens"]),
    ("stream_event/message_stop/abandoned", &["abandoned_blocks.api_message_id", "abandoned_blocks.from_block_index"]),
    ("assistant", &["message.id", "message.model", "message.content[].type", "parent_tool_use_id"]),
    ("assistant/text", &["message.content[].text"]),
    ("assistant/tool_use", &["message.content[].id", "message.content[].name"]),
    ("user", &["parent_tool_use_id"]),
    ("user/tool_result", &["message.content[].tool_use_id", "message.content[].content"]),
    ("result", &["is_error", "terminal_reason", "num_turns", "duration_ms", "stop_reason", "total_cost_usd", "usage.output_tokens"]),
    ("result/success", &["result", "api_error_status"]),
];

fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings")
}

fn recording(name: &str) -> Vec<Value> {
    lines(&fs::read_to_string(recordings().join(name).with_extension("jsonl")).expect("a recording"))
}

/// The fields the product reads that `line` lacks.
fn missing(line: &Value) -> Vec<String> {
    let kind = kind(line);
    let has: Vec<_> = fields(line).into_iter().map(|(path, _)| path).collect();
    let reads = READ.iter().filter(|(start, _)| kind.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    let missing = reads.flat_map(|(_, paths)| paths.iter()).filter(|path| !has.iter().any(|has| has == *path));
    missing.map(|path| format!("{kind}: {path}")).collect()
}

fn fake() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fake-claude"));
    command.env_clear().args(["-p", "--output-format=stream-json", "--input-format", "stream-json", "--verbose"]);
    command
}

/// What a CLI prints and exits with when it is asked `prompt`; `interrupt_at` says at which kind of line
/// it is interrupted.
fn play(command: &mut Command, prompt: &str, interrupt_at: Option<&str>) -> (Vec<Value>, Option<i32>) {
    let mut cli = CliProcess::spawn(command).expect("the CLI starts");
    cli.ask(prompt).expect("the CLI listens");
    if let Some(kind) = interrupt_at {
        cli.until(kind).expect("the CLI talks").expect("a line to interrupt at");
        cli.interrupt().expect("the CLI listens");
    }
    cli.until("result").expect("the CLI talks").expect("a result");
    cli.finish().expect("the CLI ends")
}

#[test]
fn every_recorded_line_has_what_the_product_reads() {
    for entry in fs::read_dir(recordings()).expect("recordings") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            for line in lines(&fs::read_to_string(&path).expect("a recording")) {
                assert_eq!(missing(&line), Vec::<String>::new(), "{}", path.display());
            }
        }
    }
}

#[test]
fn the_fake_prints_what_the_real_cli_printed() {
    let vocabulary = Vocabulary::of_folder(&recordings()).expect("recordings");
    let whole = [
        ("plain", "say:hello world", 0),
        ("thinking", "think:pondering the question in some depth", 0),
        ("tool_bash", "tool:bash:echo hi", 0),
        ("tool_parallel", "par:echo a;;echo b", 0),
        ("max_turns", "loop:bash:echo again", 1),
        ("api_retry_then_ok", "error:529:2", 0),
        ("api_sse_then_ok", "sseerror:overloaded_error:1", 0),
        ("api_drop_then_ok", "drop:1", 0),
        ("api_drop", "drop", 1),
        ("api_error_400", "error:400", 1),
        ("api_error_529", "error:529", 1),
    ];
    let interrupted = [
        ("interrupt_streaming", "slow:30:0.3", "stream_event/content_block_delta"),
        ("interrupt_tool", "tool:bash:sleep 600", "stream_event/message_stop"),
        ("hang_interrupted", "hang", "system/status"),
    ];
    let cases = whole.map(|(name, prompt, code)| (name, prompt, None, code));
    for (name, prompt, interrupt_at, code) in cases.into_iter().chain(interrupted.map(|(name, prompt, at)| (name, prompt, Some(at), 1))) {
        let retries = if name.ends_with("then_ok") { "10" } else { "1" };

        let (printed, exit) = play(fake().arg("--max-turns=3").env("CLAUDE_CODE_MAX_RETRIES", retries), prompt, interrupt_at);

        assert_eq!(shape(&printed), shape(&recording(name)), "{name}");
        assert_eq!(exit, Some(code), "{name}");
        for line in &printed {
            assert_eq!(missing(line), Vec::<String>::new(), "{name}: {line}");
            assert_eq!(vocabulary.unknown(line), Vec::<String>::new(), "{name}: {line}");
        }
    }
}

#[test]
fn the_fake_tells_when_nothing_more_will_come() {
    let mut cli = CliProcess::spawn(fake().env("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1")).expect("the CLI starts");
    let message =
        json!({"type": "user", "message": {"role": "user", "content": "say:hello world"}, "uuid": "7d9a1e52-5a53-4d5e-9d1c-8f0f6a3a7b10"});

    cli.write(&message).expect("the CLI listens");
    let (printed, _) = cli.finish().expect("the CLI ends");

    assert_eq!(shape(&printed), shape(&recording("session_state")));
    assert_eq!(printed.last().expect("a line")["state"], "idle");
}

#[test]
fn the_fake_answers_control_requests_and_several_turns() {
    let mut cli = CliProcess::spawn(&mut fake()).expect("the CLI starts");
    let request = |subtype: &str| json!({"type": "control_request", "request_id": subtype, "request": {"subtype": subtype}});

    cli.write(&request("initialize")).expect("the CLI listens");
    let ready = cli.until("control_response").expect("the CLI talks").expect("an answer");
    cli.ask("say:one").expect("the CLI listens");
    let first = cli.until("result").expect("the CLI talks").expect("a result");
    cli.ask("say:two").expect("the CLI listens");
    let second = cli.until("result").expect("the CLI talks").expect("a result");
    cli.write(&request("end_session")).expect("the CLI listens");
    cli.until("control_response/success").expect("the CLI talks").expect("an answer");
    let (_, exit) = cli.finish().expect("the CLI ends");

    assert_eq!(ready["response"]["request_id"], "initialize");
    assert_eq!((&first["result"], &second["result"]), (&json!("one"), &json!("two")));
    assert!(second["total_cost_usd"].as_f64() > first["total_cost_usd"].as_f64(), "the total goes on");
    assert_eq!(exit, Some(0));
}

#[test]
fn the_fake_breaks_as_asked() {
    let outcome = |prompt: &str| {
        let mut child = fake().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the CLI starts");
        let line = json!({"type": "user", "message": {"role": "user", "content": prompt}});
        child.stdin.take().expect("a pipe").write_all(format!("{line}\n").as_bytes()).expect("the CLI listens");
        child.wait_with_output().expect("the CLI ends")
    };

    assert_eq!(outcome("cli:exit:7").status.code(), Some(7));
    assert_eq!(outcome("cli:crash").status.signal(), Some(6));
    let silent = outcome("cli:noresult");
    assert_eq!(silent.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&silent.stdout).contains(r#""type":"result""#));
    assert_eq!(outcome("cli:stderr:so it goes").stderr, b"so it goes\n");
    let long = outcome("cli:longline:100000");
    assert_eq!(long.stdout.split(|byte| *byte == b'\n').map(<[u8]>::len).max(), Some(99_999));
}

#[test]
fn the_fake_survives_sigterm_only_when_asked() {
    let terminate = |prompt: &str| {
        let mut cli = CliProcess::spawn(&mut fake()).expect("the CLI starts");
        cli.ask(prompt).expect("the CLI listens");
        cli.until("system/status").expect("the CLI talks").expect("a running turn");
        let pid = rustix::process::Pid::from_raw(cli.id().try_into().expect("a pid")).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        cli
    };

    let (_, exit) = terminate("hang").finish().expect("the CLI ends");
    assert_eq!(exit, Some(143));

    let mut deaf = terminate("seq:cli:ignore_term || slow:3:0.01");
    deaf.until("result").expect("the CLI talks").expect("a result");
}

#[test]
fn the_fake_goes_on_after_lines_nobody_understands() {
    for prompt in ["cli:garbage", "cli:unknown", "cli:withdraw"] {
        let (printed, exit) = play(&mut fake(), prompt, None);

        assert_eq!(printed.last().expect("a line")["result"], "done", "{prompt}");
        assert_eq!(exit, Some(0), "{prompt}");
    }
}

#[test]
fn the_ledger_tells_the_runs_and_ends_the_faults() {
    let directory = Directory::create();
    let ledger = directory.0.join("ledger");
    let prompt = format!("@ledger={} @times=2 cli:exit:9", ledger.display());

    let exits = [(); 3].map(|()| {
        let mut cli = CliProcess::spawn(&mut fake()).expect("the CLI starts");
        cli.ask(&prompt).expect("the CLI listens");
        cli.finish().expect("the CLI ends").1
    });

    assert_eq!(exits, [Some(9), Some(9), Some(0)]);
    let notes = fs::read_to_string(&ledger).expect("a ledger");
    let words: Vec<_> = notes.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(words, ["start", "stop", "start", "stop", "start", "stop"]);
}

#[test]
fn the_children_of_the_fake_outlive_it() {
    let directory = Directory::create();
    let ledger = directory.0.join("ledger");
    let prompt = format!("@ledger={} seq:cli:children:3 || cli:exit:0", ledger.display());
    let mut cli = CliProcess::spawn(fake().env("PATH", "/usr/bin:/bin")).expect("the CLI starts");

    cli.ask(&prompt).expect("the CLI listens");
    let exit = cli.wait().expect("the CLI ends");

    assert_eq!(exit, Some(0));
    let notes = fs::read_to_string(&ledger).expect("a ledger");
    let children: Vec<i32> = notes.lines().filter_map(|line| line.strip_prefix("child ")?.parse().ok()).collect();
    assert_eq!(children.len(), 3);
    for child in children {
        let pid = rustix::process::Pid::from_raw(child).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it lives");
        // Deaf to the first signal, it is there for the second.
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it lives");
    }
    // One of them held the output open; only without it the output ends.
    cli.finish().expect("the output ends");
}

/// The real CLI in a directory of its own, and that directory, or `None` with a word on stderr.
fn real(mock: &MockAnthropic, directory: &Directory) -> Option<Command> {
    let Some(program) = env::var_os("CLAUDE_BIN_REAL") else {
        // Past the capture of test output: a skipped test should not look like a passed one.
        let _ = writeln!(stderr(), "SKIPPED: `CLAUDE_BIN_REAL` is not set, the real CLI is not compared with its recordings");
        return None;
    };
    let mut command = Command::new(program);
    command.env_clear().current_dir(directory.0.join("workspace")).envs([
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
        ("ANTHROPIC_BASE_URL", mock.url()),
        ("ANTHROPIC_API_KEY", "made-up"),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
        ("DISABLE_TELEMETRY", "1"),
        ("DISABLE_AUTOUPDATER", "1"),
        ("DISABLE_ERROR_REPORTING", "1"),
    ]);
    command.env("HOME", directory.0.join("home")).env("CLAUDE_CONFIG_DIR", directory.0.join("config"));
    command.args(["-p", "--output-format", "stream-json", "--input-format", "stream-json", "--verbose", "--include-partial-messages"]);
    Some(command)
}

/// A private directory, removed with its content.
struct Directory(PathBuf);

impl Directory {
    fn create() -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(uuid::Uuid::new_v4().to_string());
        for part in ["workspace", "home", "config"] {
            fs::create_dir_all(path.join(part)).expect("a directory");
        }
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_real_cli_prints_what_it_printed() {
    let mock = MockAnthropic::start().await.expect("a port");
    let cases: [(&str, &str, &[&str]); 6] = [
        ("plain", "say:hello world", &[]),
        ("thinking", "think:pondering the question in some depth", &[]),
        ("tool_bash", "tool:bash:echo hi", &["--allowedTools", "Bash"]),
        ("api_retry_then_ok", "error:529:2", &[]),
        ("api_sse_then_ok", "sseerror:overloaded_error:1", &[]),
        ("api_drop_then_ok", "drop:1", &[]),
    ];
    for (name, prompt, flags) in cases {
        let directory = Directory::create();
        let Some(mut command) = real(&mock, &directory) else { return };

        let (printed, exit) = play(command.args(flags), prompt, None);

        let (printed_shape, recorded) = (shape(&printed), shape(&recording(name)));
        if name == "api_drop_then_ok" {
            assert_eq!(without_withdrawn(&printed_shape), without_withdrawn(&recorded), "{name}");
        } else {
            assert_eq!(printed_shape, recorded, "{name}");
        }
        assert_eq!(exit, Some(0), "{name}");
        for line in &printed {
            assert_eq!(missing(line), Vec::<String>::new(), "{name}: {line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_real_cli_can_be_interrupted_while_the_api_is_silent() {
    let mock = MockAnthropic::start().await.expect("a port");
    let directory = Directory::create();
    let Some(mut command) = real(&mock, &directory) else { return };
    let mut cli = CliProcess::spawn(&mut command).expect("the CLI starts");

    cli.ask("hang").expect("the CLI listens");
    mock.received(1).await;
    cli.interrupt().expect("the CLI listens");
    cli.until("result").expect("the CLI talks").expect("a result");
    let (printed, exit) = cli.finish().expect("the CLI ends");
    mock.idle().await;

    assert_eq!(shape(&printed), shape(&recording("hang_interrupted")));
    assert_eq!(exit, Some(1));
}
