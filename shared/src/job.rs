//! A chat job: what was asked for, how far it is, how it ended. Data and its laws, no I/O.

use std::{collections::BTreeMap, fmt, ops::Add, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    consumption::Consumption,
    event::StartReason,
    id::{ApiKeyId, JobId, SessionId, UserId, WorkerId},
    image::ImageSource,
    output_schema::OutputSchema,
    time::Timestamp,
    trace_context::TraceContext,
};

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a worker, for the first time or again.
    Queued,
    /// A worker holds its lease.
    Running,
    /// Ended well.
    Completed,
    /// Tried and given up.
    Failed,
    /// Ended because somebody asked.
    Cancelled,
}

impl JobState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// Whether nothing can follow.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Cancelled => true,
            Self::Queued | Self::Running => false,
        }
    }

    /// The word for it in the record and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a job state")]
pub struct InvalidJobState;

impl FromStr for JobState {
    type Err = InvalidJobState;

    fn from_str(text: &str) -> Result<Self, InvalidJobState> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(InvalidJobState)
    }
}

/// What the user says: text, or content blocks of the Messages API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Message {
    /// Plain text.
    Text(String),
    /// Content blocks, passed on as they are.
    Blocks(Vec<ContentBlock>),
}

/// One block of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ContentBlock {
    /// A piece of text.
    Text {
        /// The text.
        text: String,
    },
    /// A picture.
    Image {
        /// Where it is.
        source: ImageSource,
    },
}

/// How hard the model should try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the words are the CLI's own and say it all")]
pub enum Effort {
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

impl Effort {
    /// The CLI's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Xhigh => "xhigh",
            Self::Max => "max",
        }
    }
}

/// Whether the model thinks before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Thinking {
    /// As much as the question needs.
    Adaptive,
    /// Not at all.
    Disabled,
}

impl Thinking {
    /// The CLI's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Disabled => "disabled",
        }
    }
}

/// What becomes of a job whose attempt was lost after it had streamed output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RetryAfterOutput {
    /// It runs again; clients see `job.started` and drop what they had.
    #[default]
    Restart,
    /// It fails with the code `interrupted`.
    Never,
}

/// Which of one user's waiting jobs goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// After all others.
    Low,
    /// In order of arrival.
    #[default]
    Normal,
    /// Before all others.
    High,
}

impl Priority {
    /// Its place in the record: larger goes first.
    pub fn rank(self) -> i16 {
        match self {
            Self::Low => -1,
            Self::Normal => 0,
            Self::High => 1,
        }
    }
}

/// What a job asks of the CLI. Checked where it enters; a worker trusts it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatSpec {
    /// What the user says.
    pub message: Message,
    /// The model, by the CLI's name or alias; its default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Where to go when the model is overloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_model: Option<String>,
    /// Replaces the system prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Is put after the system prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append_system_prompt: Option<String>,
    /// The tools the model may use; the operator's default when absent, none when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<String>>,
    /// The MCP servers the model may use, by the names operators gave them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp_servers: Option<Vec<String>>,
    /// What the key it came with lets it use, whatever it names; everything when absent. Not the client's
    /// to set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_tools: Option<Vec<String>>,
    /// The most model calls of this job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_turns: Option<u32>,
    /// The most this job may cost, all its attempts together. Checked by the CLI after each model call, so one call may pass it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_budget_usd: Option<f64>,
    /// The form the answer is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<OutputSchema>,
    /// How hard the model should try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// Whether the model thinks first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<Thinking>,
    /// The longest run of one attempt, in seconds; the worker's own limit when absent or larger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u32>,
    /// The longest wait for a worker, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout_secs: Option<u32>,
    /// What becomes of it when a worker is lost after output.
    #[serde(default)]
    pub retry_after_output: RetryAfterOutput,
    /// Its place among the waiting jobs of its user.
    #[serde(default)]
    pub priority: Priority,
    /// The client's own words about it, given back as they came.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl ChatSpec {
    /// How long a job waits for a worker when it does not say.
    pub const DEFAULT_QUEUE_TIMEOUT: Duration = Duration::from_hours(1);

    /// How long this job waits for a worker.
    pub fn queue_timeout(&self) -> Duration {
        self.queue_timeout_secs.map_or(Self::DEFAULT_QUEUE_TIMEOUT, |secs| Duration::from_secs(secs.into()))
    }

    /// A job that says `text` and leaves the rest to defaults.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            message: Message::Text(text.into()),
            model: None,
            fallback_model: None,
            system_prompt: None,
            append_system_prompt: None,
            tools: None,
            mcp_servers: None,
            allowed_tools: None,
            max_turns: None,
            max_budget_usd: None,
            output_schema: None,
            effort: None,
            thinking: None,
            timeout_secs: None,
            queue_timeout_secs: None,
            retry_after_output: RetryAfterOutput::default(),
            priority: Priority::default(),
            metadata: BTreeMap::new(),
        }
    }
}

