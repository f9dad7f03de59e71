//! The real CLI held to recordings of itself, so that a release that speaks differently is seen here
//! first. `CLAUDE_BIN_REAL` names it; it talks to the scripted API alone.

use std::{env, process::Command};

use tests::{
    cli_process::CliProcess,
    directory::Directory,
    mock_anthropic::MockAnthropic,
    product_reads::missing,
    recording::{recording, shape, without_withdrawn},
    sessions::Sessions,
};
use uuid::Uuid;

/// The real CLI with nothing of this machine but `directory`.
fn real(mock: &MockAnthropic, directory: &Directory) -> Command {
    let program = env::var_os("CLAUDE_BIN_REAL").expect("`CLAUDE_BIN_REAL` is not set (hint: run the tests with `make test`)");
    let place = |name| directory.with(name).expect("a directory");
    let mut command = Command::new(program);
    command.env_clear().current_dir(place("workspace")).envs([
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
    command.env("HOME", place("home")).env("CLAUDE_CONFIG_DIR", place("config"));
    command.args(["-p", "--output-format", "stream-json", "--input-format", "stream-json", "--verbose", "--include-partial-messages"]);
    command
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
        let directory = Directory::create().expect("a directory");

        let (printed, exit) = CliProcess::play(real(&mock, &directory).args(flags), prompt, None).expect("the CLI talks");

        let (printed_shape, recorded) = (shape(&printed), shape(&recording(name).expect("a recording")));
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
async fn the_real_cli_keeps_sessions_as_it_kept_them() {
    let mock = MockAnthropic::start().await.expect("a port");
    let directory = Directory::create().expect("a directory");

    let sessions = Sessions::play(|| real(&mock, &directory), &directory.path().join("config")).expect("the CLI talks");

    sessions.assert_as_recorded();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn either_cli_goes_on_with_what_the_other_kept() {
    let mock = MockAnthropic::start().await.expect("a port");
    let directory = Directory::create().expect("a directory");
    let start = |is_real| {
        // Makes the folders that both of them use.
        let real = real(&mock, &directory);
        let mut command = if is_real { real } else { Command::new(env!("CARGO_BIN_EXE_fake-claude")) };
        command.current_dir(directory.path().join("workspace")).env("CLAUDE_CONFIG_DIR", directory.path().join("config"));
        command
    };
    let session = Uuid::new_v4();
    let ask = |is_real, flag: &str, prompt| {
        let (printed, _) = CliProcess::play(start(is_real).arg(format!("{flag}={session}")), prompt, None).expect("the CLI talks");
        let result = printed.last().expect("a line");
        (result["result"].clone(), result["total_cost_usd"].as_f64().expect("a number"))
    };

    // The filling is no part of the conversation: the API would not take so much.
    let (_, first) = ask(false, "--session-id", "seq:recall:fake || cli:transcript:grow:3000000");
    let (recalled_by_real, second) = ask(true, "--resume", "recall:real");
    let (recalled_by_fake, third) = ask(false, "--resume", "recall:fake again");

    assert_eq!(recalled_by_real, "fake | real");
    assert_eq!(recalled_by_fake, "fake | real | fake again");
    assert!(0.0 < first && first < second && second < third, "{first} {second} {third}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_real_cli_can_be_interrupted_while_the_api_is_silent() {
    let mock = MockAnthropic::start().await.expect("a port");
    let directory = Directory::create().expect("a directory");
    let mut cli = CliProcess::spawn(&mut real(&mock, &directory)).expect("the CLI starts");

    cli.ask("hang").expect("the CLI listens");
    mock.received(1).await;
    cli.interrupt().expect("the CLI listens");
    cli.until("result").expect("the CLI talks").expect("a result");
    let (printed, exit) = cli.finish().expect("the CLI ends");
    mock.idle().await;

    assert_eq!(shape(&printed), shape(&recording("hang_interrupted").expect("a recording")));
    assert_eq!(exit, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_real_cli_announces_its_tools_without_asking_the_api() {
    let mock = MockAnthropic::start().await.expect("a port");
    let announced = |flags: &[&str]| {
        let directory = Directory::create().expect("a directory");
        let mut command = real(&mock, &directory);
        command.args(["--setting-sources=", "--strict-mcp-config", "--disable-slash-commands", "--no-session-persistence"]);
        let mut cli = CliProcess::spawn(command.args(flags).env("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1")).expect("the CLI starts");
        cli.greet().expect("the CLI listens");
        let (printed, exit) = cli.finish().expect("the CLI ends");
        assert_eq!(exit, Some(0));
        assert_eq!(shape(&printed), shape(&recording("silent").expect("a recording")));
        let init = printed.into_iter().find(|line| line["subtype"] == "init").expect("an announcement");
        assert_eq!(missing(&init), Vec::<String>::new());
        init["tools"].as_array().expect("tools").iter().map(|tool| tool.as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };

    let tools = announced(&[]);
    let named = announced(&["--tools=Read,Grep,Teleport"]);

    assert!(["Bash", "Read", "Write", "Edit", "Task"].iter().all(|tool| tools.iter().any(|name| name == tool)), "{tools:?}");
    assert!(!tools.iter().any(|name| name == "Grep"), "the product needs to name `Grep` no more: {tools:?}");
    assert_eq!(named, ["Grep", "Read"]);
    assert_eq!(mock.requests().len(), 0);
}
