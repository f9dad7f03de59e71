//! What a failed turn or a dead process means for the job: a word for clients, and whether another attempt
//! may help. `detail` goes to clients: it holds no prompt, nothing of stderr a prompt could be in, and
//! nothing of how this service reaches the API.

use std::time::Duration;

use shared::job::JobError;

use super::{process::Exit, stream::TurnResult};

/// Why an attempt failed, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What clients are told.
    pub error: JobError,
    /// Whether the job is worth another attempt.
    pub retry: Retry,
}

/// Whether a job is worth another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It would fail again.
    No,
    /// It may pass.
    Yes {
        /// Not sooner than this, where the API asked for patience.
        after: Option<Duration>,
    },
}

/// The words for what goes wrong between us and the model. Clients switch on them: they stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the sentences in `Code::sentence` say what each means")]
pub enum Code {
    UpstreamRateLimited,
    UpstreamOverloaded,
    UpstreamUnavailable,
    UpstreamAuth,
    ModelNotFound,
    InvalidRequest,
    RequestTooLarge,
    Refused,
    MaxTurns,
    BudgetExceeded,
    MaxOutputTokens,
    StructuredOutputFailed,
    OutputTooLarge,
    TimedOut,
    IdleTimeout,
    ToolsUnavailable,
    ToolNotAllowed,
    Interrupted,
    InternalError,
    CliUnavailable,
    CliLineTooLong,
    CliRejectedOptions,
    CliCrashed,
    CliNoOutput,
    SessionNotSaved,
    SessionNotRestored,
    SessionTooLarge,
    SessionUnreadable,
    WorkspaceTooLarge,
    McpServerUnknown,
}

