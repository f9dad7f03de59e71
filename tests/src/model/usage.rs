//! What a call used, in tokens and in dollars.

use std::ops::AddAssign;

use serde_json::{Value, json};

/// The tokens of one call, or of several added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens outside the cache.
    pub input: u64,
    /// Prompt tokens written to the cache.
    pub cache_creation: u64,
    /// Prompt tokens read from the cache.
    pub cache_read: u64,
    /// Tokens of the answer.
    pub output: u64,
}

impl Usage {
    /// The usage of a prompt of `prompt` tokens of which `cached` are known from an earlier call.
    pub const fn cached(prompt: u64, cached: u64) -> Self {
        let input = if prompt < 4 { prompt } else { 4 };
        let rest = prompt - input;
        let cache_read = if cached < rest { cached } else { rest };
        Self { input, cache_creation: rest - cache_read, cache_read, output: 0 }
    }

    /// The usage of a prompt that asks for no caching.
    pub const fn uncached(prompt: u64) -> Self {
        Self { input: prompt, cache_creation: 0, cache_read: 0, output: 0 }
    }

    /// As a `message_start` tells it: the answer has just begun.
    pub fn at_start(self) -> Value {
        json!({
            "input_tokens": self.input,
            "cache_creation_input_tokens": self.cache_creation,
            "cache_read_input_tokens": self.cache_read,
            "cache_creation": {"ephemeral_5m_input_tokens": self.cache_creation, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 1,
            "service_tier": "standard",
        })
    }

    /// As a `message_delta` tells it: final.
    pub fn at_end(self) -> Value {
        json!({
            "input_tokens": self.input,
            "cache_creation_input_tokens": self.cache_creation,
            "cache_read_input_tokens": self.cache_read,
            "output_tokens": self.output,
        })
    }

    /// What it costs by the list prices of the CLI's default model, which the recordings show: 4, 5, 0.2
    /// and 20 dollars a million tokens.
    #[expect(clippy::cast_precision_loss, reason = "no prompt has 2^52 tokens")]
    pub fn dollars(self) -> f64 {
        let [input, creation, read, output] = [self.input, self.cache_creation, self.cache_read, self.output].map(|n| n as f64);
        (input * 4.0 + creation * 5.0 + read * 0.2 + output * 20.0) / 1e6
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input += other.input;
        self.cache_creation += other.cache_creation;
        self.cache_read += other.cache_read;
        self.output += other.output;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_counted_once() {
        for (prompt, cached) in [(0, 0), (3, 10), (100, 0), (100, 40), (100, 400)] {
            let usage = Usage::cached(prompt, cached);
            assert_eq!(usage.input + usage.cache_creation + usage.cache_read, prompt, "{prompt} {cached}");
        }
    }

    #[test]
    fn a_recorded_call_costs_what_the_cli_said() {
        let usage = Usage { input: 8, cache_creation: 14_861, cache_read: 10_031, output: 22 };

        assert!((usage.dollars() - 0.076_783_2).abs() < 1e-9);
    }
}
