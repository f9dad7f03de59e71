//! The connections behind every door. Opened once in each process, cheap to clone.

use tokio_util::sync::CancellationToken;

use crate::{Result, config::StoreConfig};

/// The database and Redis, connected and migrated.
#[derive(Clone)]
pub struct Store {}

/// How long a dependency took to answer, or that it did not.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    /// Whether the database answered.
    pub database: bool,
    /// Whether Redis answered.
    pub redis: bool,
}

impl Store {
    /// Connect to both, waiting with back-off while one is away, and bring the schema up to date.
    /// `None` when `shutdown` came first.
    pub async fn open(_config: &StoreConfig, _shutdown: &CancellationToken) -> Result<Option<Self>> {
        unimplemented!()
    }

    /// Ask both whether they answer; never longer than two seconds.
    pub async fn health(&self) -> Health {
        unimplemented!()
    }
}
