//! The door for worker processes, which join, beat and leave, and for who looks after them. A worker is
//! entitled to run its jobs while its beats are accepted, and for a short while after; then somebody else
//! may already run them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fred::prelude::KeysInterface as _;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Error, Result,
    audit::{Action, By},
    config::SecretString,
    consumption::Consumption,
    db::{
        self, Db, audit, jobs,
        session_lock::SessionLock,
        workers::{self as table, NewRow},
    },
    id::{JobId, WorkerId},
    redis::{self, queue, signals, status},
    store::Store,
    time::Timestamp,
};

/// How long Redis may take to say what workers told it.
const STATUS: Duration = Duration::from_millis(500);
/// How long a worker that died is shown.
const SHOWN_DEAD: Duration = Duration::from_hours(24);

/// What a worker process says of itself.
#[derive(Clone, Debug)]
pub struct NewWorker {
    /// A name for people, the same after a restart.
    pub name: String,
    /// The host it runs on.
    pub host: String,
    /// How many jobs it runs at once.
    pub slots: u32,
    /// The MCP servers it knows.
    pub mcp_servers: Vec<String>,
    /// A file that its process keeps locked (`flock`) while it lives, so that others on its host see when it is dead.
    pub lock_file: Option<PathBuf>,
}

/// One incarnation's place among the workers.
pub struct Membership {
    store: Store,
    id: WorkerId,
    /// A connection for the beats alone: they wait for no job.
    db: Db,
    /// The one to come, where that one failed: it may lead nowhere for a long time, and another may take longer to make
    /// than a beat.
    next_db: Option<AbortOnDropHandle<Result<Db>>>,
    last_entitled: Instant,
    /// What was seen of the leader's stamp since then.
    stamp: StampSeen,
    lock: SessionLock,
}

/// What the running jobs of one incarnation have used so far, for the record, and what else there is to tell of it.
/// Apart from its beats, which must not wait for it.
pub struct Books {
    store: Store,
    worker: WorkerId,
}

/// Calls to one incarnation to beat at once, because there is something to see. Apart from its beats, which must not
/// wait for them.
pub struct Calls {
    store: Store,
    worker: WorkerId,
}

/// What came of a beat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The worker lives, and these of its jobs are to be cancelled.
    Accepted {
        /// Jobs that somebody asked to end.
        cancelled: Vec<JobId>,
        /// Whether somebody asked this worker to take no more jobs and to end.
        drain: bool,
    },
    /// Nobody reaches the database, so nobody can take the jobs over: go on.
    Outage,
    /// This worker cannot reach the database, others may: the entitlement is running out.
    Missed,
    /// The entitlement is gone: end every process, write nothing, join anew.
    Lost,
}

impl Membership {
    /// Join the workers as a new incarnation, which is called `id`. Beat from then on: what it needs Redis for is got
    /// before, as Redis may be away for longer than a worker may be silent.
    pub async fn join(store: &Store, id: WorkerId, worker: &NewWorker) -> Result<Self> {
        // Before the row is there: a worker whose lock is free is dead.
        let lock = SessionLock::take(store.database_url(), store.db().backend(), id.uuid(), store.timing().beat).await?;
        let db = connect(store.database_url().clone()).await?;
        let lock_file = worker.lock_file.as_deref().map(Path::to_string_lossy);
        let row = NewRow {
            id,
            name: &worker.name,
            host: &worker.host,
            version: env!("CARGO_PKG_VERSION"),
            slots: worker.slots,
            mcp_servers: &worker.mcp_servers,
            lock_file: lock_file.as_deref(),
        };
        // As with beats: the row is there at some time after this.
        let last_entitled = Instant::now();
        table::insert(store.db(), row).await?;
        if !matches!(tokio::time::timeout(beat_limit(store), announce_slots(store)).await, Ok(Ok(()))) {
            tracing::debug!("Left it to the leader to see that there are more slots");
        }
        Ok(Self { store: store.clone(), id, db, next_db: None, last_entitled, stamp: StampSeen::default(), lock })
    }

    /// This incarnation's id.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// Say that this worker lives, within a beat's time. Call it once each [`crate::config::Timing::beat`] at least.
    pub async fn beat(&mut self) -> Beat {
        if let Some(connected) = self.next_db.take_if(|connecting| connecting.is_finished())
            && let Ok(Ok(db)) = connected.await
        {
            self.db = db;
        }
        let started = Instant::now();
        match tokio::time::timeout(beat_limit(&self.store), self.try_beat()).await {
            Ok(Ok(accepted @ Beat::Accepted { .. })) => {
                // The row changed after `started`: counting from there errs on the safe side.
                self.last_entitled = started;
                self.stamp = StampSeen::default();
                self.next_db = None;
                accepted
            }
            Ok(Ok(judged)) => judged,
            Ok(Err(_)) | Err(_) => {
                let connect = || AbortOnDropHandle::new(tokio::spawn(connect(self.store.database_url().clone())));
                self.next_db.get_or_insert_with(connect);
                self.without_database().await
            }
        }
    }

    /// When this worker was last known to be entitled to run anything.
    pub fn entitled_since(&self) -> Instant {
        self.last_entitled
    }

