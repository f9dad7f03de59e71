//! What every operation may use. Cheap to clone; a request finds it as `Data<&App>`.

use std::{sync::Arc, time::Instant};

use shared::{events::Events, jobs::Jobs, store::Store};
use tokio_util::sync::CancellationToken;

use crate::{config::Config, feed::Feeds, pace::Pace};

/// The state of this process.
#[derive(Clone)]
pub struct App {
    /// How we were told to work.
    pub config: Arc<Config>,
    /// The database and Redis, for the question whether they answer.
    pub store: Store,
    /// Jobs.
    pub jobs: Jobs,
    /// The logs of jobs.
    pub events: Events,
    /// The logs of jobs as they grow.
    pub feeds: Feeds,
    /// How fast the queue moves.
    pub pace: Pace,
    /// Set once the server was told to stop: nothing may start to wait any more.
    pub draining: CancellationToken,
    /// When this process began.
    pub started: Instant,
}

impl App {
    /// The application over `store`, until `draining`.
    pub fn new(config: Config, store: Store, draining: CancellationToken) -> Self {
        let jobs = Jobs::new(&store);
        let events = Events::new(&store);
        let pace = Pace::default();
        let feeds = Feeds::new(jobs.clone(), events.clone(), pace.clone(), draining.clone());
        Self { config: Arc::new(config), store, jobs, events, feeds, pace, draining, started: Instant::now() }
    }
}
