//! The loops that repair what a crash left behind, in every api and worker process, run by one leader
//! among them all. Every statement is idempotent and fenced, so two leaders for a moment do no harm.
//! Death is judged by counters that stand still on this process's own monotonic clock: no wall clocks
//! are compared, and a stopped leader is taken over like any other.

use std::time::{Duration, Instant};

use fred::{
    prelude::{Expiration, KeysInterface as _},
    types::SetOptions,
};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use crate::{
    Error, Result,
    db::{
        jobs as table,
        leader::{self, Seen},
    },
    ending, events,
    job::{JobError, JobState},
    jobs::Jobs,
    logins,
    redis::{self, queue},
    sessions,
    store::Store,
    users,
};

mod audit;
mod dead;
mod places;

use audit::Audit;
use dead::Watch;
use places::Places;

/// The most rows one look takes on; the rest waits for the next tick.
const BATCH: u32 = 500;

/// How often what is long gone is looked for: tokens that expired, contents of nobody.
const SWEEP: Duration = Duration::from_mins(1);

/// Watch over all jobs until `shutdown` fires: lead if nobody does, stand by otherwise.
pub async fn run(store: Store, shutdown: CancellationToken) {
    let mut room = store.signals().subscribe_room().await;
    let mut reconciler = Reconciler::new(store);
    let mut ticks = tokio::time::interval(reconciler.store.timing().tick);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let round = tokio::select! {
            () = shutdown.cancelled() => break,
            _ = ticks.tick() => reconciler.tick().await,
            () = room.next() => reconciler.give_places().await,
        };
        if let Err(error) = round {
            tracing::warn!(%error, cause = ?std::error::Error::source(&error), "The watch over the jobs could not finish its round");
        }
    }
    reconciler.resign().await;
    if let Some(forgetting) = reconciler.forgetting.take() {
        // All of it is done again by the next leader.
        forgetting.abort();
        let _ = forgetting.await;
    }
}

struct Reconciler {
    store: Store,
    id: Uuid,
    term: Option<i64>,
    /// How often this process stamped that it reaches the database: no two stamps are the same.
    stamps: u64,
    /// The leader's row when it last changed, and when that was noticed.
    rival: Option<(Seen, Instant)>,
    watch: Watch,
    places: Places,
    audit: Audit,
    /// Since when Redis could not be reached.
    without_redis: Option<Instant>,
    /// Until when others are to lead that may reach it.
    waits_until: Option<Instant>,
    /// When that was last done.
    swept: Option<Instant>,
    /// What is being forgotten.
    forgetting: Option<AbortOnDropHandle<()>>,
}

impl Reconciler {
    fn new(store: Store) -> Self {
        Self {
            store,
            id: Uuid::now_v7(),
            term: None,
            stamps: 0,
            rival: None,
            watch: Watch::default(),
            places: Places::default(),
            audit: Audit::default(),
            without_redis: None,
            waits_until: None,
            swept: None,
            forgetting: None,
        }
    }

    /// How long the leader's row may stand still.
    fn leader_patience(&self) -> Duration {
        self.store.timing().tick * 4
    }

