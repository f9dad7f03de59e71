//! What only the record knows of all processes together: how much waits, and who is there to do it. Read
//! for whoever asks, at most once a second, so that no number of scrapers is a load on the database; a
//! database that is away is not asked more often either.

use std::{fmt, time::Duration};

use moka::future::Cache;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};

use super::figure;
use crate::{db::figures as table, store::Store};

/// How old a figure may be.
const AGE: Duration = Duration::from_secs(1);
/// How long the database may take to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// How much there is to do, and how many are there to do it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Jobs that wait for a worker, those that wait for their next attempt included.
    pub queued: u64,
    /// Jobs that a worker runs.
    pub running: u64,
    /// For how long the one that waits longest could have been taken; zero where none can.
    pub oldest_wait: Duration,
    /// Jobs that were given up after all their attempts.
    pub dead_letters: u64,
    /// Workers that were not declared dead.
    pub workers: u64,
    /// How many jobs those of them that still take jobs can run at once.
    pub slots: u64,
}

/// The figures of the record.
#[derive(Clone)]
pub struct Record {
    store: Store,
    read: Cache<(), Option<Figures>>,
}

impl Record {
    /// Those of the record in `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone(), read: Cache::builder().max_capacity(1).time_to_live(AGE).build() }
    }

    /// The figures, at most a second old; `None` while the record does not answer.
    pub async fn figures(&self) -> Option<Figures> {
        let read = async {
            match tokio::time::timeout(LIMIT, table::read(self.store.db())).await {
                Ok(Ok(figures)) => Some(figures),
                Ok(Err(error)) => {
                    tracing::warn!(%error, cause = ?std::error::Error::source(&error), "Could not count the jobs");
                    None
                }
                Err(_) => None,
            }
        };
        self.read.get_with((), read).await
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Record")
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let gauges = [
            ("jobs_queued", "Jobs that wait for a worker, in the whole system.", figure(self.queued)),
            ("jobs_running", "Jobs that a worker runs, in the whole system.", figure(self.running)),
            ("jobs_oldest_wait_seconds", "How long the job that waits longest has waited, in seconds.", self.oldest_wait.as_secs_f64()),
            ("dead_letters", "Jobs that were given up after all their attempts.", figure(self.dead_letters)),
            ("workers_alive", "Workers that were not declared dead.", figure(self.workers)),
            ("workers_slots", "How many jobs the workers that take jobs can run at once.", figure(self.slots)),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
