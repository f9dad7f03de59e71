//! What a prompt asks of the scripted model. A prompt is `@name=value` settings, then one directive, such
//! as `@chunk=2 say:hello`; `seq:A || B` gives one directive for each model call of the turn. A text that
//! does not read as a script is an ordinary prompt, so nothing a user types can be wrong.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};

use super::{ApiError, CliFault};

/// The most pieces one answer is cut into.
const MAX_PIECES: u32 = 1_000_000;
/// The most bytes a script makes in one go.
pub(super) const MAX_BYTES: usize = 256 << 20;

/// A prompt that is a script.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// How it is played.
    pub settings: Settings,
    /// One for each model call; never empty.
    pub steps: Vec<Step>,
    /// Whether the steps were given with `seq:`, one for each call, and not once for all calls.
    pub is_sequence: bool,
}

/// The `@name=value` prefixes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `@chunk`, `@delay`: how an answer is cut into deltas.
    pub pace: Pace,
    /// `@in`: the prompt tokens to report, in place of an estimate.
    pub prompt_tokens: Option<u64>,
    /// `@retry_after`: seconds to ask for with an error.
    pub retry_after: Option<u64>,
    /// `@key`: count the `TIMES` of a fault for everyone who uses this key, not for one session.
    pub key: Option<String>,
    /// `@ledger`: where the fake CLI notes that it started and stopped.
    pub ledger: Option<PathBuf>,
    /// `@times`: let the CLI's faults happen in the first so many runs of the ledger only.
    pub times: Option<u32>,
}

/// How an answer becomes deltas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Characters in a delta; four when absent.
    pub chunk: Option<usize>,
    /// The time before each delta.
    pub delay: Duration,
}

/// What the model does in one call.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// `say:TEXT`
    Say(String),
    /// `recall:TEXT`: says all that a person said in this conversation, oldest first.
    Recall(String),
    /// `think:TEXT`: thinks it, then says it.
    Think(String),
    /// `tool:…`: announces the tool and calls it; `par:A;;B`: calls several Bash commands at once.
    Tools(Vec<ToolCall>),
    /// `loop:bash:CMD`: calls the tool again after each of its results.
    Loop(ToolCall),
    /// `slow:N:SECS`: so many deltas, so far apart.
    Slow(u32, Duration),
    /// `gated:N`: so many deltas, each once the test lets it out. The fake CLI has no gate: it says none of them.
    Gated(u32),
    /// `clock:N:SECS`: the same, each the nanoseconds since 1970 when it is said, for those who measure its way.
    Clock(u32, Duration),
    /// `flood:N`: so many small deltas as fast as they go.
    Flood(u32),
    /// `grow:BYTES`: a text so long, in large pieces, that does not compress to nothing.
    Grow(usize),
    /// `maxtok:TEXT`: runs into the token limit.
    MaxTokens(String),
    /// `json:{…}`: hands in this value as the structured output.
    Structured(Value),
    /// `refuse`
    Refuse,
    /// `empty`: answers without content.
    Empty,
    /// `error:CODE[:TIMES]`: the API refuses with this status.
    Fail(ApiError, Option<u32>),
    /// `sseerror:TYPE[:TIMES]`: an error event after two deltas.
    StreamError(ApiError, Option<u32>),
    /// `drop[:TIMES]`: the connection breaks after two deltas.
    Drop(Option<u32>),
    /// `hang`: no answer at all.
    Hang,
    /// `hangmid`: silence after two deltas.
    HangMid,
    /// `cli:…`: a fault of the CLI itself; the API takes it for a plain prompt.
    Cli(CliFault),
}

/// A tool and its arguments, as in a `tool_use` block.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Its name in API requests.
    pub name: String,
    /// Its arguments.
    pub input: Value,
    /// Whether the model says first that it will use it.
    pub is_announced: bool,
}

impl Script {
    /// Read `text` as a script. `None` when it is an ordinary prompt.
    pub fn parse(text: &str) -> Option<Self> {
        let (settings, directive) = split_settings(text.trim())?;
        if let Some(list) = directive.strip_prefix("seq:") {
            let steps = list.split("||").map(|step| Step::parse(step.trim())).collect::<Option<Vec<_>>>()?;
            return Some(Self { settings, steps, is_sequence: true });
        }
        Some(Self { settings, steps: vec![Step::parse(directive)?], is_sequence: false })
    }
}

impl Pace {
    /// The characters in a delta of text.
    pub fn chunk(self) -> usize {
        self.chunk.unwrap_or(4)
    }
}

impl ToolCall {
    /// The Bash tool with this command.
    pub fn bash(command: &str) -> Self {
        Self::new("Bash", json!({"command": command, "description": "run a command"}))
    }

    fn new(name: &str, input: Value) -> Self {
        Self { name: name.into(), input, is_announced: true }
    }

    fn parse(text: &str) -> Option<Self> {
        let (name, rest) = text.split_once(':')?;
        match name {
            "bash" => Some(Self::bash(rest)),
            "read" => Some(Self::new("Read", json!({"file_path": rest}))),
            "write" => {
                let (path, content) = rest.split_once(':')?;
                Some(Self::new("Write", json!({"file_path": path, "content": content})))
            }
            name => Some(Self::new(name, serde_json::from_str(rest).ok().filter(Value::is_object)?)),
        }
    }
}

