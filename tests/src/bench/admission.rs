//! What it costs to ask who calls, and how often they did: two servers of this process over one store, one as
//! the binary serves it, the other with a caller who was known before. Nothing else differs.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use api::{
    app::App,
    config::Config,
    deadline, endpoint,
    envelope::Envelope,
    openapi::{self, AllowedMethods},
    serve::{self, Limits},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use poem::{Endpoint, EndpointExt as _, Request, Response, endpoint::BoxEndpoint};
use shared::{
    api_key::Scope,
    api_keys::NewApiKey,
    audit::By,
    config::{Env, ExposeSecret as _},
    principal::Principal,
    store::Store,
    user::{PasswordHash, Role, UserLimits},
    users::NewUser,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    client::Client,
    servers::Kind,
    system::{Cli, JWT_SECRET, System},
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
        let settings = [
            ("DATABASE_URL", system.database.url()),
            ("REDIS_URL", system.redis.url()),
            ("JWT_SECRET", JWT_SECRET),
            ("PORT", "0"),
            // Nobody gets there, but all are counted.
            ("DEFAULT_RATE_LIMIT_PER_HOUR", "1000000000"),
        ];
        let config = Config::from_env(&Env::of(settings))?;
        let draining = CancellationToken::new();
        let store = Store::open(&config.store, &draining).await?.context("nobody shuts it down")?;
        let app = App::new(config, store, draining.clone());
        let caller = Caller::make(&app).await?;
        let mut admission = Self { ways: Vec::new(), app, servers: TaskTracker::new(), draining, _system: system };
        let unasked = admission.serve(unquestioned(admission.app.clone(), caller.principal).boxed()).await?;
        let asked = admission.serve(endpoint(admission.app.clone()).boxed()).await?;
        admission.ways = vec![
            Way { name: "not asked", client: Client::new(&unasked, &caller.key) },
            Way { name: "API key", client: Client::new(&asked, &caller.key) },
            Way { name: "access token", client: Client::of_login(&asked, &caller.token) },
        ];
        Ok(admission)
    }

    /// Serve `endpoint`; where. Boxed: its type, in full, is more than the compiler wants to know.
    async fn serve(&self, endpoint: BoxEndpoint<'static, Response>) -> anyhow::Result<String> {
        let listener = serve::listen(self.app.config.address).await?;
        let base = format!("http://{}", listener.local_addr()?);
        self.servers.spawn(serve::serve(listener, endpoint, Limits::of(&self.app), self.draining.clone()));
        Ok(base)
    }

    /// End the servers.
    pub async fn stop(self) {
        self.draining.cancel();
        self.servers.close();
        self.servers.wait().await;
        self.app.feeds.join_all().await;
    }
}

/// One user, and all the ways to be them.
struct Caller {
    key: String,
    /// Good for longer than the bench takes.
    token: String,
    principal: Arc<Principal>,
}

impl Caller {
    async fn make(app: &App) -> anyhow::Result<Self> {
        // Nobody logs in by it: what stands for the password is none.
        let password = PasswordHash::new("none".to_owned());
        let new = NewUser { email: "user@example.com".parse()?, name: None, password, role: Role::User, limits: UserLimits::default() };
        let user = app.users.create(new, &By::default()).await?;
        let new = NewApiKey {
            user_id: user.id,
            name: "bench".to_owned(),
            scopes: vec![Scope::Chat, Scope::Read],
            allowed_tools: None,
            allowed_ips: None,
            rate_limit_per_hour: None,
            max_concurrent_jobs: None,
            expires_at: None,
        };
        let (_, key) = app.api_keys.create(new, &By::default()).await?;
        let known = app.access.key(&key, IpAddr::V4(Ipv4Addr::LOCALHOST)).await?;
        let principal = known.map_err(|refusal| anyhow!("the key was refused: {refusal:?}"))?;
        let (family, _) = app.logins.begin(&user, &By::default()).await?;
        let token = app.tokens.issue(&user, family).expose_secret().to_owned();
        Ok(Self { key: key.expose().to_owned(), token, principal: Arc::new(principal) })
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

/// What the binary serves, but everybody is `caller`, and nobody counts how often.
fn unquestioned(app: App, caller: Arc<Principal>) -> impl Endpoint<Output = Response> {
    let config = &app.config;
    let (origins, proxies) = (config.origins.clone(), config.trusted_proxies.clone());
    let envelope = Arc::new(Envelope::new(origins, AllowedMethods::of_contract(), proxies, app.metrics.traffic.clone()));
    openapi::routes()
        .around(deadline::bound)
        .around(move |next, mut request: Request| {
            request.set_data(caller.clone());
            async move { next.call(request).await }
        })
        .data(app)
        .around(move |next, request| {
            let envelope = envelope.clone();
            async move { envelope.wrap(next, request).await }
        })
}