impl Code {
    /// Every word.
    pub const ALL: [Self; 30] = [
        Self::UpstreamRateLimited,
        Self::UpstreamOverloaded,
        Self::UpstreamUnavailable,
        Self::UpstreamAuth,
        Self::ModelNotFound,
        Self::InvalidRequest,
        Self::RequestTooLarge,
        Self::Refused,
        Self::MaxTurns,
        Self::BudgetExceeded,
        Self::MaxOutputTokens,
        Self::StructuredOutputFailed,
        Self::OutputTooLarge,
        Self::TimedOut,
        Self::IdleTimeout,
        Self::ToolsUnavailable,
        Self::ToolNotAllowed,
        Self::Interrupted,
        Self::InternalError,
        Self::CliUnavailable,
        Self::CliLineTooLong,
        Self::CliRejectedOptions,
        Self::CliCrashed,
        Self::CliNoOutput,
        Self::SessionNotSaved,
        Self::SessionNotRestored,
        Self::SessionTooLarge,
        Self::SessionUnreadable,
        Self::WorkspaceTooLarge,
        Self::McpServerUnknown,
    ];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UpstreamRateLimited => "upstream_rate_limited",
            Self::UpstreamOverloaded => "upstream_overloaded",
            Self::UpstreamUnavailable => "upstream_unavailable",
            Self::UpstreamAuth => "upstream_auth",
            Self::ModelNotFound => "model_not_found",
            Self::InvalidRequest => "invalid_request",
            Self::RequestTooLarge => "request_too_large",
            Self::Refused => "refused",
            Self::MaxTurns => "max_turns",
            Self::BudgetExceeded => "budget_exceeded",
            Self::MaxOutputTokens => "max_output_tokens",
            Self::StructuredOutputFailed => "structured_output_failed",
            Self::OutputTooLarge => "output_too_large",
            Self::TimedOut => "timed_out",
            Self::IdleTimeout => "idle_timeout",
            Self::ToolsUnavailable => "tools_unavailable",
            Self::ToolNotAllowed => "tool_not_allowed",
            Self::Interrupted => "interrupted",
            Self::InternalError => "internal_error",
            Self::CliUnavailable => "cli_unavailable",
            Self::CliLineTooLong => "cli_line_too_long",
            Self::CliRejectedOptions => "cli_rejected_options",
            Self::CliCrashed => "cli_crashed",
            Self::CliNoOutput => "cli_no_output",
            Self::SessionNotSaved => "session_not_saved",
            Self::SessionNotRestored => "session_not_restored",
            Self::SessionTooLarge => "session_too_large",
            Self::SessionUnreadable => "session_unreadable",
            Self::WorkspaceTooLarge => "workspace_too_large",
            Self::McpServerUnknown => "mcp_server_unknown",
        }
    }

    /// Whether the same job may pass when tried again.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::UpstreamRateLimited
            | Self::UpstreamOverloaded
            | Self::UpstreamUnavailable
            | Self::Interrupted
            | Self::CliCrashed
            | Self::CliNoOutput
            | Self::SessionNotSaved
            | Self::SessionNotRestored => true,
            Self::UpstreamAuth
            | Self::ModelNotFound
            | Self::InvalidRequest
            | Self::RequestTooLarge
            | Self::Refused
            | Self::MaxTurns
            | Self::BudgetExceeded
            | Self::MaxOutputTokens
            | Self::StructuredOutputFailed
            | Self::OutputTooLarge
            | Self::TimedOut
            | Self::IdleTimeout
            | Self::ToolsUnavailable
            | Self::ToolNotAllowed
            | Self::InternalError
            | Self::CliUnavailable
            | Self::CliLineTooLong
            | Self::CliRejectedOptions
            | Self::SessionTooLarge
            | Self::SessionUnreadable
            | Self::WorkspaceTooLarge
            | Self::McpServerUnknown => false,
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::UpstreamRateLimited => "the model provider limits the rate of requests",
            Self::UpstreamOverloaded => "the model provider is overloaded",
            Self::UpstreamUnavailable => "the model provider did not give an answer",
            Self::UpstreamAuth => "the model provider refused this service's credential",
            Self::ModelNotFound => "the model does not exist or is not available to this service",
            Self::InvalidRequest => "the model provider refused the request",
            Self::RequestTooLarge => "the request is too large for the model provider",
            Self::Refused => "the model refused to answer",
            Self::MaxTurns => "the limit of `max_turns` was reached",
            Self::BudgetExceeded => "the limit of `max_budget_usd` was reached",
            Self::MaxOutputTokens => "the answer was longer than the model may write",
            Self::StructuredOutputFailed => "the model gave no output that fits the schema",
            Self::OutputTooLarge => "the output was larger than a job may have",
            Self::TimedOut => "the run took longer than it may",
            Self::IdleTimeout => "the CLI was silent for longer than it may be",
            Self::ToolsUnavailable => "the job asks for tools, which this service cannot run safely",
            Self::ToolNotAllowed => "the job asks for a tool that it may not use",
            Self::Interrupted => "the run was interrupted",
            Self::InternalError => "the worker could not run the job",
            Self::CliUnavailable => "the CLI could not be started",
            Self::CliLineTooLong => "the CLI printed a line longer than it may be",
            Self::CliRejectedOptions => "the CLI did not accept the job's options",
            Self::CliCrashed => "the CLI ended before it had an answer",
            Self::CliNoOutput => "the CLI gave no answer",
            Self::SessionNotSaved => "the conversation could not be kept, so the turn does not count",
            Self::SessionNotRestored => "what the conversation goes on from could not be laid out",
            Self::SessionTooLarge => "the conversation is longer than one may be: begin another",
            Self::SessionUnreadable => "what the conversation goes on from cannot be read",
            Self::WorkspaceTooLarge => "the workspace holds more than it may",
            Self::McpServerUnknown => "the job names an MCP server that its worker does not know",
        }
    }

    /// Whether the CLI's own words help the client and tell nothing of this service.
    fn is_explained(self) -> bool {
        match self {
            Self::InvalidRequest | Self::RequestTooLarge | Self::Refused | Self::StructuredOutputFailed => true,
            Self::UpstreamRateLimited
            | Self::UpstreamOverloaded
            | Self::UpstreamUnavailable
            | Self::UpstreamAuth
            | Self::ModelNotFound
            | Self::MaxTurns
            | Self::BudgetExceeded
            | Self::MaxOutputTokens
            | Self::OutputTooLarge
            | Self::TimedOut
            | Self::IdleTimeout
            | Self::ToolsUnavailable
            | Self::ToolNotAllowed
            | Self::Interrupted
            | Self::InternalError
            | Self::CliUnavailable
            | Self::CliLineTooLong
            | Self::CliRejectedOptions
            | Self::CliCrashed
            | Self::CliNoOutput
            | Self::SessionNotSaved
            | Self::SessionNotRestored
            | Self::SessionTooLarge
            | Self::SessionUnreadable
            | Self::WorkspaceTooLarge
            | Self::McpServerUnknown => false,
        }
    }
}

impl Failure {
    /// A failure told in the words of its code.
    pub fn new(code: Code) -> Self {
        Self::told(code, code.sentence().to_owned())
    }

    /// The day's budget of the job's owner was used up before it began.
    pub fn of_day() -> Self {
        Self::told(Code::BudgetExceeded, "the budget of its day (UTC) was used up before it began".to_owned())
    }

    /// The job names `tool`, which it may not use.
    pub fn of_tool(tool: &str) -> Self {
        let code = Code::ToolNotAllowed;
        Self::told(code, format!("{}: `{tool}`", code.sentence()))
    }

    /// The job names the MCP server `name`, which is not there.
    pub fn of_unknown_server(name: &str) -> Self {
        let code = Code::McpServerUnknown;
        Self::told(code, format!("{}: `{name}`", code.sentence()))
    }

