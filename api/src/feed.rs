//! One job's events for all its watchers in this process. A feed subscribes, reads the log, then applies
//! what it is told; on any doubt it reads again, and in silence it asks the record. It keeps no queue for
//! anybody: watchers are places in its ring (`watch`). It ends with its job, or a while after its last
//! watcher left.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{
    event::{Event, EventBody, EventId, StartReason},
    events::{Events, Requeued, Signal, Subscription},
    failpoint,
    id::JobId,
    job::{Job, JobState},
    jobs::Jobs,
    time::Timestamp,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    glance::Glances,
    metrics::{Open, Readers},
    ring::{Framed, Place, Ring, before},
};

/// How long a feed outlives its last watcher, so that a reconnecting one finds it.
const LINGER: Duration = Duration::from_secs(5);
/// How long a running job may be silent before the record is asked.
const SILENCE: Duration = Duration::from_secs(5);
/// How often the place of a queued job is looked at.
const QUEUE_LOOK: Duration = Duration::from_secs(2);
/// How long to wait after Redis or the database did not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How many events are read at a time.
const PAGE: u64 = 128;

/// The place of a queued job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// How many jobs go before it.
    pub position: u64,
    /// How long it will wait, where that can be guessed.
    pub estimated_wait_ms: Option<u64>,
}

/// A job that will run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retrying {
    /// The attempt to come.
    pub attempt: u32,
    /// Why there will be one.
    pub reason: StartReason,
    /// How long it is held back.
    pub delay_ms: u64,
}

/// What is said about a job beside its log: it has no number and is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Its place in the queue.
    Queued(Queued),
    /// It went back to the queue.
    Retrying(Retrying),
}

/// The feeds of this process.
#[derive(Clone)]
pub struct Feeds(Arc<Shared>);

struct Shared {
    jobs: Jobs,
    events: Events,
    glances: Glances,
    readers: Readers,
    draining: CancellationToken,
    living: Mutex<HashMap<JobId, Arc<Feed>>>,
    tasks: TaskTracker,
}

impl Feeds {
    /// No feed yet; all of them end with `draining`.
    pub fn new(jobs: Jobs, events: Events, readers: Readers, draining: CancellationToken) -> Self {
        let glances = Glances::new(jobs.clone(), events.clone());
        Self(Arc::new(Shared { jobs, events, glances, readers, draining, living: Mutex::default(), tasks: TaskTracker::new() }))
    }

    /// The door to jobs.
    pub fn jobs(&self) -> &Jobs {
        &self.0.jobs
    }

    /// The door to logs.
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// Where it is counted how those who watch keep up.
    pub fn readers(&self) -> &Readers {
        &self.0.readers
    }

    /// Watch `job` as it goes on. The feed lives at least as long as what this answers.
    pub fn join(&self, job: &Job) -> Member {
        let mut living = lock(&self.0.living);
        match living.entry(job.id) {
            Entry::Occupied(entry) => {
                let feed = entry.get().clone();
                let version = feed.version.subscribe();
                Member { feed, version }
            }
            Entry::Vacant(entry) => {
                let (sender, version) = watch::channel(0);
                let feed = Arc::new(Feed { job: job.id, state: Mutex::default(), version: sender });
                entry.insert(feed.clone());
                let follower = Follower::new(self.0.clone(), feed.clone(), job);
                self.0.tasks.spawn(follower.run());
                Member { feed, version }
            }
        }
    }

    /// Wait until `job` has ended, at most `limit`, and not once the server is told to stop.
    pub async fn wait_for_end(&self, job: &Job, limit: Duration) {
        if job.state.is_terminal() {
            return;
        }
        let mut member = self.join(job);
        let ended = async { while !member.look(before(u32::MAX), u64::MAX, 0).ended && member.changed().await {} };
        tokio::select! {
            () = ended => {}
            () = sleep(limit) => {}
            () = self.0.draining.cancelled() => {}
        }
    }

