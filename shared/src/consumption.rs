//! What an attempt used, and what that costs. The CLI tells both with its result; of what it did not come
//! to tell (it was killed, it crashed, its worker was lost) only the tokens are known, as far as they were
//! seen, and the cost is an estimate.

use serde::{Deserialize, Serialize};

use crate::job::{NanoUsd, Usage};

/// What an attempt used so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Consumption {
    /// The model that answers.
    pub model: Option<String>,
    /// The tokens that the CLI has accounted for.
    pub told: Usage,
    /// What it says they cost.
    pub cost: NanoUsd,
    /// Tokens that were seen and that it has not accounted for.
    pub untold: Usage,
}

/// What a model was last seen to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    weight: i128,
    cost: NanoUsd,
}

/// What an attempt is billed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bill {
    /// The model that answered.
    pub model: Option<String>,
    /// All its tokens.
    pub usage: Usage,
    /// What they cost.
    pub cost: NanoUsd,
    /// Whether a part of the cost is a guess.
    pub is_estimated: bool,
}

impl Rate {
    /// The rate at which `usage` came to cost `cost`; `None` where nothing follows from that.
    pub fn of(usage: Usage, cost: NanoUsd) -> Option<Self> {
        let weight = weight(usage);
        (weight > 0 && cost > NanoUsd(0)).then_some(Self { weight, cost })
    }

    fn price(self, usage: Usage) -> NanoUsd {
        // Rounded up: a token is never free.
        let nanos = (i128::from(self.cost.0) * weight(usage) + self.weight - 1) / self.weight;
        NanoUsd(i64::try_from(nanos).unwrap_or(i64::MAX))
    }
}

/// Tokens of all kinds on one scale. The list prices of the models stand to each other as these do: of a
/// token that is read, one written costs five times as much, a cached one a tenth, one put into the cache
/// five quarters.
fn weight(usage: Usage) -> i128 {
    let Usage { input_tokens, output_tokens, cache_read_tokens, cache_write_tokens } = usage;
    20 * i128::from(input_tokens)
        + 100 * i128::from(output_tokens)
        + 2 * i128::from(cache_read_tokens)
        + 25 * i128::from(cache_write_tokens)
}

impl Consumption {
    /// Whether something was seen whose cost the CLI has not told.
    pub fn is_open(&self) -> bool {
        self.untold != Usage::default()
    }

    /// The bill, with `rate` for what the CLI did not tell. Without a rate that costs all that is left of
    /// what was `kept` for the attempt: never too little.
    pub fn bill(self, rate: Option<Rate>, kept: NanoUsd) -> Bill {
        let is_estimated = self.is_open();
        let estimate = match rate {
            _ if !is_estimated => NanoUsd(0),
            Some(rate) => rate.price(self.untold),
            None => kept.less(self.cost),
        };
        Bill { model: self.model, usage: self.told + self.untold, cost: self.cost + estimate, is_estimated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Usage = Usage { input_tokens: 10, output_tokens: 20, cache_read_tokens: 1000, cache_write_tokens: 40 };

    fn cut_off() -> Consumption {
        Consumption { untold: SEEN, ..Consumption::default() }
    }

    #[test]
    fn what_the_cli_told_is_billed_as_it_says() {
        let told = Consumption { model: Some("m".into()), told: SEEN, cost: NanoUsd(7), untold: Usage::default() };

        let bill = told.bill(Rate::of(SEEN, NanoUsd(1_000_000)), NanoUsd(50));

        assert_eq!(bill, Bill { model: Some("m".into()), usage: SEEN, cost: NanoUsd(7), is_estimated: false });
    }

    #[test]
    fn what_it_did_not_tell_is_billed_at_the_last_rate() {
        let rate = Rate::of(Usage { input_tokens: 100, ..Usage::default() }, NanoUsd(1000));

        // 10 + 5·20 + 1000/10 + 40·5/4 = 260 tokens of input, at 10 each.
        let bill = cut_off().bill(rate, NanoUsd(50));
        assert_eq!((bill.usage, bill.cost, bill.is_estimated), (SEEN, NanoUsd(2600), true));

        let mixed = Consumption { told: SEEN, cost: NanoUsd(7), ..cut_off() }.bill(rate, NanoUsd(50));
        assert_eq!((mixed.usage, mixed.cost), (SEEN + SEEN, NanoUsd(2607)));
    }

    #[test]
    fn without_a_rate_it_is_billed_all_that_was_kept_for_it() {
        assert_eq!(cut_off().bill(None, NanoUsd(50)).cost, NanoUsd(50));
        assert_eq!(Consumption { cost: NanoUsd(20), ..cut_off() }.bill(None, NanoUsd(50)).cost, NanoUsd(50));
        assert_eq!(Consumption { cost: NanoUsd(70), ..cut_off() }.bill(None, NanoUsd(50)).cost, NanoUsd(70));
    }

    #[test]
    fn what_used_nothing_costs_nothing() {
        assert_eq!(Consumption::default().bill(None, NanoUsd(50)), Bill::default());
    }

    #[test]
    fn a_row_without_tokens_or_cost_is_no_rate_and_a_price_is_rounded_up() {
        assert_eq!(Rate::of(Usage::default(), NanoUsd(5)), None);
        assert_eq!(Rate::of(SEEN, NanoUsd(0)), None);
        let cheap = Rate::of(Usage { output_tokens: 1_000_000, ..Usage::default() }, NanoUsd(1));
        assert_eq!(cut_off().bill(cheap, NanoUsd(0)).cost, NanoUsd(1));
    }
}
