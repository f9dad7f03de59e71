//! What the command line and the environment say. Flags of the real CLI that change nothing here are
//! passed over, whatever they are.

use std::{collections::HashMap, env, path::PathBuf};

use serde_json::Value;

use crate::model::{CliFault, Script, Step};

/// The tools announced when `--tools` does not choose.
const DEFAULT_TOOLS: [&str; 21] = [
    "Task",
    "Bash",
    "CronCreate",
    "CronDelete",
    "CronList",
    "Edit",
    "EnterWorktree",
    "ExitWorktree",
    "ListAgents",
    "Monitor",
    "NotebookEdit",
    "Read",
    "ReportFindings",
    "ScheduleWakeup",
    "SendMessage",
    "TaskStop",
    "ToolSearch",
    "WebFetch",
    "WebSearch",
    "Workflow",
    "Write",
];
/// The tools that only `--tools` brings out.
const NAMED_TOOLS: [&str; 2] = ["Glob", "Grep"];

pub(super) struct Options {
    pub(super) asks_version: bool,
    pub(super) session: String,
    pub(super) start: Start,
    /// Whether a transcript is written.
    pub(super) is_kept: bool,
    /// Where the CLI keeps what is its own, if it knows a place.
    pub(super) config_dir: Option<PathBuf>,
    pub(super) model: String,
    pub(super) permission_mode: String,
    pub(super) tools: Vec<String>,
    pub(super) max_turns: Option<u32>,
    pub(super) max_retries: u32,
    pub(super) tells_state: bool,
    pub(super) at_start: Option<Script>,
}

/// How a session comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Begun,
    Resumed,
}

impl Options {
    pub(super) fn of_process() -> Self {
        let variables =
            ["CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "CLAUDE_CODE_MAX_RETRIES", "CLAUDE_CONFIG_DIR", "FAKE_CLAUDE_START", "HOME"];
        let environment = variables.iter().filter_map(|name| Some((*name, env::var(name).ok()?))).collect();
        Self::read(env::args().skip(1), &environment)
    }

    fn read(args: impl Iterator<Item = String>, environment: &HashMap<&str, String>) -> Self {
        let mut given = HashMap::new();
        let mut args = args.peekable();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--") else { continue };
            match flag.split_once('=') {
                Some((name, value)) => given.insert(name.to_owned(), value.to_owned()),
                None => given.insert(flag.to_owned(), args.next_if(|next| !next.starts_with("--")).unwrap_or_default()),
            };
        }
        let text = |name: &str| given.get(name).filter(|value| !value.is_empty()).cloned();
        let tools = match given.get("tools") {
            // What it does not know it passes over.
            Some(names) => names.split(',').filter(|name| DEFAULT_TOOLS.contains(name) || NAMED_TOOLS.contains(name)).collect(),
            None => DEFAULT_TOOLS.to_vec(),
        };
        let config_dir = environment.get("CLAUDE_CONFIG_DIR");
        Self {
            asks_version: given.contains_key("version"),
            session: text("session-id").or_else(|| text("resume")).unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
            start: if given.contains_key("resume") { Start::Resumed } else { Start::Begun },
            is_kept: !given.contains_key("no-session-persistence"),
            config_dir: config_dir.map(PathBuf::from).or_else(|| Some(PathBuf::from(environment.get("HOME")?).join(".claude"))),
            model: text("model").unwrap_or_else(|| "claude-opus-5-5".into()),
            permission_mode: text("permission-mode").unwrap_or_else(|| "default".into()),
            tools: tools.into_iter().map(str::to_owned).collect(),
            max_turns: text("max-turns").and_then(|turns| turns.parse().ok()),
            max_retries: environment.get("CLAUDE_CODE_MAX_RETRIES").and_then(|retries| retries.parse().ok()).unwrap_or(10),
            tells_state: environment.get("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS").is_some_and(|value| value == "1"),
            at_start: environment.get("FAKE_CLAUDE_START").and_then(|script| faults(script)),
        }
    }
}

/// The faults an `initialize` request asks for in its system prompt: they come before its answer.
pub(super) fn script_of(initialize: &Value) -> Option<Script> {
    ["systemPrompt", "appendSystemPrompt"].iter().find_map(|field| match &initialize[field] {
        Value::String(text) => faults(text),
        Value::Array(texts) => texts.iter().filter_map(Value::as_str).find_map(faults),
        _ => None,
    })
}

fn faults(text: &str) -> Option<Script> {
    let is_fault = |step: &Step| {
        matches!(
            step,
            Step::Cli(
                CliFault::Exit(_) | CliFault::Hang | CliFault::IgnoreTerm | CliFault::Children(_) | CliFault::Stderr(_) | CliFault::Garbage
            )
        )
    };
    Script::parse(text).filter(|script| script.steps.iter().all(is_fault))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(args: &str) -> Options {
        Options::read(args.split(' ').map(str::to_owned), &HashMap::new())
    }

    #[test]
    fn a_flag_has_its_value_after_an_equals_sign_or_a_space() {
        let options = read("-p --verbose --model=m --session-id s --tools Bash,Read --max-turns=3 --no-such-flag");

        assert_eq!((options.model.as_str(), options.session.as_str()), ("m", "s"));
        assert_eq!(options.tools, ["Bash", "Read"]);
        assert_eq!(options.max_turns, Some(3));
    }

    #[test]
    fn a_session_begins_or_is_resumed_and_is_kept_unless_it_is_not_to_be() {
        let begun = read("-p --session-id=a");
        let resumed = read("-p --resume=b --no-session-persistence");

        assert_eq!((begun.session.as_str(), begun.start, begun.is_kept), ("a", Start::Begun, true));
        assert_eq!((resumed.session.as_str(), resumed.start, resumed.is_kept), ("b", Start::Resumed, false));
    }

    #[test]
    fn what_is_the_clis_own_is_in_its_directory_or_at_home() {
        let config_dir = |environment: &[(&'static str, &str)]| {
            let environment = environment.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            Options::read(std::iter::empty(), &environment).config_dir
        };

        assert_eq!(config_dir(&[("HOME", "/h"), ("CLAUDE_CONFIG_DIR", "/c")]), Some("/c".into()));
        assert_eq!(config_dir(&[("HOME", "/h")]), Some("/h/.claude".into()));
        assert_eq!(config_dir(&[]), None);
    }

    #[test]
    fn no_tools_are_no_tools() {
        assert!(read("--tools=").tools.is_empty());
        assert_eq!(read("--print").tools, DEFAULT_TOOLS);
        assert_eq!(read("--tools=Grep,Teleport,Read").tools, ["Grep", "Read"]);
    }

    #[test]
    fn a_system_prompt_may_ask_for_faults_alone() {
        let script = script_of(&json!({"subtype": "initialize", "systemPrompt": ["cli:exit:3"]})).expect("a script");

        assert_eq!(script.steps, [Step::Cli(CliFault::Exit(3))]);
        assert_eq!(script_of(&json!({"systemPrompt": "say:hello"})), None);
    }
}