impl Step {
    fn parse(text: &str) -> Option<Self> {
        let (word, rest) = text.split_once(':').map_or((text, None), |(word, rest)| (word, Some(rest)));
        match (word, rest) {
            ("say", Some(text)) => Some(Self::Say(text.into())),
            ("recall", Some(text)) => Some(Self::Recall(text.into())),
            ("think", Some(text)) => Some(Self::Think(text.into())),
            ("tool", Some(call)) => Some(Self::Tools(vec![ToolCall::parse(call)?])),
            ("par", Some(commands)) => {
                let call = |command| ToolCall { is_announced: false, ..ToolCall::bash(command) };
                Some(Self::Tools(commands.split(";;").map(call).collect()))
            }
            ("loop", Some(call)) => Some(Self::Loop(ToolCall::parse(call)?)),
            ("slow", Some(rest)) => paced(rest).map(|(count, every)| Self::Slow(count, every)),
            ("gated", Some(count)) => Some(Self::Gated(pieces(count)?)),
            ("clock", Some(rest)) => paced(rest).map(|(count, every)| Self::Clock(count, every)),
            ("flood", Some(count)) => Some(Self::Flood(pieces(count)?)),
            ("grow", Some(bytes)) => Some(Self::Grow(bytes.parse().ok().filter(|bytes| *bytes <= MAX_BYTES)?)),
            ("maxtok", Some(text)) => Some(Self::MaxTokens(text.into())),
            ("json", Some(value)) => Some(Self::Structured(serde_json::from_str(value).ok()?)),
            ("error", Some(rest)) => {
                let (status, times) = split_times(rest)?;
                let status = status.parse().ok().filter(|status| (400..600).contains(status))?;
                Some(Self::Fail(ApiError::of_status(status), times))
            }
            ("sseerror", Some(rest)) => {
                let (kind, times) = split_times(rest)?;
                Some(Self::StreamError(ApiError::of_kind(kind), times))
            }
            ("drop", None) => Some(Self::Drop(None)),
            ("drop", Some(times)) => Some(Self::Drop(Some(times.parse().ok()?))),
            ("hang", None) => Some(Self::Hang),
            ("hangmid", None) => Some(Self::HangMid),
            ("refuse", None) => Some(Self::Refuse),
            ("empty", None) => Some(Self::Empty),
            ("cli", Some(fault)) => Some(Self::Cli(CliFault::parse(fault)?)),
            _ => None,
        }
    }
}

fn split_settings(mut text: &str) -> Option<(Settings, &str)> {
    let mut settings = Settings::default();
    while let Some(rest) = text.strip_prefix('@') {
        let (setting, rest) = rest.split_once(' ')?;
        let (name, value) = setting.split_once('=')?;
        match name {
            "chunk" => settings.pace.chunk = Some(value.parse().ok().filter(|chunk| *chunk > 0)?),
            "delay" => settings.pace.delay = seconds(value)?,
            "in" => settings.prompt_tokens = Some(value.parse().ok()?),
            "retry_after" => settings.retry_after = Some(value.parse().ok()?),
            "key" => settings.key = Some(value.into()),
            "ledger" => settings.ledger = Some(value.into()),
            "times" => settings.times = Some(value.parse().ok()?),
            _ => return None,
        }
        text = rest.trim_start();
    }
    Some((settings, text))
}

fn split_times(text: &str) -> Option<(&str, Option<u32>)> {
    match text.split_once(':') {
        None => Some((text, None)),
        Some((what, times)) => Some((what, Some(times.parse().ok()?))),
    }
}

fn paced(text: &str) -> Option<(u32, Duration)> {
    let (count, secs) = text.split_once(':')?;
    Some((pieces(count)?, seconds(secs)?))
}

fn pieces(text: &str) -> Option<u32> {
    text.parse().ok().filter(|count| *count <= MAX_PIECES)
}

fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str) -> Option<Step> {
        Script::parse(text).map(|script| script.steps[0].clone())
    }

    #[test]
    fn a_prompt_says_how_and_what_to_answer() {
        let script = Script::parse("@chunk=2 @delay=0.01 say:one: two").expect("a script");

        assert_eq!(script.settings.pace, Pace { chunk: Some(2), delay: Duration::from_millis(10) });
        assert_eq!(script.steps, [Step::Say("one: two".into())]);
    }

    #[test]
    fn a_sequence_has_a_step_for_each_call() {
        let script = Script::parse("seq:tool:bash:a; b || error:529:2 || cli:exit:3").expect("a script");

        let expected = [
            Step::Tools(vec![ToolCall::bash("a; b")]),
            Step::Fail(ApiError { status: 529, kind: "overloaded_error".into() }, Some(2)),
            Step::Cli(CliFault::Exit(3)),
        ];
        assert_eq!(script.steps, expected);
    }

    #[test]
    fn what_does_not_read_as_a_script_is_a_prompt() {
        let prompts = [
            "",
            "hello",
            "drop the table",
            "error: it does not compile",
            "error:200",
            "slow:1",
            "clock:1",
            "grow:268435457",
            "cli:transcript:torn",
            "flood:1000001",
            "@you say:hi",
            "tool:hammer",
            "cli:exit:256",
            "seq:say:a || what",
        ];
        for prompt in prompts {
            assert_eq!(step(prompt), None, "{prompt:?}");
        }
    }

    #[test]
    fn a_tool_is_given_by_name_and_arguments() {
        let call = |text| match step(text) {
            Some(Step::Tools(calls)) => calls[0].clone(),
            other => panic!("{other:?}"),
        };

        assert_eq!(call("tool:write:/a/b:c:d").input, json!({"file_path": "/a/b", "content": "c:d"}));
        assert_eq!(call(r#"tool:Agent:{"prompt":"say:x"}"#), ToolCall::new("Agent", json!({"prompt": "say:x"})));
    }
}
