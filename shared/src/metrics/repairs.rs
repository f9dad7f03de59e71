//! What went wrong between the processes and was put right: each is a fault that somebody survived.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use super::{Reading, figure};
use crate::store::Store;

/// A counter, with its name and what it counts.
type Shown = (&'static str, &'static str, fn(&Repairs) -> &Counter);

/// What this process put right, and whether it is the one to look for it. Clones count into the same figures.
#[derive(Clone, Debug, Default)]
pub struct Repairs {
    /// 1 while this process leads the watch over the jobs.
    pub(crate) leads: Gauge,
    /// Workers that were declared dead.
    pub(crate) workers_buried: Counter,
    /// Jobs that were taken away from a dead worker.
    pub(crate) jobs_reclaimed: Counter,
    /// Jobs that Redis had lost, and that were rung for again.
    pub(crate) jobs_rung_again: Counter,
    /// Doorbells that nobody answered, and that were taken away.
    pub(crate) strays_removed: Counter,
    /// Ends, events and marks of an attempt that was over by then, and that were refused.
    pub(crate) writes_fenced: Counter,
    /// Holes in the log of a job, as Redis had lost its tail; it was sent again.
    pub(crate) log_gaps: Counter,
}

impl Repairs {
    /// Show those of `stores`, once they are open.
    pub(super) fn register<F>(registry: &mut Registry, stores: &F)
    where
        F: Fn() -> Option<Store> + Clone + Send + Sync + 'static,
    {
        let leads = stores.clone();
        #[expect(clippy::cast_precision_loss, reason = "it is 0 or 1")]
        let leads = Reading::gauge(move || leads().map(|store| store.repairs().leads.get() as f64));
        registry.register("leads", "Whether this process leads the watch over the jobs: 1 or 0", leads);
        let counters: [Shown; 6] = [
            ("workers_buried", "Workers that this process declared dead", |repairs| &repairs.workers_buried),
            ("jobs_reclaimed", "Jobs that this process took away from a dead worker", |repairs| &repairs.jobs_reclaimed),
            ("jobs_rung_again", "Jobs that Redis had lost, and that this process rang for again", |repairs| &repairs.jobs_rung_again),
            ("strays_removed", "Doorbells that nobody answered, and that this process took away", |repairs| &repairs.strays_removed),
            ("writes_fenced", "Writes for an attempt that was over by then, and that were refused", |repairs| &repairs.writes_fenced),
            ("log_gaps", "Holes in the log of a job, as Redis had lost its tail; it was sent again", |repairs| &repairs.log_gaps),
        ];
        for (name, help, counter) in counters {
            let stores = stores.clone();
            registry.register(name, help, Reading::counter(move || stores().map(|store| figure(counter(store.repairs()).get()))));
        }
    }
}
