//! The scripted CLI held to recordings of the real one, so that tests with it mean something.

mod fake_sessions;

use std::{
    fs,
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tests::{
    cli_process::CliProcess,
    directory::Directory,
    product_reads::missing,
    recording::{Vocabulary, folder, kind, lines, recording, shape},
};

fn fake() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fake-claude"));
    command.env_clear().args(["-p", "--output-format=stream-json", "--input-format", "stream-json", "--verbose"]);
    command
}

/// How a turn ended, and each error on the way: the values from which the product tells what a failure is.
fn ending(printed: &[Value]) -> Value {
    let result = printed.iter().find(|line| line["type"] == "result").expect("a result");
    let read = ["subtype", "is_error", "stop_reason", "terminal_reason", "api_error_status", "api_error", "num_turns", "errors"];
    let errors = printed.iter().filter(|line| line.get("error").is_some());
    let errors: Vec<Value> = errors.map(|line| json!([kind(line), line["error"], line["error_status"]])).collect();
    json!({"result": read.map(|field| json!([field, result[field]])), "errors": errors})
}

#[test]
fn every_recorded_line_has_what_the_product_reads() {
    for entry in fs::read_dir(folder()).expect("recordings") {
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
    let vocabulary = Vocabulary::of_folder(&folder()).expect("recordings");
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
        ("api_error_401", "error:401", 1),
        ("api_error_403", "error:403", 1),
        ("api_error_404", "error:404", 1),
        ("api_error_413", "error:413", 1),
        ("api_error_429", "error:429", 1),
        ("api_error_529", "error:529", 1),
        ("refusal", "refuse", 1),
        ("max_tokens", "maxtok:cut off here", 1),
    ];
    let interrupted = [
        ("interrupt_streaming", "slow:30:0.3", "stream_event/content_block_delta"),
        ("interrupt_tool", "tool:bash:sleep 600", "stream_event/message_stop"),
        ("hang_interrupted", "hang", "system/status"),
    ];
    let cases = whole.map(|(name, prompt, code)| (name, prompt, None, code));
    for (name, prompt, interrupt_at, code) in cases.into_iter().chain(interrupted.map(|(name, prompt, at)| (name, prompt, Some(at), 1))) {
        let retries = if name.ends_with("then_ok") { "10" } else { "1" };

        let (printed, exit) = CliProcess::play(fake().arg("--max-turns=3").env("CLAUDE_CODE_MAX_RETRIES", retries), prompt, interrupt_at)
            .expect("the CLI talks");

        let recorded = recording(name).expect("a recording");
        assert_eq!(shape(&printed), shape(&recorded), "{name}");
        assert_eq!(ending(&printed), ending(&recorded), "{name}");
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

    assert_eq!(shape(&printed), shape(&recording("session_state").expect("a recording")));
    assert_eq!(printed.last().expect("a line")["state"], "idle");
}

#[test]
fn the_fake_announces_itself_without_asking_the_model() {
    let vocabulary = Vocabulary::of_folder(&folder()).expect("recordings");
    let mut cli = CliProcess::spawn(fake().env("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1")).expect("the CLI starts");

    cli.greet().expect("the CLI listens");
    let (printed, exit) = cli.finish().expect("the CLI ends");

    assert_eq!(shape(&printed), shape(&recording("silent").expect("a recording")));
    assert_eq!(exit, Some(0));
    for line in &printed {
        assert_eq!(missing(line), Vec::<String>::new(), "{line}");
        assert_eq!(vocabulary.unknown(line), Vec::<String>::new(), "{line}");
    }
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
fn the_fake_recalls_what_it_was_told() {
    let mut cli = CliProcess::spawn(&mut fake()).expect("the CLI starts");

    let answers = ["recall:s1-t1", "hello", "recall:s1-t3"].map(|prompt| {
        cli.ask(prompt).expect("the CLI listens");
        cli.until("result").expect("the CLI talks").expect("a result")["result"].clone()
    });

    assert_eq!(answers, ["s1-t1", "echo: hello", "s1-t1 | hello | s1-t3"]);
}

#[test]
fn the_fake_tells_the_time_at_which_it_speaks() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    let delta = "stream_event/content_block_delta/text_delta";
    let begun = now();

    let (printed, _) = CliProcess::play(&mut fake(), "clock:3:0.01", None).expect("the CLI talks");

    let said: Vec<_> =
        printed.iter().filter(|line| kind(line) == delta).filter_map(|line| line["event"]["delta"]["text"].as_str()).collect();
    let times: Vec<u128> = said.iter().map(|text| text.trim_end().parse().expect("a time")).collect();
    assert_eq!(times.len(), 3);
    assert!(
        times[0] >= begun + 10_000_000 && times.windows(2).all(|pair| pair[1] >= pair[0] + 10_000_000) && times[2] <= now(),
        "{times:?}"
    );
    assert_eq!(printed.iter().find(|line| kind(line) == "result/success").expect("a result")["result"], said.concat());
    let (slow, _) = CliProcess::play(&mut fake(), "slow:3:0.01", None).expect("the CLI talks");
    assert_eq!(shape(&printed), shape(&slow));
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
    let terminate = |prompt: &str, at: &str| {
        let mut cli = CliProcess::spawn(&mut fake()).expect("the CLI starts");
        cli.ask(prompt).expect("the CLI listens");
        cli.until(at).expect("the CLI talks").expect("a running turn");
        let pid = rustix::process::Pid::from_raw(cli.id().try_into().expect("a pid")).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        cli
    };

    let (_, exit) = terminate("hang", "system/status").finish().expect("the CLI ends");
    assert_eq!(exit, Some(143));

    let mut deaf = terminate("seq:cli:ignore_term || slow:3:0.01", "stream_event/message_start");
    deaf.until("result").expect("the CLI talks").expect("a result");
}

#[test]
fn the_fake_goes_on_after_lines_nobody_understands() {
    for prompt in ["cli:garbage", "cli:unknown", "cli:withdraw"] {
        let (printed, exit) = CliProcess::play(&mut fake(), prompt, None).expect("the CLI talks");

        assert_eq!(printed.last().expect("a line")["result"], "done", "{prompt}");
        assert_eq!(exit, Some(0), "{prompt}");
    }
}

#[test]
fn the_ledger_tells_the_runs_and_ends_the_faults() {
    let directory = Directory::create().expect("a directory");
    let ledger = directory.path().join("ledger");
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
    let directory = Directory::create().expect("a directory");
    let ledger = directory.path().join("ledger");
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
