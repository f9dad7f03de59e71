//! What it costs to ask who calls: two servers of this process over one store, one as the binary serves it,
//! the other with a caller who was known before. Nothing else differs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use api::{
    app::App,
    auth::Principal,
    config::Config,
    endpoint,
    envelope::Envelope,
    openapi::{self, AllowedMethods},
    serve::{self, Limits},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use poem::{Endpoint, EndpointExt as _, Request, Response};
use shared::{config::Env, store::Store, user::BOOTSTRAP_USER};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    client::Client,
    servers::Kind,
    system::{Cli, KEY, System},
};

/// How many requests are under way at a time when many are.
pub const CROWD: usize = 8;

/// A way into the service.
pub struct Way {
    /// What it is called.
    pub name: &'static str,
    client: Client,
}

/// Both servers, without a worker: a submit ends with its answer.
pub struct Admission {
    /// The ways in, the one without a question first.
    pub ways: Vec<Way>,
    app: App,
    servers: TaskTracker,
    draining: CancellationToken,
    /// Last: the stores outlive whoever uses them.
    _system: System,
}

impl Admission {
    /// Serve over stores of its own.
    pub async fn start(kind: Kind) -> anyhow::Result<Self> {
        let system = System::start(kind, Cli::Fake).await?;
        let settings =
            [("DATABASE_URL", system.database.url()), ("REDIS_URL", system.redis.url()), ("BOOTSTRAP_API_KEY", KEY), ("PORT", "0")];
        let config = Config::from_env(&Env::of(settings))?;
        let draining = CancellationToken::new();
        let store = Store::open(&config.store, &draining).await?.context("nobody shuts it down")?;
        let app = App::new(config, store, draining.clone());
        let mut admission = Self { ways: Vec::new(), app, servers: TaskTracker::new(), draining, _system: system };
        let caller = Principal { user_id: BOOTSTRAP_USER, api_key_id: None };
        admission.open("not asked", unquestioned(admission.app.clone(), caller)).await?;
        admission.open("API key", endpoint(admission.app.clone())).await?;
        Ok(admission)
    }

    async fn open<E: Endpoint<Output = Response> + 'static>(&mut self, name: &'static str, endpoint: E) -> anyhow::Result<()> {
        let config = &self.app.config;
        let listener = serve::listen(config.address).await?;
        let client = Client::new(&format!("http://{}", listener.local_addr()?), KEY);
        let limits = Limits { connections: config.max_connections, drain: config.drain_timeout };
        self.servers.spawn(serve::serve(listener, endpoint, limits, self.draining.clone()));
        self.ways.push(Way { name, client });
        Ok(())
    }

    /// End the servers.
    pub async fn stop(self) {
        self.draining.cancel();
        self.servers.close();
        self.servers.wait().await;
        self.app.feeds.join_all().await;
    }
}

impl Way {
    /// The time of one submit.
    pub async fn submit(&self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let id = self.client.say("say:x").await?;
        let elapsed = started.elapsed();
        self.forget(&id).await?;
        Ok(elapsed)
    }

    /// The time of so many submits, [`CROWD`] at a time.
    pub async fn submit_many(&self, count: usize) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let ids: Vec<String> = stream::iter(0..count).map(|_| self.client.say("say:x")).buffer_unordered(CROWD).try_collect().await?;
        let elapsed = started.elapsed();
        for id in ids {
            self.forget(&id).await?;
        }
        Ok(elapsed)
    }

    /// Take a job out of the queue again: its length is part of what a submit answers.
    async fn forget(&self, id: &str) -> anyhow::Result<()> {
        self.client.cancel(id).await.map(drop)
    }
}

/// What the binary serves, but everybody is `caller`.
fn unquestioned(app: App, caller: Principal) -> impl Endpoint<Output = Response> {
    let envelope = Arc::new(Envelope::new(app.config.origins.clone(), AllowedMethods::of_contract()));
    openapi::routes()
        .around(move |next, mut request: Request| async move {
            request.set_data(caller);
            next.call(request).await
        })
        .data(app)
        .around(move |next, request| {
            let envelope = envelope.clone();
            async move { envelope.wrap(next, request).await }
        })
}
