//! The language `api` and `worker` both speak, and the only door to the database and Redis.
//!
//! A singular file is a thing and its laws (`job`, `event`), without I/O; a plural file is the door to
//! what can be done with them (`jobs`, `workers`). What only one of the two binaries uses does not
//! belong here. Table, column and key names are known to the private modules `db` and `redis` alone.

pub mod access;
pub mod api_key;
pub mod api_keys;
pub mod audit;
pub mod config;
pub mod consumption;
pub mod contents;
pub mod error;
pub mod event;
pub mod events;
pub mod failpoint;
pub mod id;
pub mod image;
pub mod job;
pub mod jobs;
pub mod lease;
pub mod leases;
pub mod limits;
pub mod logins;
pub mod metrics;
pub mod output_schema;
pub mod principal;
pub mod reconciler;
pub mod session;
pub mod sessions;
pub mod settings;
pub mod stats;
pub mod stop_signals;
pub mod store;
pub mod telemetry;
pub mod time;
pub mod tool;
pub mod tools;
pub mod trace;
pub mod trace_context;
pub mod transcript;
pub mod usage;
pub mod user;
pub mod users;
pub mod workers;
pub mod workspace;
pub mod workspaces;

mod changes;
mod db;
mod ending;
mod line;
mod random;
mod redis;
mod spool;
mod window;

pub use error::{Error, Result};
