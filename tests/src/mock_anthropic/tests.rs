use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

fn client() -> reqwest::Client {
    // Fails when another test of this process was first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().expect("a client of plain HTTP")
}

fn ask(mock: &MockAnthropic, prompt: &str, is_streaming: bool) -> reqwest::RequestBuilder {
    let body = json!({
        "model": "m", "max_tokens": 10, "stream": is_streaming,
        "system": [{"type": "text", "text": "You are terse.", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": prompt}],
    });
    client().post(format!("{}/v1/messages?beta=true", mock.url())).json(&body)
}

/// The data of the server-sent events in `text`, by event name.
fn events(text: &str) -> Vec<(String, Value)> {
    let event = |block: &str| {
        let lines: BTreeMap<_, _> = block.lines().filter_map(|line| line.split_once(": ")).collect();
        (lines["event"].to_owned(), serde_json::from_str(lines["data"]).expect("JSON"))
    };
    text.split_terminator("\n\n").map(event).collect()
}

#[tokio::test]
async fn a_streamed_answer_is_framed_as_the_api_frames_it() {
    let mock = MockAnthropic::start().await.expect("a port");

    let response = ask(&mock, "@chunk=5 say:hello\nworld", true).send().await.expect("an answer");

    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let events = events(&response.text().await.expect("a body"));
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let expected = ["message_start", "ping", "content_block_start", "content_block_delta", "content_block_delta", "content_block_delta"];
    assert_eq!(names, [&expected[..], &["content_block_stop", "message_delta", "message_stop"]].concat());
    assert!(events.iter().all(|(name, data)| data["type"] == name.as_str()));
    let text: String = events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(text, "hello\nworld");
    mock.stop().await;
}

#[tokio::test]
async fn a_gated_answer_says_each_piece_when_it_is_let_out() {
    let mock = MockAnthropic::start().await.expect("a port");
    let mut response = ask(&mock, "gated:2", true).send().await.expect("an answer");
    let mut heard = String::new();

    for next in ["content_block_start", "tick 0 "] {
        while !heard.contains(next) {
            let chunk = response.chunk().await.expect("a piece").expect("more to come");
            heard += std::str::from_utf8(&chunk).expect("UTF-8");
        }
        assert!(!heard.contains(if next == "tick 0 " { "tick 1 " } else { "tick 0 " }), "{heard}");
        mock.let_out(1);
    }

    let rest = response.text().await.expect("the rest");
    assert!(rest.contains("tick 1 ") && rest.contains("message_stop"), "{rest}");
    mock.stop().await;
}

#[tokio::test]
async fn a_grown_answer_comes_whole_and_in_large_pieces() {
    let mock = MockAnthropic::start().await.expect("a port");

    let response = ask(&mock, "grow:1000000", true).send().await.expect("an answer");

    let events = events(&response.text().await.expect("a body"));
    let pieces: Vec<_> = events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(pieces.iter().map(|piece| piece.len()).sum::<usize>(), 1_000_000);
    assert!(pieces.len() < 20, "{}", pieces.len());
}

#[tokio::test]
async fn the_second_call_of_a_session_reads_the_prompt_from_the_cache() {
    let mock = MockAnthropic::start().await.expect("a port");
    let mut usages = Vec::new();

    for _ in 0..2 {
        let request = ask(&mock, "say:hi", false).header("x-claude-code-session-id", "s");
        let message: Value = request.send().await.expect("an answer").json().await.expect("JSON");
        usages.push(message["usage"].clone());
    }

    let prompt = usages[0]["cache_creation_input_tokens"].as_u64().expect("a number");
    assert!(prompt > 0);
    assert_eq!(usages[1]["cache_creation_input_tokens"], 0);
    assert_eq!(usages[1]["cache_read_input_tokens"], prompt);
}

#[tokio::test]
async fn a_dropped_stream_breaks_instead_of_ending() {
    let mock = MockAnthropic::start().await.expect("a port");

    let response = ask(&mock, "drop:1", true).send().await.expect("a head");
    assert!(response.text().await.is_err());
    assert!(ask(&mock, "drop", false).send().await.is_err());

    let response = ask(&mock, "drop:1", true).send().await.expect("a head");
    assert!(response.text().await.expect("whole").contains("reco"));
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_answer() {
    let mock = MockAnthropic::start().await.expect("a port");

    for prompt in ["hang", "hangmid", "slow:1000:3600"] {
        let before = mock.service.log.all().len() as u64;
        let asking = tokio::spawn(ask(&mock, prompt, true).send());
        mock.received(before + 1).await;
        asking.abort();
        mock.idle().await;
    }
}

#[tokio::test]
async fn refusals_have_the_form_of_the_api() {
    let options = Options { require_key: Some("k".into()), ..Options::default() };
    let mock = MockAnthropic::start_with(options).await.expect("a port");

    let stranger = ask(&mock, "say:hi", true).header("x-api-key", "other").send().await.expect("an answer");
    let lost = client().get(format!("{}/v2", mock.url())).bearer_auth("k").send().await.expect("an answer");
    let busy = ask(&mock, "@retry_after=7 error:529", true).header("x-api-key", "k").send().await.expect("an answer");

    assert_eq!((stranger.status().as_u16(), lost.status().as_u16(), busy.status().as_u16()), (401, 404, 529));
    assert_eq!(busy.headers()["retry-after"], "7");
    let body: Value = busy.json().await.expect("JSON");
    assert_eq!(body, json!({"type": "error", "error": {"type": "overloaded_error", "message": "mock overloaded_error"}}));
}

#[tokio::test]
async fn what_it_was_asked_can_be_read_afterwards() {
    let mock = MockAnthropic::start_with(Options { keep: 2, ..Options::default() }).await.expect("a port");

    for prompt in ["say:1", "say:2", "say:3"] {
        ask(&mock, prompt, false).header("x-api-key", "k").send().await.expect("an answer");
    }

    mock.received(3).await;
    let prompts: Vec<_> = mock.requests().iter().map(|request| request.body["messages"][0]["content"].clone()).collect();
    assert_eq!(prompts, ["say:2", "say:3"]);
    assert_eq!(mock.requests()[0].header("x-api-key"), Some("k"));
    assert_eq!(mock.requests()[0].path, "/v1/messages?beta=true");
}