    /// Why a turn failed. `None` of one that did not.
    pub fn of_turn(turn: &TurnResult) -> Option<Self> {
        if !turn.is_error {
            return None;
        }
        let code = code_of(turn);
        let mut detail = code.sentence().to_owned();
        if let Some(status) = turn.api_error_status {
            detail = format!("{detail} (status {status})");
        }
        let words = if turn.text.is_empty() { turn.errors.first() } else { Some(&turn.text) };
        if let Some(words) = words.filter(|_| code.is_explained()) {
            detail = format!("{detail}: {words}");
        }
        let failure = Self::told(code, detail);
        let asks_patience = matches!(code, Code::UpstreamRateLimited | Code::UpstreamOverloaded);
        Some(if asks_patience { Self { retry: Retry::Yes { after: turn.retry_delay }, ..failure } } else { failure })
    }

    /// Why a process ended without a result. `has_spoken`: whether it printed a line before.
    pub fn of_exit(exit: Exit, stderr: &str, has_spoken: bool) -> Self {
        if !has_spoken && exit.code == Some(1) && !stderr.trim().is_empty() {
            return Self::rejected(stderr);
        }
        if exit.code == Some(0) {
            return Self::new(Code::CliNoOutput);
        }
        let sentence = Code::CliCrashed.sentence();
        let detail = match (exit.code, exit.signal) {
            (Some(code), _) => format!("{sentence} (exit code {code})"),
            (None, Some(signal)) => format!("{sentence} (signal {signal})"),
            (None, None) => sentence.to_owned(),
        };
        Self::told(Code::CliCrashed, detail)
    }

    /// The CLI complains of its flags before it reads anything: only then its words are safe to repeat.
    fn rejected(stderr: &str) -> Self {
        let code = Code::CliRejectedOptions;
        let complaint = stderr.lines().find_map(|line| {
            let (head, words) = line.split_once(": ")?;
            (head.eq_ignore_ascii_case("error") && !words.contains("streaming input")).then_some(words)
        });
        match complaint {
            Some(words) => Self::told(code, format!("{}: {words}", code.sentence())),
            None => Self::new(code),
        }
    }

    fn told(code: Code, mut detail: String) -> Self {
        const LONGEST: usize = 500;
        detail.truncate(detail.floor_char_boundary(LONGEST));
        let retry = if code.is_retryable() { Retry::Yes { after: None } } else { Retry::No };
        Self { error: JobError::new(code.as_str(), detail, code.is_retryable()), retry }
    }
}

fn code_of(turn: &TurnResult) -> Code {
    match turn.subtype.as_str() {
        "error_max_turns" => return Code::MaxTurns,
        "error_max_budget_usd" => return Code::BudgetExceeded,
        "error_max_structured_output_retries" => return Code::StructuredOutputFailed,
        _ => {}
    }
    if turn.terminal_reason.as_deref().is_some_and(|reason| reason.starts_with("aborted_")) {
        return Code::Interrupted;
    }
    if turn.subtype != "success" {
        return Code::CliCrashed;
    }
    if turn.stop_reason.as_deref() == Some("refusal") {
        return Code::Refused;
    }
    match turn.api_error_status {
        Some(429) => Code::UpstreamRateLimited,
        Some(529) => Code::UpstreamOverloaded,
        Some(401..=403) => Code::UpstreamAuth,
        Some(404) => Code::ModelNotFound,
        Some(413) => Code::RequestTooLarge,
        Some(408 | 409) => Code::UpstreamUnavailable,
        Some(400..=499) => Code::InvalidRequest,
        Some(_) => Code::UpstreamUnavailable,
        None => code_of_word(turn.api_error.as_deref().unwrap_or_default()),
    }
}

