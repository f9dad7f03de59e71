//! Whether this server is well: for people, for supervisors and for load balancers.

use poem::web::Data;
use poem_openapi::{Object, OpenApi, payload::Json};

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

    /// Say that the process runs. Touches nothing.
    #[oai(path = "/alive", method = "get", operation_id = "get_alive")]
    #[expect(clippy::unused_async, reason = "operations are async")]
    async fn get_alive(&self) -> Json<Alive> {
        Json(Alive { status: "alive".to_owned() })
    }

    /// Say whether requests can be served.
    ///
    /// They can while the database and Redis answer and the server is not about to stop.
    #[oai(path = "/ready", method = "get", operation_id = "get_ready")]
    async fn get_ready(&self, app: Data<&App>) -> Result<Json<Ready>, ApiError> {
        if app.draining.is_cancelled() {
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
}
