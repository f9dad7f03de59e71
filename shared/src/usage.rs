//! The door to what was used and what it cost: one row for each attempt that ran, written in the
//! transaction that ends it, and the day's sums that budgets are judged by, which the database keeps.

use std::str::FromStr;

use sea_orm::DatabaseTransaction;
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    consumption::{Bill, Consumption},
    db::usage as table,
    id::{ApiKeyId, SessionId, UserId},
    job::{Job, NanoUsd, Usage},
    store::Store,
    time::Timestamp,
};

/// What can be asked of the usage.
#[derive(Clone)]
pub struct UsageLog {
    store: Store,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// Its job completed.
    Completed,
    /// Its job failed.
    Failed,
    /// Its job was cancelled.
    Cancelled,
    /// It failed, and its job is tried again.
    Retried,
    /// Its worker stopped and gave the job back.
    Drained,
    /// Its worker was lost.
    WorkerLost,
}

impl AttemptOutcome {
    /// The word for it in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Retried => "retried",
            Self::Drained => "drained",
            Self::WorkerLost => "worker_lost",
        }
    }
}

/// By what usage is added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UsageGroup {
    /// The UTC day on which the attempt ended.
    #[default]
    Day,
    /// The model that answered.
    Model,
    /// The conversation.
    Session,
    /// The API key.
    Key,
    /// The account.
    User,
}

/// A text that names no group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `day`, `model`, `session`, `key` or `user`")]
pub struct InvalidUsageGroup;

impl FromStr for UsageGroup {
    type Err = InvalidUsageGroup;

    fn from_str(text: &str) -> Result<Self, InvalidUsageGroup> {
        match text {
            "day" => Ok(Self::Day),
            "model" => Ok(Self::Model),
            "session" => Ok(Self::Session),
            "key" => Ok(Self::Key),
            "user" => Ok(Self::User),
            _ => Err(InvalidUsageGroup),
        }
    }
}

/// Which attempts to add up: those that ended in the time from `from` to before `to`.
#[derive(Clone, Copy, Debug)]
pub struct UsageQuery {
    /// The first moment.
    pub from: Timestamp,
    /// The first moment after it; no end when absent.
    pub to: Option<Timestamp>,
    /// By what.
    pub group_by: UsageGroup,
}

/// What a number of attempts used together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageSum {
    /// How many attempts.
    pub requests: u64,
    /// Of how many jobs.
    pub jobs: u64,
    /// Their tokens.
    pub usage: Usage,
    /// What they cost.
    pub cost: NanoUsd,
    /// How long they ran.
    pub duration_ms: u64,
    /// How many of the costs are estimates.
    pub estimated: u64,
}

/// The sum of one group. Only what was grouped by is set, and not even that where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageRow {
    /// The first moment of the UTC day.
    pub day: Option<Timestamp>,
    /// The model.
    pub model: Option<String>,
    /// The conversation.
    pub session_id: Option<SessionId>,
    /// The API key.
    pub api_key_id: Option<ApiKeyId>,
    /// The account.
    pub user_id: Option<UserId>,
    /// The sum.
    pub sum: UsageSum,
}

/// The usage of a user, or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageTotals {
    /// The groups: days newest first, others by their cost.
    pub rows: Vec<UsageRow>,
    /// All of it, those that are not in `rows` too.
    pub total: UsageSum,
    /// Whether there are more groups than are told.
    pub is_truncated: bool,
}

/// One user's UTC day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spend {
    /// What is kept for jobs that have not ended.
    pub reserved: NanoUsd,
    /// What was spent.
    pub spent: NanoUsd,
}

impl UsageLog {
    /// The most groups that are told.
    pub const MAX_GROUPS: u32 = 1000;

    /// The door over `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// What `user` used, or everybody where none is named, by groups and in all, as of one moment.
    pub async fn totals(&self, user: Option<UserId>, query: UsageQuery) -> Result<UsageTotals> {
        table::totals(self.store.db(), user, query, Self::MAX_GROUPS).await
    }

    /// What the jobs that `user` sent today (UTC) hold and cost.
    pub async fn spend_today(&self, user: UserId) -> Result<Spend> {
        table::spend_today(self.store.db(), user).await
    }
}

/// What the current attempt of `job` is billed, which came to `consumption`.
pub(crate) async fn bill(transaction: &DatabaseTransaction, job: &Job, consumption: Consumption) -> Result<Bill> {
    let rate = match &consumption.model {
        Some(model) if consumption.is_open() => table::last_rate(transaction, model).await?,
        _ => None,
    };
    Ok(consumption.bill(rate, job.reserved.less(job.cost)))
}

/// Keep the `bill` of the attempt that `job` was claimed for, in the transaction that ends it.
pub(crate) async fn record(transaction: &DatabaseTransaction, job: &Job, bill: &Bill, outcome: AttemptOutcome) -> Result<()> {
    table::insert(transaction, job, bill, outcome).await
}