/// What a completed job answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// The model's last words, at most 4 MiB.
    pub text: String,
    /// The answer in the form of the job's `output_schema`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structured_output: Option<Value>,
    /// Why the model stopped, in the Messages API's words.
    pub stop_reason: Option<String>,
    /// How many model calls it took.
    pub num_turns: u32,
    /// Tool calls that were refused.
    pub permission_denials: Vec<PermissionDenial>,
    /// Set where an event could not hold the whole answer; the job has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// A tool call that was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PermissionDenial {
    /// The tool.
    pub tool_name: String,
    /// The call.
    pub tool_use_id: String,
}

/// Tokens by kind, over all model calls of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Read by the model and not cached.
    pub input_tokens: u64,
    /// Written by the model.
    pub output_tokens: u64,
    /// Read from the provider's prompt cache.
    pub cache_read_tokens: u64,
    /// Written to the provider's prompt cache.
    pub cache_write_tokens: u64,
}

impl Add for Usage {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(more.input_tokens),
            output_tokens: self.output_tokens.saturating_add(more.output_tokens),
            cache_read_tokens: self.cache_read_tokens.saturating_add(more.cache_read_tokens),
            cache_write_tokens: self.cache_write_tokens.saturating_add(more.cache_write_tokens),
        }
    }
}

/// Why a job failed. `code` is a stable word; the list is in `docs/architecture.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// A stable `snake_case` word to switch on.
    pub code: String,
    /// A sentence for a person, without prompts or secrets.
    pub detail: String,
    /// Whether the same job may pass when sent again.
    pub retryable: bool,
}

impl JobError {
    /// An error with the given word, sentence and hope.
    pub fn new(code: &str, detail: impl Into<String>, retryable: bool) -> Self {
        Self { code: code.to_owned(), detail: detail.into(), retryable }
    }
}

/// An amount of money in billionths of a US dollar, so that sums are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NanoUsd(pub i64);

impl Add for NanoUsd {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self(self.0.saturating_add(more.0))
    }
}

impl NanoUsd {
    /// The nearest amount to a decimal number of dollars; 0 for what is negative or not a number.
    pub fn from_usd(usd: f64) -> Self {
        // A float cast saturates, which is what an absurd amount should do.
        #[expect(clippy::cast_possible_truncation, reason = "saturates")]
        let nanos = (usd.max(0.0) * 1e9).round() as i64;
        Self(nanos)
    }

    /// What is left of this amount after `part` of it; 0 when that is more.
    #[must_use]
    pub fn less(self, part: Self) -> Self {
        Self(self.0.saturating_sub(part.0).max(0))
    }

    /// As a decimal number of dollars, for the wire.
    #[expect(clippy::cast_precision_loss, reason = "exact up to nine million dollars")]
    pub fn usd(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

/// How long each stage took. Absent stages did not happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// From acceptance to the (last) claim.
    pub queued_ms: Option<u64>,
    /// From the claim to a CLI that has taken the message.
    pub start_ms: Option<u64>,
    /// From the claim to the first text.
    pub first_token_ms: Option<u64>,
    /// From the claim to the end.
    pub run_ms: Option<u64>,
}

/// A job as the record has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub user_id: UserId,
    /// The key it was sent with.
    pub api_key_id: Option<ApiKeyId>,
    /// The conversation it belongs to.
    pub session_id: Option<SessionId>,
    /// How far it is.
    pub state: JobState,
    /// What it asks.
    pub spec: ChatSpec,
    /// How often it was claimed. The fence: whoever writes must know the current number.
    pub attempt: u32,
    /// How often an attempt of its own failed.
    pub failures: u32,
    /// How often a worker was lost while running it.
    pub reclaims: u32,
    /// With this many failures it is given up.
    pub max_failures: u32,
    /// With this many lost workers it is given up.
    pub max_reclaims: u32,
    /// Whether clients may have seen output of the current attempt. Kept only for jobs that ask for
    /// [`RetryAfterOutput::Never`].
    pub streamed: bool,
    /// Who runs it, or ran it last.
    pub worker_id: Option<WorkerId>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it was last claimed.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When somebody asked for its end.
    pub cancel_requested_at: Option<Timestamp>,
    /// The model that answered.
    pub model: Option<String>,
    /// What it answered.
    pub result: Option<JobResult>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// Tokens of all its attempts that are over.
    pub usage: Option<Usage>,
    /// What those cost.
    pub cost: NanoUsd,
    /// What it keeps of its owner's budget, set when it was accepted: the most all its attempts may cost.
    /// 0 when nothing was kept.
    pub reserved: NanoUsd,
    /// What its current attempt used so far, as its worker last said.
    pub consumption: Option<Consumption>,
    /// From the claim to a CLI that has taken the message.
    pub start_ms: Option<u64>,
    /// From the claim to the first text.
    pub first_token_ms: Option<u64>,
    /// Where the request that made it belongs in a trace.
    pub trace: Option<TraceContext>,
    /// Why the current attempt began, or why the next one will.
    pub start_reason: StartReason,
    /// When a queued job may be claimed.
    pub run_at: Timestamp,
    /// Whether it was rung for, or is about to be: nobody goes before it any more.
    pub has_place: bool,
    /// Whether it was given up after all its tries.
    pub dead_letter: bool,
    /// The dead letter that it tries again.
    pub retry_of: Option<JobId>,
    /// The job that tries this dead letter again.
    pub retried_as: Option<JobId>,
}