/// For errors without a status: the CLI found them itself, or there was no answer.
fn code_of_word(api_error: &str) -> Code {
    match api_error {
        "max_output_tokens" => Code::MaxOutputTokens,
        "authentication_failed" | "billing_error" | "oauth_org_not_allowed" => Code::UpstreamAuth,
        "model_not_found" => Code::ModelNotFound,
        "invalid_request" => Code::InvalidRequest,
        "rate_limit" => Code::UpstreamRateLimited,
        "overloaded" => Code::UpstreamOverloaded,
        _ => Code::UpstreamUnavailable,
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use super::{super::stream::recorded_turns, *};

    fn failure(recording: &str) -> Failure {
        let turn = recorded_turns(recording).pop().expect("a result");
        Failure::of_turn(&turn).unwrap_or_else(|| panic!("{recording} failed"))
    }

    #[test]
    fn each_word_is_documented() {
        let documentation = include_str!("../../../docs/architecture.md");

        for code in Code::ALL {
            assert!(documentation.contains(&format!("`{}`", code.as_str())), "{code:?}");
        }
    }

    #[test]
    fn each_recorded_failure_has_its_word() {
        use Code::*;
        for (recording, code) in [
            ("api_error_400", InvalidRequest),
            ("api_error_401", UpstreamAuth),
            ("api_error_403", UpstreamAuth),
            ("api_error_404", ModelNotFound),
            ("api_error_413", RequestTooLarge),
            ("api_error_429", UpstreamRateLimited),
            ("api_error_500", UpstreamUnavailable),
            ("api_error_529", UpstreamOverloaded),
            ("api_sse_overloaded", UpstreamOverloaded),
            ("api_drop", UpstreamUnavailable),
            ("conn_refused", UpstreamUnavailable),
            ("bad_auth", UpstreamAuth),
            ("no_auth", UpstreamAuth),
            ("invalid_model", ModelNotFound),
            ("refusal", Refused),
            ("max_tokens", MaxOutputTokens),
            ("max_turns", MaxTurns),
            ("max_budget", BudgetExceeded),
            ("structured_bad", StructuredOutputFailed),
            ("interrupt_streaming", Interrupted),
            ("interrupt_tool", Interrupted),
            ("sigint_streaming", Interrupted),
            ("session_resume_unknown", CliCrashed),
            ("v2.1.197_api_error_400", InvalidRequest),
        ] {
            let failure = failure(recording);
            assert_eq!(failure.error.code, code.as_str(), "{recording}");
            assert_eq!(failure.error.retryable, code.is_retryable(), "{recording}");
            assert_eq!(failure.retry != Retry::No, code.is_retryable(), "{recording}");
            // Neither how we reach the API nor the CLI's advice for people at a terminal.
            for inside in ["127.0.0.1", "ede_diagnostic", "login", "CLAUDE_CODE"] {
                assert!(!failure.error.detail.contains(inside), "{recording}: {}", failure.error.detail);
            }
        }
    }

    #[test]
    fn a_turn_without_error_is_no_failure() {
        for recording in ["plain", "empty", "tool_denied", "api_sse_then_ok", "broken_stream_after_tool", "fallback_model"] {
            for turn in recorded_turns(recording) {
                assert_eq!(Failure::of_turn(&turn), None, "{recording}");
            }
        }
    }

    #[test]
    fn the_providers_own_wait_is_kept() {
        assert_eq!(failure("api_error_429").retry, Retry::Yes { after: Some(Duration::from_millis(541)) });
        assert_eq!(failure("conn_refused").retry, Retry::Yes { after: None });
    }

    #[test]
    fn a_client_is_told_what_was_wrong_with_its_request() {
        assert_eq!(
            failure("api_error_400").error.detail,
            "the model provider refused the request (status 400): API Error: 400 mock invalid_request_error"
        );
        assert_eq!(failure("api_error_529").error.detail, "the model provider is overloaded (status 529)");
    }

    #[test]
    fn a_detail_is_short() {
        let turn = TurnResult {
            is_error: true,
            subtype: "success".into(),
            api_error_status: Some(400),
            text: "\u{1f600}".repeat(400),
            ..TurnResult::default()
        };

        assert!(Failure::of_turn(&turn).expect("a failure").error.detail.len() <= 500);
    }

    #[test]
    fn an_exit_without_a_result_is_told_by_how_it_came() {
        let exit = |raw, stderr, has_spoken| Failure::of_exit(ExitStatus::from_raw(raw).into(), stderr, has_spoken);
        let told = |failure: Failure| (failure.error.code, failure.error.detail, failure.retry);
        let again = Retry::Yes { after: None };

        let crashed = |how: &str| ("cli_crashed".to_owned(), format!("the CLI ended before it had an answer ({how})"), again);
        assert_eq!(told(exit(9, "", true)), crashed("signal 9"));
        assert_eq!(told(exit(143 << 8, "", true)), crashed("signal 15"));
        assert_eq!(told(exit(1 << 8, "Error: something with the prompt", true)), crashed("exit code 1"));
        assert_eq!(told(exit(0, "", true)), ("cli_no_output".into(), "the CLI gave no answer".into(), again));
        for (stderr, words) in [
            ("error: unknown option '--no-such-flag'\n", ": unknown option '--no-such-flag'"),
            ("Error: Invalid session ID. Must be a valid UUID.", ": Invalid session ID. Must be a valid UUID."),
            ("Error: Error parsing streaming input line: my secret", ""),
            ("--dangerously-skip-permissions cannot be used with root/sudo privileges", ""),
        ] {
            let detail = format!("the CLI did not accept the job's options{words}");
            assert_eq!(told(exit(1 << 8, stderr, false)), ("cli_rejected_options".into(), detail, Retry::No));
        }
    }
}
