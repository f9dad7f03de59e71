//! How the jobs of one user stand, for all in this process who watch them: at first those that have not ended,
//! then each that changes. What Redis says only wakes; what is told is read from the record, by one task for
//! each user, so nobody sees a job go back in time.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::json;
use shared::{
    Result,
    event::MAX_EVENT_BYTES,
    id::{JobId, UserId},
    job::{Job, JobState, JobView},
    jobs::{JobFilter, Jobs, StateNews},
    time::Timestamp,
};
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

/// How often the record is asked for what no news was heard of.
const LOOK: Duration = Duration::from_secs(5);
/// How long to wait after Redis or the database did not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How long a feed outlives its last watcher.
const LINGER: Duration = Duration::from_secs(5);
/// The most jobs that are told of at first.
const MOST: u32 = 1_000;
/// How many of the newest jobs are looked at for some that came and ended unheard.
const NEWEST: u32 = 20;
/// How many that ended are remembered as told.
const REMEMBERED: usize = 256;
/// The most messages kept for one who reads slowly; one that falls further behind starts anew.
const BACKLOG: usize = 64;

/// The message that says how a job stands, ready to be sent.
pub type Message = Arc<str>;

/// The feeds of this process.
#[derive(Clone)]
pub struct JobNews(Arc<Shared>);

struct Shared {
    jobs: Jobs,
    draining: CancellationToken,
    living: Mutex<HashMap<UserId, Arc<Feed>>>,
    tasks: TaskTracker,
}

/// What those who watch the jobs of one user share.
struct Feed {
    state: Mutex<State>,
    /// Whether the record was read once; its receivers are the watchers.
    is_ready: watch::Sender<bool>,
}

struct State {
    /// Those that have not ended.
    open: HashMap<JobId, (Stage, Message)>,
    /// Those that ended, and were told to have.
    ended: VecDeque<JobId>,
    messages: broadcast::Sender<Message>,
}

/// What a change of is worth telling.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stage {
    state: JobState,
    attempt: u32,
    cancel_requested_at: Option<Timestamp>,
}

impl Stage {
    fn of(job: &JobView) -> Self {
        Self { state: job.status, attempt: job.attempt, cancel_requested_at: job.cancel_requested_at }
    }
}

/// One who watches.
pub struct JobWatch {
    feed: Arc<Feed>,
    is_ready: watch::Receiver<bool>,
    /// Told first.
    snapshot: VecDeque<Message>,
    /// `None` until the snapshot was taken.
    messages: Option<broadcast::Receiver<Message>>,
}

impl JobNews {
    /// No feed yet; all of them end with `draining`.
    pub fn new(jobs: Jobs, draining: CancellationToken) -> Self {
        Self(Arc::new(Shared { jobs, draining, living: Mutex::default(), tasks: TaskTracker::new() }))
    }

    /// Watch the jobs of `user`.
    pub fn watch(&self, user: UserId) -> JobWatch {
        let mut living = lock(&self.0.living);
        let (feed, is_ready) = match living.entry(user) {
            Entry::Occupied(entry) => (entry.get().clone(), entry.get().is_ready.subscribe()),
            Entry::Vacant(entry) => {
                let state = State { open: HashMap::new(), ended: VecDeque::new(), messages: broadcast::Sender::new(BACKLOG) };
                let (is_ready, receiver) = watch::channel(false);
                let feed = Arc::new(Feed { state: Mutex::new(state), is_ready });
                entry.insert(feed.clone());
                self.0.tasks.spawn(run(self.0.clone(), feed.clone(), user));
                (feed, receiver)
            }
        };
        JobWatch { feed, is_ready, snapshot: VecDeque::new(), messages: None }
    }

