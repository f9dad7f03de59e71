//! How the CLI is started for a job: its arguments and its environment, both whole. No setting, hook, MCP
//! server or memory file of the workspace or the machine reaches it, and no prompt is an argument:
//! prompts go in by [`super::control`].

use std::{path::PathBuf, time::Duration};

use shared::{
    job::{ChatSpec, Effort, NanoUsd, Thinking},
    trace_context::TraceContext,
};
use uuid::Uuid;

use crate::mcp::Grant;

/// What `exec` needs besides the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// Everything after the program's name.
    pub args: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(String, String)>,
}

/// Where the process lives.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// An empty home. The CLI must not fall back to that of the worker's user.
    pub home: PathBuf,
    /// The CLI's own files, transcripts among them.
    pub config_dir: PathBuf,
    /// Temporary files, of its tools too.
    pub tmp_dir: PathBuf,
    /// Where its tools look for programs.
    pub path: String,
    /// The way to the API.
    pub relay: Relay,
    /// How long the API may take to begin an answer.
    pub api_timeout: Duration,
    /// How long the API may be silent in the middle of an answer. The CLI takes no less than 10 s.
    pub stream_idle_timeout: Duration,
    /// Where this process belongs in a trace, for it and tools that report one.
    pub trace: Option<TraceContext>,
}

/// The relay that stands for the API and adds the credential, which a job never holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relay {
    /// A socket in a directory of the job's; works without any network.
    UnixSocket(PathBuf),
    /// A URL on loopback.
    Url(String),
}

/// Stands where the CLI insists on a credential.
pub const PLACEHOLDER_KEY: &str = "added-by-the-relay";

/// The conversation a process takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// None that is kept.
    OneShot,
    /// One that begins, under this id.
    New(Uuid),
    /// One that goes on; its transcript is among the CLI's own files.
    Resumed(Uuid),
}

/// What a job may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permits {
    /// The CLI's own tools.
    pub tools: Vec<String>,
    /// MCP servers, or some of their tools.
    pub mcp: Vec<Grant>,
}

/// The command line of a job that may use what `permits` say and cost `budget`.
pub fn build(spec: &ChatSpec, thread: Thread, permits: &Permits, budget: Option<NanoUsd>, surroundings: &Surroundings) -> CommandLine {
    let mut env = environment(surroundings);
    if !permits.mcp.is_empty() {
        env.extend(MCP_ENV.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    CommandLine { args: arguments(spec, thread, permits, budget), env }
}

/// The command line of a process that is asked what it offers: as a job's that says nothing about tools, or
/// names these.
pub fn question(named: Option<&[String]>, surroundings: &Surroundings) -> CommandLine {
    let mut args = base(Thread::OneShot);
    args.extend(named.map(|tools| format!("--tools={}", tools.join(","))));
    CommandLine { args, env: environment(surroundings) }
}

/// The arguments. Values are joined to their flags: none can be read as a flag of its own.
fn arguments(spec: &ChatSpec, thread: Thread, permits: &Permits, budget: Option<NanoUsd>) -> Vec<String> {
    let mut args = base(thread);
    let Permits { tools, mcp } = permits;
    let rules: Vec<String> = tools.iter().cloned().chain(mcp.iter().flat_map(Grant::rules)).collect();
    if tools.is_empty() {
        args.extend(["--bare", "--tools="].map(str::to_owned));
    } else {
        args.push(format!("--tools={}", tools.join(",")));
    }
    if !rules.is_empty() {
        args.push(format!("--allowedTools={}", rules.join(",")));
        args.push("--permission-mode=dontAsk".to_owned());
    }
    if !tools.is_empty() {
        args.push("--forward-subagent-text".to_owned());
    }
    let options = [
        ("--model", spec.model.clone()),
        ("--fallback-model", spec.fallback_model.clone()),
        ("--effort", spec.effort.map(Effort::as_str).map(str::to_owned)),
        ("--thinking", spec.thinking.map(Thinking::as_str).map(str::to_owned)),
        ("--max-turns", spec.max_turns.map(|turns| turns.to_string())),
        ("--max-budget-usd", budget.map(|budget| budget.usd().to_string())),
    ];
    args.extend(options.into_iter().filter_map(|(flag, value)| value.map(|value| format!("{flag}={value}"))));
    args
}

fn base(thread: Thread) -> Vec<String> {
    let mut args: Vec<String> = BASE.iter().copied().map(str::to_owned).collect();
    // Without a snapshot of the system prompt, each turn has the one it asks for.
    match thread {
        Thread::OneShot => args.push("--no-session-persistence".to_owned()),
        Thread::New(id) => args.extend([format!("--session-id={id}"), "--system-prompt-snapshot=off".to_owned()]),
        Thread::Resumed(id) => args.extend([format!("--resume={id}"), "--system-prompt-snapshot=off".to_owned()]),
    }
    args
}

/// The environment, as an allow-list. Tools see all of it.
pub fn environment(surroundings: &Surroundings) -> Vec<(String, String)> {
    let Surroundings { home, config_dir, tmp_dir, path, relay, api_timeout, stream_idle_timeout, trace } = surroundings;
    let (base_url, socket) = match relay {
        Relay::Url(url) => (url.clone(), None),
        // The CLI wants a URL even if it never looks up its host.
        Relay::UnixSocket(socket) => ("http://localhost".to_owned(), Some(text(socket))),
    };
    let own = [
        ("HOME", Some(text(home))),
        ("CLAUDE_CONFIG_DIR", Some(text(config_dir))),
        ("TMPDIR", Some(text(tmp_dir))),
        ("CLAUDE_CODE_TMPDIR", Some(text(tmp_dir))),
        ("PATH", Some(path.clone())),
        ("ANTHROPIC_BASE_URL", Some(base_url)),
        ("ANTHROPIC_UNIX_SOCKET", socket),
        ("ANTHROPIC_API_KEY", Some(PLACEHOLDER_KEY.to_owned())),
        ("API_TIMEOUT_MS", Some(api_timeout.as_millis().to_string())),
        ("CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS", Some(stream_idle_timeout.as_millis().to_string())),
        ("TRACEPARENT", trace.as_ref().map(|trace| trace.traceparent().to_owned())),
        ("TRACESTATE", trace.as_ref().and_then(TraceContext::tracestate).map(str::to_owned)),
    ];
    let own = own.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_owned(), value)));
    own.chain(FIXED_ENV.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))).collect()
}