impl Job {
    /// What its next attempt may cost; no end when absent.
    pub fn budget_left(&self) -> Option<NanoUsd> {
        let named = || self.spec.max_budget_usd.map(NanoUsd::from_usd);
        let whole = if self.reserved > NanoUsd(0) { Some(self.reserved) } else { named() };
        whole.map(|whole| whole.less(self.cost))
    }

    /// The job as clients see it.
    pub fn view(&self) -> JobView {
        let run_ms = self.started_at.zip(self.finished_at).map(|(start, end)| end.ms_since(start));
        JobView {
            id: self.id,
            status: self.state,
            session_id: self.session_id,
            model: self.model.clone().or_else(|| self.spec.model.clone()),
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            cancel_requested_at: self.cancel_requested_at,
            attempt: self.attempt,
            result: self.result.clone(),
            usage: self.usage,
            cost_usd: self.cost.usd(),
            error: self.error.clone(),
            timings: Timings {
                queued_ms: self.started_at.map(|start| start.ms_since(self.created_at)),
                start_ms: self.start_ms,
                first_token_ms: self.first_token_ms,
                run_ms,
            },
            worker_id: self.worker_id,
            metadata: self.spec.metadata.clone(),
            retry_of: self.retry_of,
            retried_as: self.retried_as,
        }
    }
}

/// A job as clients see it, in answers and in its last event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of `Job`")]
pub struct JobView {
    pub id: JobId,
    pub status: JobState,
    pub session_id: Option<SessionId>,
    pub model: Option<String>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub cancel_requested_at: Option<Timestamp>,
    pub attempt: u32,
    pub result: Option<JobResult>,
    pub usage: Option<Usage>,
    pub cost_usd: f64,
    pub error: Option<JobError>,
    pub timings: Timings,
    pub worker_id: Option<WorkerId>,
    pub metadata: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retried_as: Option<JobId>,
}

impl JobView {
    /// Cut the answer so that the job fits in one event; the job itself keeps the whole.
    pub fn truncate(&mut self) {
        const KEPT: usize = 32 * 1024;
        let Some(result) = &mut self.result else { return };
        let end = result.text.floor_char_boundary(KEPT);
        result.text.truncate(end);
        result.structured_output = None;
        result.permission_denials.clear();
        result.truncated = true;
    }
}

/// Whether a job may ask for the tool `name`: it has the form of a tool's name, and is none of those
/// that act beyond the job, on other agents, later times or the host's repositories.
pub fn may_be_offered(name: &str) -> bool {
    const NEVER: [&str; 5] = ["ScheduleWakeup", "Monitor", "SendMessage", "ListAgents", "Workflow"];
    let is_name = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name && !NEVER.contains(&name) && !name.starts_with("Cron") && !name.ends_with("Worktree")
}

/// The body of a job's request as stored, for a hash that does not depend on the order of its fields.
pub fn canonical_json(spec: &ChatSpec) -> String {
    // `Value` keeps its keys sorted.
    let value: Value = serde_json::to_value(spec).expect("a spec has only string keys");
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_that_act_beyond_their_job_are_never_offered() {
        assert!(["Read", "Bash", "Task", "mcp__files__read"].into_iter().all(may_be_offered));
        for name in ["CronCreate", "EnterWorktree", "Monitor", "Workflow", "", "1x", "Bash(git *)", "a,b", "--x"] {
            assert!(!may_be_offered(name), "{name}");
        }
    }

    #[test]
    fn money_is_exact_to_the_billionth_of_a_dollar() {
        assert_eq!(NanoUsd::from_usd(0.076_783_2), NanoUsd(76_783_200));
        assert_eq!(NanoUsd::from_usd(-1.0), NanoUsd(0));
        assert_eq!(NanoUsd::from_usd(f64::NAN), NanoUsd(0));
        assert!((NanoUsd(76_783_200).usd() - 0.076_783_2).abs() < f64::EPSILON);
    }
}
