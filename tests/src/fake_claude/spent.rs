//! What a session used, model by model. It outlives its process: a resumed session goes on from what its
//! transcript says.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::model::Usage;

/// The usage of each model. A model that used nothing is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent(BTreeMap<String, Usage>);

impl Spent {
    /// What one model used.
    pub(super) fn by(model: &str, usage: Usage) -> Self {
        let mut spent = Self::default();
        spent.add(model, usage);
        spent
    }

    /// Read what [`Spent::json`] wrote.
    pub(super) fn read(json: &Value) -> Self {
        let mut spent = Self::default();
        for (model, used) in json.as_object().into_iter().flatten() {
            let tokens = |name: &str| used[name].as_u64().unwrap_or(0);
            let usage = Usage {
                input: tokens("inputTokens"),
                cache_creation: tokens("cacheCreationInputTokens"),
                cache_read: tokens("cacheReadInputTokens"),
                output: tokens("outputTokens"),
            };
            spent.add(model, usage);
        }
        spent
    }

    pub(super) fn add(&mut self, model: &str, usage: Usage) {
        if usage != Usage::default() {
            *self.0.entry(model.to_owned()).or_default() += usage;
        }
    }

    pub(super) fn dollars(&self) -> f64 {
        // An empty sum of floats is -0.
        self.0.values().fold(0.0, |sum, usage| sum + usage.dollars())
    }

    /// As a transcript and, with a little more, a `result` line have it.
    pub(super) fn json(&self) -> Value {
        let used = |usage: &Usage| {
            json!({
                "inputTokens": usage.input, "outputTokens": usage.output, "cacheReadInputTokens": usage.cache_read,
                "cacheCreationInputTokens": usage.cache_creation, "webSearchRequests": 0, "costUSD": usage.dollars(),
            })
        };
        self.0.iter().map(|(model, usage)| (model.clone(), used(usage))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_spent_is_read_as_it_was_written() {
        let mut spent = Spent::by("a", Usage { input: 1, cache_creation: 2, cache_read: 3, output: 4 });
        spent.add("b", Usage { output: 5, ..Usage::default() });
        spent.add("c", Usage::default());

        assert_eq!(Spent::read(&spent.json()), spent);
        assert_eq!(spent.json().as_object().expect("an object").len(), 2);
        assert_eq!(json!(Spent::default().dollars()).to_string(), "0.0");
    }
}
