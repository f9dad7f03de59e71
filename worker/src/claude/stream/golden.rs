//! Recordings of the real CLI in `testdata/` beside what we make of them, and laws that hold for all of
//! them. `UPDATE_GOLDEN=1` rewrites the expectations; read the difference before you commit it.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde_json::{Value, json};
use shared::{
    event::EventBody,
    job::{NanoUsd, Usage},
};

use super::{Parser, Step, TurnResult};

#[test]
fn recordings_give_the_expected_steps() {
    let mut wrong = Vec::new();
    for (name, lines) in recordings() {
        let path = folder().join(format!("{name}.events.json"));
        let steps = written(&lines);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, steps).expect("testdata can be written");
        } else if fs::read_to_string(&path).ok() != Some(steps) {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "not as expected, compare with UPDATE_GOLDEN=1: {wrong:?}");
}

#[test]
fn a_message_comes_once_and_its_deltas_make_up_its_text() {
    for (name, lines) in recordings() {
        let mut streamed = BTreeMap::<String, String>::new();
        let mut messages = BTreeMap::<String, String>::new();
        for step in steps_of(&lines) {
            match step {
                Step::Event(EventBody::TextDelta { message_id, text, .. }) => streamed.entry(message_id).or_default().push_str(&text),
                Step::Event(EventBody::MessageWithdrawn { message_id }) => {
                    streamed.remove(&message_id);
                }
                Step::Event(EventBody::Message { message_id, content, .. }) => {
                    let text = content.as_array().expect("blocks").iter().filter_map(|block| block["text"].as_str()).collect();
                    assert_eq!(messages.insert(message_id.clone(), text), None, "{name}: {message_id} came twice");
                }
                _ => {}
            }
        }
        messages.retain(|_, text| !text.is_empty());
        if lines.iter().any(|line| is_result(line)) {
            assert_eq!(streamed, messages, "{name}");
        }
    }
}

#[test]
fn the_turns_of_a_process_are_billed_as_much_as_its_total() {
    let resumed = ["session_resume"];
    for (name, lines) in recordings().into_iter().filter(|(name, _)| !resumed.contains(&name.as_str())) {
        let billed: i64 = turns(&lines).iter().map(|turn| turn.cost.0).sum();
        let total = lines.iter().rev().find(|line| is_result(line)).map(|line| {
            let line: Value = serde_json::from_str(&super::line::text_of(line)).expect("a result");
            let costs = line["modelUsage"].as_object().expect("models").values().map(|model| model["costUSD"].as_f64().expect("a number"));
            NanoUsd::from_usd(costs.sum()).0
        });
        assert!((billed - total.unwrap_or(0)).abs() <= 2, "{name}: billed {billed}, total {total:?}");
    }
}

#[test]
fn a_session_that_goes_on_is_billed_for_this_process_alone() {
    let [turn]: [TurnResult; 1] = recorded_turns("session_resume").try_into().expect("one result");

    // The totals of that line hold the former process as well: 0.0762278 dollars.
    assert_eq!(turn.cost, NanoUsd(14_131_800));
    let Usage { input_tokens, output_tokens, cache_read_tokens, cache_write_tokens } = turn.usage;
    assert_eq!((input_tokens, output_tokens, cache_read_tokens, cache_write_tokens), (4, 4, 10_029, 2_406));
}

#[test]
fn what_the_stream_told_of_a_turn_is_what_its_result_tells() {
    // An answer taken back is not billed; of one cut short, of sub-agents and of calls beside the
    // conversation the result knows more; and one recording is made up.
    let others = [
        "api_sse_overloaded",
        "api_sse_then_ok",
        "v2.1.197_api_drop_then_ok",
        "interrupt_cancel_queued",
        "interrupt_streaming",
        "sigint_streaming",
        "subagent",
        "subagent_foreground",
        "subagent_forwarded_text",
        "slash_compact",
        "newer_cli",
    ];
    let mut compared = 0;
    for (name, lines) in recordings().into_iter().filter(|(name, _)| !others.contains(&name.as_str())) {
        let mut parser = Parser::new();
        for line in &lines {
            let untold = parser.untold();
            for step in parser.feed(line) {
                let Step::TurnEnded(turn) = step else { continue };
                assert_eq!(untold, turn.usage, "{name}");
                assert_eq!(parser.untold(), Usage::default(), "{name}");
                compared += 1;
            }
        }
    }
    assert!(compared > 50, "only {compared} turns");
}

#[test]
fn of_a_killed_process_the_tokens_are_known() {
    for name in ["sigkill_tool", "sigterm_streaming"] {
        let bytes = fs::read(folder().join(format!("{name}.jsonl"))).expect("the recording exists");
        let mut parser = Parser::new();
        for line in lines_of(&bytes) {
            parser.feed(&line);
        }

        let untold = parser.untold();

        assert!(untold.cache_write_tokens > 12_000 && untold.output_tokens > 0, "{name}: {untold:?}");
    }
}

#[test]
fn every_tool_call_is_closed_when_its_turn_ends() {
    for (name, lines) in recordings() {
        let mut parser = Parser::new();
        for line in &lines {
            for step in parser.feed(line) {
                if matches!(step, Step::TurnEnded(_)) {
                    assert_eq!(parser.open_tool_calls(), 0, "{name}");
                }
            }
        }
    }
}

