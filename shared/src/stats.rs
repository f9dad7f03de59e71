//! The door to the figures over all users: how things are now, and how they went in a window of time.
//! Windows end with the bucket that is being filled and are as long as their buckets together, so the
//! sum of a series is the total beside it.

use std::{collections::HashMap, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    db::{
        Db,
        stats::{self as table, Measure, Span},
    },
    id::UserId,
    job::{NanoUsd, Usage},
    store::Store,
    time::Timestamp,
};

/// How far back to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Window {
    /// An hour.
    #[serde(rename = "1h")]
    Hour,
    /// A day.
    #[default]
    #[serde(rename = "24h")]
    Day,
    /// A week.
    #[serde(rename = "7d")]
    Week,
    /// Thirty days.
    #[serde(rename = "30d")]
    Month,
}

/// A text that names no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `1h`, `24h`, `7d` or `30d`")]
pub struct InvalidWindow;

impl FromStr for Window {
    type Err = InvalidWindow;

    fn from_str(text: &str) -> Result<Self, InvalidWindow> {
        Self::ALL.into_iter().find(|window| window.as_str() == text).ok_or(InvalidWindow)
    }
}

impl Window {
    /// Every window, the shortest first.
    pub const ALL: [Self; 4] = [Self::Hour, Self::Day, Self::Week, Self::Month];

    /// The word for it on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "1h",
            Self::Day => "24h",
            Self::Week => "7d",
            Self::Month => "30d",
        }
    }

    /// How long it is.
    pub fn length(self) -> Duration {
        match self {
            Self::Hour => Duration::from_hours(1),
            Self::Day => Duration::from_hours(24),
            Self::Week => Duration::from_hours(7 * 24),
            Self::Month => Duration::from_hours(30 * 24),
        }
    }

    /// How long one bucket of its series is.
    pub fn bucket(self) -> Duration {
        match self {
            Self::Hour => Duration::from_mins(1),
            Self::Day => Duration::from_mins(30),
            Self::Week => Duration::from_hours(3),
            Self::Month => Duration::from_hours(12),
        }
    }

    /// The window whose last bucket `now` falls into.
    fn span(self, now: Timestamp) -> Span {
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let (bucket, length) = (ms(self.bucket()), ms(self.length()));
        let until = (now.unix_ms().div_euclid(bucket) + 1) * bucket;
        Span { from: until - length, until, bucket }
    }
}

/// The figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Overview {
    /// Where the window begins.
    pub from: Timestamp,
    /// When it was looked.
    pub at: Timestamp,
    /// How things are now.
    pub now: Now,
    /// How they went in the window.
    pub totals: Totals,
    /// What each model was used for in the window, the dearest first.
    pub models: Vec<ModelUse>,
    /// The window in equal pieces, the oldest first; the empty ones as well.
    pub series: Vec<Bucket>,
}

/// How things are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Accounts.
    pub users: u64,
    /// Keys that work.
    pub api_keys: u64,
    /// Workers that take jobs.
    pub workers_active: u64,
    /// Workers that take no more.
    pub workers_draining: u64,
    /// How many jobs the active workers run at once.
    pub slots: u64,
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs that run.
    pub running: u64,
    /// Jobs that ended well and are kept.
    pub completed: u64,
    /// Jobs that failed and are kept.
    pub failed: u64,
    /// Jobs that were ended early and are kept.
    pub cancelled: u64,
    /// Those of the failed that were given up after all their tries.
    pub dead_letters: u64,
    /// Jobs that a free worker could take at once.
    pub queue_depth: u64,
    /// How long the first of those has waited.
    pub oldest_wait_ms: Option<u64>,
}

/// How things went in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Jobs accepted.
    pub accepted: u64,
    /// Jobs that ended well.
    pub completed: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that were ended early.
    pub cancelled: u64,
    /// Jobs that ended, in each hour of the window so far.
    pub ended_per_hour: f64,
    /// From acceptance to the last start, of the jobs that ended.
    pub queue_wait: Quantiles,
    /// From the last start to the first text, of the jobs that ended.
    pub first_text: Quantiles,
    /// From the last start to the end, of the jobs that ended.
    pub run: Quantiles,
    /// Tokens of the attempts that ended.
    pub usage: Usage,
    /// What they cost.
    pub cost: NanoUsd,
}

/// What half, and what nineteen of twenty, stay within. Nothing of nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantiles {
    /// Half.
    pub p50_ms: Option<u64>,
    /// Nineteen of twenty.
    pub p95_ms: Option<u64>,
}

/// What one model was used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelUse {
    /// The model; none for attempts that ended before one answered.
    pub model: Option<String>,
    /// Attempts that ended.
    pub attempts: u64,
    /// Their tokens.
    pub usage: Usage,
    /// What they cost.
    pub cost: NanoUsd,
}

/// One piece of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Where it begins.
    pub from: Timestamp,
    /// Jobs accepted.
    pub accepted: u64,
    /// Jobs that ended well.
    pub completed: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that were ended early.
    pub cancelled: u64,
    /// Tokens of all kinds.
    pub usage: Usage,
    /// What was paid.
    pub cost: NanoUsd,
    /// Half of the jobs that ended had their first text within this.
    pub first_text_p50_ms: Option<u64>,
}

