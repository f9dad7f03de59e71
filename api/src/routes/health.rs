//! Whether this server is well: for people, for supervisors, for load balancers and for Prometheus.

use std::{sync::Arc, time::Duration};

use poem::{
    IntoResponse, Request, Response,
    http::{StatusCode, header},
    web::Data,
};
use poem_openapi::{
    ApiResponse, Enum, Object, OpenApi,
    payload::{Json, Payload},
    registry::{MetaSchema, MetaSchemaRef},
};
use shared::{
    api_key::Scope,
    metrics::{self, Caller, Figures, Verdict, is_of_a_proxy},
    principal::Principal,
    store::Store,
};

use crate::{
    app::App,
    error::{ApiError, Code},
    openapi::Tag,
};

/// The operations about this server.
pub struct HealthApi;

/// A server that answers.
#[derive(Object)]
struct Health {
    /// Always `ok`.
    status: String,
    /// The version of this server.
    version: String,
    /// For how long it has been running.
    uptime_secs: u64,
}

/// A server that can do its work.
#[derive(Object)]
struct Ready {
    /// Always `ready`.
    status: String,
}

/// A process that runs.
#[derive(Object)]
struct Alive {
    /// Always `alive`.
    status: String,
}

/// How well the whole is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
enum Wellness {
    /// Everything answers, and somebody runs jobs.
    Ok,
    /// Something is down, or this server is about to stop.
    Degraded,
}

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
enum ComponentState {
    /// It answers.
    Up,
    /// It does not.
    Down,
    /// Nobody can tell: the database is away.
    Unknown,
}

impl ComponentState {
    fn of(is_up: bool) -> Self {
        if is_up { Self::Up } else { Self::Down }
    }
}

/// How well each part is. What is more than a state is told to admins alone.
#[derive(Object)]
struct DetailedHealth {
    /// `ok`, unless something is down or this server is about to stop.
    status: Wellness,
    /// The version of this server.
    version: String,
    /// For how long it has been running.
    uptime_secs: u64,
    /// Whether this server is about to stop.
    draining: bool,
    /// The database.
    database: DatabaseHealth,
    /// Redis.
    redis: RedisHealth,
    /// The workers: up while at least one is alive.
    workers: WorkersHealth,
    /// What there is to do, at most five seconds ago.
    #[oai(skip_serializing_if_is_none)]
    queue: Option<QueueHealth>,
}

/// The database.
#[derive(Object)]
struct DatabaseHealth {
    /// Whether it answers.
    status: ComponentState,
    /// How long it took to.
    #[oai(skip_serializing_if_is_none)]
    latency_ms: Option<f64>,
    /// This server's connections to it.
    #[oai(skip_serializing_if_is_none)]
    connections: Option<Connections>,
}

/// Connections to the database.
#[derive(Object)]
struct Connections {
    /// Those there are, at work or idle.
    open: u32,
    /// Those that nobody uses.
    idle: u32,
    /// The most there may be.
    max: u32,
}

/// Redis.
#[derive(Object)]
struct RedisHealth {
    /// Whether it answers.
    status: ComponentState,
    /// How long it took to.
    #[oai(skip_serializing_if_is_none)]
    latency_ms: Option<f64>,
}

/// The workers.
#[derive(Object)]
struct WorkersHealth {
    /// Whether there is one.
    status: ComponentState,
    /// How many are alive.
    #[oai(skip_serializing_if_is_none)]
    alive: Option<u64>,
    /// How many jobs they can run at once, without those that are about to stop.
    #[oai(skip_serializing_if_is_none)]
    slots: Option<u64>,
}

/// What there is to do.
#[derive(Object)]
struct QueueHealth {
    /// Jobs that wait for a worker.
    queued: u64,
    /// Jobs that a worker runs.
    running: u64,
    /// How long the one that waits longest has waited.
    oldest_wait_secs: f64,
    /// Jobs that were given up after all their attempts.
    dead_letters: u64,
}

#[derive(ApiResponse)]
enum GetMetricsResponse {
    /// Every figure of this server, in Prometheus's text format.
    #[oai(status = 200)]
    Found(Exposition),
}

#[OpenApi(prefix_path = "/health", tag = "Tag::Health")]
impl HealthApi {
    /// Say that the server answers, and which version it is.
    #[oai(path = "/", method = "get", operation_id = "get_health")]
    #[expect(clippy::unused_async, reason = "operations are async")]
    async fn get_health(&self, app: Data<&App>) -> Json<Health> {
        Json(Health {
            status: "ok".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_secs: app.started.elapsed().as_secs(),
        })
    }

    /// Say that the process runs.
    ///
    /// Asks neither the database nor Redis. `503` when the process did not get on for ten seconds: it is to be started anew.
    #[oai(path = "/alive", method = "get", operation_id = "get_alive")]
    #[expect(clippy::unused_async, reason = "operations are async")]
    async fn get_alive(&self, app: Data<&App>) -> Result<Json<Alive>, ApiError> {
        if app.metrics.event_loop.is_stuck() {
            return Err(ApiError::unavailable(Code::Unavailable, "the event loop stood still", 5));
        }
        Ok(Json(Alive { status: "alive".to_owned() }))
    }