#[test]
fn lines_not_understood_change_nothing_else() {
    let noise: [&[u8]; 6] = [
        b"{\"type\":\"mystery\"}",
        b"not json",
        b"\xff\xfe",
        b"{\"type\":\"system\",\"subtype\":\"mystery\"}",
        b"{\"type\":\"user\"}",
        b"[]",
    ];
    for (name, lines) in recordings() {
        let mut parser = Parser::new();
        let mut heard = 0;
        let steps: Vec<Step> = lines
            .iter()
            .enumerate()
            .flat_map(|(n, line)| {
                let aside = parser.feed(noise[n % noise.len()]);
                heard += aside.iter().filter(|step| matches!(step, Step::Unknown(_))).count();
                assert_eq!(aside.len(), 1, "{name}: {aside:?}");
                parser.feed(line)
            })
            .collect();
        assert_eq!(heard, lines.len(), "{name}");
        assert_eq!(steps, steps_of(&lines), "{name}");
    }
}

#[test]
fn a_line_cut_at_any_byte_is_passed_over() {
    for (name, lines) in recordings() {
        let Some((last, before)) = lines.split_last() else { continue };
        for end in (1..last.len()).step_by(31) {
            let mut parser = Parser::new();
            // What came before matters only for the state it leaves; the last lines of it are enough.
            for line in &before[before.len().saturating_sub(3)..] {
                parser.feed(line);
            }
            let steps = parser.feed(&last[..end]);
            assert!(matches!(steps.as_slice(), [Step::Unknown(_)] | []), "{name} cut at {end}: {steps:?}");
        }
    }
}

#[test]
fn only_the_made_up_recording_holds_unknown_lines() {
    for (name, lines) in recordings().into_iter().filter(|(name, _)| name != "newer_cli") {
        let unknown: Vec<Step> = steps_of(&lines).into_iter().filter(|step| matches!(step, Step::Unknown(_))).collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?}");
    }
}

/// The results of a recording, for tests that judge them.
pub(crate) fn recorded_turns(name: &str) -> Vec<TurnResult> {
    let bytes = fs::read(folder().join(format!("{name}.jsonl"))).expect("the recording exists");
    turns(&lines_of(&bytes))
}

fn turns(lines: &[Vec<u8>]) -> Vec<TurnResult> {
    let turns = steps_of(lines).into_iter().filter_map(|step| if let Step::TurnEnded(turn) = step { Some(*turn) } else { None });
    turns.collect()
}

fn is_result(line: &[u8]) -> bool {
    serde_json::from_str::<Value>(&super::line::text_of(line)).is_ok_and(|line| line["type"] == "result")
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/claude/testdata")
}

fn recordings() -> Vec<(String, Vec<Vec<u8>>)> {
    let mut recordings: Vec<_> = fs::read_dir(folder())
        .expect("testdata exists")
        .filter_map(|entry| {
            let path = entry.expect("testdata can be read").path();
            let name = path.file_name()?.to_str()?.strip_suffix(".jsonl")?.to_owned();
            Some((name, lines_of(&fs::read(&path).expect("a recording can be read"))))
        })
        .collect();
    recordings.sort();
    assert!(recordings.len() > 50, "recordings are missing");
    recordings
}

fn lines_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

fn steps_of(lines: &[Vec<u8>]) -> Vec<Step> {
    let mut parser = Parser::new();
    lines.iter().flat_map(|line| parser.feed(line)).collect()
}

/// The steps as JSON, one a line, each with the number of the line that gave it.
fn written(lines: &[Vec<u8>]) -> String {
    let mut parser = Parser::new();
    let mut rows = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        for step in parser.feed(line) {
            rows.push(format!("  [{}, {}]", n + 1, shown(&step)));
        }
    }
    format!("[\n{}\n]\n", rows.join(",\n"))
}

fn shown(step: &Step) -> Value {
    match step {
        Step::Event(body) => json!({"event": body}),
        Step::Initialized { model, tools, version } => json!({"initialized": {"model": model, "tools": tools, "version": version}}),
        Step::Answered(answer) => {
            let refused = answer.outcome.as_ref().err().map(|refused| json!({"message": refused.message, "code": refused.code}));
            json!({"answered": {"request_id": answer.request_id, "refused": refused}})
        }
        Step::Asked(question) => json!({"asked": {"request_id": question.request_id, "subtype": question.subtype}}),
        Step::Retrying { attempt, delay_ms, status } => json!({"retrying": {"attempt": attempt, "delay_ms": delay_ms, "status": status}}),
        Step::TurnEnded(turn) => shown_turn(turn),
        Step::Idle => json!("idle"),
        Step::Unknown(what) => json!({"unknown": what}),
    }
}

fn shown_turn(turn: &TurnResult) -> Value {
    let mut shown = json!({"turn_ended": {
            "is_error": turn.is_error,
            "subtype": turn.subtype,
            "terminal_reason": turn.terminal_reason,
            "text": turn.text,
            "stop_reason": turn.stop_reason,
            "num_turns": turn.num_turns,
            "permission_denials": turn.permission_denials,
            "usage": turn.usage,
            "cost_nano_usd": turn.cost.0,
            "model": turn.model,
            "api_error_status": turn.api_error_status,
            "api_error": turn.api_error,
            "errors": turn.errors,
            "retry_delay_ms": turn.retry_delay.map(|delay| u64::try_from(delay.as_millis()).expect("a short wait")),
    }});
    if let Some(output) = &turn.structured_output {
        shown["turn_ended"]["structured_output"] = output.clone();
    }
    shown
}
