//! What both binaries measure, and how they show it: as Prometheus's text format. A figure is an atomic,
//! or is read where it lives when somebody asks for it: no page of metrics takes a lock that a request
//! or a job would have to wait for.

mod access;
mod durations;
mod event_loop;
mod process;
mod reading;
mod record;
mod repairs;
mod text;

pub use access::{Caller, MetricsAccess, Verdict, is_of_a_proxy};
pub use durations::Durations;
pub use event_loop::EventLoop;
pub use reading::Reading;
pub use record::{Figures, Record};
pub use repairs::Repairs;
pub use text::{CONTENT_TYPE, text};

use prometheus_client::{metrics::info::Info, registry::Registry};

use crate::store::Store;

/// Count as a figure: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "no figure of ours comes near 2^53")]
pub fn figure(count: u64) -> f64 {
    count as f64
}

/// A registry with what is known of every process: its own figures, its version, how its `event_loop` turns, and
/// its `stores` once they are open. The second registry is for what is the binary's own, under `prefix`.
pub fn register<'a, F>(registry: &'a mut Registry, prefix: &str, event_loop: &EventLoop, stores: F) -> &'a mut Registry
where
    F: Fn() -> Option<Store> + Clone + Send + Sync + 'static,
{
    registry.register_collector(Box::new(process::Process::default()));
    let own = registry.sub_registry_with_prefix(prefix);
    own.register("build", "The version that runs; always 1", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    let lags = event_loop.lags();
    own.register("event_loop_lag_seconds", "By how much the turns of the event loop came late, in seconds", lags);
    let of_pool = |read: fn(crate::store::Pool) -> u32| {
        let stores = stores.clone();
        Reading::gauge(move || stores().map(|store| read(store.pool()).into()))
    };
    own.register("database_connections_open", "Open connections to the database, at work or idle", of_pool(|pool| pool.open));
    own.register("database_connections_idle", "Open connections to the database that nobody uses", of_pool(|pool| pool.idle));
    own.register("database_connections_max", "The most connections to the database this process may open", of_pool(|pool| pool.max));
    Repairs::register(own, &stores);
    let is_connected = Reading::gauge(move || stores().map(|store| store.is_redis_connected().into()));
    own.register("redis_connected", "Whether the connection to Redis stands: 1 or 0", is_connected);
    own
}