    async fn try_beat(&self) -> Result<Beat> {
        let Some(drain) = table::beat(&self.db, self.id).await? else { return Ok(Beat::Lost) };
        let cancelled = table::cancel_requests(&self.db, self.id).await?;
        Ok(Beat::Accepted { cancelled, drain })
    }

    async fn without_database(&mut self) -> Beat {
        // On one host there is no network to be cut off by.
        if self.store.is_one_host() {
            self.last_entitled = Instant::now();
            return Beat::Outage;
        }
        let asked = Instant::now();
        let stamp = self.store.redis().get::<Option<String>, _>(redis::LEADER_STAMP);
        let is_cut_off = match tokio::time::timeout(self.store.timing().beat, stamp).await {
            Ok(Ok(None)) => {
                // Whoever leads once it is over has seen nobody's silence before.
                self.last_entitled = asked;
                self.stamp = StampSeen { stood_still: true, ..StampSeen::default() };
                return Beat::Outage;
            }
            Ok(Ok(Some(stamp))) => self.stamp.goes_on(stamp, asked, self.store.timing().beat),
            // Nothing can be said: cut off until proven otherwise.
            Ok(Err(_)) | Err(_) => true,
        };
        if is_cut_off && self.last_entitled.elapsed() >= self.patience() { Beat::Lost } else { Beat::Missed }
    }

    /// How long the leader is sure to wait for a beat: less where it sees that the lock is free, unless it was cut off as
    /// well, and knows nothing of locks yet.
    fn patience(&self) -> Duration {
        let timing = self.store.timing();
        if self.lock.is_held() || self.stamp.stood_still { timing.entitlement() } else { timing.overdue() }
    }

    /// The books of this worker's running jobs.
    pub fn books(&self) -> Books {
        Books { store: self.store.clone(), worker: self.id }
    }

    /// The calls to this worker.
    pub fn calls(&self) -> Calls {
        Calls { store: self.store.clone(), worker: self.id }
    }

    /// Say that this worker takes no more jobs.
    pub async fn start_draining(&self) -> Result<()> {
        table::start_draining(self.store.db(), self.id).await
    }

    /// Leave, once no job is left. Says whether that was so; otherwise the reaper gives the rest away.
    pub async fn leave(self) -> Result<bool> {
        let transaction = self.store.db().begin().await?;
        let has_left = table::leave(&transaction, self.id).await?;
        db::commit(transaction).await?;
        Ok(has_left)
    }
}

/// What was seen of the leader's stamp while beats failed. It makes another one twice a beat, and only where it reaches
/// the database.
#[derive(Debug, Default)]
struct StampSeen {
    /// The last one, and when that was.
    last: Option<(String, Instant)>,
    /// How often another one was seen, without a pause.
    changes: u32,
    /// For a beat there was no other one: nobody reached the database then.
    stood_still: bool,
}

impl StampSeen {
    /// Note a look at it at `now`. Whether the leader goes on without this worker: it was seen to stamp twice, as one may
    /// have been on its way when the database was lost. Looks within a `beat` count as one.
    fn goes_on(&mut self, stamp: String, now: Instant, beat: Duration) -> bool {
        match &self.last {
            Some((_, at)) if now.duration_since(*at) < beat => return self.changes > 1,
            Some((known, _)) if *known == stamp => (self.changes, self.stood_still) = (0, true),
            Some(_) => self.changes += 1,
            None => {}
        }
        self.last = Some((stamp, now));
        self.changes > 1
    }
}

impl Calls {
    /// Pass each on, and whatever may have been one, for as long as this is awaited. May be given up at any time.
    pub async fn pass_on(&self, called: &Notify) {
        loop {
            match self.store.signals().subscribe_worker(self.worker).await {
                Ok(mut line) => loop {
                    line.next().await;
                    called.notify_one();
                },
                Err(error) => {
                    tracing::debug!(%error, "Cannot be called; what is asked of this worker is seen with its next beat");
                    tokio::time::sleep(self.store.timing().beat).await;
                }
            }
        }
    }
}

impl Books {
    /// Note what running attempts have used so far: it is billed if the worker is lost. Those that are over,
    /// or somebody else's, are passed over. Never takes longer than a beat may.
    pub async fn note(&self, news: &[(JobId, u32, Consumption)]) -> Result<()> {
        /// The most of one statement.
        const BATCH: usize = 200;
        let note = async {
            for batch in news.chunks(BATCH) {
                jobs::note_consumption(self.store.db(), self.worker, batch).await?;
            }
            Ok(())
        };
        let late = |_| Error::Unavailable { service: "database", source: "it took longer than a beat".into() };
        tokio::time::timeout(beat_limit(&self.store), note).await.map_err(late)?
    }

    /// Say how many CLI processes live. For people who look: nothing depends on it, and where it does not get through
    /// within a beat it is not said.
    pub async fn tell(&self, cli_processes: u32) {
        let telling = status::tell(self.store.redis(), self.worker, cli_processes, self.store.timing().beat * 3);
        if !matches!(tokio::time::timeout(beat_limit(&self.store), telling).await, Ok(Ok(()))) {
            tracing::debug!("Could not tell how many CLI processes live");
        }
    }
}

