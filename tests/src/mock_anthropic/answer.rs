//! What the API does with a request: the script's step for this call, or a word to people and tests whose
//! prompt is no script.

use std::time::Duration;

use crate::model::{ApiError, Pace, Reply, Script, Step};

use super::{conversation::Conversation, memory::Memory};

/// What becomes of a request.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// The model speaks.
    Reply(Reply, Ending),
    /// The API refuses; after these many seconds it may be asked again.
    Refusal(ApiError, Option<u64>),
    /// The connection breaks.
    Drop,
    /// Nothing comes until the client leaves.
    Silence,
}

/// How a stream ends; the faults come after two deltas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    Error(ApiError),
    Drop,
    Silence,
}

/// Decide on `conversation`, whose prompt reads as `script`.
pub(super) fn decide(conversation: &Conversation, script: Option<&Script>, memory: &Memory, demo: bool) -> Answer {
    let whole = |reply| Answer::Reply(reply, Ending::Whole);
    let Some(script) = script else {
        return whole(if demo { demonstration(&conversation.prompt) } else { echo(&conversation.prompt) });
    };
    let pace = script.settings.pace;
    let Some(step) = step(script, conversation) else {
        return whole(Reply::to_results(&conversation.results, pace));
    };
    let partial = || Reply::text("partial answer", pace);
    match step {
        Step::Fail(error, times) if memory.fails(script, conversation, *times) => {
            Answer::Refusal(error.clone(), script.settings.retry_after)
        }
        Step::StreamError(error, times) if memory.fails(script, conversation, *times) => {
            if conversation.is_streaming {
                Answer::Reply(partial(), Ending::Error(error.clone()))
            } else {
                Answer::Refusal(error.clone(), script.settings.retry_after)
            }
        }
        Step::Drop(times) if memory.fails(script, conversation, *times) => {
            if conversation.is_streaming {
                Answer::Reply(partial(), Ending::Drop)
            } else {
                Answer::Drop
            }
        }
        Step::HangMid if conversation.is_streaming => Answer::Reply(partial(), Ending::Silence),
        Step::Hang | Step::HangMid => Answer::Silence,
        step => whole(Reply::to(step, &conversation.said, pace)),
    }
}

/// The step of this call. `None` when only the tools' results are left to be told.
fn step<'a>(script: &'a Script, conversation: &Conversation) -> Option<&'a Step> {
    let last = script.steps.last()?;
    if script.is_sequence
        && let Some(step) = script.steps.get(conversation.answers)
    {
        return Some(step);
    }
    let goes_on = matches!(last, Step::Loop(_) | Step::Structured(_)) || conversation.results.is_empty();
    goes_on.then_some(last)
}

fn echo(prompt: &str) -> Reply {
    Reply::text(&format!("echo: {prompt}"), Pace { chunk: Some(16), delay: Duration::ZERO })
}

/// What somebody sees who started everything without a credential.
fn demonstration(prompt: &str) -> Reply {
    let words: Vec<&str> = prompt.split_whitespace().take(12).collect();
    let more = if prompt.split_whitespace().count() > words.len() { " …" } else { "" };
    let text = format!(
        "Hello! I am the offline demo model: no Claude credential is set, so nothing you write leaves this machine, and \
         nobody thinks about it either.\n\n\
         You asked: “{}{more}”\n\n\
         Everything else is real: your request became a job, a worker took it, the Claude CLI ran, and this answer was \
         streamed to you piece by piece. Set `ANTHROPIC_API_KEY` and start again to talk to Claude. Until then, try \
         `slow:20:0.5` to watch a long answer (or to cancel it), or `error:529:2` to see an overloaded API recover.",
        words.join(" ")
    );
    Reply::text(&text, Pace { chunk: Some(9), delay: Duration::from_millis(15) })
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::Block;

    fn ask(memory: &Memory, messages: &Value, demo: bool) -> Answer {
        let body = json!({"model": "m", "stream": true, "messages": messages});
        let conversation = Conversation::read(&HeaderMap::new(), &body).expect("a request");
        decide(&conversation, Script::parse(&conversation.prompt).as_ref(), memory, demo)
    }

    fn said(answer: &Answer) -> String {
        match answer {
            Answer::Reply(reply, Ending::Whole) => reply.blocks.iter().flat_map(Block::pieces).map(String::as_str).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fault_happens_as_often_as_asked_for() {
        let memory = Memory::default();
        let messages = json!([{"role": "user", "content": "@retry_after=3 error:429:2"}]);

        for _ in 0..2 {
            assert_eq!(ask(&memory, &messages, false), Answer::Refusal(ApiError::of_status(429), Some(3)));
        }

        assert_eq!(said(&ask(&memory, &messages, false)), "recovered");
    }

    #[test]
    fn a_sequence_takes_a_step_at_each_call_and_then_tells_the_results() {
        let memory = Memory::default();
        let mut messages = vec![json!({"role": "user", "content": "seq:say:one || say:two"})];

        assert_eq!(said(&ask(&memory, &json!(messages), false)), "one");
        messages.push(json!({"role": "assistant", "content": "one"}));
        assert_eq!(said(&ask(&memory, &json!(messages), false)), "two");
        messages.push(json!({"role": "assistant", "content": "two"}));
        messages.push(json!({"role": "user", "content": [{"type": "tool_result", "content": "hi"}]}));
        assert_eq!(said(&ask(&memory, &json!(messages), false)), "tool said: hi");
    }

    #[test]
    fn a_conversation_is_recalled_from_its_messages() {
        let user = |text: &str| json!({"role": "user", "content": [{"type": "text", "text": text}]});
        let messages = json!([
            user("<system-reminder>the date</system-reminder>"),
            user("recall:s1-t1"),
            {"role": "assistant", "content": "s1-t1"},
            user("say:s1-t2"),
            {"role": "assistant", "content": "s1-t2"},
            user("recall:s1-t3"),
        ]);

        assert_eq!(said(&ask(&Memory::default(), &messages, false)), "s1-t1 | s1-t2 | s1-t3");
    }

    #[test]
    fn the_demonstration_says_what_it_is_and_what_was_asked() {
        let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);

        let text = said(&ask(&Memory::default(), &messages, true));

        assert!(text.contains("offline demo model"), "{text}");
        assert!(text.contains("“What is the capital of France?”"), "{text}");
    }
}