    async fn tick(&mut self) -> Result<()> {
        // Whoever could not look has seen nothing; what goes wrong after the look takes nothing back.
        let slots = match self.look().await {
            Ok(Some(slots)) => slots,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.forget();
                return Err(error);
            }
        };
        self.give_up_the_overdue().await?;
        self.forget_the_gone();
        match self.look_after_the_queue(slots).await {
            Err(error @ Error::Unavailable { service: "redis", .. }) => {
                let since = *self.without_redis.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.leader_patience() {
                    self.step_back().await;
                }
                Err(error)
            }
            done => {
                self.without_redis = None;
                done
            }
        }
    }

    async fn look_after_the_queue(&mut self, slots: u64) -> Result<()> {
        // Commands wait for a connection that is not there, longer than a leader may stand still.
        let away = || Error::Unavailable { service: "redis", source: "there is no connection, or it does not answer".into() };
        if !self.store.is_redis_connected() {
            return Err(away());
        }
        let telling = queue::set_slots(self.store.redis(), slots);
        let has_lost_all = !timeout(self.leader_patience() / 4, telling).await.map_err(|_| away())??;
        self.audit.run(&self.store, has_lost_all).await?;
        self.places.give(&self.store, slots).await
    }

    /// Let another process lead that may reach Redis, and come back to it if none does.
    async fn step_back(&mut self) {
        tracing::warn!("Redis cannot be reached from here: leaving the watch over the jobs to others");
        self.resign().await;
        self.set_term(None);
        self.without_redis = None;
        self.waits_until = Some(Instant::now() + self.leader_patience() * 2);
    }

    /// A place may be free: not a whole round, and nothing where another process leads.
    async fn give_places(&mut self) -> Result<()> {
        if self.term.is_none() { Ok(()) } else { self.places.give_again(&self.store).await }
    }

    /// How many jobs the workers can run at once, if this process leads; then the dead have been buried.
    async fn look(&mut self) -> Result<Option<u64>> {
        // Each looks, so that whoever takes over has seen what there was to see.
        let living = self.watch.look(&self.store).await?;
        if !self.leads().await? {
            return Ok(None);
        }
        self.stamp().await;
        self.watch.bury_the_dead(&self.store, living).await.map(Some)
    }

    fn forget(&mut self) {
        self.watch.forget();
        self.rival = None;
    }

    async fn leads(&mut self) -> Result<bool> {
        if let Some(term) = self.term {
            if leader::beat(self.store.db(), self.id, term).await? {
                return Ok(true);
            }
            tracing::info!(term, "Another process leads the watch over the jobs now");
            self.set_term(None);
            self.rival = None;
        }
        let seen = leader::look(self.store.db()).await?;
        let since = match self.rival {
            Some((known, since)) if known == seen => since,
            _ => Instant::now(),
        };
        self.rival = Some((seen, since));
        if seen.holder.is_some() && since.elapsed() < self.leader_patience() {
            return Ok(false);
        }
        if self.waits_until.is_some_and(|until| Instant::now() < until) {
            return Ok(false);
        }
        self.waits_until = None;
        let term = leader::take(self.store.db(), self.id, seen).await?;
        self.set_term(term);
        if let Some(term) = self.term {
            tracing::info!(term, "This process leads the watch over the jobs");
        }
        Ok(self.term.is_some())
    }

    fn set_term(&mut self, term: Option<i64>) {
        self.term = term;
        self.store.repairs().leads.set(term.is_some().into());
    }

    async fn resign(&self) {
        if let Some(term) = self.term
            && let Err(error) = leader::resign(self.store.db(), self.id, term).await
        {
            tracing::debug!(%error, "Could not give up the watch; another process takes it over");
        }
    }

    /// Tell workers that cannot reach the database that somebody can. For half as long as they go on without: that is
    /// longer than it takes until another leads, which nobody must take for an outage, and leaves them time to see one.
    async fn stamp(&mut self) {
        self.stamps += 1;
        let life_ms = i64::try_from((self.store.timing().entitlement() / 2).as_millis()).unwrap_or(i64::MAX);
        let stamp = self.store.redis().set::<(), _, _>(
            redis::LEADER_STAMP,
            format!("{} {}", self.id, self.stamps),
            Some(Expiration::PX(life_ms)),
            None::<SetOptions>,
            false,
        );
        if !matches!(timeout(self.leader_patience() / 4, stamp).await, Ok(Ok(()))) {
            tracing::debug!("Could not stamp the leadership into Redis");
        }
    }

    async fn give_up_the_overdue(&self) -> Result<()> {
        for job in table::overdue(self.store.db(), BATCH).await? {
            let waited = job.spec.queue_timeout().as_secs();
            let error = JobError::new("queue_timeout", format!("no worker took the job within {waited} seconds"), true);
            ending::end_unheld(&self.store, &job, JobState::Failed, Some(&error)).await?;
        }
        Ok(())
    }

    /// Beside the rounds: files may be many, and a slow store must not cost the lead.
    fn forget_the_gone(&mut self) {
        if self.forgetting.as_ref().is_some_and(|forgetting| !forgetting.is_finished()) {
            return;
        }
        let sweeps = self.swept.is_none_or(|swept| swept.elapsed() >= SWEEP);
        if sweeps {
            self.swept = Some(Instant::now());
        }
        let store = self.store.clone();
        self.forgetting = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = forget(&store, sweeps).await {
                tracing::warn!(%error, cause = ?std::error::Error::source(&error), "Could not forget what is gone");
            }
        })));
    }
}

async fn forget(store: &Store, sweeps: bool) -> Result<()> {
    sessions::purge_deleted(store).await?;
    users::forget_deleted(store).await?;
    if sweeps {
        Jobs::new(store).forget_idempotency_keys().await?;
        logins::forget_expired(store).await?;
        events::forget_old(store).await?;
        sessions::sweep_purged(store).await?;
    }
    Ok(())
}