/// How a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It takes jobs.
    Active,
    /// It takes no more, and ends once the running ones have ended or were handed back.
    Draining,
    /// It left, or fell silent.
    Dead,
}

/// A worker as the record has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// This incarnation's id.
    pub id: WorkerId,
    /// A name for people, the same after a restart.
    pub name: String,
    /// The host it runs on.
    pub host: String,
    /// The version of its program.
    pub version: String,
    /// How many jobs it runs at once.
    pub slots: u32,
    /// How many it runs.
    pub running: u32,
    /// How many CLI processes of it live, busy or not. `None` where it did not tell lately.
    pub cli_processes: Option<u32>,
    /// How it is.
    pub state: WorkerState,
    /// When it joined.
    pub started_at: Timestamp,
    /// When it was last heard of.
    pub last_beat_at: Timestamp,
}

/// What can be done with workers from outside.
#[derive(Clone)]
pub struct Workers {
    store: Store,
}

impl Workers {
    /// The door over `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// The living, and those that died within a day, newest first.
    pub async fn list(&self, before: Option<WorkerId>, limit: u32) -> Result<Vec<Worker>> {
        let dead_for_ms = i64::try_from(SHOWN_DEAD.as_millis()).unwrap_or(i64::MAX);
        let mut workers = table::list(self.store.db(), dead_for_ms, before, limit).await?;
        let living: Vec<&mut Worker> = workers.iter_mut().filter(|worker| worker.state != WorkerState::Dead).collect();
        let ids: Vec<WorkerId> = living.iter().map(|worker| worker.id).collect();
        // Without Redis the record is still worth looking at. Boxed: a driver's future is large.
        let asked = tokio::time::timeout(STATUS, Box::pin(status::told(self.store.redis(), &ids))).await;
        for (worker, told) in living.into_iter().zip(asked.ok().and_then(Result::ok).unwrap_or_default()) {
            worker.cli_processes = told;
        }
        Ok(workers)
    }

    /// The names of the MCP servers that all living workers know: any of them may get a job. `None` where no
    /// worker lives to say.
    pub async fn mcp_servers(&self) -> Result<Option<BTreeSet<String>>> {
        let told = table::mcp_servers(self.store.db()).await?;
        let unreadable = |source: serde_json::Error| Error::Internal {
            what: "a worker's row holds what this version cannot read",
            source: source.into(),
        };
        let known: Vec<BTreeSet<String>> = told.iter().map(|list| serde_json::from_str(list).map_err(unreadable)).collect::<Result<_>>()?;
        Ok(known.into_iter().reduce(|all, some| &all & &some))
    }

    /// Ask a worker to take no more jobs, and to end once the running ones have ended or were handed back;
    /// to ask again changes nothing. `None` when it is not there; fails with [`Error::WorkerDead`].
    pub async fn drain(&self, id: WorkerId, by: &By) -> Result<Option<Worker>> {
        let transaction = self.store.db().begin().await?;
        let asked = table::request_drain(&transaction, id).await?;
        if asked {
            audit::insert(&transaction, by, Action::WorkerDrain, Some(id.to_string()), None).await?;
        }
        let Some(worker) = table::find(&transaction, id).await? else { return Ok(None) };
        db::commit(transaction).await?;
        if asked {
            signals::call(self.store.redis(), id).await;
        }
        if worker.state == WorkerState::Dead { Err(Error::WorkerDead) } else { Ok(Some(worker)) }
    }
}

/// This host's name, as its workers tell it: by it their files are known to be here.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Tell Redis how many jobs the workers can run at once, and the leader that this may have changed.
pub(crate) async fn announce_slots(store: &Store) -> Result<()> {
    queue::set_slots(store.redis(), table::slots(store.db()).await?).await?;
    queue::nudge(store.redis()).await
}

async fn connect(database_url: SecretString) -> Result<Db> {
    Db::connect(&database_url, 1).await.map_err(db::error)
}

/// How long anything may take that is done once a beat.
fn beat_limit(store: &Store) -> Duration {
    store.timing().beat.max(Duration::from_millis(500))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_goes_on_where_it_stamps_twice_and_nobody_does_where_it_stands_still() {
        const BEAT: Duration = Duration::from_secs(1);
        let (begin, mut seen) = (Instant::now(), StampSeen::default());
        let mut look = |at_ms: u64, stamp: &str| {
            let goes_on = seen.goes_on(stamp.to_owned(), begin + Duration::from_millis(at_ms), BEAT);
            (goes_on, seen.stood_still)
        };

        assert_eq!(look(0, "1"), (false, false));
        // One that was on its way, and the next look at the same moment.
        assert_eq!(look(1_000, "2"), (false, false));
        assert_eq!(look(1_010, "3"), (false, false));
        assert_eq!(look(2_010, "3"), (true, false));

        assert_eq!(look(3_010, "3"), (false, true));
        assert_eq!(look(4_010, "4"), (false, true));
        assert_eq!(look(5_010, "5"), (true, true));
    }
}
