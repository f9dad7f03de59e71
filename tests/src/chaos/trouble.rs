//! Makes faults, one after the other and some beside each other, and ends them all. What it did is told line by line.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use shared::time::Timestamp;
use tokio::{
    sync::{OwnedMutexGuard, OwnedRwLockWriteGuard},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use crate::system::processes_with;

use super::{
    Fault,
    cast::{Cast, Loss, Place, about},
};

/// How long a worker may be silent here: see [`crate::system::System::start`].
const TTL: Duration = Duration::from_secs(3);
/// The longest that one process is cut off, or a store away.
const AWAY: Duration = Duration::from_millis(1_500);

/// Who makes the faults.
pub(super) struct Trouble {
    cast: Arc<Cast>,
    random: Rng,
    notes: Arc<Notes>,
    under_way: JoinSet<anyhow::Result<()>>,
    /// The longest stall of this process in milliseconds, and who measures it.
    stall: Arc<AtomicU64>,
    _stalls: AbortOnDropHandle<()>,
}

/// What was done.
pub(super) struct Notes {
    begin: Instant,
    begin_ms: i64,
    told: Mutex<Vec<String>>,
    losses: Mutex<Vec<Loss>>,
    counts: Mutex<BTreeMap<Fault, usize>>,
}

impl Notes {
    fn say(&self, what: &str) {
        let line = format!("  {:>7.3}s {what}", self.begin.elapsed().as_secs_f64());
        lock(&self.told).push(line);
    }

    fn loses(&self, place: &Place, fault: Fault) {
        lock(&self.losses).extend(place.loses(fault));
    }
}

impl Trouble {
    pub(super) fn new(cast: Arc<Cast>, begin: Instant, random: Rng) -> Self {
        let notes = Notes {
            begin,
            begin_ms: Timestamp::now().unix_ms(),
            told: Mutex::default(),
            losses: Mutex::default(),
            counts: Mutex::default(),
        };
        let stall = Arc::new(AtomicU64::default());
        let stalls = AbortOnDropHandle::new(tokio::spawn(measure_stalls(stall.clone())));
        Self { cast, random, notes: Arc::new(notes), under_way: JoinSet::new(), stall, _stalls: stalls }
    }

    /// How many seconds after the beginning that was.
    pub(super) fn since_begin(&self, unix_ms: i64) -> f64 {
        let ms = u64::try_from(unix_ms - self.notes.begin_ms).unwrap_or(0);
        Duration::from_millis(ms).as_secs_f64()
    }

    /// The longest that this process was not let run.
    pub(super) fn longest_stall(&self) -> Duration {
        Duration::from_millis(self.stall.load(Ordering::Relaxed))
    }

    /// What was done so far.
    pub(super) fn told(&self) -> String {
        lock(&self.notes.told).join("\n")
    }

    /// How often each fault was made.
    pub(super) fn counts(&self) -> BTreeMap<Fault, usize> {
        lock(&self.notes.counts).clone()
    }

    /// The workers that may have lost jobs, and when.
    pub(super) fn losses(&self) -> Vec<Loss> {
        lock(&self.notes.losses).clone()
    }

    /// Make faults, about one each `pause`, until something is wrong or this is dropped.
    pub(super) async fn make(&mut self, faults: &[(Fault, u32)], pause: Duration) -> anyhow::Result<Infallible> {
        let sum: u32 = faults.iter().map(|(_, weight)| weight).sum();
        loop {
            sleep(about(pause, &mut self.random)).await;
            while let Some(ended) = self.under_way.try_join_next() {
                ended??;
            }
            let mut at = self.random.u32(..sum);
            let fault = faults.iter().find(|(_, weight)| at.checked_sub(*weight).inspect(|left| at = *left).is_none());
            let fault = fault.context("some fault has the weight")?.0;
            if self.begin(fault) {
                *lock(&self.notes.counts).entry(fault).or_default() += 1;
            }
        }
    }

    /// Wait until all faults have ended, and every place has a process that lives.
    pub(super) async fn settle(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.under_way.join_next().await {
            ended??;
        }
        self.notes.say("all faults have ended");
        Ok(())
    }

    /// End all faults where they are.
    pub(super) async fn stop(&mut self) {
        self.under_way.shutdown().await;
    }

    /// Begin a fault. Whether there was something to break.
    fn begin(&mut self, fault: Fault) -> bool {
        let (cast, mut random) = (self.cast.clone(), self.random.fork());
        let everybody: Vec<_> = cast.apis.iter().chain(&cast.workers).cloned().collect();
        let mut free = |places: &[Arc<tokio::sync::Mutex<Place>>]| Cast::free(places, &mut random);
        let act = Act { cast: cast.clone(), notes: self.notes.clone(), random: self.random.fork(), fault };
        let tasks = &mut self.under_way;
        match fault {
            Fault::WorkerKill => free(&cast.workers).map(|place| tasks.spawn(act.kill(place))),
            Fault::WorkerFreeze => free(&cast.workers).map(|place| tasks.spawn(act.freeze(place))),
            Fault::ApiKill => free(&cast.apis).map(|place| tasks.spawn(act.kill(place))),
            Fault::LeaderKill => {
                let living = everybody.iter().filter_map(|place| place.clone().try_lock_owned().ok());
                let leader = living.filter(|place| place.led().is_some()).max_by_key(|place| place.led());
                leader.map(|place| tasks.spawn(act.kill(place)))
            }
            Fault::CliKill | Fault::SupervisorKill => act.kill_below().then(|| tasks.spawn(async { Ok(()) })),
            Fault::ReplyLost => free(&everybody).map(|place| act.lose_reply(&place)).map(|()| tasks.spawn(async { Ok(()) })),
            Fault::RedisUnreachable => free(&everybody).map(|place| tasks.spawn(act.cut_off_from_redis(place))),
            Fault::DatabaseUnreachable => free(&everybody).map(|place| tasks.spawn(act.cut_off_from_database(place))),
            Fault::Drain => free(&cast.workers).map(|place| tasks.spawn(act.drain(place))),
            Fault::Scale => Some(tasks.spawn(act.scale())),
            Fault::RedisKill
            | Fault::RedisTailLost
            | Fault::RedisFreeze
            | Fault::Flush
            | Fault::RedisFull
            | Fault::ClientsEnded
            | Fault::SubscribersEnded => cast.stores.clone().try_write_owned().ok().map(|held| tasks.spawn(act.break_redis(held))),
            Fault::BackendsEnded | Fault::DatabaseCrash => {
                cast.stores.clone().try_write_owned().ok().map(|held| tasks.spawn(act.break_database(held)))
            }
        }
        .is_some()
    }
}

/// One fault.
struct Act {
    cast: Arc<Cast>,
    notes: Arc<Notes>,
    random: Rng,
    fault: Fault,
}

type Held = OwnedMutexGuard<Place>;

impl Act {
    async fn kill(mut self, mut place: Held) -> anyhow::Result<()> {
        self.notes.say(&format!("{:?}: {}", self.fault, place.name));
        self.notes.loses(&place, self.fault);
        place.kill().await?;
        sleep(about(Duration::from_millis(700), &mut self.random)).await;
        self.restart(&mut place).await
    }

    async fn restart(&self, place: &mut Place) -> anyhow::Result<()> {
        self.cast.start(place).await?;
        self.notes.say(&format!("{} is there again", place.name));
        Ok(())
    }

    async fn freeze(self, mut place: Held) -> anyhow::Result<()> {
        self.notes.say(&format!("{:?}: {}", self.fault, place.name));
        self.notes.loses(&place, self.fault);
        place.harms += 1;
        let process = place.process.as_ref().context("a process that lives")?;
        process.signal(Signal::STOP)?;
        sleep(TTL * 3 / 2).await;
        process.signal(Signal::CONT)?;
        self.notes.say(&format!("{} goes on", place.name));
        Ok(())
    }

    /// Kill one of the processes below a worker.
    fn kill_below(mut self) -> bool {
        let mark = format!("{}/cli/", self.cast.system.directory().display());
        let is_supervisor = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"worker\0supervise"));
        let wanted = self.fault == Fault::SupervisorKill;
        let pids: Vec<i32> = processes_with(&mark).unwrap_or_default().into_iter().filter(|pid| is_supervisor(*pid) == wanted).collect();
        let Some(pid) = self.random.choice(pids).and_then(Pid::from_raw) else { return false };
        self.notes.say(&format!("{:?}: {}", self.fault, pid.as_raw_nonzero()));
        // It may be gone by now.
        let _ = kill_process(pid, Signal::KILL);
        true
    }

    fn lose_reply(mut self, place: &Place) {
        // A commit, a doorbell heard, a doorbell rung or taken away, events on their way, or whatever comes next.
        let nth = self.random.usize(1..4);
        let what = match (self.random.u8(..6), &place.postgres) {
            (0 | 1, Some(postgres)) => {
                postgres.drop_reply_then_close(b"COMMIT", nth);
                "of a commit"
            }
            (2, Some(postgres)) => {
                postgres.drop_reply_then_close(&[0, 0], nth);
                "of the database"
            }
            (3, _) => {
                place.redis.swallow_reply(b"{q}:work", nth);
                "with a doorbell"
            }
            (4, _) => {
                place.redis.drop_reply_then_close(b"{q}:idx", nth);
                "to a change of the queue"
            }
            _ => {
                place.redis.drop_reply_then_close(b":log", nth);
                "to an event"
            }
        };
        self.notes.say(&format!("{:?}: {}, number {nth} {what}", self.fault, place.name));
    }

    async fn cut_off_from_redis(mut self, mut place: Held) -> anyhow::Result<()> {
        let time = about(AWAY, &mut self.random);
        // The database may crash meanwhile: then it is cut off from everything.
        place.harms += 1;
        self.notes.say(&format!("{:?}: {} for {time:?}", self.fault, place.name));
        place.redis.black_hole();
        sleep(time).await;
        place.redis.heal();
        Ok(())
    }

    async fn cut_off_from_database(mut self, mut place: Held) -> anyhow::Result<()> {
        let time = about(AWAY, &mut self.random) + AWAY * u32::from(self.random.bool());
        self.notes.say(&format!("{:?}: {} for {time:?}", self.fault, place.name));
        self.notes.loses(&place, self.fault);
        place.harms += 1;
        let postgres = place.postgres.as_ref().context("a database behind a network")?;
        postgres.black_hole();
        sleep(time).await;
        postgres.heal();
        Ok(())
    }

    async fn drain(mut self, mut place: Held) -> anyhow::Result<()> {
        self.stop(&mut place).await?;
        sleep(about(Duration::from_millis(300), &mut self.random)).await;
        self.restart(&mut place).await
    }

    async fn stop(&self, place: &mut Place) -> anyhow::Result<()> {
        self.notes.say(&format!("{:?}: {}", self.fault, place.name));
        self.notes.loses(place, self.fault);
        let process = place.process.as_mut().context("a process that lives")?;
        process.signal(Signal::TERM)?;
        let ended = self.cast.in_spite_of_faults(process.ended()).await?;
        anyhow::ensure!(ended, "{} did not end well; its log:\n{}", place.name, process.log());
        place.bury().await
    }

    async fn scale(mut self) -> anyhow::Result<()> {
        let cast = self.cast.clone();
        let mut leaving = Vec::new();
        for _ in 0..2 {
            leaving.extend(Cast::free(&cast.workers[..3], &mut self.random));
        }
        for place in &mut leaving {
            self.stop(place).await?;
        }
        for place in &mut leaving {
            self.restart(place).await?;
        }
        if let Ok(mut fourth) = cast.workers[3].clone().try_lock_owned()
            && fourth.process.is_none()
        {
            self.restart(&mut fourth).await?;
        }
        Ok(())
    }

    async fn break_redis(mut self, _held: OwnedRwLockWriteGuard<()>) -> anyhow::Result<()> {
        let redis = &self.cast.system.redis;
        self.notes.say(&format!("{:?}", self.fault));
        match self.fault {
            Fault::RedisKill => {
                redis.kill();
                sleep(about(AWAY / 2, &mut self.random)).await;
                redis.restart()?;
            }
            Fault::RedisTailLost => {
                redis.kill();
                let lost = self.random.u64(1..4_000);
                cut_tail(self.cast.system.directory(), lost)?;
                redis.restart()?;
                self.notes.say(&format!("Redis forgot {lost} bytes"));
            }
            Fault::RedisFreeze => {
                redis.signal(Signal::STOP)?;
                sleep(about(AWAY, &mut self.random) + AWAY / 2).await;
                redis.signal(Signal::CONT)?;
            }
            Fault::RedisFull => {
                redis.command(&["CONFIG", "SET", "maxmemory", "1"])?;
                sleep(Duration::from_secs(2)).await;
                redis.command(&["CONFIG", "SET", "maxmemory", "0"])?;
            }
            Fault::Flush => drop(redis.command(&["FLUSHALL"])?),
            Fault::ClientsEnded => drop(redis.command(&["CLIENT", "KILL", "TYPE", "normal"])?),
            _ => drop(redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"])?),
        }
        self.notes.say("Redis is as it should be");
        Ok(())
    }

    async fn break_database(mut self, _held: OwnedRwLockWriteGuard<()>) -> anyhow::Result<()> {
        let database = &self.cast.system.database;
        self.notes.say(&format!("{:?}", self.fault));
        if self.fault == Fault::BackendsEnded {
            return database.end_connections().await;
        }
        let server = database.server()?;
        server.crash();
        sleep(about(AWAY, &mut self.random)).await;
        server.open().await?;
        self.notes.say("the database is there again");
        Ok(())
    }
}

async fn measure_stalls(longest: Arc<AtomicU64>) {
    const STEP: Duration = Duration::from_millis(20);
    loop {
        let began = Instant::now();
        sleep(STEP).await;
        let late = began.elapsed().saturating_sub(STEP);
        longest.fetch_max(u64::try_from(late.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Cut the end off what Redis wrote down last.
fn cut_tail(directory: &std::path::Path, bytes: u64) -> anyhow::Result<()> {
    let files = fs::read_dir(directory.join("appendonlydir"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<_> = files.filter(|path| path.to_string_lossy().ends_with(".incr.aof")).collect();
    files.sort();
    let newest = fs::File::options().write(true).open(files.last().context("a file that grows")?)?;
    let length = newest.metadata()?.len();
    Ok(newest.set_len(length.saturating_sub(bytes))?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
