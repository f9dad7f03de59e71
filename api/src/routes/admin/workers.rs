//! The workers: who runs jobs, and how to end one without losing any.

use poem::web::Data;
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use shared::{
    id::WorkerId,
    time::Timestamp,
    workers::{self, WorkerState},
};

use crate::{
    app::App,
    auth::{Admin, Authenticated},
    contract::Wire,
    error::ApiError,
    openapi::Tag,
    page::{Limit, Page},
};

/// The operations on workers.
pub struct WorkersApi;

/// A worker process.
#[derive(Debug, Object)]
pub struct Worker {
    /// This process; the next one of the same name has another.
    id: Wire<WorkerId>,
    /// A name for people, the same after a restart.
    name: String,
    /// The host it runs on.
    host: String,
    /// The version of its program.
    version: String,
    /// How many jobs it runs at once.
    slots: u32,
    /// How many it runs.
    running: u32,
    /// How many Claude CLI processes of it live, busy or not; null where it did not tell lately.
    #[oai(nullable)]
    cli_processes: Option<u32>,
    /// `draining` takes no more jobs and is about to end; `dead` left, or fell silent.
    state: Wire<WorkerState>,
    /// When it joined.
    started_at: Wire<Timestamp>,
    /// When it was last heard of.
    last_beat_at: Wire<Timestamp>,
}

/// A page of workers, newest first.
#[derive(Debug, Object)]
struct WorkerList {
    /// The workers.
    data: Vec<Worker>,
    /// The `cursor` of the next page; null on the last.
    #[oai(nullable)]
    next_cursor: Option<Wire<WorkerId>>,
}

#[derive(ApiResponse)]
enum DrainWorkerResponse {
    /// The worker, which takes no more jobs.
    #[oai(status = 202)]
    Accepted(Json<Worker>),
}

#[OpenApi(prefix_path = "/api/admin", tag = "Tag::Admin")]
impl WorkersApi {
    /// List the workers, newest first.
    ///
    /// Those that are dead are shown for a day.
    #[oai(path = "/workers", method = "get", operation_id = "list_workers")]
    async fn list_workers(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The most workers to answer; 20 if absent.
        limit: Query<Limit>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<WorkerId>>>,
    ) -> Result<Json<WorkerList>, ApiError> {
        let page = Page::of(limit.0);
        let mut workers = app.workers.list(cursor.0.map(|Wire(id)| id), page.rows()).await?;
        let next_cursor = page.cut(&mut workers).map(|worker| Wire(worker.id));
        Ok(Json(WorkerList { data: workers.into_iter().map(Worker::from).collect(), next_cursor }))
    }

    /// Drain a worker.
    ///
    /// It takes no more jobs, lets the running ones end, hands back what runs too long, and ends itself, as it does
    /// when its process is told to stop. To ask again changes nothing; a dead one is refused with `worker_dead`.
    #[oai(path = "/workers/:id/drain", method = "post", operation_id = "drain_worker")]
    async fn drain_worker(
        &self,
        auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The worker.
        id: Path<Wire<WorkerId>>,
    ) -> Result<DrainWorkerResponse, ApiError> {
        let worker = app.workers.drain(id.0.0, &auth.by()).await?.ok_or_else(ApiError::not_found)?;
        Ok(DrainWorkerResponse::Accepted(Json(worker.into())))
    }
}

impl From<workers::Worker> for Worker {
    fn from(worker: workers::Worker) -> Self {
        let workers::Worker { id, name, host, version, slots, running, cli_processes, state, started_at, last_beat_at } = worker;
        Self {
            id: Wire(id),
            name,
            host,
            version,
            slots,
            running,
            cli_processes,
            state: Wire(state),
            started_at: Wire(started_at),
            last_beat_at: Wire(last_beat_at),
        }
    }
}