/// What one account has and does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserActivity {
    /// Keys that work.
    pub api_keys: u64,
    /// Jobs that run.
    pub running_jobs: u64,
    /// What its jobs of this UTC day cost so far.
    pub spent_today: NanoUsd,
}

/// The figures of the whole service.
#[derive(Clone)]
pub struct Stats {
    store: Store,
}

impl Stats {
    /// The door over `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// How things are, and how they went in `window`.
    pub async fn overview(&self, window: Window) -> Result<Overview> {
        let db = self.store.db();
        let (at, now) = table::now(db).await?;
        let span = window.span(at);
        let series = series(db, span).await?;
        let mut totals = sum(&series);
        totals.ended_per_hour =
            per_hour(totals.completed + totals.failed + totals.cancelled, at.ms_since(Timestamp::from_unix_ms(span.from)));
        totals.queue_wait = table::quantiles(db, span, Measure::QueueWait).await?;
        totals.first_text = table::quantiles(db, span, Measure::FirstText).await?;
        totals.run = table::quantiles(db, span, Measure::Run).await?;
        let models = table::models(db, span).await?;
        Ok(Overview { from: Timestamp::from_unix_ms(span.from), at, now, totals, models, series })
    }

    /// What each of `users` has and does; those that are not there are left out.
    pub async fn of_users(&self, users: &[UserId]) -> Result<HashMap<UserId, UserActivity>> {
        if users.is_empty() {
            return Ok(HashMap::new());
        }
        table::of_users(self.store.db(), users).await
    }
}

async fn series(db: &Db, span: Span) -> Result<Vec<Bucket>> {
    let empty = |from| Bucket {
        from: Timestamp::from_unix_ms(from),
        accepted: 0,
        completed: 0,
        failed: 0,
        cancelled: 0,
        usage: Usage::default(),
        cost: NanoUsd(0),
        first_text_p50_ms: None,
    };
    let mut series: Vec<Bucket> = span.starts().map(empty).collect();
    // The statements name no place beyond the span.
    let mut at = |place: i64, act: &mut dyn FnMut(&mut Bucket)| {
        if let Some(bucket) = usize::try_from(place).ok().and_then(|place| series.get_mut(place)) {
            act(bucket);
        }
    };
    for row in table::accepted(db, span).await? {
        at(row.place, &mut |bucket| bucket.accepted = row.count());
    }
    for row in table::ended(db, span).await? {
        at(row.place, &mut |bucket| (bucket.completed, bucket.failed, bucket.cancelled) = row.counts());
    }
    for row in table::used(db, span).await? {
        at(row.place, &mut |bucket| (bucket.usage, bucket.cost) = (row.usage(), row.cost()));
    }
    for row in table::first_text(db, span).await? {
        at(row.place, &mut |bucket| bucket.first_text_p50_ms = row.ms());
    }
    Ok(series)
}

fn sum(series: &[Bucket]) -> Totals {
    series.iter().fold(Totals::default(), |totals, bucket| Totals {
        accepted: totals.accepted + bucket.accepted,
        completed: totals.completed + bucket.completed,
        failed: totals.failed + bucket.failed,
        cancelled: totals.cancelled + bucket.cancelled,
        usage: Usage {
            input_tokens: totals.usage.input_tokens + bucket.usage.input_tokens,
            output_tokens: totals.usage.output_tokens + bucket.usage.output_tokens,
            cache_read_tokens: totals.usage.cache_read_tokens + bucket.usage.cache_read_tokens,
            cache_write_tokens: totals.usage.cache_write_tokens + bucket.usage.cache_write_tokens,
        },
        cost: NanoUsd(totals.cost.0 + bucket.cost.0),
        ..totals
    })
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_hour(count: u64, within_ms: u64) -> f64 {
    const HOUR_MS: f64 = 3_600_000.0;
    count as f64 * HOUR_MS / within_ms.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_with_the_bucket_that_is_being_filled_and_has_at_most_sixty() {
        let now = Timestamp::from_unix_ms(1_795_370_645_007);
        for window in Window::ALL {
            let span = window.span(now);
            let starts: Vec<i64> = span.starts().collect();

            assert!(starts.len() <= 60 && starts[0] == span.from, "{window:?}");
            let last = starts[starts.len() - 1];
            assert!((last..span.until).contains(&now.unix_ms()) && span.until - last == span.bucket, "{window:?}");
            assert_eq!(u128::from((span.until - span.from).unsigned_abs()), window.length().as_millis());
        }
    }

    #[test]
    fn a_window_is_called_the_same_everywhere() {
        for window in Window::ALL {
            assert_eq!(window.as_str().parse(), Ok(window));
            assert_eq!(serde_json::to_value(window).expect("a word"), window.as_str());
        }
        assert_eq!("2h".parse::<Window>(), Err(InvalidWindow));
    }

    #[test]
    fn a_rate_is_of_the_time_that_has_passed() {
        assert!((per_hour(30, 1_800_000) - 60.0).abs() < f64::EPSILON);
        assert!(per_hour(0, 0).abs() < f64::EPSILON);
    }
}
