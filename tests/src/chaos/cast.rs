//! The processes of a run, each in a place of its own that outlives it: with its own ways to Redis and to the database,
//! and its own folder of jobs.

use std::{
    fs,
    path::PathBuf,
    pin::pin,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use shared::{id::WorkerId, time::Timestamp};
use tokio::{
    sync::{Mutex, OwnedMutexGuard, RwLock},
    time::timeout,
};

use crate::{
    client::Client,
    proxy::Proxy,
    runs::WITHOUT_SANDBOX,
    servers::Kind,
    system::{Cli, Running, System, built},
};

use super::Plan;

/// How many of each there are. The fourth worker is there only at times.
const APIS: usize = 2;
const WORKERS: usize = 4;
const SLOTS: &str = "8";

/// How long a start or an end may take while what all share is broken again and again.
const AMONG_FAULTS: Duration = Duration::from_secs(20);
/// How long one may take in all: the rest of it, nothing that all share is broken. What is judged is that all is well
/// then.
const IN_ALL: Duration = Duration::from_mins(1);
/// Whose jobs they are.
const USERS: usize = 3;

/// All processes, and what they run on.
pub(super) struct Cast {
    pub(super) system: System,
    pub(super) apis: Vec<Arc<Mutex<Place>>>,
    pub(super) workers: Vec<Arc<Mutex<Place>>>,
    /// Where each api was last.
    bases: std::sync::RwLock<Vec<String>>,
    /// One fault at a time for what all share: without both stores nobody can know that they are not cut off. Who reads
    /// keeps them whole.
    pub(super) stores: Arc<RwLock<()>>,
    own: Vec<(String, String)>,
}

/// Where one process after the other lives.
pub(super) struct Place {
    pub(super) name: String,
    number: usize,
    is_worker: bool,
    pub(super) redis: Proxy,
    pub(super) postgres: Option<Proxy>,
    pub(super) process: Option<Running>,
    /// How often the process that lives here was frozen or cut off for so long that it may be taken for dead.
    pub(super) harms: usize,
    pub(super) past: Vec<Past>,
}

/// A process that ended.
pub(super) struct Past {
    pub(super) name: String,
    pub(super) log: String,
    pub(super) harms: usize,
}

/// Jobs that a worker may have lost.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    pub(super) fault: super::Fault,
    pub(super) worker: WorkerId,
    pub(super) at: i64,
}

impl Cast {
    pub(super) async fn assemble(plan: &Plan) -> anyhow::Result<Self> {
        let system = match plan.kind {
            Kind::Postgres => System::start_alone(plan.cli.clone()).await?,
            Kind::Sqlite => System::start(Kind::Sqlite, plan.cli.clone()).await?,
        };
        let system = system.patient_for(IN_ALL).with("MAX_WORKERS", SLOTS).with("DRAIN_TIMEOUT", "1s").with("API_REPLICAS", "2");
        let mut own = plan.settings.clone();
        if matches!(plan.cli, Cli::Fake) {
            own.push((WITHOUT_SANDBOX.0.to_owned(), WITHOUT_SANDBOX.1.to_owned()));
        }
        let (mut apis, mut workers) = (Vec::new(), Vec::new());
        for number in 0..APIS + WORKERS {
            let is_worker = number >= APIS;
            let number = if is_worker { number - APIS } else { number };
            let redis = Proxy::to_redis(system.redis.socket()).await?;
            let postgres = if plan.kind == Kind::Postgres { Some(Proxy::to_postgres(&system.database).await?) } else { None };
            let name = format!("{} {number}", if is_worker { "worker" } else { "api" });
            let place = Place { name, number, is_worker, redis, postgres, process: None, harms: 0, past: Vec::new() };
            if is_worker { &mut workers } else { &mut apis }.push(Arc::new(Mutex::new(place)));
        }
        let bases = std::sync::RwLock::new(vec![String::new(); APIS]);
        let cast = Self { system, apis, workers, bases, stores: Arc::default(), own };
        for place in cast.apis.iter().chain(cast.workers.iter().take(WORKERS - 1)) {
            cast.start(&mut *place.lock().await).await?;
        }
        Ok(cast)
    }

    /// A client of each user; which server it asks is to be said each time.
    pub(super) async fn users(&self) -> anyhow::Result<Vec<Client>> {
        let mut users = Vec::new();
        for number in 0..USERS {
            users.push(Client::new("", &self.system.make_key(&format!("chaos-{number}@example.com")).await?));
        }
        Ok(users)
    }

