//! What every operation may use. Cheap to clone; a request finds it as `Data<&App>`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    access::Access, api_keys::ApiKeys, audit::AuditLog, events::Events, id::UserId, jobs::Jobs, limits::Limits, logins::Logins,
    sessions::Sessions, stats::Stats, store::Store, tools::Tools, usage::UsageLog, users::Users, workers::Workers, workspaces::Workspaces,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config, feed::Feeds, job_news::JobNews, metrics::Metrics, password::Passwords, places::Places, socket::System,
    throttle::Throttle, token::Tokens,
};

/// How long a login may rest before its password is asked for again.
const LOGIN_LIFETIME: Duration = Duration::from_hours(30 * 24);

/// The state of this process.
#[derive(Clone)]
pub struct App {
    /// How we were told to work.
    pub config: Arc<Config>,
    /// The database and Redis, for the question whether they answer.
    pub store: Store,
    /// Accounts.
    pub users: Users,
    /// Logins.
    pub logins: Logins,
    /// API keys.
    pub api_keys: ApiKeys,
    /// Who may do what, now.
    pub access: Access,
    /// Who did what.
    pub audit: AuditLog,
    /// Access tokens.
    pub tokens: Tokens,
    /// Passwords.
    pub passwords: Passwords,
    /// How often everybody may ask.
    pub limits: Limits,
    /// How often strangers may try.
    pub throttle: Throttle,
    /// Tools.
    pub tools: Tools,
    /// Conversations.
    pub sessions: Sessions,
    /// Their files.
    pub workspaces: Workspaces,
    /// Who runs jobs.
    pub workers: Workers,
    /// How things are, and how they went.
    pub stats: Stats,
    /// Jobs.
    pub jobs: Jobs,
    /// What was used.
    pub usage: UsageLog,
    /// The logs of jobs.
    pub events: Events,
    /// The logs of jobs as they grow.
    pub feeds: Feeds,
    /// How the jobs of a user stand, as they change.
    pub job_news: JobNews,
    /// How workers and queue stand.
    pub system: System,
    /// How many sockets each user has.
    pub sockets: Places<UserId>,
    /// What this server measures.
    pub metrics: Arc<Metrics>,
    /// Set once the server was told to stop: whoever asks for its readiness is to look elsewhere.
    pub leaving: CancellationToken,
    /// Set once the server stops: nothing may start to wait any more.
    pub draining: CancellationToken,
    /// When this process began.
    pub started: Instant,
}

impl App {
    /// The application over `store`, until `draining`, and ready until then.
    pub fn new(config: Config, store: Store, draining: CancellationToken) -> Self {
        let jobs = Jobs::new(&store);
        let events = Events::new(&store);
        let usage = UsageLog::new(&store);
        let limits = Limits::new(&store, config.replicas.get());
        let metrics = Arc::new(Metrics::new(&store, &limits));
        let feeds = Feeds::new(jobs.clone(), events.clone(), metrics.traffic.readers.clone(), draining.clone());
        let workers = Workers::new(&store);
        Self {
            job_news: JobNews::new(jobs.clone(), draining.clone()),
            system: System::new(workers.clone(), metrics.record.clone()),
            sockets: Places::new(config.max_sockets_per_user),
            users: Users::new(&store),
            logins: Logins::new(&store, LOGIN_LIFETIME),
            api_keys: ApiKeys::new(&store),
            access: Access::new(&store),
            audit: AuditLog::new(&store),
            tools: Tools::new(&store),
            tokens: Tokens::new(&config.jwt_secrets),
            passwords: Passwords::default(),
            throttle: Throttle::new(config.auth_rate_limit_per_minute),
            limits,
            sessions: Sessions::new(&store),
            workspaces: Workspaces::new(&store),
            workers,
            stats: Stats::new(&store),
            config: Arc::new(config),
            store,
            jobs,
            usage,
            events,
            feeds,
            metrics,
            leaving: draining.clone(),
            draining,
            started: Instant::now(),
        }
    }
}
