//! What a failed turn or a dead process means for the job: a word for clients, and whether another attempt
//! may help. `detail` goes to clients: it holds no prompt, nothing of stderr a prompt could be in, and
//! nothing of how this service reaches the API.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use shared::job::JobError;

use super::stream::TurnResult;

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
        /// Not sooner than this, where the API said so.
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
    Interrupted,
    CliRejectedOptions,
    CliCrashed,
    CliNoOutput,
}

impl Code {
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
            Self::Interrupted => "interrupted",
            Self::CliRejectedOptions => "cli_rejected_options",
            Self::CliCrashed => "cli_crashed",
            Self::CliNoOutput => "cli_no_output",
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
            | Self::CliNoOutput => true,
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
            | Self::CliRejectedOptions => false,
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
            Self::Interrupted => "the run was interrupted",
            Self::CliRejectedOptions => "the CLI did not accept the job's options",
            Self::CliCrashed => "the CLI ended before it had an answer",
            Self::CliNoOutput => "the CLI gave no answer",
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
            | Self::Interrupted
            | Self::CliRejectedOptions
            | Self::CliCrashed
            | Self::CliNoOutput => false,
        }
    }
}

impl Failure {
    /// A failure told in the words of its code.
    pub fn new(code: Code) -> Self {
        Self::told(code, code.sentence().to_owned())
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
        Some(match failure.retry {
            Retry::Yes { .. } => Self { retry: Retry::Yes { after: turn.retry_delay }, ..failure },
            Retry::No => failure,
        })
    }

    /// Why a process ended without a result. `has_spoken`: whether it printed a line before.
    pub fn of_exit(status: ExitStatus, stderr: &str, has_spoken: bool) -> Self {
        if !has_spoken && status.code() == Some(1) && !stderr.trim().is_empty() {
            return Self::rejected(stderr);
        }
        if status.success() {
            return Self::new(Code::CliNoOutput);
        }
        let sentence = Code::CliCrashed.sentence();
        let detail = match (status.code(), status.signal()) {
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
        Some(401 | 402 | 403) => Code::UpstreamAuth,
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