/// What every job is started with.
const BASE: [&str; 8] = [
    "-p",
    "--output-format=stream-json",
    "--input-format=stream-json",
    "--verbose",
    "--include-partial-messages",
    "--setting-sources=",
    "--strict-mcp-config",
    "--disable-slash-commands",
];

const FIXED_ENV: [(&str, &str); 10] = [
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
    // The relay is on loopback: no proxy may come between.
    ("NO_PROXY", "127.0.0.1,localhost"),
    ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    ("DISABLE_TELEMETRY", "1"),
    ("DISABLE_AUTOUPDATER", "1"),
    ("DISABLE_ERROR_REPORTING", "1"),
    // Without it nothing tells that a turn's result is the last.
    ("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1"),
    // The CLI's own ten retries take three minutes of a slot; a job is retried as a whole.
    ("CLAUDE_CODE_MAX_RETRIES", "2"),
    ("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "1"),
];

/// What a job with MCP servers is started with besides: all their tools are shown to the model, and a server
/// that is silent holds a job up no longer than the worker lets it.
const MCP_ENV: [(&str, &str); 3] = [("ENABLE_TOOL_SEARCH", "0"), ("MCP_TIMEOUT", "15000"), ("MCP_TOOL_TIMEOUT", "3600000")];

/// A path that the worker made itself, of plain names.
fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use shared::job::Message;

    use super::*;

    fn surroundings(relay: Relay) -> Surroundings {
        Surroundings {
            home: "/home/job".into(),
            config_dir: "/cfg".into(),
            tmp_dir: "/tmp".into(),
            path: "/usr/bin:/bin".into(),
            relay,
            api_timeout: Duration::from_mins(2),
            stream_idle_timeout: Duration::from_mins(1),
            trace: None,
        }
    }

    fn permits(tools: &[&str]) -> Permits {
        Permits { tools: tools.iter().map(|tool| (*tool).to_owned()).collect(), mcp: Vec::new() }
    }

    fn socket() -> Surroundings {
        surroundings(Relay::UnixSocket("/sock/api.sock".into()))
    }

    #[test]
    fn a_chat_only_job_has_no_tools_and_reads_no_settings() {
        let line = build(&ChatSpec::text("hi"), Thread::OneShot, &Permits::default(), None, &socket());

        assert_eq!(
            line.args.join(" "),
            "-p --output-format=stream-json --input-format=stream-json --verbose --include-partial-messages --setting-sources= \
             --strict-mcp-config --disable-slash-commands --no-session-persistence --bare --tools="
        );
    }

    #[test]
    fn a_turn_names_its_conversation_and_whether_that_has_begun() {
        let id = Uuid::from_u128(7);
        let of =
            |thread| build(&ChatSpec::text("hi"), thread, &Permits::default(), None, &socket()).args[BASE.len()..BASE.len() + 2].join(" ");

        let id_text = "00000000-0000-0000-0000-000000000007";
        assert_eq!(of(Thread::New(id)), format!("--session-id={id_text} --system-prompt-snapshot=off"));
        assert_eq!(of(Thread::Resumed(id)), format!("--resume={id_text} --system-prompt-snapshot=off"));
    }

    #[test]
    fn an_agent_job_may_use_its_tools_and_is_never_asked() {
        let line = build(&ChatSpec::text("hi"), Thread::OneShot, &permits(&["Bash", "Read"]), None, &socket());

        assert!(
            line.args.join(" ").ends_with("--tools=Bash,Read --allowedTools=Bash,Read --permission-mode=dontAsk --forward-subagent-text")
        );
        assert!(line.args.contains(&"--setting-sources=".to_owned()));
        assert!(!line.args.contains(&"--bare".to_owned()));
    }

    #[test]
    fn of_mcp_servers_a_job_may_use_what_it_was_granted_and_sees_it_at_once() {
        let grant = |server: &str, tools: Option<&[&str]>| Grant {
            server: server.into(),
            tools: tools.map(|tools| tools.iter().map(|tool| (*tool).to_owned()).collect()),
        };
        let mcp = vec![grant("docs", None), grant("wiki", Some(&["search"]))];
        let of = |tools: &[&str]| {
            let line = build(&ChatSpec::text("hi"), Thread::OneShot, &Permits { mcp: mcp.clone(), ..permits(tools) }, None, &socket());
            (line.args[BASE.len() + 1..].join(" "), line.env)
        };

        let (chat, env) = of(&[]);
        assert_eq!(chat, "--bare --tools= --allowedTools=mcp__docs,mcp__wiki__search --permission-mode=dontAsk");
        assert!(env.contains(&("ENABLE_TOOL_SEARCH".into(), "0".into())));
        let (agent, _) = of(&["Read"]);
        assert_eq!(agent, "--tools=Read --allowedTools=Read,mcp__docs,mcp__wiki__search --permission-mode=dontAsk --forward-subagent-text");
    }

    #[test]
    fn a_question_is_put_as_a_job_would_be_and_limits_no_tools_of_itself() {
        let plain = question(None, &socket());
        let named = question(Some(&["Glob".into(), "Grep".into()]), &socket());

        assert_eq!(plain.args, base(Thread::OneShot));
        assert_eq!(named.args[BASE.len() + 1..], ["--tools=Glob,Grep"]);
        assert_eq!(plain.env, environment(&socket()));
    }

    #[test]
    fn an_option_is_one_argument_whatever_its_value() {
        let spec = ChatSpec {
            model: Some("--dangerously-skip-permissions".into()),
            fallback_model: Some("a,b".into()),
            effort: Some(Effort::Xhigh),
            thinking: Some(Thinking::Disabled),
            max_turns: Some(3),
            ..ChatSpec::text("hi")
        };

        let line = build(&spec, Thread::OneShot, &Permits::default(), Some(NanoUsd(100)), &socket());

        assert_eq!(
            line.args[BASE.len() + 3..],
            [
                "--model=--dangerously-skip-permissions",
                "--fallback-model=a,b",
                "--effort=xhigh",
                "--thinking=disabled",
                "--max-turns=3",
                "--max-budget-usd=0.0000001"
            ]
        );
    }

    #[test]
    fn prompts_are_on_no_command_line() {
        let spec = ChatSpec {
            message: Message::Text("secret".into()),
            system_prompt: Some("secret".into()),
            append_system_prompt: Some("secret".into()),
            metadata: [("secret".into(), "secret".into())].into(),
            ..ChatSpec::text("")
        };

        for permits in [Permits::default(), permits(&["Bash"])] {
            let line = format!("{:?}", build(&spec, Thread::OneShot, &permits, None, &socket()));
            assert!(!line.contains("secret"), "{line}");
        }
    }

    #[test]
    fn the_environment_is_an_allow_list() {
        let parent: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let state: &[u8] = b"vendor=1";
        let trace = TraceContext::of_headers([parent].into_iter(), [state].into_iter());
        let mut env = environment(&Surroundings { trace, ..socket() });
        env.sort();

        let env: Vec<String> = env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            env,
            [
                "ANTHROPIC_API_KEY=added-by-the-relay",
                "ANTHROPIC_BASE_URL=http://localhost",
                "ANTHROPIC_UNIX_SOCKET=/sock/api.sock",
                "API_TIMEOUT_MS=120000",
                "CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS=60000",
                "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS=1",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1",
                "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS=1",
                "CLAUDE_CODE_MAX_RETRIES=2",
                "CLAUDE_CODE_TMPDIR=/tmp",
                "CLAUDE_CONFIG_DIR=/cfg",
                "DISABLE_AUTOUPDATER=1",
                "DISABLE_ERROR_REPORTING=1",
                "DISABLE_TELEMETRY=1",
                "HOME=/home/job",
                "LANG=C.UTF-8",
                "NO_PROXY=127.0.0.1,localhost",
                "PATH=/usr/bin:/bin",
                "TERM=dumb",
                "TMPDIR=/tmp",
                "TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "TRACESTATE=vendor=1",
            ]
        );
    }

    #[test]
    fn a_relay_on_loopback_needs_no_socket() {
        let env = environment(&surroundings(Relay::Url("http://127.0.0.1:4000/x".into())));

        assert!(env.contains(&("ANTHROPIC_BASE_URL".into(), "http://127.0.0.1:4000/x".into())));
        assert!(env.iter().all(|(name, _)| name != "ANTHROPIC_UNIX_SOCKET"));
    }
}
