//! No reader misses anything: whatever becomes of a job, of its log, of its announcements and of the readers
//! themselves, in whatever order, each of them is told the same.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use poem::http::StatusCode;
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};
use serde_json::Value;
use shared::{
    event::{Event, EventId, is_terminal},
    id::JobId,
    job::{JobError, JobResult},
    lease::{Lease, Outcome},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::stage::{Elsewhere, Events, Hand, PATIENCE, Stage, complete, say, settle};

/// How long readers may take to their end. A hole that no announcement shows is found after five seconds.
const LIMIT: Duration = Duration::from_secs(15);

/// What happens, and how it ends.
#[derive(Clone, Debug)]
struct Story {
    steps: Vec<Step>,
    end: End,
    /// Whether the log is gone from Redis once the job has ended.
    expires: bool,
}

#[derive(Clone, Debug)]
enum Step {
    /// The job says so many pieces of so many bytes each.
    Say(usize, usize),
    /// From here on appends are announced, or they are not.
    Announce(bool),
    /// Redis loses the log; its worker sends it again with its next event.
    LoseLog,
    /// The attempt is handed back, and another one begins.
    HandBack,
    /// Somebody begins to read at this server.
    Join(usize),
    /// A reader takes nothing from here on.
    Pause(usize),
    /// A reader goes on taking.
    Resume(usize),
    /// The connection of a reader breaks; it goes on at this server.
    Move(usize, usize),
    /// All who read have what there is before more happens.
    Meet,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Completed,
    Failed,
    Cancelled,
}

fn story() -> impl Strategy<Value = Story> {
    // Announced whole; by its id alone; in several pieces; in many.
    let bytes = prop_oneof![4 => Just(10_usize), 2 => Just(3_000), 2 => Just(9_000), 2 => Just(20_000), 1 => Just(150_000)];
    let step = prop_oneof![
        8 => (1..8_usize, bytes).prop_map(|(pieces, bytes)| Step::Say(pieces, bytes)),
        // More than a feed keeps.
        1 => Just(Step::Say(700, 10)),
        1 => Just(Step::Say(30, 200_000)),
        3 => any::<bool>().prop_map(Step::Announce),
        2 => Just(Step::LoseLog),
        2 => Just(Step::HandBack),
        4 => (0..2_usize).prop_map(Step::Join),
        2 => any::<usize>().prop_map(Step::Pause),
        2 => any::<usize>().prop_map(Step::Resume),
        4 => (any::<usize>(), 0..2_usize).prop_map(|(reader, server)| Step::Move(reader, server)),
        5 => Just(Step::Meet),
    ];
    let end = prop_oneof![Just(End::Completed), Just(End::Failed), Just(End::Cancelled)];
    (prop::collection::vec(step, 4..24), end, any::<bool>()).prop_map(|(steps, end, expires)| Story { steps, end, expires })
}

/// More of it: `PROPTEST_CASES=500 scripts/test -E 'test(every_reader_is_told_the_same)'`; the same again, with
/// the `PROPTEST_RNG_SEED` that it prints.
#[test]
fn every_reader_is_told_the_same_whatever_happens() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let servers = runtime.block_on(Servers::start());
    let mut config = Config { failure_persistence: None, max_shrink_iters: 40, ..Config::default() };
    // What proptest takes where nobody asks for a number.
    if config.cases == 256 {
        config.cases = 16;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(RandomState::new().hash_one(()));
    }
    let seed = config.rng_seed;

    let outcome = TestRunner::new(config).run(&story(), |story| runtime.block_on(servers.play(&story)));

    // Within the runtime: what it holds was made there.
    runtime.block_on(async { drop(servers) });
    if let Err(failure) = outcome {
        panic!("{failure}\nwith the seed {seed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_event_that_nobody_announced_is_found_by_its_silence() {
    let stage = Stage::new().await;
    let (going_on, ending) = (stage.submit("hi").await, stage.submit("hi").await);
    let mut hand = stage.hand().await;
    let mut leases = [hand.take().await, hand.take().await];
    leases.sort_by_key(|lease| lease.job().id.to_string() != going_on);
    let mut readers = [stage.follow(&going_on, None).await, stage.follow(&ending, None).await];
    for reader in &mut readers {
        reader.until("job.started").await;
    }
    let [goes_on, ends] = leases;

    stage.announces(false).await;
    let begun = Instant::now();
    say(&goes_on, "unheard");
    complete(ends, "done").await;

    let [one, other] = &mut readers;
    let (delta, completed) = tokio::join!(one.until("text.delta"), other.until("job.completed"));
    assert!(begun.elapsed() < Duration::from_millis(6_500), "{:?}", begun.elapsed());
    assert_eq!((delta.id.as_deref(), delta.data["text"].as_str()), (Some("1-1"), Some("unheard")));
    assert_eq!(completed.id.as_deref(), Some("1-1"));
    assert_eq!(other.next().await, None);
}

/// Two servers over the same stores.
struct Servers {
    stage: Stage,
    other: Elsewhere,
}

impl Servers {
    async fn start() -> Arc<Self> {
        let unlimited = [("DEFAULT_RATE_LIMIT_PER_HOUR", "1000000")];
        let stage = Stage::set(&unlimited).await;
        let other = stage.elsewhere(&unlimited).await;
        Arc::new(Self { stage, other })
    }

    async fn follow(&self, server: usize, job: &str, last: Option<EventId>) -> Events {
        let last = last.map(|last| last.to_string());
        match server {
            0 => self.stage.follow(job, last.as_deref()).await,
            _ => self.other.follow(&self.stage.key, job, last.as_deref()).await,
        }
    }

    async fn play(self: &Arc<Self>, story: &Story) -> Result<(), TestCaseError> {
        self.stage.announces(true).await;
        let mut hand = self.stage.hand().await;
        let job = self.stage.submit("hi").await;
        let mut play = Play { servers: self.clone(), lease: hand.take().await, said: 0, readers: Vec::new(), loses: false, job };
        play.join(0);
        for step in &story.steps {
            play = play.step(step, &mut hand).await?;
        }
        play.end(story).await
    }
}

/// A story that is being told.
struct Play {
    servers: Arc<Servers>,
    job: String,
    lease: Lease,
    /// How many pieces the attempt has said.
    said: u32,
    readers: Vec<Reader>,
    /// Whether anything was lost that readers can have a position in.
    loses: bool,
}

impl Play {
    async fn step(mut self, step: &Step, hand: &mut Hand) -> Result<Self, TestCaseError> {
        let stage = &self.servers.stage;
        match *step {
            Step::Say(pieces, bytes) => self.say(pieces, bytes),
            Step::Announce(does) => stage.announces(does).await,
            Step::LoseLog => {
                self.loses = true;
                stage.lose_log(&self.job).await;
            }
            Step::HandBack => {
                stage.announces(true).await;
                settle(self.lease, Outcome::HandBack).await;
                (self.lease, self.said) = (hand.take().await, 0);
            }
            Step::Join(server) => self.join(server),
            Step::Pause(reader) => self.tell(reader, Order::Pause),
            Step::Resume(reader) => self.tell(reader, Order::Resume),
            Step::Move(reader, server) => self.tell(reader, Order::Move(server)),
            Step::Meet => {
                stage.announces(true).await;
                self.say(1, 10);
                let newest = EventId { attempt: self.lease.job().attempt, n: self.said };
                for reader in self.readers.iter_mut().filter(|reader| !reader.is_paused) {
                    let reached = timeout(LIMIT, reader.seen.wait_for(|seen| *seen >= Some(newest))).await;
                    let outcome = reached.map(|reached| reached.is_ok());
                    prop_assert_eq!(outcome, Ok(true), "a reader did not get to {}", newest);
                }
            }
        }
        Ok(self)
    }

    fn say(&mut self, pieces: usize, bytes: usize) {
        for _ in 0..pieces {
            // More than an attempt may say is not what this is about.
            if self.said < 60 || bytes < 100_000 {
                self.said += 1;
                say(&self.lease, &format!("{}:{}", self.said, "x".repeat(bytes)));
            }
        }
    }

    fn join(&mut self, server: usize) {
        if self.readers.len() < 6 {
            self.readers.push(Reader::start(self.servers.clone(), self.job.clone(), server));
        }
    }

    fn tell(&mut self, reader: usize, order: Order) {
        let at = reader % self.readers.len();
        let reader = &mut self.readers[at];
        match order {
            Order::Pause => reader.is_paused = true,
            Order::Resume => reader.is_paused = false,
            Order::Move(_) => {}
        }
        // One that has panicked is found at the end.
        let _ = reader.orders.send(order);
    }

    async fn end(self, story: &Story) -> Result<(), TestCaseError> {
        let Self { servers, job, lease, readers, loses, .. } = self;
        servers.stage.announces(true).await;
        let error = JobError::new("internal_error", "it is over", false);
        let outcome = match story.end {
            End::Completed => Outcome::Completed(JobResult { text: "done".into(), ..JobResult::default() }),
            End::Failed => Outcome::Failed(error),
            End::Cancelled => Outcome::Cancelled,
        };
        settle(lease, outcome).await;
        if story.expires {
            servers.stage.lose_log(&job).await;
        }
        let late = Reader::start(servers.clone(), job.clone(), 1);

        let id: JobId = job.parse().expect("a job's id");
        let record = servers.stage.app.feeds.events().archived(id).await.expect("readable").expect("kept");
        let mut known = BTreeMap::new();
        known.extend(record.iter().map(|event| (event.id, data(event))));
        for Reader { orders, task, .. } in readers.into_iter().chain([late]) {
            // Whoever is told nothing more reads to the end.
            drop(orders);
            let told = timeout(LIMIT, task).await;
            let Ok(Ok(told)) = told else { return Err(TestCaseError::fail(format!("a reader did not come to its end: {told:?}"))) };
            judge(&told, &record, &mut known, loses)?;
        }
        Ok(())
    }
}

fn data(event: &Event) -> Value {
    serde_json::from_slice(&event.json).expect("JSON")
}

/// Whether a reader who was `told` this missed nothing and heard nothing twice. `known`: what each event is.
fn judge(told: &[Told], record: &[Event], known: &mut BTreeMap<EventId, Value>, loses: bool) -> Result<(), TestCaseError> {
    let mut last = None;
    let mut since_start = Vec::new();
    for (at, told_now) in told.iter().enumerate() {
        match told_now {
            Told::Resync => {
                prop_assert!(loses, "a reader was told to start anew, and nothing had been lost");
                (last, since_start) = (None, Vec::new());
            }
            Told::Event { id, kind, data } => {
                prop_assert!(id.follows(last), "{} after {:?}", id, last);
                prop_assert_eq!(is_terminal(kind), at + 1 == told.len(), "{} {} at {} of {}", id, kind, at + 1, told.len());
                prop_assert_eq!(&*known.entry(*id).or_insert_with(|| data.clone()), data, "{} is not what others heard", id);
                last = Some(*id);
                since_start.push(*id);
            }
        }
    }
    let final_attempt: Vec<EventId> = record.iter().map(|event| event.id).collect();
    since_start.retain(|id| id.attempt == final_attempt[0].attempt);
    prop_assert_eq!(since_start, final_attempt);
    Ok(())
}

/// What a reader was told.
#[derive(Clone, Debug)]
enum Told {
    Event { id: EventId, kind: String, data: Value },
    Resync,
}

/// What a reader is to do.
#[derive(Debug)]
enum Order {
    Pause,
    Resume,
    Move(usize),
}

/// Somebody who reads, and writes down what they are told.
struct Reader {
    orders: mpsc::UnboundedSender<Order>,
    is_paused: bool,
    seen: watch::Receiver<Option<EventId>>,
    task: JoinHandle<Vec<Told>>,
}

impl Reader {
    fn start(servers: Arc<Servers>, job: String, server: usize) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (seeing, seen) = watch::channel(None);
        Self { orders, is_paused: false, seen, task: tokio::spawn(read(servers, job, server, inbox, seeing)) }
    }
}

async fn read(
    servers: Arc<Servers>,
    job: String,
    mut server: usize,
    mut orders: mpsc::UnboundedReceiver<Order>,
    seen: watch::Sender<Option<EventId>>,
) -> Vec<Told> {
    let (mut told, mut last) = (Vec::new(), None);
    let (mut is_paused, mut is_told_to) = (false, true);
    let mut events = servers.follow(server, &job, last).await;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE * 2 {
        if events.status == StatusCode::NO_CONTENT {
            return told;
        }
        tokio::select! {
            biased;
            order = orders.recv(), if is_told_to => match order {
                Some(Order::Pause) => is_paused = true,
                Some(Order::Resume) => is_paused = false,
                Some(Order::Move(to)) => {
                    server = to;
                    events = servers.follow(server, &job, last).await;
                }
                None => (is_paused, is_told_to) = (false, false),
            },
            message = events.next(), if !is_paused => match message {
                // Cut off, or over: whoever has the end is told not to come back.
                None => events = servers.follow(server, &job, last).await,
                Some(message) if message.kind() == "resync" => {
                    assert_eq!(message.data["job"]["id"], *job);
                    told.push(Told::Resync);
                    last = None;
                }
                Some(message) => if let Some(id) = message.id {
                    let id: EventId = id.parse().expect("an event's id");
                    last = Some(id);
                    told.push(Told::Event { id, kind: message.event.expect("a type"), data: message.data });
                    seen.send_replace(last);
                },
            },
        }
    }
    panic!("never told the end: {:?}", told.last());
}