    /// Wait until every feed has ended; they do so once draining began.
    pub async fn join_all(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl JobWatch {
    /// How the next job stands. Cancel-safe.
    pub async fn next(&mut self) -> Message {
        loop {
            if let Some(message) = self.snapshot.pop_front() {
                return message;
            }
            let Some(messages) = &mut self.messages else {
                if self.is_ready.wait_for(|ready| *ready).await.is_ok() {
                    self.start();
                } else {
                    std::future::pending::<()>().await;
                }
                continue;
            };
            match messages.recv().await {
                Ok(message) => return message,
                Err(broadcast::error::RecvError::Lagged(_)) => self.start(),
                // Only when the server ends.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// Begin, or begin anew: what is open now, and then every change.
    fn start(&mut self) {
        let state = lock(&self.feed.state);
        self.messages = Some(state.messages.subscribe());
        self.snapshot = state.open.values().map(|(_, message)| message.clone()).collect();
    }
}

async fn run(shared: Arc<Shared>, feed: Arc<Feed>, user: UserId) {
    tokio::select! {
        () = follow(&shared.jobs, &feed, user) => {}
        () = abandoned(&shared, &feed, user) => {}
        () = shared.draining.cancelled() => {}
    }
}

/// Follow the jobs of `user` for ever.
async fn follow(jobs: &Jobs, feed: &Feed, user: UserId) {
    let mut news: Option<StateNews> = None;
    loop {
        if news.is_none() {
            news = jobs.hear(user).await.ok();
        }
        // Subscribe first, then look: a change in between is in one of the two.
        let look_at = match look(jobs, feed, user).await {
            Ok(()) => Instant::now() + if news.is_some() { LOOK } else { RETRY },
            Err(error) => {
                debug!(user.id = %user, %error, "Could not look at the jobs of a user");
                Instant::now() + RETRY
            }
        };
        let heard = async {
            let Some(news) = &mut news else { return std::future::pending().await };
            while let Some(id) = news.next().await {
                if peek(jobs, feed, user, id).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = heard => {}
            () = sleep_until(look_at) => {}
        }
    }
}

/// Read how all of them stand.
async fn look(jobs: &Jobs, feed: &Feed, user: UserId) -> Result<()> {
    let open = jobs.unended(user, MOST).await?;
    let filter = JobFilter { state: None, session_id: None, dead_letters: false, before: None, limit: NEWEST };
    let newest: Vec<JobView> = jobs.list(user, filter).await?.jobs.iter().map(Job::view).collect();
    let gone: Vec<JobId> = {
        let state = lock(&feed.state);
        state.open.keys().filter(|id| !open.iter().any(|job| job.id == **id)).copied().collect()
    };
    let is_first = !*feed.is_ready.borrow();
    for job in open.iter().chain(newest.iter().rev()) {
        if is_first && job.status.is_terminal() {
            lock(&feed.state).remember(job.id);
        } else {
            lock(&feed.state).tell(job);
        }
    }
    for id in gone {
        peek(jobs, feed, user, id).await?;
    }
    feed.is_ready.send_replace(true);
    Ok(())
}

/// Read how one of them stands.
async fn peek(jobs: &Jobs, feed: &Feed, user: UserId, id: JobId) -> Result<()> {
    match jobs.find(user, id).await? {
        Some(job) => lock(&feed.state).tell(&job.view()),
        None => drop(lock(&feed.state).open.remove(&id)),
    }
    Ok(())
}

impl State {
    /// Tell how `job` stands, unless that was told before.
    fn tell(&mut self, job: &JobView) {
        let stage = Stage::of(job);
        let is_known = self.open.get(&job.id).is_some_and(|(known, _)| *known == stage) || self.ended.contains(&job.id);
        if is_known {
            return;
        }
        let message = message(job);
        if job.status.is_terminal() {
            self.open.remove(&job.id);
            self.remember(job.id);
        } else {
            self.open.insert(job.id, (stage, message.clone()));
        }
        // Nobody may watch at the moment.
        let _ = self.messages.send(message);
    }

    fn remember(&mut self, ended: JobId) {
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }
}

fn message(job: &JobView) -> Message {
    let text = |job: &JobView| json!({"type": "job", "job": job}).to_string();
    let whole = text(job);
    if whole.len() <= MAX_EVENT_BYTES {
        return whole.into();
    }
    let mut cut = job.clone();
    cut.truncate();
    text(&cut).into()
}

/// Wait until nobody watches any more, and take the feed away.
async fn abandoned(shared: &Shared, feed: &Feed, user: UserId) {
    loop {
        feed.is_ready.closed().await;
        sleep(LINGER).await;
        // Watchers come in under this lock: whoever is not counted here will not find this feed.
        let mut living = lock(&shared.living);
        if feed.is_ready.receiver_count() == 0 {
            living.remove(&user);
            return;
        }
    }
}

/// A lock whose holder panicked guards a state that is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
