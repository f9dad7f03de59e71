//! What a turn of the conversation came to, and what it cost. The CLI's totals run on over the turns of a
//! process and even over a resumed session, so a turn is billed by what was added, never by the total.

use std::time::Duration;

use serde_json::Value;
use shared::job::{JobResult, NanoUsd, PermissionDenial, Usage};

use super::line::{Counters, ModelUsage, TurnEnd};

/// The longest answer kept, in bytes.
pub const MAX_TEXT_BYTES: usize = 4 * 1024 * 1024;

/// How a turn ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TurnResult {
    /// The only test of success: the subtype is `success` for API errors too.
    pub is_error: bool,
    /// `success`, `error_max_turns`, ….
    pub subtype: String,
    /// Why it ended, in the CLI's words: `completed`, `api_error`, `aborted_streaming`, ….
    pub terminal_reason: Option<String>,
    /// The model's last words, or what the CLI says of an API error.
    pub text: String,
    /// The answer in the form that was asked for.
    pub structured_output: Option<Value>,
    /// Why the model stopped, in the Messages API's words.
    pub stop_reason: Option<String>,
    /// The CLI's count of turns, which includes the user's where tools were used.
    pub num_turns: u32,
    /// Tool calls that were refused.
    pub permission_denials: Vec<PermissionDenial>,
    /// Tokens of this turn: all models, sub-agents included.
    pub usage: Usage,
    /// What this turn cost, by the CLI's own prices.
    pub cost: NanoUsd,
    /// The model that answered in the main conversation.
    pub model: Option<String>,
    /// The HTTP status of the API's last answer, if that ended the turn.
    pub api_error_status: Option<u16>,
    /// The CLI's word for the API error that ended the turn: `rate_limit`, `connection_failed`, ….
    pub api_error: Option<String>,
    /// What the CLI says of other errors.
    pub errors: Vec<String>,
    /// How long the CLI waited before its last retry. Never less than the API's `retry-after`.
    pub retry_delay: Option<Duration>,
}

impl TurnResult {
    /// This turn and the one the CLI began by itself after it, taken as one: the last words win, what was
    /// used adds up.
    #[must_use]
    pub fn followed_by(mut self, next: Self) -> Self {
        self.permission_denials.extend(next.permission_denials);
        Self {
            num_turns: self.num_turns.saturating_add(next.num_turns),
            permission_denials: self.permission_denials,
            usage: self.usage + next.usage,
            cost: self.cost + next.cost,
            model: next.model.or(self.model),
            ..next
        }
    }

    /// What the job answers, if this was its last turn.
    pub fn into_job_result(self) -> JobResult {
        JobResult {
            text: self.text,
            structured_output: self.structured_output,
            stop_reason: self.stop_reason,
            num_turns: self.num_turns,
            permission_denials: self.permission_denials,
            truncated: false,
        }
    }
}

/// The totals as of the last result, to bill only what is added to them.
#[derive(Default)]
pub(super) struct Meter {
    total: ModelUsage,
}

impl Meter {
    /// What was used since the last reading.
    pub fn read(&mut self, end: &TurnEnd) -> (Usage, NanoUsd) {
        let mut usage = Usage::default();
        let mut cost = NanoUsd(0);
        let mut add = |used: Counters| {
            usage = usage + used.usage();
            cost = cost + NanoUsd::from_usd(used.cost_usd);
        };
        match &end.model_usage_since_last_result {
            Some(since) => since.values().copied().for_each(&mut add),
            None => end.model_usage.iter().map(|(model, now)| now.since(self.total.get(model).copied().unwrap_or_default())).for_each(add),
        }
        self.total.clone_from(&end.model_usage);
        (usage, cost)
    }
}

impl Counters {
    fn since(self, before: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_sub(before.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(before.output_tokens),
            cache_read_input_tokens: self.cache_read_input_tokens.saturating_sub(before.cache_read_input_tokens),
            cache_creation_input_tokens: self.cache_creation_input_tokens.saturating_sub(before.cache_creation_input_tokens),
            cost_usd: self.cost_usd - before.cost_usd,
        }
    }

    fn usage(self) -> Usage {
        Usage {
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            cache_read_tokens: self.cache_read_input_tokens,
            cache_write_tokens: self.cache_creation_input_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(json: &str) -> TurnEnd {
        serde_json::from_str(json).expect("a result")
    }

    #[test]
    fn without_its_own_count_a_turn_is_billed_by_the_difference_of_the_totals() {
        let mut meter = Meter::default();

        let first = meter.read(&end(r#"{"modelUsage":{"a":{"inputTokens":10,"outputTokens":1,"costUSD":0.25}}}"#));
        let second = meter.read(&end(
            r#"{"modelUsage":{"a":{"inputTokens":14,"outputTokens":3,"costUSD":0.75},"b":{"outputTokens":7,"costUSD":0.125}}}"#,
        ));
        let third = meter.read(&end(r#"{"modelUsage":{"a":{"inputTokens":14,"outputTokens":3,"costUSD":0.75}}}"#));

        assert_eq!(first, (Usage { input_tokens: 10, output_tokens: 1, ..Usage::default() }, NanoUsd(250_000_000)));
        assert_eq!(second, (Usage { input_tokens: 4, output_tokens: 9, ..Usage::default() }, NanoUsd(625_000_000)));
        assert_eq!(third, (Usage::default(), NanoUsd(0)));
    }

    #[test]
    fn a_resumed_session_is_not_billed_for_what_it_cost_before() {
        let resumed = end(
            r#"{"modelUsage":{"a":{"inputTokens":900,"costUSD":9.5}},"model_usage_since_last_result":{"a":{"inputTokens":4,"costUSD":0.5}}}"#,
        );

        let (usage, cost) = Meter::default().read(&resumed);

        assert_eq!((usage.input_tokens, cost), (4, NanoUsd(500_000_000)));
    }

    #[test]
    fn two_turns_of_one_job_add_up_and_the_last_words_win() {
        let turn = |text: &str, tokens| TurnResult {
            text: text.into(),
            num_turns: 1,
            usage: Usage { output_tokens: tokens, ..Usage::default() },
            cost: NanoUsd(5),
            ..TurnResult::default()
        };

        let both = TurnResult { is_error: true, model: Some("m".into()), ..turn("one", 3) }.followed_by(turn("two", 4));

        assert_eq!(
            (both.text.as_str(), both.num_turns, both.usage.output_tokens, both.cost, both.is_error),
            ("two", 2, 7, NanoUsd(10), false)
        );
        assert_eq!(both.model.as_deref(), Some("m"));
    }
}