    /// Start a process in a place where none lives.
    pub(super) async fn start(&self, place: &mut Place) -> anyhow::Result<()> {
        let (redis, jobs) = (place.redis.redis_url(), self.system.directory().join(format!("jobs{}", place.number)));
        let database = place.postgres.as_ref().map(|proxy| self.system.database.url_over(proxy)).transpose()?;
        let (jobs, worker) = (jobs.to_string_lossy().into_owned(), place.name.replace(' ', "-"));
        let mut own = vec![("REDIS_URL", redis.as_str()), ("JOBS_DIR", &jobs), ("WORKER_NAME", &worker)];
        own.extend(database.as_ref().map(|url| ("DATABASE_URL", url.as_str())));
        own.extend(self.own.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        place.process = Some(if place.is_worker {
            self.in_spite_of_faults(self.system.worker_with(&own)).await.with_context(|| place.name.clone())?
        } else {
            let api = self.in_spite_of_faults(self.system.api_with(&own)).await.with_context(|| place.name.clone())?;
            api.client.base().clone_into(&mut self.bases.write().unwrap_or_else(PoisonError::into_inner)[place.number]);
            api.process
        });
        Ok(())
    }

    /// Wait for what needs both stores for a while at a time: if it does not come to its end among the faults, the
    /// stores are kept whole for it.
    pub(super) async fn in_spite_of_faults<T>(&self, what: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let mut what = pin!(what);
        if let Ok(done) = timeout(AMONG_FAULTS, &mut what).await {
            return done;
        }
        let _whole = self.stores.read().await;
        what.await
    }

    /// Write down what each process logged; where.
    pub(super) async fn keep_logs(&self, seed: u64) -> anyhow::Result<PathBuf> {
        let folder = built("chaos")?.with_file_name(format!("chaos-{seed}"));
        fs::create_dir_all(&folder)?;
        for place in self.apis.iter().chain(&self.workers) {
            let place = place.lock().await;
            let past = place.past.iter().map(|past| past.log.clone());
            let logs: Vec<_> = past.chain(place.process.as_ref().map(Running::log)).collect();
            fs::write(folder.join(format!("{}.log", place.name.replace(' ', "-"))), logs.join("\n"))?;
        }
        Ok(folder)
    }

    /// Where one of the apis is, or was a moment ago.
    pub(super) fn base(&self, number: usize) -> String {
        self.bases.read().unwrap_or_else(PoisonError::into_inner)[number % APIS].clone()
    }

    /// One of these places, if nothing else is done there and a process lives in it.
    pub(super) fn free(places: &[Arc<Mutex<Place>>], random: &mut fastrand::Rng) -> Option<OwnedMutexGuard<Place>> {
        let mut order: Vec<_> = places.iter().collect();
        random.shuffle(&mut order);
        order.into_iter().find_map(|place| place.clone().try_lock_owned().ok().filter(|place| place.process.is_some()))
    }

    /// The folder of the jobs' ledgers.
    pub(super) fn ledger(&self, number: usize) -> PathBuf {
        self.system.directory().join(format!("ledger-{number}"))
    }
}

impl Place {
    /// Kill what lives here.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(process) = &mut self.process {
            process.kill().await?;
        }
        self.bury().await
    }

    /// Note the end of what lived here.
    pub(super) async fn bury(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            let log = process.whole_log().await?;
            self.past.push(Past { name: self.name.clone(), log, harms: std::mem::take(&mut self.harms) });
        }
        Ok(())
    }

    /// What the worker that lives here may be losing from now on.
    pub(super) fn loses(&self, fault: super::Fault) -> Option<Loss> {
        let worker = *joined(&self.process.as_ref()?.log()).last()?;
        Some(Loss { fault, worker, at: Timestamp::now().unix_ms() })
    }

    /// The term in which the process that lives here led last.
    pub(super) fn led(&self) -> Option<u64> {
        let log = self.process.as_ref()?.log();
        let line = log.lines().rfind(|line| line.contains("This process leads the watch"))?.to_owned();
        line.split("term=").nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }
}

/// As whom a worker joined, one after the other.
pub(super) fn joined(log: &str) -> Vec<WorkerId> {
    log.lines().filter_map(|line| line.split("Joined as `").nth(1)?.split('`').next()?.parse().ok()).collect()
}

/// A time of about `mean`, rarely much longer.
pub(super) fn about(mean: Duration, random: &mut fastrand::Rng) -> Duration {
    mean.mul_f64(-(1.0 - random.f64()).ln()).min(mean * 4)
}