    /// Say whether requests can be served.
    ///
    /// They can while the database and Redis answer and the server is not about to stop.
    #[oai(path = "/ready", method = "get", operation_id = "get_ready")]
    async fn get_ready(&self, app: Data<&App>) -> Result<Json<Ready>, ApiError> {
        if app.leaving.is_cancelled() {
            return Err(ApiError::unavailable(Code::Draining, "the server is about to stop", 5));
        }
        let health = app.store.health().await;
        let down = match (health.database.is_some(), health.redis.is_some()) {
            (true, true) => return Ok(Json(Ready { status: "ready".to_owned() })),
            (false, true) => "the database does not answer",
            (true, false) => "redis does not answer",
            (false, false) => "the database and redis do not answer",
        };
        Err(ApiError::unavailable(Code::Unavailable, down, 2))
    }

    /// Say how well each part is.
    ///
    /// Answers `200` even while something is down: the answer is in `status`. Everybody is told the states; latencies, connections and
    /// numbers are for admins.
    #[oai(path = "/detailed", method = "get", operation_id = "get_detailed_health")]
    async fn get_detailed_health(&self, app: Data<&App>, request: &Request) -> Result<Json<DetailedHealth>, ApiError> {
        let (health, figures) = tokio::join!(app.store.health(), app.metrics.record.figures());
        // Figures may be a few seconds old: a database that is away is away.
        let figures = figures.filter(|_| health.database.is_some());
        let draining = app.leaving.is_cancelled();
        let workers = figures.map_or(ComponentState::Unknown, |figures| ComponentState::of(figures.workers > 0));
        let is_well = health.database.is_some() && health.redis.is_some() && workers == ComponentState::Up && !draining;
        let for_admins = is_admin(request);
        Ok(Json(DetailedHealth {
            status: if is_well { Wellness::Ok } else { Wellness::Degraded },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_secs: app.started.elapsed().as_secs(),
            draining,
            database: DatabaseHealth {
                status: ComponentState::of(health.database.is_some()),
                latency_ms: health.database.filter(|_| for_admins).map(milliseconds),
                connections: for_admins.then(|| connections(&app.store)),
            },
            redis: RedisHealth {
                status: ComponentState::of(health.redis.is_some()),
                latency_ms: health.redis.filter(|_| for_admins).map(milliseconds),
            },
            workers: WorkersHealth {
                status: workers,
                alive: figures.filter(|_| for_admins).map(|figures| figures.workers),
                slots: figures.filter(|_| for_admins).map(|figures| figures.slots),
            },
            queue: figures.filter(|_| for_admins).map(queue),
        }))
    }

    /// Get the server's metrics.
    ///
    /// In Prometheus's text format. Where the operator set `METRICS_TOKEN`, it must be shown as a bearer
    /// token; else only callers on the server's own host are answered, unless `METRICS_PUBLIC` is set.
    #[oai(path = "/metrics", method = "get", operation_id = "get_metrics")]
    async fn get_metrics(&self, app: Data<&App>, request: &Request) -> Result<GetMetricsResponse, ApiError> {
        let caller = Caller {
            peer: request.remote_addr().as_socket_addr().map(std::net::SocketAddr::ip),
            is_forwarded: request.headers().keys().any(|name| is_of_a_proxy(name.as_str())),
            authorization: request.headers().get(header::AUTHORIZATION).map(poem::http::HeaderValue::as_bytes),
        };
        match app.config.metrics.judge(caller) {
            Verdict::Allowed => Ok(GetMetricsResponse::Found(Exposition(app.metrics.page().await))),
            Verdict::TokenMissing => {
                Err(ApiError::new(Code::MissingCredentials, "this needs the metrics token: `Authorization: Bearer <token>`"))
            }
            Verdict::TokenWrong => Err(ApiError::new(Code::InvalidCredentials, "this metrics token is not valid")),
            Verdict::NotLocal => Err(ApiError::new(Code::NotLocal, "only callers on this host may do this")),
        }
    }
}

/// Whether the caller may know more than states.
fn is_admin(request: &Request) -> bool {
    request.data::<Arc<Principal>>().is_some_and(|principal| principal.has_scope(Scope::Admin))
}

fn milliseconds(duration: Duration) -> f64 {
    // To the microsecond: more would be noise.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn connections(store: &Store) -> Connections {
    let pool = store.pool();
    Connections { open: pool.open, idle: pool.idle, max: pool.max }
}

fn queue(figures: Figures) -> QueueHealth {
    QueueHealth {
        queued: figures.queued,
        running: figures.running,
        oldest_wait_secs: figures.oldest_wait.as_secs_f64(),
        dead_letters: figures.dead_letters,
    }
}

/// A page of metrics.
struct Exposition(String);

impl Payload for Exposition {
    const CONTENT_TYPE: &'static str = metrics::CONTENT_TYPE;

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema::new("string")))
    }
}

impl IntoResponse for Exposition {
    fn into_response(self) -> Response {
        let page = Response::builder().status(StatusCode::OK).content_type(Self::CONTENT_TYPE);
        page.header(header::CACHE_CONTROL, "no-store").body(self.0)
    }
}
