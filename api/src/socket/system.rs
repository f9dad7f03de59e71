//! How workers and queue stand, for admins who watch. However many do, the record is asked once a second.

use std::{sync::Arc, time::Duration};

use moka::future::Cache;
use poem_openapi::types::ToJSON as _;
use serde_json::json;
use shared::{metrics::Record, workers::Workers};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::routes::admin::workers::Worker;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// The most workers that are told of, the newest first.
const MOST: u32 = 500;

/// How the system stands. Cheap to clone.
#[derive(Clone)]
pub struct System {
    workers: Workers,
    record: Record,
    seen: Cache<(), Option<Arc<str>>>,
}

impl System {
    /// As the record has it.
    pub fn new(workers: Workers, record: Record) -> Self {
        Self { workers, record, seen: Cache::builder().max_capacity(1).time_to_live(EVERY).build() }
    }

    /// The message that says how it stands; `None` while the record does not answer.
    async fn message(&self) -> Option<Arc<str>> {
        let look = async {
            let (workers, figures) = tokio::join!(self.workers.list(None, MOST), self.record.figures());
            let figures = figures?;
            let workers: Vec<_> = workers.ok()?.into_iter().map(|worker| Worker::from(worker).to_json()).collect();
            let oldest_wait_ms = u64::try_from(figures.oldest_wait.as_millis()).unwrap_or(u64::MAX);
            let queue = json!({
                "queued": figures.queued,
                "running": figures.running,
                "oldest_wait_ms": oldest_wait_ms,
                "dead_letters": figures.dead_letters,
                "workers": figures.workers,
                "slots": figures.slots,
            });
            Some(json!({"type": "system", "queue": queue, "workers": workers}).to_string().into())
        };
        self.seen.get_with((), look).await
    }

    /// Watch it.
    pub fn watch(&self) -> SystemWatch {
        let mut looks = interval(EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        SystemWatch { system: self.clone(), looks, told: None }
    }
}

/// One who watches.
pub struct SystemWatch {
    system: System,
    looks: Interval,
    told: Option<Arc<str>>,
}

impl SystemWatch {
    /// How it stands, once that is something else than was told last. Cancel-safe.
    pub async fn next(&mut self) -> Arc<str> {
        loop {
            self.looks.tick().await;
            let seen = self.system.message().await;
            if let Some(seen) = seen.filter(|seen| self.told.as_ref() != Some(seen)) {
                self.told = Some(seen.clone());
                return seen;
            }
        }
    }
}