    /// Wait until every feed has ended; they do so once draining began.
    pub async fn join_all(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

/// What watchers of one job share.
struct Feed {
    job: JobId,
    state: Mutex<State>,
    /// Raised with every change; its receivers are the watchers.
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    ring: Ring,
    advice: Option<(u64, Advice)>,
    advices: u64,
    ended: bool,
}

impl Feed {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    fn newest(&self) -> Option<EventId> {
        lock(&self.state).ring.newest()
    }

    fn ended(&self) -> bool {
        lock(&self.state).ended
    }
}

/// What a watcher finds at its place.
pub struct Look {
    /// The events after it.
    pub place: Place,
    /// What was said since, and its number.
    pub advice: Option<(u64, Advice)>,
    /// Whether nothing will follow what the ring has.
    pub ended: bool,
}

/// A watcher's hold on a feed.
pub struct Member {
    feed: Arc<Feed>,
    version: watch::Receiver<u64>,
}

impl Member {
    /// What there is after `place`, as much as fits in `room` bytes, and what was said after the advice
    /// numbered `advised`. What changes later ends the next [`Self::changed`].
    pub fn look(&mut self, place: EventId, advised: u64, room: usize) -> Look {
        self.version.borrow_and_update();
        let state = lock(&self.feed.state);
        let place = state.ring.after(place, room);
        Look { place, advice: state.advice.filter(|(number, _)| *number > advised), ended: state.ended }
    }

    /// The event `id`, if it is still kept here.
    pub fn get(&self, id: EventId) -> Option<Framed> {
        lock(&self.feed.state).ring.get(id).cloned()
    }

    /// Wait for a change since the last look. False when there will be none. Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        self.version.changed().await.is_ok()
    }
}

/// The task that keeps a feed going.
struct Follower {
    shared: Arc<Shared>,
    feed: Arc<Feed>,
    /// Where the log is read from when nothing of it is in the ring.
    start: EventId,
    waits: bool,
    announced_attempt: u32,
    place: Option<u64>,
    look_at: Instant,
}

impl Follower {
    fn new(shared: Arc<Shared>, feed: Arc<Feed>, job: &Job) -> Self {
        let waits = job.state == JobState::Queued;
        Self { shared, feed, start: before(job.attempt), waits, announced_attempt: 0, place: None, look_at: Instant::now() }
    }

    async fn run(mut self) {
        let (shared, feed) = (self.shared.clone(), self.feed.clone());
        let _open = Open::new(&shared.readers.feeds);
        tokio::select! {
            () = self.follow() => drop(lock(&shared.living).remove(&feed.job)),
            () = abandoned(&shared, &feed) => {}
            () = shared.draining.cancelled() => {}
        }
    }

    /// Follow the job to its end.
    async fn follow(&mut self) {
        let mut subscription = None;
        while !self.feed.ended() {
            let Some(news) = &mut subscription else {
                subscription = self.subscribe().await;
                continue;
            };
            tokio::select! {
                signal = Subscription::next(news) => self.apply(signal).await,
                () = sleep_until(self.look_at) => self.glance().await,
            }
        }
    }

    /// Subscribe first, then read: what is appended in between is in one of the two.
    async fn subscribe(&mut self) -> Option<Subscription> {
        let subscription = match self.shared.events.subscribe(self.feed.job).await {
            Ok(subscription) => Some(subscription),
            Err(error) => {
                debug!(job.id = %self.feed.job, %error, "Could not subscribe to a job");
                sleep(RETRY).await;
                None
            }
        };
        // Even without Redis the record knows whether the job has ended.
        self.look().await;
        subscription
    }

    async fn apply(&mut self, signal: Signal) {
        match signal {
            Signal::Grown { last, events } => {
                self.push(self.in_order(&events));
                if self.feed.newest().is_none_or(|newest| newest < last) {
                    self.shared.readers.gaps.inc();
                    self.catch_up().await;
                }
            }
            Signal::Requeued(Requeued { attempt, reason, delay_ms }) => {
                self.announce_retry(attempt, reason, delay_ms);
                self.look_at = self.look_at.min(Instant::now() + QUEUE_LOOK);
            }
            Signal::Missed => {
                self.shared.readers.gaps.inc();
                self.look().await;
            }
        }
    }

    /// Those of `events` that go on from the newest one without a hole.
    fn in_order<'a>(&self, events: &'a [Event]) -> &'a [Event] {
        let place = self.feed.newest().unwrap_or(self.start);
        let fresh = &events[events.partition_point(|event| event.id <= place)..];
        let mut last = place;
        let whole = fresh.iter().take_while(|event| event.id.follows(Some(std::mem::replace(&mut last, event.id)))).count();
        &fresh[..whole]
    }

    /// Read the log from the newest event on.
    async fn catch_up(&mut self) {
        loop {
            let place = self.feed.newest().unwrap_or(self.start);
            match self.shared.events.read(self.feed.job, Some(place), PAGE).await {
                Ok(page) if page.is_empty() => return,
                Ok(page) => self.push(&page),
                Err(error) => {
                    debug!(job.id = %self.feed.job, %error, "Could not read a job's log");
                    self.look_at = Instant::now() + RETRY;
                    return;
                }
            }
        }
    }

    fn push(&mut self, events: &[Event]) {
        if events.is_empty() {
            return;
        }
        let framed: Vec<Framed> = events.iter().map(Framed::new).collect();
        self.waits = false;
        self.look_at = Instant::now() + silence();
        // All at once: what watchers take in one go costs them one wake-up and one write.
        self.feed.change(|state| {
            for event in framed {
                state.ended |= event.is_terminal;
                state.ring.push(event);
            }
            // A job that says something neither waits nor retries.
            state.advice = None;
        });
    }

    /// Look whether the job is where it seems to be, and look closer where it is not.
    async fn glance(&mut self) {
        let glance = if self.waits { None } else { self.shared.glances.at(self.feed.job).await };
        if glance.is_some_and(|glance| glance.state == JobState::Running && glance.newest == self.feed.newest()) {
            self.look_at = Instant::now() + silence();
        } else {
            self.look().await;
        }
    }

    /// Ask the record how far the job is, and the log what it has.
    async fn look(&mut self) {
        self.look_at = Instant::now() + if self.waits { QUEUE_LOOK } else { silence() };
        // Row first: what the log gets after a terminal row was read is in the archive too.
        let row = self.shared.jobs.peek(self.feed.job).await;
        self.catch_up().await;
        match row {
            Ok(Some(job)) if job.state.is_terminal() => self.finish(&job).await,
            Ok(Some(job)) if job.state == JobState::Queued => self.wait_in_queue(&job).await,
            Ok(Some(_)) => self.waits = false,
            Ok(None) => self.feed.change(|state| state.ended = true),
            Err(error) => {
                warn!(job.id = %self.feed.job, %error, "Could not look at a watched job");
                self.look_at = Instant::now() + RETRY;
            }
        }
    }

    /// The job has ended: what the log in Redis lacks is in the record.
    async fn finish(&mut self, job: &Job) {
        if self.feed.ended() {
            return;
        }
        match self.shared.events.archived(job.id).await {
            Ok(Some(events)) => self.push(&events),
            Ok(None) => {}
            Err(error) => {
                debug!(job.id = %job.id, %error, "Could not read a job's archive");
                self.look_at = Instant::now() + RETRY;
                return;
            }
        }
        if !self.feed.ended()
            && let Some(last) = last_event(job)
        {
            self.push(&[last]);
        }
    }

    /// The job waits: say at which place, and that it will run again if it ran before.
    async fn wait_in_queue(&mut self, job: &Job) {
        self.waits = true;
        self.look_at = self.look_at.min(Instant::now() + QUEUE_LOOK);
        if self.announce_retry(job.attempt, job.start_reason, job.run_at.ms_since(Timestamp::now())) {
            // The place is said with the next look: of two advices at once watchers would see the second alone.
            return;
        }
        let Ok(place) = self.shared.jobs.place(job).await else { return };
        let position = place.position;
        if self.place.replace(position) != Some(position) {
            self.advise(Advice::Queued(Queued { position, estimated_wait_ms: place.estimated_wait_ms() }));
        }
    }

    /// Say that `attempt` is over and another will follow, unless that was said before.
    fn announce_retry(&mut self, attempt: u32, reason: StartReason, delay_ms: u64) -> bool {
        let is_news = attempt > self.announced_attempt;
        if is_news {
            self.announced_attempt = attempt;
            self.advise(Advice::Retrying(Retrying { attempt: attempt + 1, reason, delay_ms }));
        }
        is_news
    }

    fn advise(&self, advice: Advice) {
        self.feed.change(|state| {
            state.advices += 1;
            state.advice = Some((state.advices, advice));
        });
    }
}

/// The last event of a job whose events are no longer kept. Its number is behind all that the job can have
/// had, so whoever got it is known to have got everything.
pub fn last_event(job: &Job) -> Option<Event> {
    let body = EventBody::terminal(job.view())?;
    let id = EventId { attempt: job.attempt, n: u32::MAX };
    Some(Event::new(id, &body, job.finished_at.unwrap_or(job.created_at)))
}

/// Wait until nobody watches any more, and take the feed away.
async fn abandoned(shared: &Shared, feed: &Feed) {
    loop {
        feed.version.closed().await;
        sleep(LINGER).await;
        // Watchers come in under this lock: whoever is not counted here will not find this feed.
        let mut living = lock(&shared.living);
        if feed.version.receiver_count() == 0 {
            living.remove(&feed.job);
            return;
        }
    }
}

/// How long a feed hears nothing before it looks. A test that has to see this go wrong lets it never look.
fn silence() -> Duration {
    if failpoint::is_off("feed.silence") { Duration::from_hours(1) } else { SILENCE }
}

/// A lock whose holder panicked guards a state that is still whole: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
